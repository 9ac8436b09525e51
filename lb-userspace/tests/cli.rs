//! The `lb` binary beside a made-up agent: what it asks, what it prints, and how it ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use lb_userspace::api::capture::{Action, Closed, Opened, Packet, Stream};
use lb_userspace::api::event::{Change, Kind, Origin};
use lb_userspace::api::explain::{Answer, Explained};
use lb_userspace::api::request::ProbeReport;
use lb_userspace::api::server::{self, Agent};
use lb_userspace::api::{ApiError, ErrorKind, Journal, Listener, Reply, Request, Status};
use lb_userspace::model::Protocol;
use serde_json::{Value, json};
use tokio::sync::watch;

/// An agent that knows one service, and tells the test what it was asked.
struct FakeAgent {
    socket: PathBuf,
    requests: Receiver<Request>,
    _runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

fn sample() -> Status {
    serde_json::from_value(json!({
        "node": {
            "version": "0.1.0",
            "interfaces": [{"name": "eth0", "mode": "native"}],
            "uptime_seconds": 12.5,
            "draining": false,
            "at": "2026-01-01T00:01:40Z",
            "pid": 1,
            "attached": true,
            "first_round_done": true,
        },
        "services": [{
            "name": "web", "address": "203.0.113.10:80", "protocol": "tcp", "forwarding": "nat",
            "panic": false, "generation": 7, "healthy_percent": 100.0,
            "backends": [{
                "name": "web-1", "address": "10.0.0.11:8080", "weight": 100, "tier": 0,
                "health": "healthy", "admin": "enabled", "routing": "active", "slots": 65537,
                "active_flows": 12, "packets": 1234, "bytes": 99999,
                "since": "2026-01-01T00:00:00Z", "reason": "2 consecutive successes",
                "last_probe": null,
            }],
        }],
    }))
    .unwrap()
}

/// Starts it with `events` in its past.
fn agent(events: usize) -> FakeAgent {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("lb.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (seen, requests) = mpsc::channel();
    let mut journal = Journal::in_memory();
    for number in 0..events {
        let reason = format!("reason number {number}");
        journal.record(Change::node(Kind::Reload, Origin::Config, reason));
    }
    let _guard = runtime.enter();
    let listener = Listener::bind(&socket, "node.control_socket").unwrap();
    let (calls, mut inbox) = tokio::sync::mpsc::channel(4);
    let (publish, snapshot) = watch::channel(Arc::new(sample()));
    let ends = Agent {
        calls,
        events: journal.followers(),
        snapshot,
    };
    runtime.spawn(server::serve(listener, ends));
    runtime.spawn(async move {
        let _publish = publish;
        while let Some(call) = inbox.recv().await {
            // The test may have seen enough.
            let _ = seen.send(call.request.clone());
            let answer = match call.request {
                Request::Status { .. } => Ok(Reply::Status(Arc::new(sample()))),
                Request::Events { since, limit, .. } => {
                    Ok(Reply::Events(journal.past(since, limit)))
                }
                Request::Probe { .. } => Ok(Reply::Probe(ProbeReport {
                    json: json!({"outcome": "failure", "class": "refused"}),
                    text: "refused\n".to_owned(),
                })),
                Request::Drain { backend, .. } if backend.backend != "web-1" => {
                    Err(ApiError::unknown_backend(&backend, ["web-1"]))
                }
                Request::Explain { dst, .. } if dst.port() != 80 => {
                    let text = "no tcp service at that address; there are web";
                    Err(ApiError::new(ErrorKind::Unknown, text))
                }
                Request::Explain {
                    src,
                    dst,
                    protocol,
                    connection_id,
                } => {
                    let found = Explained {
                        connection_id,
                        ..explained(src, dst, protocol)
                    };
                    Ok(Reply::Explained(Box::new(found)))
                }
                Request::Capture { service, snaplen } => {
                    Ok(Reply::Capture(Box::new(stream(service, snaplen))))
                }
                Request::Reload => Err(ApiError::config("line 3: unknown key")),
                Request::Detach => Err(ApiError::failed("the kernel said EPERM")),
                Request::Drain { .. }
                | Request::Enable { .. }
                | Request::Disable { .. }
                | Request::Promote { .. }
                | Request::Probes { .. }
                | Request::Weight { .. } => {
                    call.responder.done(true, "as you say");
                    continue;
                }
            };
            call.responder.send(answer);
        }
    });
    drop(_guard);
    FakeAgent {
        socket,
        requests,
        _runtime: runtime,
        _directory: directory,
    }
}

/// Two packets, after which the capture of `web` goes on and any other ends by itself.
fn stream(service: Option<String>, snaplen: u16) -> Stream {
    let packet = Packet {
        at: "2026-01-01T00:00:00Z".parse().unwrap(),
        interface: "eth0".into(),
        length: 60,
        service: service.clone(),
        forwarding: None,
        backend: None,
        address: None,
        verdict: "drop_ttl".into(),
        action: Action::Drop,
        data: vec![0; 14],
        sent: Vec::new(),
    };
    let (sender, packets) = tokio::sync::mpsc::channel(1);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (last, closed) = tokio::sync::oneshot::channel();
    let own = service.as_deref() != Some("web");
    tokio::spawn(async move {
        sender.send(vec![packet; 2]).await.unwrap();
        if !own {
            // Dropping the other end is one of the two ways to say it.
            let _ = stopped.await;
        }
        drop(sender);
        let reason = own.then(|| "the service is gone".to_owned());
        last.send(Closed { lost: 3, reason }).unwrap();
    });
    Stream {
        opened: Opened {
            service,
            snaplen,
            interfaces: vec!["eth0".into()],
        },
        packets,
        stop,
        closed,
    }
}

fn explained(src: SocketAddr, dst: SocketAddr, protocol: Protocol) -> Explained {
    let answer = Answer {
        backend: None,
        verdict: Some("drop_no_backend".to_owned()),
        reason: "nobody owns the slot".to_owned(),
    };
    Explained {
        src,
        dst,
        protocol,
        service: "web".to_owned(),
        forwarding: "nat".to_owned(),
        affinity: "flow".to_owned(),
        hash: 1,
        slot: 2,
        slots: 4093,
        in_transition: false,
        current: None,
        previous: None,
        connection_id: None,
        named: None,
        flow: None,
        new: answer.clone(),
        established: answer,
        backends: BTreeMap::new(),
    }
}

#[test]
fn explain_is_lines_for_people_and_json_for_programs() {
    let agent = agent(0);
    let (src, dst) = ("198.51.100.7:40000", "203.0.113.10:80");
    let (code, out, err) = agent.run(&["explain", src, dst]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("is dropped (drop_no_backend)"), "{out}");
    let (code, out, _) = agent.run(&["explain", src, dst, "--protocol", "udp", "--json"]);
    assert_eq!(code, 0);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&found["protocol"], &found["slots"]),
        (&json!("udp"), &json!(4093))
    );
    assert_eq!(
        (&found["flow"], &found["new"]["backend"]),
        (&Value::Null, &Value::Null)
    );
    let id = ["explain", src, dst, "--connection-id", "400A00000b11"];
    let (code, out, _) = agent.run(&id);
    assert_eq!(code, 0);
    assert!(out.contains("400a00000b11, not looked at"), "{out}");
    let (code, _, err) = agent.run(&["explain", src, dst, "--connection-id", "4"]);
    assert_eq!(code, 2);
    assert!(err.contains("octets in hexadecimal"), "{err}");
    for (arguments, wanted) in [
        ([src, "203.0.113.10:81"], "there are web"),
        (["198.51.100.7", dst], "is not ADDRESS:PORT"),
        ([src, "web"], "is not ADDRESS:PORT"),
        (["[2001:db8::7]:40000", dst], "different families"),
    ] {
        let (code, out, err) = agent.run(&["explain", arguments[0], arguments[1]]);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(err.contains(wanted), "{arguments:?}: {err}");
    }
}

