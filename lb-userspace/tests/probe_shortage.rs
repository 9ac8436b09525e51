//! A prober that has run out of file descriptors must not blame the backend.
//!
//! The test runs itself again in a process with few descriptors, so that no other test suffers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use lb_userspace::model::{DnsProbe, ExecProbe, ProbeKind, ProbeSpec};
use lb_userspace::probe::{Class, Prober, Verdict};

const INNER: &str = "LB_TEST_FEW_DESCRIPTORS";

#[test]
fn no_descriptors_left() {
    if std::env::var_os(INNER).is_some() {
        return inner();
    }
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 32 && exec \"$0\" --exact no_descriptors_left --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .env(INNER, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

fn inner() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = |kind: ProbeKind| ProbeSpec {
        target: listener.local_addr().unwrap(),
        timeout: Duration::from_secs(5),
        kind: kind.into(),
        egress: Default::default(),
    };
    let kinds = [
        ProbeKind::Tcp,
        ProbeKind::TcpHalfOpen,
        ProbeKind::Dns(DnsProbe {
            name: "web.test".to_owned(),
            query_type: ("A", 1),
            rcode: ("NOERROR", 0),
            answers: Vec::new(),
        }),
        ProbeKind::Exec(ExecProbe {
            command: vec!["/bin/true".to_owned()],
            service: "web".into(),
            backend: "web-1".into(),
        }),
    ];
    let prober = Prober::new();
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    for kind in kinds {
        let outcome = runtime.block_on(prober.run(&spec(kind)));
        assert_eq!(
            (outcome.verdict, outcome.class),
            (Verdict::Internal, Class::Shortage)
        );
        assert!(
            outcome.detail.contains("file descriptor"),
            "{}",
            outcome.detail
        );
    }
    drop(files);
    let outcome = runtime.block_on(prober.run(&spec(ProbeKind::Tcp)));
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
}
