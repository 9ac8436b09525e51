//! What TLS probes say of certificates, and what they resume.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use lb_userspace::model::{HttpProbe, ProbeKind, ProbeSpec, StatusRange, TlsOptions};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};
use support::{Connection, Server, Tls};
use tokio::io::AsyncReadExt;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn server() -> Server {
    let tls = Tls::new(None, false, b"http/1.1");
    Server::start(Some(tls), |_, mut connection: Connection| async move {
        let mut buffer = [0; 4096];
        let _ = connection.stream().read(&mut buffer).await;
        connection.send(ANSWER).await;
        connection.fin().await;
    })
    .await
}

fn spec(server: &Server, sni: &str, verify: bool, ca: Option<PathBuf>) -> ProbeSpec {
    ProbeSpec {
        target: server.address,
        timeout: Duration::from_secs(5),
        kind: ProbeKind::Http(HttpProbe {
            method: "GET".to_owned(),
            path: "/readyz".to_owned(),
            host: sni.to_owned(),
            headers: Vec::new(),
            expect_status: vec![StatusRange {
                first: 200,
                last: 200,
            }],
            expect_body: None,
            tls: Some(TlsOptions {
                sni: Some(sni.to_owned()),
                verify,
                ca,
                ..TlsOptions::default()
            }),
            ..HttpProbe::default()
        }),
        egress: Default::default(),
    }
}

fn ca_file(pem: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem).unwrap();
    file
}

fn tls_step(outcome: &Outcome) -> &str {
    let step = outcome.steps.iter().find(|step| step.name == "tls");
    &step
        .unwrap_or_else(|| panic!("no TLS step in {outcome:?}"))
        .detail
}

#[tokio::test]
async fn a_bad_certificate_is_reported_and_fails_only_if_asked() {
    let server = server().await;
    let own = ca_file(&server.certificate.as_ref().unwrap().pem);
    let other = ca_file(&support::Certificate::new().pem);
    let prober = Prober::new();
    let ask = async |sni, verify, ca: &tempfile::NamedTempFile| {
        let ca = Some(ca.path().to_owned());
        prober.run(&spec(&server, sni, verify, ca)).await
    };

    let outcome = ask("hc.test", true, &own).await;
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    assert!(
        tls_step(&outcome).contains("certificate valid"),
        "{outcome:?}"
    );

    for (sni, ca) in [("hc.test", &other), ("wrong.test", &own)] {
        let outcome = ask(sni, false, ca).await;
        assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
        assert!(
            tls_step(&outcome).contains("certificate not valid"),
            "{outcome:?}"
        );

        let outcome = ask(sni, true, ca).await;
        assert_eq!(
            (outcome.verdict, outcome.class),
            (Verdict::Failure, Class::Tls)
        );
        assert!(
            outcome.detail.starts_with("certificate refused: "),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn sessions_are_resumed_with_the_same_target_only() {
    let (one, two) = (server().await, server().await);
    let prober = Prober::new();
    let resumed = async |server: &Server| {
        let ca = ca_file(&server.certificate.as_ref().unwrap().pem);
        let spec = spec(server, "hc.test", false, Some(ca.path().to_owned()));
        let mut resumed = Vec::new();
        for _ in 0..2 {
            let outcome = prober.run(&spec).await;
            assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
            // Found again without a handshake that shows it.
            assert!(
                tls_step(&outcome).contains("certificate valid"),
                "{outcome:?}"
            );
            resumed.push(tls_step(&outcome).contains("resumed"));
        }
        resumed
    };
    assert_eq!(resumed(&one).await, [false, true]);
    assert_eq!(resumed(&two).await, [false, true]);
}

#[tokio::test]
async fn a_self_signed_ca_is_trusted_where_it_is_the_ca_file() {
    // As `openssl req -x509` makes them: the server's certificate says that it is a CA.
    let certificate = support::Certificate::with(|params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let pem = ca_file(&certificate.pem);
    let tls = Tls::with(certificate, None, false, b"http/1.1");
    let server = Server::start(Some(tls), |_, mut connection: Connection| async move {
        connection.send(ANSWER).await;
        connection.fin().await;
    })
    .await;
    for (name, verdict) in [
        ("hc.test", Verdict::Success),
        ("wrong.test", Verdict::Failure),
    ] {
        let spec = spec(&server, name, true, Some(pem.path().to_owned()));
        let outcome = Prober::new().run(&spec).await;
        assert_eq!(outcome.verdict, verdict, "{outcome:?}");
    }
}
