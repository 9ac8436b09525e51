//! HTTP probes on kept connections, with client certificates and regular expressions.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lb_userspace::model::{
    ClientCertificate, HttpProbe, Pattern, ProbeKind, ProbeSpec, Reuse, StatusRange, TlsOptions,
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
            host: "hc.test".to_owned(),
            expect_status: vec![StatusRange {
                first: 200,
                last: 200,
            }],
            reuse: Some(Reuse {
                max_age: Duration::from_secs(60),
                max_uses: 100,
            }),
            ..HttpProbe::default()
        }),
        egress: Default::default(),
    }
}

fn http(spec: &mut ProbeSpec) -> &mut HttpProbe {
    match &mut spec.kind {
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
