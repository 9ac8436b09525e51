//! gRPC probes against the recorded cases (raw HTTP/2 frames) and a real HTTP/2 server.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use lb_userspace::model::{ProbeKind, ProbeSpec, TlsOptions};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};
use support::{Connection, Json, Report, Server, Tls, millis, number, str};
use tokio::io::AsyncReadExt;

/// Cases run at once: their deadlines are one second on a machine with other work.
const AT_ONCE: usize = 10;

/// Cases that leave the verdict open, and ours.
const CHOICES: [(&str, Verdict, &str); 1] = [
    // 12 KiB are below the 16 KiB of headers that are taken.
    ("big-metadata", Verdict::Success, "ok"),
];

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_cases() {
    let file = support::load(include_str!("cases/grpc_cases.json"));
    let cases = file["cases"].as_array().unwrap().clone();
    assert!(cases.len() > 60, "the file lost its cases");
    let mut report = Report::default();
    let mut results = stream::iter(cases)
        .map(|case| async move {
            let server = serve(vec![case["responder"].clone()], &case).await;
            let prober = Prober::new();
            let ask = async || probe(&prober, &case["probe"], server.address).await;
            (support::judged(ask).await, case)
        })
        .buffer_unordered(AT_ONCE);
    while let Some((outcome, case)) = results.next().await {
        let id = str(&case, "id");
        let choice = CHOICES.iter().find(|(case, ..)| *case == id);
        let (verdict, class) = match choice {
            Some((_, verdict, class)) => (*verdict, *class),
            None => (
                verdict(str(&case["expect"], "verdict")),
                case["expect"]["failure_kind"].as_str().unwrap_or("ok"),
            ),
        };
        report.check(id, &outcome, verdict, class);
    }
    report.finish();
}

/// Connections are not used again: each check of a sequence meets its script on a fresh one, and
/// the verdicts must be the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_sequences() {
    let file = support::load(include_str!("cases/grpc_cases.json"));
    let probe_json = serde_json::json!({"service": "", "deadline_ms": 1000, "tls": false});
    let mut report = Report::default();
    for sequence in file["sequences"].as_array().unwrap() {
        let connections = sequence["connections"].as_array().unwrap();
        let scripts: Vec<Json> = connections
            .iter()
            .flat_map(|connection| connection.as_array().unwrap().clone())
            .collect();
        let verdicts = sequence["verdicts"].as_array().unwrap();
        assert_eq!(scripts.len(), verdicts.len());
        let server = serve(scripts, sequence).await;
        let prober = Prober::new();
        for wanted in verdicts {
            let outcome = probe(&prober, &probe_json, server.address).await;
            let wanted = verdict(wanted.as_str().unwrap());
            report.check(str(sequence, "id"), &outcome, wanted, outcome.class.name());
        }
    }
    report.finish();
}

/// An explicit answer counts like any failure: immediate ejection is not offered.
fn verdict(name: &str) -> Verdict {
    match name {
        "pass" => Verdict::Success,
        "fail" | "fail_immediate" => Verdict::Failure,
        other => panic!("verdict {other} has no meaning here"),
    }
}

fn spec(
    target: SocketAddr,
    timeout: Duration,
    service: &str,
    tls: Option<TlsOptions>,
) -> ProbeSpec {
    ProbeSpec {
        target,
        timeout,
        kind: ProbeKind::Grpc {
            service: service.to_owned(),
            authority: Some("hc.test".to_owned()),
            accept_status: Vec::new(),
            metadata: Vec::new(),
            tls,
            watch: false,
        }
        .into(),
        egress: Default::default(),
    }
}

async fn probe(prober: &Prober, probe: &Json, target: SocketAddr) -> Outcome {
    assert_eq!(probe["tls"], false, "no case needs TLS");
    let mut spec = spec(
        target,
        millis(probe, "deadline_ms"),
        str(probe, "service"),
        None,
    );
    if let (Some(codes), ProbeKind::Grpc { accept_status, .. }) = (
        probe["accept_status"].as_array(),
        Arc::make_mut(&mut spec.kind),
    ) {
        *accept_status = codes
            .iter()
            .map(|code| u32::try_from(code.as_u64().unwrap()).unwrap())
            .collect();
    }
    prober.run(&spec).await
}

