//! gRPC probes by `Health/Watch`, against a server on the `h2` crate.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use lb_userspace::model::{ProbeKind, ProbeSpec};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};
use support::{Connection, Server};
use tokio::sync::{mpsc, watch};

const SERVING: u8 = 1;
const NOT_SERVING: u8 = 2;
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server does, now and from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Now {
    status: u8,
    offers_watch: bool,
    /// Answers nothing any more, not even a PING.
    frozen: bool,
    /// Connections of another age are closed.
    age: u32,
}

struct Health {
    server: Server,
    now: watch::Sender<Now>,
    connections: Arc<AtomicUsize>,
}

impl Health {
    async fn start(offers_watch: bool) -> Self {
        let (now, follow) = watch::channel(Now {
            status: SERVING,
            offers_watch,
            frozen: false,
            age: 0,
        });
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let server = Server::start(None, move |_, connection| -> BoxFuture<'static, ()> {
            counted.fetch_add(1, Ordering::Relaxed);
            match connection {
                Connection::Plain(stream) => Box::pin(serve(stream, follow.clone())),
                Connection::Tls(_) => panic!("no test needs TLS"),
            }
        })
        .await;
        Self {
            server,
            now,
            connections,
        }
    }

    fn set(&self, change: impl FnOnce(&mut Now)) {
        self.now.send_modify(change);
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn spec(&self, timeout: Duration) -> ProbeSpec {
        ProbeSpec {
            target: self.server.address,
            timeout,
            kind: ProbeKind::Grpc {
                service: String::new(),
                authority: Some("hc.test".to_owned()),
                accept_status: Vec::new(),
                metadata: Vec::new(),
                tls: None,
                watch: true,
            }
            .into(),
            egress: Default::default(),
        }
    }
}

async fn until(now: &mut watch::Receiver<Now>, condition: impl FnMut(&Now) -> bool) {
    // The test has ended if there is no sender any more.
    let _ = now.wait_for(condition).await.is_ok();
}

async fn serve(stream: tokio::net::TcpStream, mut now: watch::Receiver<Now>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let age = now.borrow().age;
    let mut other = now.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = until(&mut other, |now| now.frozen) => std::future::pending().await,
            () = until(&mut now, |now| now.age != age) => return,
            accepted = connection.accept() => accepted,
        };
        let Some(Ok((request, respond))) = accepted else {
            return;
        };
        tokio::spawn(answer(request, respond, now.clone()));
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<bytes::Bytes>,
    mut now: watch::Receiver<Now>,
) {
    let response = || http::Response::builder().header("content-type", "application/grpc");
    let watches = request.uri().path() == "/grpc.health.v1.Health/Watch";
    assert_eq!(request.headers().contains_key("grpc-timeout"), !watches);
    if watches && !now.borrow().offers_watch {
        let refused = response().header("grpc-status", "12").body(()).unwrap();
        respond.send_response(refused, true).unwrap();
        return;
    }
    let mut body = respond
        .send_response(response().body(()).unwrap(), false)
        .unwrap();
    let message = |status| vec![0, 0, 0, 0, 2, 8, status].into();
    let mut said = now.borrow_and_update().status;
    body.send_data(message(said), false).unwrap();
    if !watches {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        body.send_trailers(trailers).unwrap();
        return;
    }
    while now.changed().await.is_ok() {
        let status = now.borrow().status;
        if status != said && body.send_data(message(status), false).is_err() {
            return;
        }
        said = status;
    }
}

fn steps(outcome: &Outcome) -> Vec<&'static str> {
    outcome.steps.iter().map(|step| step.name).collect()
}

async fn told(changes: &mut mpsc::UnboundedReceiver<ProbeSpec>, spec: &ProbeSpec) {
    let told = tokio::time::timeout(PATIENCE, changes.recv()).await;
    assert_eq!(told.unwrap().as_ref(), Some(spec));
}

#[tokio::test]
async fn changes_are_told_and_the_last_word_counts() {
    let health = Health::start(true).await;
    let (report, mut changes) = mpsc::unbounded_channel();
    let prober = Prober::new().reporting(report);
    let spec = health.spec(PATIENCE);

    let first = prober.run(&spec).await;
    assert_eq!(
        (first.class, first.detail.as_str()),
        (Class::Ok, "SERVING"),
        "{first:?}"
    );
    assert_eq!(steps(&first), ["connect", "request", "watch"]);
    let second = prober.run(&spec).await;
    assert_eq!(
        (second.class, steps(&second)),
        (Class::Ok, vec!["ping"]),
        "{second:?}"
    );
    // The same question with another deadline.
    let hasty = prober.run(&health.spec(PATIENCE / 2)).await;
    assert_eq!(steps(&hasty), ["ping"]);

    health.set(|now| now.status = NOT_SERVING);
    told(&mut changes, &spec).await;
    let down = prober.run(&spec).await;
    assert_eq!(
        (down.class, down.detail.as_str()),
        (Class::Application, "NOT_SERVING")
    );
    health.set(|now| now.status = SERVING);
    told(&mut changes, &spec).await;
    assert_eq!(prober.run(&spec).await.class, Class::Ok);
    assert_eq!(health.connections(), 1);

    // The end of the connection is told, and proves nothing.
    health.set(|now| now.age += 1);
    told(&mut changes, &spec).await;
    let fresh = prober.run(&spec).await;
    assert_eq!(fresh.class, Class::Ok, "{fresh:?}");
    assert!(
        steps(&fresh).ends_with(&["connect", "request", "watch"]),
        "{fresh:?}"
    );
    assert_eq!(health.connections(), 2);
}

#[tokio::test]
async fn a_server_without_watch_is_asked_by_check() {
    let health = Health::start(false).await;
    let prober = Prober::new();
    let spec = health.spec(PATIENCE);
    let first = prober.run(&spec).await;
    assert_eq!(
        (first.class, first.detail.as_str()),
        (Class::Ok, "SERVING"),
        "{first:?}"
    );
    assert_eq!(health.connections(), 2, "one to find out");
    health.set(|now| now.status = NOT_SERVING);
    let second = prober.run(&spec).await;
    assert_eq!(second.detail, "NOT_SERVING");
    assert_eq!(health.connections(), 3);
}

#[tokio::test]
async fn a_silent_server_is_found_though_its_last_word_was_good() {
    let health = Health::start(true).await;
    let prober = Prober::new();
    assert_eq!(prober.run(&health.spec(PATIENCE)).await.class, Class::Ok);
    health.set(|now| now.frozen = true);
    let spec = health.spec(Duration::from_millis(500));
    let outcome = support::judged(async || prober.run(&spec).await).await;
    assert_eq!(
        (outcome.verdict, outcome.class),
        (Verdict::Failure, Class::Timeout),
        "{outcome:?}"
    );
}
