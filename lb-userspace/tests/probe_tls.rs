//! What TLS probes say of certificates, and what they resume.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lb_userspace::config;
use lb_userspace::health::Engine;
use lb_userspace::model::{
    BackendKey, HttpProbe, ProbeKind, ProbeSpec, Reuse, StatusRange, TcpScript, TlsOptions,
};
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
            host: Some(sni.to_owned()),
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
        })
        .into(),
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

/// A server whose certificate expires on the 4th of March of this year; it answers any number of
/// requests.
async fn expiring(year: i32) -> Server {
    let certificate = support::Certificate::with(|params| {
        params.not_after = rcgen::date_time_ymd(year, 3, 4);
    });
    let tls = Tls::with(certificate, None, false, b"http/1.1");
    Server::start(Some(tls), |_, mut connection: Connection| async move {
        let mut buffer = [0; 4096];
        while matches!(connection.stream().read(&mut buffer).await, Ok(1..)) {
            connection.send(ANSWER).await;
        }
    })
    .await
}

fn day(year: i32) -> Option<jiff::Timestamp> {
    Some(format!("{year}-03-04T00:00:00Z").parse().unwrap())
}

#[tokio::test]
async fn it_is_told_when_the_certificate_expires() {
    let server = expiring(2093).await;
    let prober = Prober::new();
    let mut spec = spec(&server, "hc.test", false, None);
    let http =
        |spec: &mut ProbeSpec, change: &dyn Fn(&mut HttpProbe)| match Arc::make_mut(&mut spec.kind)
        {
            ProbeKind::Http(http) => change(http),
            other => panic!("{other:?}"),
        };
    for resumed in [false, true] {
        let outcome = prober.run(&spec).await;
        let step = tls_step(&outcome);
        assert_eq!(step.contains("resumed"), resumed, "{step}");
        assert!(step.ends_with(", expires 2093-03-04T00:00:00Z"), "{step}");
        assert_eq!(outcome.certificate_not_after, day(2093));
    }
    // On a kept connection nothing is shown.
    http(&mut spec, &|http| {
        http.reuse = Some(Reuse {
            max_age: Duration::from_secs(60),
            max_uses: 100,
        });
    });
    assert_eq!(prober.run(&spec).await.certificate_not_after, day(2093));
    let kept = prober.run(&spec).await;
    assert_eq!(kept.steps[0].name, "reuse", "{kept:?}");
    assert_eq!(kept.certificate_not_after, None);

    // One that is refused for it, too.
    let server = expiring(2021).await;
    let own = ca_file(&server.certificate.as_ref().unwrap().pem);
    for verify in [false, true] {
        let spec = self::spec(&server, "hc.test", verify, Some(own.path().to_owned()));
        let outcome = Prober::new().run(&spec).await;
        let wanted = match verify {
            true => (Verdict::Failure, Class::Tls),
            false => (Verdict::Success, Class::Ok),
        };
        assert_eq!((outcome.verdict, outcome.class), wanted, "{outcome:?}");
        assert_eq!(outcome.certificate_not_after, day(2021));
    }
}

/// What was shown once is known while the connection lives on, and of every service that asks.
#[tokio::test]
async fn the_certificate_seen_last_is_remembered() {
    let server = expiring(2093).await;
    let service = |name: &str, vip: &str, rules: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}:443\"\n[service.health]\n\
             probe = \"https\"\npath = \"/readyz\"\nreuse = \"60s\"\n{rules}\n\
             [[service.backend]]\nname = \"b\"\naddress = \"{}\"\n",
            server.address
        )
    };
    let text = "[node]\ninterfaces = [\"eth0\"]\n".to_owned()
        + &service("one", "203.0.113.1", "")
        + &service("two", "203.0.113.2", "unhealthy_threshold = 7");
    let model = config::parse(&text, "lb.toml").unwrap();
    let keys = ["one", "two"].map(|service| BackendKey::new(service, "b"));
    let mut engine = Engine::new(1);
    engine.configure(&model.services, &BTreeMap::new(), Duration::ZERO);
    let prober = Prober::new();
    let ends = |engine: &Engine| {
        keys.each_ref()
            .map(|key| engine.get(key).unwrap().checks[0].certificate_not_after)
    };
    assert_eq!(ends(&engine), [None, None]);
    for n in 0..3 {
        let now = Duration::from_secs(10 * n);
        engine.probe_now(&keys[0], now);
        for start in engine.start_due(now) {
            let outcome = prober.run(&start.spec).await;
            assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
            assert_eq!(outcome.certificate_not_after.is_none(), n > 0);
            engine.finish(start.seq, &outcome, now);
        }
        assert_eq!(ends(&engine), [day(2093), day(2093)]);
    }
    // Another question knows nothing of it.
    let text = text.replace("/readyz", "/other");
    let model = config::parse(&text, "lb.toml").unwrap();
    engine.configure(&model.services, &BTreeMap::new(), Duration::from_secs(40));
    assert_eq!(ends(&engine), [None, None]);
}

#[tokio::test]
async fn other_protocols_can_be_offered_by_alpn() {
    let server = |alpn: &'static [u8]| {
        Server::start(
            Some(Tls::new(None, false, alpn)),
            |_, mut connection| async move {
                connection.send(ANSWER).await;
                connection.fin().await;
            },
        )
    };
    let offering = |names: Option<&[&str]>| TlsOptions {
        alpn: names.map(|names| names.iter().map(|&name| name.to_owned()).collect()),
        ..TlsOptions::default()
    };
    let prober = Prober::new();
    let mail = server(b"imap").await;
    let mut spec = spec(&mail, "hc.test", false, None);
    for (names, chosen) in [
        (None, Some("")),
        (Some(&["imap"][..]), Some("imap, ")),
        (Some(&["managesieve", "imap"]), Some("imap, ")),
        (Some(&["managesieve"]), None),
        (Some(&[]), Some("")),
    ] {
        spec.kind = ProbeKind::TcpScript(TcpScript {
            steps: Vec::new(),
            tls: Some(offering(names)),
        })
        .into();
        let outcome = prober.run(&spec).await;
        match chosen {
            Some(chosen) => {
                let wanted = format!("TLSv1.3, {chosen}certificate not valid");
                assert!(
                    tls_step(&outcome).starts_with(&wanted),
                    "{names:?}: {outcome:?}"
                );
            }
            None => assert_eq!(outcome.class, Class::Tls, "{names:?}: {outcome:?}"),
        }
    }
    let web = server(b"http/1.1").await;
    let mut spec = self::spec(&web, "hc.test", false, None);
    for (names, class) in [
        (None, Class::Ok),
        (Some(&["http/1.0"][..]), Class::Tls),
        (Some(&[]), Class::Ok),
    ] {
        if let ProbeKind::Http(http) = Arc::make_mut(&mut spec.kind) {
            http.tls = Some(offering(names));
        }
        let outcome = prober.run(&spec).await;
        assert_eq!(outcome.class, class, "{names:?}: {outcome:?}");
    }
}
