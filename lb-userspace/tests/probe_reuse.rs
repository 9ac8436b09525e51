//! HTTP probes on kept connections, with client certificates, with bodies, and with rules on what
//! answers say.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lb_userspace::model::{
    ClientCertificate, HeaderMatch, HttpProbe, Pattern, ProbeKind, ProbeSpec, Reuse, StatusRange,
    TlsOptions,
};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};
use support::{Certificate, Connection, Server, Tls};
use tokio::io::AsyncReadExt;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn spec(server: &Server) -> ProbeSpec {
    ProbeSpec {
        target: server.address,
        timeout: Duration::from_secs(5),
        kind: ProbeKind::Http(HttpProbe {
            method: "GET".to_owned(),
            path: "/readyz".to_owned(),
            host: Some("hc.test".to_owned()),
            expect_status: vec![StatusRange {
                first: 200,
                last: 200,
            }],
            reuse: Some(Reuse {
                max_age: Duration::from_secs(60),
                max_uses: 100,
            }),
            ..HttpProbe::default()
        })
        .into(),
        egress: Default::default(),
    }
}

fn http(spec: &mut ProbeSpec) -> &mut HttpProbe {
    match Arc::make_mut(&mut spec.kind) {
        ProbeKind::Http(http) => http,
        other => panic!("{other:?}"),
    }
}

/// What a server does with a request: connection number, request number on it.
type Play = fn(usize, usize) -> Reaction;

enum Reaction {
    Answer(&'static [u8]),
    AnswerAndClose(&'static [u8]),
    Close,
    Reset,
    Silence,
}

/// A server, and how many connections it has accepted.
async fn server(tls: Option<Tls>, play: Play) -> (Server, Arc<AtomicUsize>) {
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let server = Server::start(tls, move |number, mut connection: Connection| {
        let count = count.clone();
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            let mut buffer = [0; 4096];
            for request in 0.. {
                match connection.stream().read(&mut buffer).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return,
                }
                match play(number, request) {
                    Reaction::Answer(answer) => connection.send(answer).await,
                    Reaction::AnswerAndClose(answer) => {
                        connection.send(answer).await;
                        return connection.fin().await;
                    }
                    Reaction::Close => return connection.fin().await,
                    Reaction::Reset => return connection.rst(),
                    Reaction::Silence => {}
                }
            }
        }
    })
    .await;
    (server, accepted)
}

fn names(outcome: &Outcome) -> Vec<&'static str> {
    outcome.steps.iter().map(|step| step.name).collect()
}

async fn succeed(prober: &Prober, spec: &ProbeSpec) -> Vec<&'static str> {
    let outcome = prober.run(spec).await;
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    names(&outcome)
}

const FRESH: [&str; 4] = ["connect", "request", "headers", "body"];
const KEPT: [&str; 4] = ["reuse", "request", "headers", "body"];
const RETRIED: [&str; 7] = [
    "reuse", "request", "stale", "connect", "request", "headers", "body",
];