fn lb(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command
        .args(arguments)
        .env_remove("LB_SOCKET")
        .stdin(Stdio::null());
    command
}

impl FakeAgent {
    fn lb(&self, arguments: &[&str]) -> Command {
        let mut command = lb(arguments);
        command.env("LB_SOCKET", &self.socket);
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        finished(self.lb(arguments).output().unwrap())
    }
}

fn finished(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

fn end(child: Child) -> (i32, String, String) {
    finished(child.wait_with_output().unwrap())
}

#[test]
fn without_an_agent_the_exit_code_is_3_and_the_mend_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("lb.sock");
    let stale = directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for socket in [&absent, &stale] {
        for arguments in [
            &["status"][..],
            &["status", "--json"],
            &["drain", "web/web-1"],
            &["enable", "web/web-1"],
            &["disable", "web/web-1"],
            &["weight", "web/web-1", "5"],
            &["events"],
            &["events", "--follow"],
            &["probe", "web/web-1"],
            &["reload"],
        ] {
            let output = lb(arguments).arg("--socket").arg(socket).output().unwrap();
            let (code, out, err) = finished(output);
            assert_eq!(code, 3, "{arguments:?}: {err}");
            assert_eq!(out, "");
            assert!(err.contains("lb run --config"), "{err}");
            assert!(err.contains(&*socket.to_string_lossy()), "{err}");
        }
    }
}

