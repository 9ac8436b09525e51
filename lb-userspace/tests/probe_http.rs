//! HTTP probes against the recorded cases and a real server.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use lb_userspace::model::{HeaderMatch, HttpProbe, ProbeKind, ProbeSpec, StatusRange, TlsOptions};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};
use support::{Connection, Json, Report, Server, Tls, millis, number, str};
use tokio::io::AsyncReadExt;

/// Probe options of cases that the product does not offer, and why.
const NOT_OFFERED: [(&str, &str); 2] = [
    (
        "service_name_prefix",
        "no check of Envoy's x-envoy-upstream-healthchecked-cluster",
    ),
    ("proxy_protocol", "no PROXY header before a probe"),
];

/// Cases run at once: their deadlines are one second on a machine with other work.
const AT_ONCE: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_cases() {
    let file = support::load(include_str!("cases/http_cases.json"));
    let cases = file["cases"].as_array().unwrap().clone();
    assert!(cases.len() > 90, "the file lost its cases");
    let mut report = Report::default();
    let mut skipped = 0;
    let mut runs = Vec::new();
    for case in cases {
        let option = NOT_OFFERED
            .iter()
            .find(|(key, _)| !case["probe"][key].is_null());
        match option {
            Some((_, reason)) => {
                skipped += 1;
                println!("{}: skipped: {reason}", str(&case, "id"));
            }
            None => runs.push(case),
        }
    }
    assert_eq!(skipped, 1, "cases skipped");
    let mut results = stream::iter(runs)
        .map(|case| async move { (run(&case).await, case) })
        .buffer_unordered(AT_ONCE);
    while let Some((outcomes, case)) = results.next().await {
        let id = str(&case, "id");
        let expect = &case["expect"];
        match expect["verdicts"].as_array() {
            // Connections are not used again, so each check meets the next of the case's; the
            // verdicts must be the same.
            Some(verdicts) => {
                for (outcome, wanted) in outcomes.iter().zip(verdicts) {
                    let wanted = verdict(wanted.as_str().unwrap());
                    report.check(id, outcome, wanted, outcome.class.name());
                }
                assert_eq!(outcomes.len(), verdicts.len());
            }
            None => {
                let wanted = str(expect, "verdict");
                let class = match wanted {
                    "pass_degraded" => "degraded",
                    "drain" => "drain",
                    _ => str(expect, "cls"),
                };
                report.check(id, &outcomes[0], verdict(wanted), class);
            }
        }
    }
    report.finish();
}

/// Our verdict for a case's. A degraded backend counts as healthy, with less weight, and one that asks
/// to be drained as healthy, without new flows.
fn verdict(name: &str) -> Verdict {
    match name {
        "pass" | "pass_degraded" | "drain" => Verdict::Success,
        "fail" | "fail_immediate" => Verdict::Failure,
        other => panic!("verdict {other} has no meaning here"),
    }
}

async fn run(case: &Json) -> Vec<Outcome> {
    let listener = &case["listener"];
    let server = match str(listener, "kind") {
        "tcp" => Server::start(None, responder(case)).await,
        "tls" => {
            let sni = listener["require_sni"].as_str().map(str::to_owned);
            let client = listener["client_cert"].as_bool().unwrap_or(false);
            Server::start(Some(Tls::new(sni, client, b"http/1.1")), responder(case)).await
        }
        "refused" => Server::refusing(),
        "blackhole" => Server::black_hole().await,
        other => panic!("listener {other}"),
    };
    let ca = tempfile::NamedTempFile::new().unwrap();
    if let Some(certificate) = &server.certificate {
        std::fs::write(ca.path(), &certificate.pem).unwrap();
    }
    let probe = &case["probe"];
    let spec = spec(probe, server.address, ca.path());
    let prober = Prober::new();
    let mut outcomes = Vec::new();
    for check in 0..probe["checks"].as_u64().unwrap_or(1) {
        if check > 0 {
            tokio::time::sleep(millis(probe, "interval_ms")).await;
        }
        outcomes.push(match probe["checks"].as_u64() {
            // Each check takes one connection of the script.
            Some(_) => prober.run(&spec).await,
            None => support::judged(async || prober.run(&spec).await).await,
        });
    }
    outcomes
}

