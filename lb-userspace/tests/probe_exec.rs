//! Exec probes: commands of this host.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lb_userspace::model::{ExecProbe, ProbeKind, ProbeSpec};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};

async fn probe(target: SocketAddr, kind: ProbeKind) -> Outcome {
    let spec = ProbeSpec {
        target,
        timeout: Duration::from_secs(5),
        kind: kind.into(),
        egress: Default::default(),
    };
    Prober::new().run(&spec).await
}

fn exec(command: &[&str]) -> ProbeKind {
    ProbeKind::Exec(ExecProbe {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        service: "web".into(),
        backend: "web-1".into(),
    })
}

const TARGET: &str = "192.0.2.7:8080";

#[tokio::test]
async fn commands_are_judged_by_their_status() {
    let target = TARGET.parse().unwrap();
    let script = |text: &str| exec(&["/bin/sh", "-c", text]);
    for (text, class, detail) in [
        ("echo fine; exit 0", Class::Ok, "exit status 0: \"fine\""),
        (
            "echo >&2 no disk; exit 3",
            Class::Application,
            "exit status 3: \"no disk\"",
        ),
        (
            "echo $LB_SERVICE $LB_BACKEND $LB_ADDRESS $LB_PORT $HAPROXY_SERVER_ADDR",
            Class::Ok,
            "exit status 0: \"web web-1 192.0.2.7 8080 192.0.2.7\"",
        ),
        (
            "pwd; env | grep -c CARGO",
            Class::Application,
            "exit status 1: \"/\"",
        ),
        (
            "kill -SEGV $$",
            Class::Internal,
            "the command /bin/sh was killed by signal 11",
        ),
    ] {
        let outcome = probe(target, script(text)).await;
        assert_eq!(
            (outcome.class, outcome.detail.as_str()),
            (class, detail),
            "{text}: {outcome:?}"
        );
    }
    // A flood of output neither blocks the command nor fills the memory.
    let outcome = probe(target, script("yes | head -c 1000000")).await;
    assert_eq!(outcome.class, Class::Ok, "{outcome:?}");
    assert_eq!(outcome.detail, "exit status 0: \"y\"");
}

#[tokio::test]
async fn commands_that_do_not_start_are_our_fault() {
    let target = TARGET.parse().unwrap();
    let outcome = probe(target, exec(&["/nonexistent/check"])).await;
    assert_eq!(outcome.verdict, Verdict::Internal);
    assert!(outcome.detail.contains("/nonexistent/check"), "{outcome:?}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("check");
    for (mode, text, said) in [(0o600, "", "chmod +x"), (0o700, "exit 0", "#!/bin/sh")] {
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        drop(file);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let outcome = probe(target, exec(&[path.to_str().unwrap()])).await;
        assert_eq!(outcome.verdict, Verdict::Internal, "{outcome:?}");
        assert!(outcome.detail.contains(said), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_command_dies_with_its_children_at_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let text = format!(
        "sleep 1000 & echo $! > {0}; echo $$ >> {0}; wait",
        pids.display()
    );
    let spec = ProbeSpec {
        target: TARGET.parse().unwrap(),
        timeout: Duration::from_millis(1000),
        kind: exec(&["/bin/sh", "-c", &text]).into(),
        egress: Default::default(),
    };
    let outcome = support::judged(async || Prober::new().run(&spec).await).await;
    assert_eq!(outcome.class, Class::Timeout, "{outcome:?}");
    assert!(
        outcome
            .detail
            .contains("the command was still running and is killed"),
        "{outcome:?}"
    );
    let pids = std::fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while is_running(pid) {
            assert!(std::time::Instant::now() < deadline, "{pid} is alive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Neither gone nor a zombie that waits for its parent.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