#[test]
fn wrong_usage_is_2_and_a_slip_gets_a_suggestion() {
    for (arguments, wanted) in [
        (&["statsu"][..], "'status'"),
        (&["drain"], "<SERVICE/BACKEND>"),
        (&["drain", "web"], "is not SERVICE/BACKEND"),
        (&["drain", "web/web-1", "--deadline", "30"], "--deadline"),
        (&["weight", "web/web-1", "-1"], "-1"),
        (&["weight", "web/web-1", "many"], "many"),
        (&["status", "--jsn"], "--json"),
        (&["run"], "--config"),
        (&[], "Usage"),
    ] {
        let (code, out, err) = finished(lb(arguments).output().unwrap());
        assert_eq!(code, 2, "{arguments:?}: {err}");
        assert_eq!(out, "");
        assert!(err.contains(wanted), "{arguments:?}: {err}");
    }
}

#[test]
fn help_and_version_are_0() {
    let (code, out, _) = finished(lb(&["--version"]).output().unwrap());
    assert_eq!(code, 0);
    assert_eq!(out, format!("lb {}\n", env!("CARGO_PKG_VERSION")));
    for command in [
        "run", "check", "status", "drain", "enable", "disable", "weight", "events", "probe",
        "explain", "reload", "detach", "doctor",
    ] {
        let (code, out, err) = finished(lb(&[command, "--help"]).output().unwrap());
        assert_eq!(code, 0, "{command}: {err}");
        assert!(out.contains("Usage: lb"), "{command}: {out}");
    }
}

#[test]
fn status_is_a_table_for_people_and_json_for_programs() {
    let agent = agent(0);
    let (code, out, err) = agent.run(&["status"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("web-1"), "{out}");
    assert!(!out.contains('\x1b'), "colour only on a terminal: {out}");
    let (code, out, _) = agent.run(&["status", "web", "--json"]);
    assert_eq!(code, 0);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found, serde_json::to_value(sample()).unwrap());
    let (code, out, err) = agent.run(&["status", "wbe"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("did you mean \"web\"?"), "{err}");
}

#[test]
fn the_operators_word_reaches_the_agent() {
    let agent = agent(0);
    let web = || "web/web-1".parse().unwrap();
    for (arguments, wanted) in [
        (
            &["drain", "web/web-1", "--deadline", "1m30s"][..],
            Request::Drain {
                backend: web(),
                deadline_ms: Some(90_000),
            },
        ),
        (
            &["drain", "web/web-1"],
            Request::Drain {
                backend: web(),
                deadline_ms: None,
            },
        ),
        (&["enable", "web/web-1"], Request::Enable { backend: web() }),
        (
            &["disable", "web/web-1"],
            Request::Disable { backend: web() },
        ),
        (
            &["weight", "web/web-1", "0"],
            Request::Weight {
                backend: web(),
                weight: 0,
            },
        ),
    ] {
        let (code, out, err) = agent.run(arguments);
        assert_eq!(code, 0, "{err}");
        assert_eq!(out, "as you say\n");
        assert_eq!(agent.requests.recv().unwrap(), wanted);
    }
}

#[test]
fn the_agents_refusals_have_their_exit_codes() {
    let agent = agent(0);
    for (arguments, code, wanted) in [
        (&["drain", "web/web1"][..], 2, "did you mean \"web-1\"?"),
        (&["reload"], 2, "line 3: unknown key"),
        (&["detach"], 1, "EPERM"),
    ] {
        let (found, out, err) = agent.run(arguments);
        assert_eq!(found, code, "{arguments:?}: {err}");
        assert_eq!(out, "");
        assert!(err.contains(wanted), "{err}");
    }
}

#[test]
fn a_failed_probe_is_an_answer_like_any_other() {
    let agent = agent(0);
    let (code, out, _) = agent.run(&["probe", "web/web-1", "--json"]);
    assert_eq!(code, 0);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["class"], "refused");
    assert_eq!(
        agent.run(&["probe", "web/web-1"]),
        (0, "refused\n".into(), String::new())
    );
    let picked = ["probe", "web/web-1", "--probe", "database", "--strict"];
    assert_eq!(agent.run(&picked), (1, "refused\n".into(), String::new()));
    let asked = agent.requests.try_iter().last();
    assert_eq!(
        asked,
        Some(Request::Probe {
            backend: "web/web-1".parse().unwrap(),
            probe: Some("database".to_owned()),
        })
    );
}