/// Plays `scripts` one after the other, one for each connection.
async fn serve(scripts: Vec<Json>, case: &Json) -> Server {
    let settings: Vec<u8> = match case["settings"].as_array() {
        None => Vec::new(),
        Some(settings) => settings
            .iter()
            .flat_map(|setting| {
                let id = u16::try_from(setting[0].as_u64().unwrap()).unwrap();
                let value = u32::try_from(setting[1].as_u64().unwrap()).unwrap();
                [id.to_be_bytes().to_vec(), value.to_be_bytes().to_vec()].concat()
            })
            .collect(),
    };
    let greets = !case["no_settings"].as_bool().unwrap_or(false);
    Server::start(None, move |count, mut connection| {
        let script = scripts[count.min(scripts.len() - 1)].clone();
        let settings = settings.clone();
        async move {
            if greets {
                connection.send(&frame(SETTINGS, 0, 0, &settings)).await;
            }
            if read_request(&mut connection, greets).await.is_none() {
                return;
            }
            for entry in script.as_array().unwrap() {
                match entry["op"].as_str() {
                    None => connection.send(&frame_of(entry)).await,
                    Some("hold") => {
                        tokio::time::sleep(Duration::from_secs(4)).await;
                        return;
                    }
                    Some("sleep") => tokio::time::sleep(millis(entry, "ms")).await,
                    Some("raw") => connection.send(&hex(str(entry, "data"))).await,
                    Some("fin") => return connection.fin().await,
                    Some("rst") => return connection.rst(),
                    Some(other) => panic!("op {other}"),
                }
            }
            // The server has said all and stays: the probe must not wait for more.
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
    })
    .await
}

/// Reads to the END_STREAM of the request; `None`: the peer left before it.
async fn read_request(connection: &mut Connection, acknowledge: bool) -> Option<()> {
    let mut preface = [0; 24];
    connection.stream().read_exact(&mut preface).await.ok()?;
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    loop {
        let mut head = [0; 9];
        connection.stream().read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        connection.stream().read_exact(&mut payload).await.ok()?;
        if kind == SETTINGS && flags & ACK == 0 && acknowledge {
            connection.send(&frame(SETTINGS, ACK, 0, &[])).await;
        }
        if kind <= HEADERS && flags & END_STREAM != 0 {
            return Some(());
        }
    }
}

fn frame_of(entry: &Json) -> Vec<u8> {
    let byte = |key| u8::try_from(number(entry, key)).unwrap();
    let stream = u32::try_from(number(entry, "stream")).unwrap();
    frame(
        byte("type"),
        byte("flags"),
        stream,
        &hex(str(entry, "payload")),
    )
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A health service on the `h2` crate's server: one service that serves, one that does not.
async fn health_server(tls: Option<Tls>) -> Server {
    Server::start(tls, |_, connection| -> BoxFuture<'static, ()> {
        match connection {
            Connection::Plain(stream) => Box::pin(answer_checks(stream)),
            Connection::Tls(stream) => Box::pin(answer_checks(stream)),
        }
    })
    .await
}

async fn answer_checks<S>(stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((mut request, mut respond))) = connection.accept().await {
        let mut message = Vec::new();
        let header = |name: &str| request.headers().get(name).unwrap().to_str().unwrap();
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(request.uri().authority().unwrap(), "hc.test");
        assert_eq!(header("te"), "trailers");
        assert_eq!(header("content-type"), "application/grpc");
        assert_eq!(header("grpc-timeout"), "5000m");
        assert!(header("user-agent").starts_with("lb/"));
        while let Some(data) = request.body_mut().data().await {
            message.extend_from_slice(&data.unwrap());
        }
        let status: u8 = match message.as_slice() {
            [0, 0, 0, 0, 0] if request.headers().contains_key("x-down") => 2,
            [0, 0, 0, 0, 0] if request.headers().contains_key("x-down-bin") => {
                assert_eq!(request.headers()["x-down-bin"], "AAEC/w");
                2
            }
            [0, 0, 0, 0, 0] => 1,
            [0, 0, 0, 0, 6, 0x0a, 4, b'd', b'o', b'w', b'n'] => 2,
            other => panic!("request {other:?}"),
        };
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let mut body = respond.send_response(response, false).unwrap();
        body.send_data(vec![0, 0, 0, 0, 2, 8, status].into(), false)
            .unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        body.send_trailers(trailers).unwrap();
    }
}

