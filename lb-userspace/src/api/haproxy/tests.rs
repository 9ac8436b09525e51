use std::path::PathBuf;

use tokio::sync::{mpsc, watch};

use super::super::event::Origin;
use super::super::journal::Journal;
use super::super::request::Call;
use super::super::status::tests::sample;
use super::super::status::{Admin, Routing};
use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

struct Fixture {
    path: PathBuf,
    calls: mpsc::UnboundedReceiver<(Request, Origin)>,
    _snapshot: watch::Sender<std::sync::Arc<Status>>,
    _directory: tempfile::TempDir,
}

/// A server, and a loop that answers with this status and does all it is told.
fn start(status: Status) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("haproxy.sock");
    let listener = Listener::bind(&path, "node.haproxy_socket").unwrap();
    let (sender, mut calls) = mpsc::channel::<Call>(4);
    let (publish, snapshot) = watch::channel(std::sync::Arc::new(status.clone()));
    let agent = Agent {
        calls: sender,
        events: Journal::in_memory().followers(),
        snapshot,
    };
    let (done, told) = mpsc::unbounded_channel();
    tokio::spawn(serve(listener, agent));
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            match &call.request {
                Request::Status { .. } => {
                    let status = std::sync::Arc::new(status.clone());
                    call.responder.send(Ok(Reply::Status(status)));
                }
                request => {
                    let _ = done.send((request.clone(), call.origin()));
                    call.responder.done(true, "done");
                }
            }
        }
    });
    Fixture {
        path,
        calls: told,
        _snapshot: publish,
        _directory: directory,
    }
}

impl Fixture {
    /// Sends this, and all that comes until the other end closes.
    async fn ask(&self, text: &str) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = timeout(DEADLINE, stream.read_to_string(&mut answer)).await;
        read.unwrap().unwrap();
        answer
    }
}

#[tokio::test]
async fn changes_are_the_agents_own_requests_with_their_origin() {
    let mut fixture = start(sample());
    let backend: super::super::BackendName = "web/web-1".parse().unwrap();
    let probes = |order| Request::Probes {
        backend: backend.clone(),
        order,
    };
    for (line, request) in [
        (
            "set server web/web-1 state drain",
            Request::Drain {
                backend: backend.clone(),
                deadline_ms: None,
            },
        ),
        (
            "set server web/web-1 state maint",
            Request::Disable {
                backend: backend.clone(),
            },
        ),
        (
            "disable server #2/#1",
            Request::Disable {
                backend: backend.clone(),
            },
        ),
        (
            "enable server web/web-1",
            Request::Enable {
                backend: backend.clone(),
            },
        ),
        (
            "set server web/#1 state ready",
            Request::Enable {
                backend: backend.clone(),
            },
        ),
        (
            "set weight web/web-1 50%",
            Request::Weight {
                backend: backend.clone(),
                weight: 50,
            },
        ),
        (
            "set server web/web-1 weight 7",
            Request::Weight {
                backend: backend.clone(),
                weight: 7,
            },
        ),
        ("disable health web/web-1", probes(ProbesOrder::Pause)),
        ("enable health web/web-1", probes(ProbesOrder::Resume)),
        (
            "set server web/web-1 health up",
            probes(ProbesOrder::Set(SetHealth::Healthy)),
        ),
        (
            "set server web/web-1 health stopping",
            probes(ProbesOrder::Set(SetHealth::Leaving)),
        ),
        (
            "set server web/web-1 health down",
            probes(ProbesOrder::Set(SetHealth::Unhealthy)),
        ),
    ] {
        assert_eq!(fixture.ask(&format!("{line}\n")).await, "\n", "{line}");
        let (done, origin) = fixture.calls.try_recv().unwrap();
        assert_eq!(done, request, "{line}");
        let Origin::Operator { pid, via, .. } = origin else {
            panic!("{origin:?}")
        };
        assert_eq!(via, Some(Via::HaproxySocket));
        assert_eq!(pid, Some(std::process::id().cast_signed()));
    }
}

#[tokio::test]
async fn what_cannot_be_done_changes_nothing_and_says_so() {
    let mut fixture = start(sample());
    for (line, error) in [
        ("set server web/web-9 state ready", "No such server."),
        ("set server wbe/web-1 state ready", "No such backend."),
        ("set server web", "Require 'backend/server'."),
        ("get weight web/web-9", "No such server."),
        ("enable health web/web-9", "No such server."),
        (
            "set server web/web-1 health bogus",
            "'set server <srv> health' expects 'up', 'stopping', or 'down'.",
        ),
        (
            "set server web/web-1 addr 10.0.0.1",
            "'set server <srv> addr' is not supported",
        ),
        (
            "set server web/web-1 agent up",
            "'set server <srv> agent' is not supported",
        ),
        ("show stat typed", "'show stat' is answered in CSV only."),
        ("clear counters", "Unknown command. Please enter one"),
        ("show sess", "Unknown command, but maybe one"),
        ("", "Unknown command. Please enter one"),
    ] {
        let answer = fixture.ask(&format!("{line}\n")).await;
        assert!(answer.starts_with(error), "{line}: {answer}");
        let (lines, end) = answer.split_at(answer.len() - 2);
        assert_eq!(end, "\n\n", "{line}");
        assert!(
            !lines.contains("\n\n"),
            "one empty line, at the end: {answer}"
        );
    }
    assert!(fixture.calls.try_recv().is_err());
}