fn spec(probe: &Json, target: SocketAddr, ca: &std::path::Path) -> ProbeSpec {
    let text = |key: &str, other: &str| {
        let value = probe[other].as_str().or(probe[key].as_str());
        value
            .unwrap_or_else(|| panic!("no {key} in {probe}"))
            .to_owned()
    };
    let status = text("expect_status", "x_expect").parse().unwrap();
    let tls = probe["tls"].as_bool().unwrap_or(false).then(|| TlsOptions {
        sni: match &probe["sni"] {
            // The product sends the host as SNI unless told otherwise; a case that has the key
            // with null sends none.
            Json::Null if probe.get("sni").is_some() => None,
            Json::Null => Some("hc.test".to_owned()),
            sni => Some(sni.as_str().unwrap().to_owned()),
        },
        verify: probe["verify"].as_bool().unwrap_or(false),
        ca: probe["ca"].as_str().map(|_| ca.to_owned()),
        ..TlsOptions::default()
    });
    ProbeSpec {
        target,
        timeout: millis(probe, "timeout_ms"),
        kind: ProbeKind::Http(HttpProbe {
            method: text("method", "x_method"),
            path: text("path", "path"),
            host: Some(text("host", "host")),
            headers: Vec::new(),
            expect_status: vec![StatusRange {
                first: status,
                last: status,
            }],
            expect_body: probe["expect_body"].as_str().map(str::to_owned),
            drain_status: (probe["drain_on"].as_str().into_iter())
                .map(|code| code.parse().unwrap())
                .map(|code| StatusRange {
                    first: code,
                    last: code,
                })
                .collect(),
            tls,
            ..HttpProbe::default()
        })
        .into(),
        egress: Default::default(),
    }
}

/// Plays a case's ops on each connection: `responder` on all, or one of `connections` on each.
fn responder(case: &Json) -> impl Fn(usize, Connection) -> BoxFuture<'static, ()> + use<> {
    let scripts: Vec<Json> = match case["connections"].as_array() {
        Some(connections) => connections.clone(),
        None => vec![case["responder"].clone()],
    };
    move |count, connection| {
        let script = scripts[count.min(scripts.len() - 1)].clone();
        Box::pin(async move {
            if let Some(connection) = play(connection, script.as_array().unwrap()).await {
                connection.fin().await;
            }
        })
    }
}

/// Plays ops; returns the connection unless an op ended it.
fn play<'a>(mut connection: Connection, ops: &'a [Json]) -> BoxFuture<'a, Option<Connection>> {
    Box::pin(async move {
        for op in ops {
            match str(op, "op") {
                "read_request" => read_request(&mut connection).await,
                "read_some" => {
                    let mut buffer = [0; 4096];
                    let _ = connection.stream().read(&mut buffer).await;
                }
                "send" => connection.send(&latin1(str(op, "data"))).await,
                "send_repeat" => {
                    let times = usize::try_from(number(op, "count")).unwrap();
                    connection
                        .send(&latin1(str(op, "data")).repeat(times))
                        .await;
                }
                "send_slow" => {
                    for byte in latin1(str(op, "data")) {
                        connection.send(&[byte]).await;
                        tokio::time::sleep(millis(op, "byte_ms")).await;
                    }
                }
                "sleep" => tokio::time::sleep(millis(op, "ms")).await,
                "hold" => {
                    tokio::time::sleep(millis(op, "ms")).await;
                    return None;
                }
                "loop" => {
                    for _ in 0..number(op, "count") {
                        connection = play(connection, op["body"].as_array().unwrap()).await?;
                    }
                }
                "fin" => {
                    connection.fin().await;
                    return None;
                }
                "rst" => {
                    connection.rst();
                    return None;
                }
                "raw_fin" => {
                    connection.raw_fin().await;
                    return None;
                }
                other => panic!("op {other}"),
            }
        }
        Some(connection)
    })
}

