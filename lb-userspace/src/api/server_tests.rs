use std::path::PathBuf;

use tokio::task::JoinHandle;

use super::super::client;
use super::super::event::{Change, Kind, Origin};
use super::super::journal::Journal;
use super::super::status::tests::sample;
use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// A server, and the loop's ends of it.
struct Fixture {
    path: PathBuf,
    calls: mpsc::Receiver<Call>,
    journal: Journal,
    server: JoinHandle<()>,
    _snapshot: watch::Sender<Arc<Status>>,
    _directory: tempfile::TempDir,
}

fn start() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lb.sock");
    let listener = Listener::bind(&path, "node.control_socket").unwrap();
    let (sender, calls) = mpsc::channel(4);
    let journal = Journal::in_memory();
    let (publish, snapshot) = watch::channel(Arc::new(sample()));
    let agent = Agent {
        calls: sender,
        events: journal.followers(),
        snapshot,
    };
    Fixture {
        path,
        calls,
        journal,
        server: tokio::spawn(serve(listener, agent)),
        _snapshot: publish,
        _directory: directory,
    }
}

/// Sends raw bytes; everything that comes back.
async fn raw(path: &PathBuf, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

fn change(reason: &str) -> Change {
    Change::node(Kind::Reload, Origin::Config, reason)
}

#[tokio::test]
async fn a_call_reaches_the_loop_with_its_peer_and_gets_its_answer() {
    let mut fixture = start();
    let path = fixture.path.clone();
    let client = tokio::spawn(async move {
        let request = Request::Drain {
            backend: "web/web-1".parse().unwrap(),
            deadline_ms: None,
        };
        client::send(&path, &request)
            .await
            .unwrap()
            .one()
            .await
            .unwrap()
    });
    let call = fixture.calls.recv().await.unwrap();
    let origin = serde_json::to_value(call.origin()).unwrap();
    assert_eq!(origin["by"], "operator");
    assert_eq!(origin["command"], "drain");
    assert_eq!(origin["pid"], std::process::id());
    call.responder.done(true, "web/web-1 drains");
    let Frame::Done(done) = client.await.unwrap() else {
        panic!("another answer")
    };
    assert!(done.changed);
    assert_eq!(done.message, "web/web-1 drains");
}

#[tokio::test]
async fn status_is_cut_to_the_service_asked_for() {
    let mut fixture = start();
    tokio::spawn(async move {
        while let Some(call) = fixture.calls.recv().await {
            call.responder.send(Ok(Reply::Status(Arc::new(sample()))));
        }
    });
    let ask = async |service: &str| {
        let service = Some(service.to_owned());
        let answers = client::send(&fixture.path, &Request::Status { service }).await;
        answers.unwrap().one().await.unwrap()
    };
    assert!(matches!(ask("web").await, Frame::Status(_)));
    let Frame::Error(error) = ask("wbe").await else {
        panic!("a service that is not there")
    };
    assert_eq!(error.kind, ErrorKind::Unknown);
}

#[tokio::test]
async fn a_busy_loop_still_has_its_last_status_shown() {
    let fixture = start();
    let request = Request::Status { service: None };
    let answers = client::send(&fixture.path, &request).await.unwrap();
    let Frame::Status(status) = answers.one().await.unwrap() else {
        panic!("no status")
    };
    assert_eq!(*status, sample());
}

#[tokio::test]
async fn an_agent_that_ends_says_so() {
    let mut fixture = start();
    fixture.calls.close();
    let answers = client::send(&fixture.path, &Request::Reload).await.unwrap();
    let Frame::Error(error) = answers.one().await.unwrap() else {
        panic!("nobody reloaded")
    };
    assert_eq!(error.message, "the agent is ending");
}

#[tokio::test]
async fn nonsense_and_endless_requests_are_refused() {
    let fixture = start();
    for request in [
        b"GET / HTTP/1.1\r\n".to_vec(),
        b"{\"command\":\"explode\"}\n".to_vec(),
        b"{\"command\":\"drain\",\"backend\":\"web\"}\n".to_vec(),
        vec![b'x'; REQUEST_BYTES as usize],
        vec![0xff, 0, b'\n'],
    ] {
        let answer = raw(&fixture.path, &request).await;
        let frame: Frame = serde_json::from_str(&answer).unwrap();
        let Frame::Error(error) = frame else {
            panic!("{answer}")
        };
        assert_eq!(error.kind, ErrorKind::Usage);
    }
    drop(UnixStream::connect(&fixture.path).await.unwrap());
    assert!(!fixture.server.is_finished());
}

#[tokio::test]
async fn a_follower_gets_the_past_and_what_comes_each_once() {
    let mut fixture = start();
    fixture.journal.record(change("first"));
    let request = Request::Events {
        follow: true,
        since: None,
        limit: None,
    };
    let mut answers = client::send(&fixture.path, &request).await.unwrap();
    let call = fixture.calls.recv().await.unwrap();
    // Between the subscription and the answer: in both, and to be seen once.
    fixture.journal.record(change("second"));
    call.responder
        .send(Ok(Reply::Events(fixture.journal.past(None, None))));
    fixture.journal.record(change("third"));
    for wanted in ["first", "second", "third"] {
        let frame = timeout(DEADLINE, answers.next()).await.unwrap().unwrap();
        let Some(Frame::Event(event)) = frame else {
            panic!("{frame:?}")
        };
        assert_eq!(event.change.reason, wanted);
    }
}

#[tokio::test]
async fn a_follower_that_leaves_is_forgotten() {
    let mut fixture = start();
    let request = Request::Events {
        follow: true,
        since: None,
        limit: None,
    };
    let answers = client::send(&fixture.path, &request).await.unwrap();
    let call = fixture.calls.recv().await.unwrap();
    let followers = fixture.journal.followers();
    assert_eq!(followers.receiver_count(), 1);
    call.responder.send(Ok(Reply::Events(Vec::new())));
    drop(answers);
    timeout(DEADLINE, async {
        while followers.receiver_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_follower_that_does_not_read_stalls_nobody_and_learns_what_it_missed() {
    let mut fixture = start();
    let request = Request::Events {
        follow: true,
        since: None,
        limit: None,
    };
    let mut answers = client::send(&fixture.path, &request).await.unwrap();
    let call = fixture.calls.recv().await.unwrap();
    call.responder.send(Ok(Reply::Events(Vec::new())));
    // Far more than the socket's buffer and the broadcast hold; record() never waits.
    let text = "x".repeat(1000);
    for _ in 0..10_000 {
        fixture.journal.record(change(&text));
    }
    let mut seen = 0;
    let mut missed = 0;
    timeout(DEADLINE, async {
        while seen + missed < 10_000 {
            match answers.next().await.unwrap() {
                Some(Frame::Event(_)) => seen += 1,
                Some(Frame::Missed(count)) => missed += count,
                other => panic!("{other:?}"),
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(seen + missed, 10_000);
    assert!(missed > 0);
}

#[tokio::test]
async fn clients_beyond_the_limit_are_told_so_and_idle_ones_stall_nobody() {
    let mut fixture = start();
    tokio::spawn(async move {
        while let Some(call) = fixture.calls.recv().await {
            call.responder.done(false, "nothing to do");
        }
    });
    let mut idle = Vec::new();
    for _ in 0..CLIENTS - 1 {
        idle.push(UnixStream::connect(&fixture.path).await.unwrap());
    }
    let answers = client::send(&fixture.path, &Request::Reload).await.unwrap();
    assert!(matches!(answers.one().await.unwrap(), Frame::Done(_)));
    idle.push(UnixStream::connect(&fixture.path).await.unwrap());
    idle.push(UnixStream::connect(&fixture.path).await.unwrap());
    // One of the last two found no place and reads why.
    let mut busy = String::new();
    let last = idle.last_mut().unwrap();
    timeout(DEADLINE, last.read_to_string(&mut busy))
        .await
        .unwrap()
        .unwrap();
    assert!(busy.contains("\"busy\""), "{busy}");
}

#[tokio::test]
async fn one_client_too_many_is_told_so_and_not_reset() {
    let fixture = start();
    let mut idle = Vec::new();
    for _ in 0..CLIENTS {
        idle.push(UnixStream::connect(&fixture.path).await.unwrap());
    }
    let mut stream = UnixStream::connect(&fixture.path).await.unwrap();
    stream
        .write_all(b"{\"command\":\"status\"}\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("64 clients already"), "{answer}");
    drop(idle);
}

const DRAIN: &[u8] = b"{\"command\":\"drain\",\"backend\":\"web/web-1\"}\n";

#[tokio::test]
async fn what_a_client_asked_for_that_has_left_is_not_to_be_done() {
    let mut fixture = start();
    let mut stream = UnixStream::connect(&fixture.path).await.unwrap();
    stream.write_all(DRAIN).await.unwrap();
    let call = timeout(DEADLINE, fixture.calls.recv())
        .await
        .unwrap()
        .unwrap();
    assert!(!call.responder.is_left());
    drop(stream);
    let noticed = async {
        while !call.responder.is_left() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, noticed).await.unwrap();
}

#[tokio::test]
async fn a_client_that_only_listens_any_more_is_answered() {
    let mut fixture = start();
    let mut stream = UnixStream::connect(&fixture.path).await.unwrap();
    stream.write_all(DRAIN).await.unwrap();
    stream.shutdown().await.unwrap();
    let call = timeout(DEADLINE, fixture.calls.recv())
        .await
        .unwrap()
        .unwrap();
    // Longer than it takes to notice one who has left.
    tokio::time::sleep(LOOK * 2).await;
    call.responder.done(true, "drains");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("drains"), "{answer}");
}
