//! `lb simulate`, the binary: what it prints, and how it refuses.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

const CONFIG: &str = r#"
[node]
interfaces = ["eth0"]

[[service]]
name = "web"
address = "203.0.113.10:80"
panic_threshold = 0
drain_deadline = "30s"

[service.health]
probe = "http"
interval = "5s"
timeout = "2s"
unhealthy_threshold = 3

[[service.backend]]
name = "web-1"
address = "10.0.0.11:8080"

[[service.backend]]
name = "web-2"
address = "10.0.0.12:8080"
"#;

const TRACE: &str = r#"
{"at_ms": 100, "backend": "web/web-1", "outcome": "success", "detail": "HTTP 200"}
{"at_ms": 200, "backend": "web/web-2", "outcome": "success", "detail": "HTTP 200"}
{"at_ms": 5000, "backend": "web/web-1", "outcome": "failure", "detail": "HTTP 503"}
{"at_ms": 6000, "backend": "web/web-2", "outcome": "timeout"}
{"at_ms": 10000, "backend": "web/web-1", "outcome": "failure", "detail": "HTTP 503"}
{"at_ms": 11000, "backend": "web/web-2", "outcome": "timeout"}
{"at_ms": 15000, "backend": "web/web-1", "outcome": "failure", "detail": "HTTP 503"}
{"at_ms": 16000, "backend": "web/web-2", "outcome": "timeout"}
"#;

fn simulate(folder: &Path, trace: &str) -> Output {
    std::fs::write(folder.join("lb.toml"), CONFIG).unwrap();
    std::fs::write(folder.join("trace.jsonl"), trace).unwrap();
    run(folder, "trace.jsonl")
}

fn run(folder: &Path, trace: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lb"))
        .args(["simulate", "--config", "lb.toml", "--trace", trace])
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn a_trace_becomes_its_changes() {
    let folder = tempfile::tempdir().unwrap();
    let output = simulate(folder.path(), TRACE);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        r#"{"at_ms":100,"backend":"web/web-1","health":"healthy","routing":"active","reason":"first probe: HTTP 200"}
{"at_ms":200,"backend":"web/web-2","health":"healthy","routing":"active","reason":"first probe: HTTP 200"}
{"at_ms":15000,"backend":"web/web-1","health":"unhealthy","routing":"draining","reason":"unhealthy: 3 consecutive failures: HTTP 503"}
{"at_ms":16000,"backend":"web/web-2","health":"unhealthy","routing":"out","reason":"unhealthy: 3 consecutive failures: timeout"}
{"at_ms":45000,"backend":"web/web-1","health":"unhealthy","routing":"out","reason":"unhealthy: 3 consecutive failures: HTTP 503"}
"#
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_wrong_trace_is_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = format!(
        "{TRACE}{}\n",
        r#"{"at_ms": 17000, "backend": "web/web1", "outcome": "success"}"#
    );
    for (output, expected) in [
        (
            simulate(folder.path(), &wrong),
            "lb: trace.jsonl:10: the configuration has no backend \"web/web1\"; did you mean \
             \"web/web-1\"?\n",
        ),
        (
            run(folder.path(), "absent.jsonl"),
            "lb: absent.jsonl: cannot read the trace: No such file or directory (os error 2); \
             give --trace a file with a line of JSON for each outcome\n",
        ),
    ] {
        assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
        assert_eq!(output.status.code(), Some(2));
    }
}