/// Reads to the end of the head; the probes here have no body.
async fn read_request(connection: &mut Connection) {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match connection.stream().read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => request.extend_from_slice(&buffer[..length]),
        }
    }
}

/// Each character is one byte.
fn latin1(text: &str) -> Vec<u8> {
    text.chars()
        .map(|character| u8::try_from(u32::from(character)).unwrap())
        .collect()
}

fn simple(target: SocketAddr, method: &str, path: &str) -> ProbeSpec {
    ProbeSpec {
        target,
        timeout: Duration::from_secs(5),
        kind: ProbeKind::Http(HttpProbe {
            method: method.to_owned(),
            path: path.to_owned(),
            host: Some("hc.test".to_owned()),
            headers: vec![("X-Probe".to_owned(), "yes".to_owned())],
            expect_status: vec![StatusRange {
                first: 200,
                last: 299,
            }],
            expect_body: None,
            tls: None,
            ..HttpProbe::default()
        })
        .into(),
        egress: Default::default(),
    }
}

/// `hyper`'s server, which knows nothing of the cases.
async fn real_server() -> Server {
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper::{Request, Response};

    Server::start(None, |_, connection| async move {
        let answer = async |request: Request<Incoming>| {
            let header = |name: &str| request.headers().get(name).unwrap().to_str().unwrap();
            assert_eq!(header("host"), "hc.test");
            assert_eq!(header("connection"), "close");
            assert_eq!(header("x-probe"), "yes");
            assert!(header("user-agent").starts_with("lb/"));
            let status = match request.uri().path() {
                "/readyz" => 200,
                "/nothing" => 204,
                _ => 503,
            };
            let body = http_body_util::Full::new(bytes::Bytes::from("all is well"));
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        };
        let stream = hyper_util::rt::TokioIo::new(connection.into_tcp());
        hyper::server::conn::http1::Builder::new()
            .serve_connection(stream, service_fn(answer))
            .await
            .unwrap();
    })
    .await
}

#[tokio::test]
async fn a_real_server() {
    let server = real_server().await;
    let prober = Prober::new();
    for (method, path, detail) in [
        ("GET", "/readyz", "HTTP 200"),
        ("HEAD", "/readyz", "HTTP 200"),
        ("POST", "/readyz", "HTTP 200"),
        ("GET", "/nothing", "HTTP 204"),
        ("GET", "/other", "HTTP 503, want 200-299"),
    ] {
        let outcome = prober.run(&simple(server.address, method, path)).await;
        assert_eq!(outcome.detail, detail, "{method} {path}: {outcome:?}");
        assert_eq!(outcome.verdict == Verdict::Success, path != "/other");
        assert!(
            outcome.steps.is_sorted_by_key(|step| step.at),
            "{outcome:?}"
        );
    }
    let names: Vec<_> = prober
        .run(&simple(server.address, "GET", "/readyz"))
        .await
        .steps
        .iter()
        .map(|step| step.name)
        .collect();
    assert_eq!(names, ["connect", "request", "headers", "body"]);
}

/// Whatever a server sends is judged, as the server's fault if it is one.
#[tokio::test]
async fn mutated_answers_end_in_a_verdict() {
    let answers: [&[u8]; 2] = [
        b"HTTP/1.1 103 Hi\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: 1\r\n\r\n",
    ];
    let prober = Prober::new();
    for mutated in answers
        .iter()
        .flat_map(|answer| support::mutations(answer, 150))
    {
        let sent = mutated.clone();
        let server = Server::start(None, move |_, mut connection| {
            let sent = sent.clone();
            async move {
                connection.send(&sent).await;
                connection.fin().await;
            }
        })
        .await;
        let outcome = prober.run(&simple(server.address, "GET", "/readyz")).await;
        let shown = mutated.escape_ascii();
        assert_ne!(outcome.verdict, Verdict::Internal, "{shown}: {outcome:?}");
        assert_ne!(outcome.class, Class::Timeout, "{shown}: {outcome:?}");
    }
}