#[test]
fn a_capture_tells_what_is_lost_and_why_it_ended() {
    let agent = agent(0);
    let (code, out, err) = agent.run(&["capture", "web", "--count", "1"]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.ends_with("drop_ttl, web\n") && out.lines().count() == 1,
        "{out}"
    );
    assert!(err.contains("1 packet captured, 3 LOST"), "{err}");
    let (code, out, err) = agent.run(&["capture", "--all", "--json", "-s", "64"]);
    assert_eq!((code, out.lines().count()), (1, 2), "{err}");
    assert!(
        err.contains("ended by itself: the service is gone"),
        "{err}"
    );
    let asked: Vec<Request> = agent.requests.try_iter().collect();
    let request = |service: Option<&str>, snaplen| Request::Capture {
        service: service.map(str::to_owned),
        snaplen,
    };
    assert_eq!(asked, [request(Some("web"), 256), request(None, 64)]);
    for wrong in [
        &["capture"][..],
        &["capture", "web", "--all"],
        &["capture", "web", "--count", "0"],
        &["capture", "web", "--snaplen", "4097"],
        &["capture", "web", "--json", "-w", "-"],
    ] {
        assert_eq!(agent.run(wrong).0, 2, "{wrong:?}");
    }
    let (code, _, err) = agent.run(&["capture", "web", "-w", "/nowhere/at/all"]);
    assert_eq!(code, 1);
    assert!(err.contains("cannot write /nowhere/at/all"), "{err}");
}

#[test]
fn events_are_lines_and_bounded_by_the_limit() {
    let agent = agent(10);
    let (code, out, _) = agent.run(&["events", "--json", "--limit", "3"]);
    assert_eq!(code, 0);
    let ids: Vec<u64> = out
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["id"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(ids, [8, 9, 10]);
    let (_, out, _) = agent.run(&["events", "--since", "9", "--limit", "0"]);
    assert_eq!(out.lines().count(), 1);
    assert!(out.contains("reason number 9"), "{out}");
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    // More than a pipe holds, so that the writer does meet the closed end.
    let agent = agent(5000);
    let mut child = agent
        .lb(&["events", "--limit", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let (code, _, err) = end(child);
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn following_ends_well_on_ctrl_c() {
    let agent = agent(1);
    let mut child = agent
        .lb(&["events", "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains("reason number 0"), "{line}");
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    let (code, _, err) = end(child);
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn an_agent_that_cannot_write_its_log_does_not_die_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("lb.toml");
    // Has a warning to log, and ends right after it.
    let text = r#"
[node]
interfaces = ["eth0"]
control_socket = "/proc/nowhere/lb.sock"

[[service]]
name = "web"
address = "203.0.113.10:80"

[[service.backend]]
address = "10.0.0.11:8080"
"#;
    std::fs::write(&config, text).unwrap();
    let run = |stderr: Stdio| {
        let mut command = lb(&["run", "--config", config.to_str().unwrap()]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        command
    };
    let output = run(Stdio::piped()).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("WARN") && log.contains("one backend"), "{log}");
    assert!(log.contains("node.control_socket"), "{log}");
    assert_eq!(log.matches("No such file").count(), 1, "{log}");

    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    assert_eq!(run(full.into()).status().unwrap().code(), Some(1));
    let (gone, closed) = std::io::pipe().unwrap();
    drop(gone);
    assert_eq!(run(closed.into()).status().unwrap().code(), Some(1));
}
