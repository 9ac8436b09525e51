//! Probes against sockets of this process.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use super::*;

const LOOPBACK: &str = "127.0.0.1:0";

fn tcp(target: SocketAddr) -> ProbeSpec {
    ProbeSpec {
        target,
        timeout: Duration::from_secs(5),
        kind: ProbeKind::Tcp.into(),
        egress: Default::default(),
    }
}

#[tokio::test]
async fn tcp_needs_an_established_connection_only() {
    for address in [LOOPBACK, "[::1]:0"] {
        // Nothing accepts: the kernel's handshake is enough.
        let Ok(listener) = TcpListener::bind(address).await else {
            assert_ne!(
                address, LOOPBACK,
                "every host has it; not every one has IPv6"
            );
            continue;
        };
        let outcome = Prober::new()
            .run(&tcp(listener.local_addr().unwrap()))
            .await;
        assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
        assert_eq!(outcome.class, Class::Ok);
        assert_eq!(outcome.steps.len(), 1);
        assert_eq!(outcome.steps[0].name, "connect");
        assert!(outcome.steps[0].at <= outcome.latency);
    }
}

#[tokio::test]
async fn tcp_refused() {
    // Bound and not listening: nobody else can take the port.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(LOOPBACK.parse().unwrap()).unwrap();
    let outcome = Prober::new().run(&tcp(socket.local_addr().unwrap())).await;
    assert_eq!(
        (outcome.verdict, outcome.class),
        (Verdict::Failure, Class::Refused)
    );
    assert_eq!(outcome.detail, "connection refused");
}

#[tokio::test]
async fn an_unreadable_ca_is_our_fault() {
    let missing = "/nonexistent/ca.pem";
    let spec = ProbeSpec {
        kind: ProbeKind::Grpc {
            service: String::new(),
            authority: Some("hc.test".to_owned()),
            accept_status: Vec::new(),
            metadata: Vec::new(),
            tls: Some(TlsOptions {
                sni: None,
                verify: true,
                ca: Some(missing.into()),
                ..TlsOptions::default()
            }),
            watch: false,
        }
        .into(),
        ..tcp(LOOPBACK.parse().unwrap())
    };
    let outcome = Prober::new().run(&spec).await;
    assert_eq!(
        (outcome.verdict, outcome.class),
        (Verdict::Internal, Class::Internal)
    );
    assert!(outcome.detail.contains(missing), "{}", outcome.detail);
}

#[tokio::test]
async fn a_dropped_probe_closes_its_connection() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let prober = Prober::new();
    let spec = ProbeSpec {
        kind: ProbeKind::Grpc {
            service: String::new(),
            authority: Some("hc.test".to_owned()),
            accept_status: Vec::new(),
            metadata: Vec::new(),
            tls: None,
            watch: false,
        }
        .into(),
        ..tcp(listener.local_addr().unwrap())
    };
    let mut probe = Box::pin(prober.run(&spec));
    let (mut stream, _) = tokio::select! {
        accepted = listener.accept() => accepted.unwrap(),
        outcome = &mut probe => panic!("nobody answered, but {outcome:?}"),
    };
    drop(probe);
    let mut sent = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut sent).await;
    // The end comes at once, as EOF or as the RST that all our connections end with.
    assert!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn probes_run_at_once_from_any_task() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let target = listener.local_addr().unwrap();
    let prober = std::sync::Arc::new(Prober::new());
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let prober = prober.clone();
            tokio::spawn(async move { prober.run(&tcp(target)).await })
        })
        .collect();
    for task in tasks {
        let outcome = task.await.unwrap();
        assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    }
}

/// Thousands are in flight at a time, and each is moved into its task.
#[test]
fn a_probe_in_flight_is_small() {
    let prober = Prober::new();
    let spec = tcp("127.0.0.1:1".parse().unwrap());
    let size = size_of_val(&prober.judge(&spec));
    assert!(size <= 3072, "{size} bytes");
}