#[tokio::test]
async fn a_line_has_one_answer_for_each_command_and_a_prompt_has_many_lines() {
    let fixture = start(sample());
    let weight = "100 (initial 100)\n\n";
    let two = "get weight web/web-1; get weight web/web-2\n";
    assert_eq!(fixture.ask(two).await, weight.repeat(2));
    assert_eq!(
        fixture
            .ask("get weight web/web-1;quit;get weight web/web-1\n")
            .await,
        weight
    );
    let prompt = "prompt\nget weight web/web-1\nprompt\n";
    assert_eq!(fixture.ask(prompt).await, format!("\n> {weight}> \n"));
    let long = format!("{}\n", "x".repeat(20_000));
    assert!(
        fixture
            .ask(&long[..16 << 10])
            .await
            .starts_with("A line has at most 16384 bytes")
    );

    // Half a line is no command, whoever sends it.
    let mut stream = UnixStream::connect(&fixture.path).await.unwrap();
    stream.write_all(b"get weight web/web-1").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "");
}

/// A column of the lines of `show stat`, with what they are about.
fn column(table: &str, name: &str) -> Vec<String> {
    let mut lines = table.lines().filter(|line| !line.is_empty());
    let header = lines.next().unwrap().trim_start_matches("# ");
    let place = header.split(',').position(|column| column == name).unwrap();
    lines
        .map(|line| line.split(',').nth(place).unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn tables_tell_what_the_status_tells() {
    let mut status = sample();
    status.services[0].backends[1].probe = Some("tcp".into());
    let fixture = start(status.clone());
    let stat = fixture.ask("show stat\n").await;
    assert_eq!(
        column(&stat, "svname"),
        ["FRONTEND", "web-1", "web-2", "BACKEND"]
    );
    assert_eq!(column(&stat, "status"), ["OPEN", "UP", "DOWN", "UP"]);
    assert_eq!(column(&stat, "check_status"), ["", "L7OK", "L4CON", ""]);
    assert_eq!(column(&stat, "check_code"), ["", "200", "", ""]);
    assert_eq!(column(&stat, "scur"), ["12", "12", "0", "12"]);
    assert_eq!(column(&stat, "act"), ["", "1", "1", "1"]);
    let only = fixture.ask("show stat web 4 2\n").await;
    assert_eq!(column(&only, "svname"), ["web-2"]);
    let up = fixture.ask("show stat up\n").await;
    assert_eq!(column(&up, "svname"), ["FRONTEND", "web-1", "BACKEND"]);

    let state = fixture.ask("show servers state web\n").await;
    let rows: Vec<&str> = state.lines().skip(2).collect();
    assert_eq!(
        rows,
        [
            "2 web 1 web-1 10.0.0.11 2 0 100 100 100 15 3 - 7 0 0 0 - 8080 - 0 0 - - 0",
            "2 web 2 web-2 10.0.0.12 0 0 100 100 10 8 2 - 7 0 0 0 - 8080 - 0 0 - - 0",
            ""
        ]
    );
    assert_eq!(
        fixture.ask("show servers state wbe\n").await,
        "Can't find backend.\n\n"
    );

    // One that is not probed for now.
    let mut resting = status.clone();
    resting.services[0].backends[0].paused_since = Some(status.node.at);
    let fixture = start(resting);
    let stat = fixture.ask("show stat\n").await;
    assert_eq!(column(&stat, "status"), ["OPEN", "no check", "DOWN", "UP"]);
    assert_eq!(column(&stat, "check_status"), ["", "", "L4CON", ""]);
    assert_eq!(column(&stat, "chkfail")[1], "");
    let state = fixture.ask("show servers state\n").await;
    let row = "2 web 1 web-1 10.0.0.11 2 0 100 100 100 15 3 - 2 0 0 0 - 8080 - 0 0 - - 0";
    assert_eq!(state.lines().nth(2), Some(row));

    // One that is drained or disabled by the operator.
    let backend = &mut status.services[0].backends[0];
    (backend.admin, backend.routing) = (Admin::Drain, Routing::Draining);
    let backend = &mut status.services[0].backends[1];
    (backend.admin, backend.routing) = (Admin::Disabled, Routing::Out);
    let fixture = start(status);
    let stat = fixture.ask("show stat\n").await;
    assert_eq!(column(&stat, "status"), ["OPEN", "DRAIN", "MAINT", "DOWN"]);
    let state = fixture.ask("show servers state\n").await;
    let words = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
    let states: Vec<_> = state
        .lines()
        .skip(2)
        .take(2)
        .map(|line| words(line)[5..7].to_vec())
        .collect();
    assert_eq!(states, [["2", "8"], ["0", "1"]]);
}