#[tokio::test]
async fn a_real_server_over_h2c() {
    let server = health_server(None).await;
    let prober = Prober::new();
    let ask = async |service| {
        let spec = spec(server.address, Duration::from_secs(5), service, None);
        prober.run(&spec).await
    };
    let outcome = ask("").await;
    assert_eq!(
        (outcome.class, outcome.detail.as_str()),
        (Class::Ok, "SERVING"),
        "{outcome:?}"
    );
    let names: Vec<_> = outcome.steps.iter().map(|step| step.name).collect();
    assert_eq!(names, ["connect", "request", "headers", "body"]);
    let outcome = ask("down").await;
    assert_eq!(outcome.verdict, Verdict::Failure);
    assert_eq!(
        (outcome.class, outcome.detail.as_str()),
        (Class::Application, "NOT_SERVING")
    );
}

#[tokio::test]
async fn metadata_reaches_the_server() {
    let server = health_server(None).await;
    let mut spec = spec(server.address, Duration::from_secs(5), "", None);
    if let ProbeKind::Grpc { metadata, .. } = Arc::make_mut(&mut spec.kind) {
        *metadata = vec![("x-down".to_owned(), "1".to_owned())];
    }
    let outcome = Prober::new().run(&spec).await;
    assert_eq!(outcome.detail, "NOT_SERVING", "{outcome:?}");

    // Binary, by way of the configuration.
    let text = format!(
        "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"g\"\naddress = \"203.0.113.1:80\"\n\
         [service.health]\nprobe = \"grpc\"\nauthority = \"hc.test\"\ntimeout = \"5s\"\n\
         interval = \"6s\"\nheaders = {{ X-Down-Bin = \"AAEC/w==\" }}\n\
         [[service.backend]]\naddress = \"{}\"\n",
        server.address
    );
    let model = lb_userspace::config::parse(&text, "lb.toml").unwrap();
    let spec = &model.services[0].backends[0].probes[0];
    let outcome = Prober::new().run(spec).await;
    assert_eq!(outcome.detail, "NOT_SERVING", "{outcome:?}");
}

#[tokio::test]
async fn a_real_server_over_tls() {
    let server = health_server(Some(Tls::new(Some("hc.test".to_owned()), false, b"h2"))).await;
    let tls = TlsOptions {
        sni: Some("hc.test".to_owned()),
        verify: false,
        ca: None,
        ..TlsOptions::default()
    };
    let spec = spec(server.address, Duration::from_secs(5), "", Some(tls));
    let outcome = Prober::new().run(&spec).await;
    assert_eq!(
        (outcome.class, outcome.detail.as_str()),
        (Class::Ok, "SERVING"),
        "{outcome:?}"
    );
    let tls = outcome
        .steps
        .iter()
        .find(|step| step.name == "tls")
        .unwrap();
    assert!(tls.detail.contains("h2"), "{tls:?}");
}

/// Whatever a server sends is judged, as the server's fault if it is one.
#[tokio::test]
async fn mutated_answers_end_in_a_verdict() {
    let file = support::load(include_str!("cases/grpc_cases.json"));
    let serving = file["cases"][0]["responder"].as_array().unwrap();
    assert_eq!(file["cases"][0]["id"], "serving");
    let mut answer = frame(SETTINGS, 0, 0, &[]);
    for entry in serving {
        answer.extend(frame_of(entry));
    }
    let prober = Prober::new();
    for mutated in support::mutations(&answer, 300) {
        let sent = mutated.clone();
        let server = Server::start(None, move |_, mut connection| {
            let sent = sent.clone();
            async move {
                connection.send(&sent).await;
                connection.fin().await;
            }
        })
        .await;
        let spec = spec(server.address, Duration::from_secs(5), "", None);
        let outcome = prober.run(&spec).await;
        assert_ne!(
            outcome.verdict,
            Verdict::Internal,
            "{mutated:?}: {outcome:?}"
        );
        assert_ne!(
            outcome.class,
            Class::Timeout,
            "the connection was closed: {mutated:?}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn no_connection() {
    let server = Server::refusing();
    let spec = spec(server.address, Duration::from_secs(5), "", None);
    let outcome = Prober::new().run(&spec).await;
    assert_eq!(
        (outcome.verdict, outcome.class),
        (Verdict::Failure, Class::Refused)
    );
}
