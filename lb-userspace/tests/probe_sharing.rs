//! A probe that two services share, against a real server that counts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lb_userspace::config;
use lb_userspace::health::{Engine, Health};
use lb_userspace::model::BackendKey;
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers 200 and counts; says that it is degraded if told to.
struct Server {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    degraded: Arc<AtomicBool>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            degraded: Arc::default(),
        };
        let (requests, degraded) = (server.requests.clone(), server.degraded.clone());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                requests.fetch_add(1, Ordering::SeqCst);
                let header = match degraded.load(Ordering::SeqCst) {
                    true => "X-LB-Degraded: no cache\r\n",
                    false => "",
                };
                let mut head = [0; 1024];
                assert!(stream.read(&mut head).await.unwrap() > 0);
                let answer = format!("HTTP/1.1 200 OK\r\n{header}Content-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        server
    }
}

fn service(name: &str, vip: &str, backend: SocketAddr, health: &str) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\naddress = \"{vip}:80\"\n\
         [service.health]\nprobe = \"http\"\npath = \"/readyz\"\ninterval = \"100ms\"\n\
         timeout = \"90ms\"\n{health}\n\
         [[service.backend]]\nname = \"b\"\naddress = \"{backend}\"\n"
    )
}

/// Runs the engine with real probes until `enough` outcomes have come; gives them and how many were
/// started.
async fn run(engine: &mut Engine, enough: usize) -> Vec<Outcome> {
    let prober = Prober::new();
    let begin = Instant::now();
    let mut outcomes = Vec::new();
    while outcomes.len() < enough {
        let now = begin.elapsed();
        for start in engine.start_due(now) {
            let outcome = prober.run(&start.spec).await;
            engine.finish(start.seq, &outcome, begin.elapsed());
            outcomes.push(outcome);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    outcomes
}

#[tokio::test]
async fn two_services_probe_a_server_once() {
    let server = Server::start().await;
    let node = "[node]\ninterfaces = [\"eth0\"]\n";
    let (at, other) = (server.address, "unhealthy_threshold = 7");
    let services =
        service("one", "203.0.113.1", at, "") + &service("two", "203.0.113.2", at, other);
    let model = config::parse(&format!("{node}{services}"), "lb.toml").unwrap();
    let mut engine = Engine::new(1);
    engine.configure(&model.services, &BTreeMap::new(), Duration::ZERO);
    let outcomes = run(&mut engine, 10).await;
    // A probe that a busy machine was late with asked all the same.
    assert_eq!(
        server.requests.load(Ordering::SeqCst),
        outcomes.len() as u64
    );
    let keys = ["one", "two"].map(|service| BackendKey::new(service, "b"));
    for key in &keys {
        let view = engine.get(key).unwrap();
        assert_eq!((view.health, view.weight), (Health::Healthy, 100), "{key}");
        assert_eq!(view.checks[0].history.len(), 10, "{key}");
    }

    server.degraded.store(true, Ordering::SeqCst);
    let mut engine = Engine::new(1);
    engine.configure(&model.services, &BTreeMap::new(), Duration::ZERO);
    let outcomes = run(&mut engine, 5).await;
    let degraded = |o: &&Outcome| (o.verdict, o.class) == (Verdict::Success, Class::Degraded);
    let found = outcomes.iter().find(degraded).unwrap();
    assert_eq!(found.detail, "HTTP 200, degraded");
    for key in &keys {
        assert_eq!(engine.get(key).unwrap().weight, 50, "{key}");
    }

    // Where they ask differently, or reject other answers, each asks for itself.
    let posted = services.replace("http\"", "http\"\nmethod = \"POST\"\nbody = \"a\"");
    for (services, from, to) in [
        (&services, "/readyz", "/other"),
        (&posted, "body = \"a\"", "body = \"b\""),
        (&services, "/readyz\"", "/readyz\"\nreject_body = \"no\""),
    ] {
        let before = server.requests.load(Ordering::SeqCst);
        for (services, count) in [(services.clone(), 1), (services.replacen(from, to, 1), 2)] {
            let model = config::parse(&format!("{node}{services}"), "lb.toml").unwrap();
            let mut engine = Engine::new(1);
            engine.configure(&model.services, &BTreeMap::new(), Duration::ZERO);
            engine.probe_now(&keys[0], Duration::ZERO);
            engine.probe_now(&keys[1], Duration::ZERO);
            let prober = Prober::new();
            let starts = engine.start_due(Duration::ZERO);
            assert_eq!(starts.len(), count, "{to}");
            for start in starts {
                prober.run(&start.spec).await;
            }
        }
        let asked = server.requests.load(Ordering::SeqCst) - before;
        assert_eq!(asked, 1 + 2, "{to}");
    }
}