#[tokio::test]
async fn a_connection_serves_many_probes() {
    for tls in [None, Some(Tls::new(None, false, b"http/1.1"))] {
        let encrypted = tls.is_some();
        let (server, accepted) = server(tls, |_, _| Reaction::Answer(OK)).await;
        let prober = Prober::new();
        let mut spec = spec(&server);
        http(&mut spec).tls = encrypted.then(TlsOptions::default);
        assert_eq!(succeed(&prober, &spec).await[0], "connect");
        for _ in 0..5 {
            assert_eq!(succeed(&prober, &spec).await, KEPT);
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn without_reuse_each_probe_has_its_own() {
    let (server, accepted) = server(None, |_, _| Reaction::Answer(OK)).await;
    let prober = Prober::new();
    let mut spec = spec(&server);
    http(&mut spec).reuse = None;
    for _ in 0..3 {
        assert_eq!(succeed(&prober, &spec).await, FRESH);
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn age_and_uses_are_limited() {
    let (server, accepted) = server(None, |_, _| Reaction::Answer(OK)).await;
    let prober = Prober::new();
    let mut spec = spec(&server);
    http(&mut spec).reuse.as_mut().unwrap().max_uses = 2;
    for steps in [FRESH, KEPT, FRESH, KEPT] {
        assert_eq!(succeed(&prober, &spec).await, steps);
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
    http(&mut spec).reuse.as_mut().unwrap().max_age = Duration::from_millis(1);
    for _ in 0..2 {
        assert_eq!(succeed(&prober, &spec).await, FRESH);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whatever the end of a kept connection: the fresh one decides.
#[tokio::test]
async fn a_stale_connection_is_no_failure() {
    let plays: [Play; 2] = [
        |connection, request| match (connection, request) {
            (0, 1) => Reaction::Close,
            _ => Reaction::Answer(OK),
        },
        |connection, request| match (connection, request) {
            (0, 1) => Reaction::Reset,
            _ => Reaction::Answer(OK),
        },
    ];
    for play in plays {
        let (server, _) = server(None, play).await;
        let prober = Prober::new();
        let spec = spec(&server);
        assert_eq!(succeed(&prober, &spec).await, FRESH);
        assert_eq!(succeed(&prober, &spec).await, RETRIED);
        assert_eq!(succeed(&prober, &spec).await, KEPT);
    }
}

#[tokio::test]
async fn a_forgotten_connection_is_no_failure() {
    let (server, _) = server(None, |connection, request| match (connection, request) {
        (0, 1..) => Reaction::Silence,
        _ => Reaction::Answer(OK),
    })
    .await;
    let prober = Prober::new();
    let spec = spec(&server);
    assert_eq!(succeed(&prober, &spec).await, FRESH);
    assert_eq!(succeed(&prober, &spec).await, RETRIED);
}

#[tokio::test]
async fn a_closed_connection_is_found_before_it_is_used() {
    // Said in the headers, or done afterwards.
    const CLOSING: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    const OLD: &[u8] = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const SURPLUS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok?";
    let plays: [Play; 4] = [
        |_, _| Reaction::AnswerAndClose(OK),
        |_, _| Reaction::Answer(CLOSING),
        |_, _| Reaction::Answer(OLD),
        |_, _| Reaction::Answer(SURPLUS),
    ];
    for play in plays {
        let (server, accepted) = server(None, play).await;
        let prober = Prober::new();
        let spec = spec(&server);
        for _ in 0..3 {
            assert_eq!(succeed(&prober, &spec).await, FRESH);
            // The FIN must be here before the next.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 3);
    }
}

/// What the server says on a kept connection is an answer as any other.
#[tokio::test]
async fn answers_on_a_kept_connection_count() {
    const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
    let (server, _) = server(None, |connection, request| match (connection, request) {
        (0, 1) => Reaction::Answer(BUSY),
        (1, 1) => Reaction::AnswerAndClose(b"HTTP/1.1 200 OK\r\nContent-Le"),
        (2, _) => Reaction::Close,
        _ => Reaction::Answer(OK),
    })
    .await;
    let prober = Prober::new();
    let spec = spec(&server);
    assert_eq!(succeed(&prober, &spec).await, FRESH);
    assert_eq!(prober.run(&spec).await.class, Class::Status);
    assert_eq!(succeed(&prober, &spec).await, FRESH);
    assert_eq!(prober.run(&spec).await.class, Class::Truncated);
    // On a fresh connection a close without an answer is a failure.
    assert_eq!(prober.run(&spec).await.class, Class::Empty);
}

#[tokio::test]
async fn a_server_may_ask_for_a_client_certificate() {
    let certificate = Certificate::new();
    let folder = tempfile::tempdir().unwrap();
    let (pem, key) = (folder.path().join("pem"), folder.path().join("key"));
    std::fs::write(&pem, &certificate.pem).unwrap();
    std::fs::write(&key, certificate.key_pem()).unwrap();
    let tls = Tls::with(certificate, None, true, b"http/1.1");
    let (server, _) = server(Some(tls), |_, _| Reaction::Answer(OK)).await;
    let mut spec = spec(&server);
    let run = async |spec: &mut ProbeSpec, client| {
        http(spec).tls = Some(TlsOptions {
            client,
            ..TlsOptions::default()
        });
        Prober::new().run(spec).await
    };
    let client = ClientCertificate {
        certificate: pem.clone(),
        key,
    };
    let outcome = run(&mut spec, Some(client.clone())).await;
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    let outcome = run(&mut spec, None).await;
    assert_eq!(outcome.class, Class::Tls, "{outcome:?}");
    for key in [folder.path().join("absent"), pem] {
        let client = ClientCertificate {
            key: key.clone(),
            ..client.clone()
        };
        let outcome = run(&mut spec, Some(client)).await;
        assert_eq!(outcome.class, Class::Internal, "{outcome:?}");
        assert!(
            outcome.detail.contains(key.to_str().unwrap()),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_body_may_have_to_match_a_regex() {
    const BODY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"lag\": 12345 }";
    let (server, _) = server(None, |_, _| Reaction::Answer(BODY)).await;
    let mut spec = spec(&server);
    let prober = Prober::new();
    let mut run = async |regex: &str| {
        http(&mut spec).expect_body_regex = Some(Pattern::new(regex).unwrap());
        prober.run(&spec).await
    };
    let outcome = run(r#""lag": \d{1,5}\b"#).await;
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    let outcome = run(r#""lag": \d{1,3}\b"#).await;
    assert_eq!(outcome.class, Class::Body);
    assert_eq!(
        outcome.detail,
        r#"HTTP 200, but no match of the regex "'lag': \\d{1,3}\\b" in the body: 15 bytes, "{'lag': 12345 }""#
    );
}

/// `hyper`'s server, by TLS if asked: it takes requests apart, bodies included, and answers with the
/// body that it got, or with what the path says.
async fn echo(tls: Option<Tls>) -> Server {
    use http_body_util::{BodyExt, Full};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper::{Request, Response};

    Server::start(tls, |_, connection| async move {
        let answer = async |request: Request<Incoming>| {
            let header = |name: &str| {
                let value = request.headers().get(name);
                value
                    .map_or("none", |value| value.to_str().unwrap())
                    .to_owned()
            };
            let what = format!("{} of {}", header("content-length"), header("content-type"));
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body = match path.as_str() {
                "/long" => vec![b'.'; 300_000],
                "/long-bad" => {
                    [vec![b'.'; 200_000], b"error".to_vec(), vec![b'.'; 100_000]].concat()
                }
                "/bad-at-the-end" => [vec![b'.'; 300_000], b"error".to_vec()].concat(),
                _ => format!("{what}: {}", String::from_utf8_lossy(&body)).into_bytes(),
            };
            let answer = Response::builder().header("X-Ready", "Yes");
            let answer = match path.as_str() {
                "/drain" => answer.header("X-Draining", "1").header("X-Error", "disk"),
                "/broken" => answer.header("X-Error", "disk"),
                _ => answer,
            };
            Ok::<_, Infallible>(answer.body(Full::new(bytes::Bytes::from(body))).unwrap())
        };
        let service = service_fn(answer);
        let http = hyper::server::conn::http1::Builder::new();
        // The probe's RST may come first.
        let _ = match connection {
            Connection::Plain(tcp) => {
                let stream = hyper_util::rt::TokioIo::new(tcp);
                http.serve_connection(stream, service).await
            }
            Connection::Tls(tls) => {
                let stream = hyper_util::rt::TokioIo::new(*tls);
                http.serve_connection(stream, service).await
            }
        };
    })
    .await
}

#[tokio::test]
async fn a_request_may_have_a_body() {
    for tls in [false, true] {
        let server = echo(tls.then(|| Tls::new(None, false, b"http/1.1"))).await;
        let prober = Prober::new();
        for (method, reuse) in [("POST", false), ("PUT", true), ("PATCH", true)] {
            let mut spec = spec(&server);
            let probe = http(&mut spec);
            probe.method = method.to_owned();
            probe.tls = tls.then(TlsOptions::default);
            probe.reuse = probe.reuse.filter(|_| reuse);
            let ask = async |spec: &mut ProbeSpec, body: &str, echoed: &str| {
                http(spec).body = Some(body.to_owned());
                http(spec).expect_body_regex =
                    Some(Pattern::new(&format!("^{}$", regex_of(echoed))).unwrap());
                let outcome = support::judged(async || prober.run(spec).await).await;
                assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
                outcome.steps.iter().any(|step| step.name == "reuse")
            };
            let text = "text/plain; charset=utf-8";
            for kept in [false, reuse] {
                let found = ask(&mut spec, "a b", &format!("3 of {text}: a b")).await;
                assert_eq!(found, kept, "{method}, over TLS: {tls}");
            }
            http(&mut spec).headers = vec![("Content-Type".into(), "application/json".into())];
            ask(&mut spec, "{}", "2 of application/json: {}").await;
            // As long as the configuration lets it be.
            let long = "x".repeat(16 * 1024);
            ask(
                &mut spec,
                &long,
                &format!("16384 of application/json: {long}"),
            )
            .await;
        }
    }
}

fn regex_of(text: &str) -> String {
    text.replace('{', r"\{").replace('}', r"\}")
}

/// Each rule on what an answer may not say, or must say in its head.
#[tokio::test]
async fn an_answer_may_be_rejected_for_what_it_says() {
    let server = echo(None).await;
    let prober = Prober::new();
    let header = |text: &str| {
        let (name, value) = text.split_once(": ").unwrap_or((text, ""));
        vec![HeaderMatch {
            name: name.to_owned(),
            value: (!value.is_empty()).then(|| value.to_owned()),
        }]
    };
    let run = async |path: &str, change: &dyn Fn(&mut HttpProbe)| {
        let mut spec = spec(&server);
        let probe = http(&mut spec);
        (probe.path, probe.reuse) = (path.to_owned(), None);
        change(probe);
        let outcome = support::judged(async || prober.run(&spec).await).await;
        let body = outcome.steps.iter().any(|step| step.name == "body");
        (outcome.class, outcome.detail, body)
    };

    let ready = run("/", &|probe| probe.expect_header = header("x-ready: yes")).await;
    assert_eq!(ready, (Class::Ok, "HTTP 200".to_owned(), true));
    // The body of an answer that has failed by its head is not waited for.
    for (rule, detail) in [
        ("x-zone", "HTTP 200, but no header \"x-zone\""),
        (
            "x-ready: no",
            "HTTP 200, but no header \"x-ready: no\" but \"Yes\"",
        ),
    ] {
        let found = run("/", &|probe| probe.expect_header = header(rule)).await;
        assert_eq!(found, (Class::Content, detail.to_owned(), false));
    }
    let reject = |probe: &mut HttpProbe| probe.reject_header = header("x-error");
    assert_eq!(run("/", &reject).await.0, Class::Ok);
    let detail = "HTTP 200, but the header \"x-error\", which is rejected";
    let found = run("/broken", &reject).await;
    assert_eq!(found, (Class::Content, detail.to_owned(), false));
    // One that asks to be drained says that first.
    let found = run("/drain", &|probe| {
        reject(probe);
        probe.drain_header = header("x-draining").pop();
        probe.reject_body = Some("none".to_owned());
    })
    .await;
    assert_eq!(found.0, Class::Drain, "{}", found.1);

    let text = |probe: &mut HttpProbe| probe.reject_body = Some("error".to_owned());
    let regex =
        |probe: &mut HttpProbe| probe.reject_body_regex = Some(Pattern::new("e(r+)or").unwrap());
    for rule in [&text as &dyn Fn(&mut HttpProbe), &regex] {
        for (path, class) in [
            ("/", Class::Ok),
            // The first 256 KiB decide, whatever follows.
            ("/long", Class::Ok),
            ("/long-bad", Class::Body),
            ("/bad-at-the-end", Class::Ok),
        ] {
            let found = run(path, rule).await;
            assert_eq!(found.0, class, "{path}: {}", found.1);
        }
        // Rejected is rejected, whatever else the body says.
        let found = run("/long-bad", &|probe| {
            rule(probe);
            probe.degraded_body = Some("error".to_owned());
            probe.expect_body = Some("error".to_owned());
        })
        .await;
        assert_eq!(found.0, Class::Body, "{}", found.1);
        assert!(found.1.contains("rejected"), "{}", found.1);
    }
}