/// Probes leave no TIME_WAIT: neither side's ports run out, however often is probed.
#[tokio::test]
async fn no_socket_is_left_behind() {
    let server = real_server().await;
    let prober = Prober::new();
    let mut tcp = simple(server.address, "GET", "/readyz");
    for _ in 0..5 {
        let outcome = prober.run(&tcp).await;
        assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    }
    tcp.kind = ProbeKind::Tcp.into();
    for _ in 0..5 {
        assert_eq!(prober.run(&tcp).await.verdict, Verdict::Success);
    }
    let port = format!(":{:04X}", server.address.port());
    // Local address, remote address, state; 0A is the listener.
    let left = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().skip(1).map(|row| {
            let fields: Vec<_> = row.split_whitespace().collect();
            (
                fields[1].to_owned(),
                fields[2].to_owned(),
                fields[3].to_owned(),
            )
        });
        rows.filter(|(local, remote, state)| {
            (local.ends_with(&port) || remote.ends_with(&port)) && state != "0A"
        })
        .collect::<Vec<_>>()
    };
    for _ in 0..100 {
        if left().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("sockets left: {:?}", left());
}

/// What a backend says of itself with a right answer, and with the status or header of a drain.
#[tokio::test]
async fn a_backend_says_that_it_is_degraded_or_asks_to_be_drained() {
    let server = Server::start(None, |_, mut connection| async move {
        let mut request = [0; 1024];
        let length = connection.stream().read(&mut request).await.unwrap();
        let path = String::from_utf8_lossy(&request[..length]).into_owned();
        let path = path.split(' ').nth(1).unwrap_or_default();
        let (head, body) = match path {
            "/slow" => ("200 OK", "cache: cold"),
            "/away" => ("404 Not Found", "bye"),
            "/header" => ("503 Busy\r\nX-Draining: yes", "cache: cold"),
            "/cut" => ("404 Not Found\r\nContent-Length: 100", "bye"),
            "/busy" => ("503 Busy", "cache: cold"),
            _ => ("200 OK\r\nX-Draining: no", "cache: warm"),
        };
        let answer = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n{body}");
        connection.send(answer.as_bytes()).await;
        connection.fin().await;
    })
    .await;
    let prober = Prober::new();
    let cases = [
        ("/", Verdict::Success, Class::Ok, "HTTP 200"),
        (
            "/slow",
            Verdict::Success,
            Class::Degraded,
            "HTTP 200, degraded",
        ),
        (
            "/away",
            Verdict::Success,
            Class::Drain,
            "HTTP 404, asks to be drained",
        ),
        (
            "/header",
            Verdict::Success,
            Class::Drain,
            "HTTP 503, asks to be drained",
        ),
        (
            "/busy",
            Verdict::Failure,
            Class::Status,
            "HTTP 503, want 200-299",
        ),
    ];
    let spec = |path: &str| {
        let mut spec = simple(server.address, "GET", path);
        let ProbeKind::Http(http) = Arc::make_mut(&mut spec.kind) else {
            panic!("{spec:?}")
        };
        http.degraded_body = Some("cache: cold".to_owned());
        http.drain_status = vec![StatusRange {
            first: 404,
            last: 404,
        }];
        http.drain_header = Some(HeaderMatch {
            name: "x-draining".to_owned(),
            value: Some("yes".to_owned()),
        });
        spec
    };
    for (path, verdict, class, detail) in cases {
        let outcome = prober.run(&spec(path)).await;
        let found = (outcome.verdict, outcome.class, outcome.detail.as_str());
        assert_eq!(found, (verdict, class, detail), "{path}");
    }
    // A message that is cut off says nothing.
    let outcome = prober.run(&spec("/cut")).await;
    assert_eq!(outcome.class, Class::Truncated, "{outcome:?}");
}
