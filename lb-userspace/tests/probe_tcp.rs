//! TCP probes with scripts and half-open ones, and the recorded cases of protocols over TCP.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use lb_userspace::model::{
    LdapProbe, Match, MysqlProbe, Pattern, PostgresProbe, ProbeKind, ProbeSpec, RedisProbe,
    ScriptStep, SmtpProbe, TcpScript,
};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};
use support::{Connection, Json, Report, Server, str};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

fn spec(target: SocketAddr, kind: ProbeKind) -> ProbeSpec {
    ProbeSpec {
        target,
        timeout: Duration::from_secs(5),
        kind: kind.into(),
        egress: Default::default(),
    }
}

fn script(steps: Vec<ScriptStep>) -> ProbeKind {
    ProbeKind::TcpScript(TcpScript { steps, tls: None })
}

fn send(bytes: &[u8]) -> ScriptStep {
    ScriptStep::Send(bytes.to_vec())
}

fn expect(wanted: Match) -> ScriptStep {
    ScriptStep::Receive {
        expect: Some(wanted),
        unless: None,
        min_bytes: 1,
    }
}

fn contains(text: &str) -> Match {
    Match::Contains(text.as_bytes().to_vec())
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_cases() {
    let file = support::load(include_str!("cases/tcp_cases.json"));
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() > 25, "the file lost its cases");
    let mut report = Report::default();
    for case in cases {
        let id = str(case, "id");
        let kinds = kinds(case);
        assert!(!kinds.is_empty(), "{id}: no probe asks it");
        for kind in kinds {
            let name = format!("{id} as {}", kind.name());
            let server = Server::start(None, {
                let ops = case["responder"].as_array().unwrap().clone();
                move |_, connection| play(connection, ops.clone())
            })
            .await;
            let mut spec = spec(server.address, kind);
            // Only a case that ends so waits for it.
            if str(&case["expect"], "cls").contains("timeout") {
                spec.timeout = Duration::from_millis(500);
            }
            let outcome = support::judged(async || Prober::new().run(&spec).await).await;
            let expect = &case["expect"];
            let verdict = match str(expect, "verdict") {
                "pass" => Verdict::Success,
                _ => Verdict::Failure,
            };
            report.check(&name, &outcome, verdict, &classes(str(expect, "cls")));
        }
    }
    assert!(report.right > 25, "{}", report.right);
    report.finish();
}

/// Our classes for a case's.
fn classes(class: &str) -> String {
    match class {
        "mismatch" => "content_or_application_or_malformed_or_starting".to_owned(),
        "mismatch_or_timeout" => "content_or_timeout".to_owned(),
        status if status.starts_with("status_") => "application_or_content".to_owned(),
        other => other.to_owned(),
    }
}

/// The probes that ask what a case asks: its steps as a script, and the protocol's own.
fn kinds(case: &Json) -> Vec<ProbeKind> {
    let probe = &case["probe"];
    let mut kinds = Vec::new();
    if let Some(steps) = probe["steps"].as_array() {
        let lines = str(case, "id").starts_with("smtp-");
        let steps: Option<Vec<ScriptStep>> =
            steps.iter().skip(1).map(|op| step(op, lines)).collect();
        kinds.extend(steps.map(script));
    }
    if let Some(segments) = probe["expect_segments"].as_array() {
        let wanted = segments
            .iter()
            .map(|part| Match::Contains(hex(part.as_str().unwrap())));
        kinds.push(script(wanted.map(expect).collect()));
    }
    let id = str(case, "id");
    let absent_key = probe["redis_key"].as_str().map(str::to_owned);
    if ["redis-pong", "redis-loading", "redis-moved"].contains(&id) || absent_key.is_some() {
        kinds.push(ProbeKind::Redis(RedisProbe {
            user: None,
            password_file: None,
            role: None,
            absent_key,
            tls: None,
        }));
    }
    if id.starts_with("pgsql-") {
        kinds.push(ProbeKind::Postgres(PostgresProbe {
            user: "postgres".to_owned(),
            database: None,
        }));
    }
    if id.starts_with("mysql-") {
        let user = probe["steps"][1]["user"].as_str().map(str::to_owned);
        kinds.push(ProbeKind::Mysql(MysqlProbe { user }));
    }
    if id.starts_with("ldap-") {
        kinds.push(ProbeKind::Ldap(LdapProbe { tls: None }));
    }
    if id.starts_with("smtp-") {
        kinds.push(ProbeKind::Smtp(SmtpProbe {
            hello: "localhost".to_owned(),
            tls: None,
        }));
    }
    kinds
}

/// `lines`: a prefix stands for the line that it begins, which must be whole.
fn step(step: &Json, lines: bool) -> Option<ScriptStep> {
    let text = |key: &str| step[key].as_str().map(hex);
    if let Some(bytes) = text("send") {
        return Some(ScriptStep::Send(bytes));
    }
    if let Some(port) = step["connect_port"].as_u64() {
        return Some(ScriptStep::Connect(u16::try_from(port).unwrap()));
    }
    let wanted = text("expect").map(Match::Contains);
    let wanted = wanted.or(text("expect_prefix").map(|prefix| match lines {
        true => Match::Regex(
            Pattern::new(&format!(
                "^{}[^\n]*\n",
                std::str::from_utf8(&prefix).unwrap()
            ))
            .unwrap(),
        ),
        false => Match::Prefix(prefix),
    }));
    wanted.map(expect)
}

/// The second connection of a script goes to another port, and is closed before the next.
#[tokio::test]
async fn a_script_goes_on_by_other_connections() {
    let greets = |text: &'static str| {
        Server::start(None, move |_, mut connection: Connection| async move {
            connection.send(text.as_bytes()).await;
            let mut rest = Vec::new();
            let _ = connection.stream().read_to_end(&mut rest).await;
        })
    };
    let (first, second) = (greets("one").await, greets("two").await);
    let steps = |last: &str| {
        script(vec![
            expect(contains("one")),
            ScriptStep::Connect(second.address.port()),
            expect(contains(last)),
        ])
    };
    let outcome = Prober::new().run(&spec(first.address, steps("two"))).await;
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    let names: Vec<_> = outcome.steps.iter().map(|step| step.name).collect();
    assert_eq!(names, ["connect", "expect", "connect", "expect"]);
    let mut wrong = spec(first.address, steps("one"));
    wrong.timeout = Duration::from_millis(300);
    let outcome = support::judged(async || Prober::new().run(&wrong).await).await;
    assert_eq!(outcome.class, Class::Timeout, "{outcome:?}");
}

/// Plays a case's responder. What it receives is any answer: our probes differ in their words.
async fn play(mut connection: Connection, ops: Vec<Json>) {
    for op in &ops {
        if op["recv"].is_u64() {
            let mut buffer = [0; 4096];
            let _ = connection.stream().read(&mut buffer).await;
        } else if let Some(bytes) = op["send"].as_str() {
            connection.send(&hex(bytes)).await;
        } else if let Some(millis) = op["sleep_ms"].as_u64().or(op["hold_ms"].as_u64()) {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }
    connection.fin().await;
}

/// A server that sends `parts` one after the other, each when something was received.
async fn answering(parts: &'static [&'static str]) -> Server {
    Server::start(None, move |_, mut connection: Connection| async move {
        for part in parts {
            let mut buffer = [0; 4096];
            let _ = connection.stream().read(&mut buffer).await;
            connection.send(part.as_bytes()).await;
        }
        connection.fin().await;
    })
    .await
}

async fn run(server: &Server, steps: Vec<ScriptStep>) -> Outcome {
    let spec = spec(server.address, script(steps));
    support::judged(async || Prober::new().run(&spec).await).await
}

#[tokio::test]
async fn a_script_is_a_conversation() {
    let server = answering(&["220 mail ready\r\n", "250-mail\r\n250 ok\r\n"]).await;
    let outcome = run(
        &server,
        vec![
            send(b"x"),
            expect(Match::Regex(Pattern::new(r"^220 .*\r\n").unwrap())),
            send(b"EHLO me\r\n"),
            expect(Match::Prefix(b"250".to_vec())),
            expect(contains("\r\n250 ")),
        ],
    )
    .await;
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
    let names: Vec<_> = outcome.steps.iter().map(|step| step.name).collect();
    assert_eq!(
        names,
        ["connect", "send", "expect", "send", "expect", "expect"]
    );
}

#[tokio::test]
async fn a_script_says_what_it_got() {
    let server = answering(&["-ERR not today\r\n"]).await;
    let unless = |min_bytes| ScriptStep::Receive {
        expect: None,
        unless: Some(contains("-ERR")),
        min_bytes,
    };
    for (step, class, detail) in [
        (
            expect(contains("+PONG")),
            Class::Content,
            "connection closed by the backend: no \"+PONG\" in \"-ERR not today\\r\\n\"",
        ),
        (
            expect(Match::Prefix(b"+".to_vec())),
            Class::Content,
            "want \"+\" at the start, received \"-ERR not today\\r\\n\"",
        ),
        (
            unless(1),
            Class::Content,
            "received \"-ERR\", which the script refuses, in \"-ERR not today\\r\\n\"",
        ),
    ] {
        let outcome = run(&server, vec![send(b"PING\r\n"), step]).await;
        assert_eq!(
            (outcome.verdict, outcome.class, outcome.detail.as_str()),
            (Verdict::Failure, class, detail)
        );
    }
    let good = answering(&["+OK\r\n"]).await;
    let outcome = run(&good, vec![send(b"PING\r\n"), unless(4)]).await;
    assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
}

#[tokio::test]
async fn what_a_script_waits_for_stands_in_its_timeout() {
    let server = Server::start(None, |_, mut connection: Connection| async move {
        connection.send(b"hello").await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut spec = spec(server.address, script(vec![expect(contains("ready"))]));
    spec.timeout = Duration::from_millis(500);
    let outcome = support::judged(async || Prober::new().run(&spec).await).await;
    assert_eq!(outcome.class, Class::Timeout, "{outcome:?}");
    assert!(
        outcome
            .detail
            .ends_with("(connected, no \"ready\" in \"hello\")"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn an_endless_answer_ends_the_script() {
    let server = Server::start(None, |_, mut connection: Connection| async move {
        connection.send(&[b'x'; 64 * 1024]).await;
        std::future::pending::<()>().await;
    })
    .await;
    let outcome = run(&server, vec![expect(contains("y"))]).await;
    assert_eq!(outcome.class, Class::TooLarge, "{outcome:?}");
}

/// A listener that never accepts must find nothing in its queue.
#[tokio::test]
async fn half_open_is_not_seen_by_the_application() {
    // Every late RST leaves one, so only its absence proves something.
    let mut unseen = 0;
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let outcome = Prober::new()
            .run(&spec(address, ProbeKind::TcpHalfOpen))
            .await;
        assert_eq!(outcome.verdict, Verdict::Success, "{outcome:?}");
        unseen += u32::from(!has_connection(&listener).await);
    }
    assert!(unseen > 0, "the application has seen every connection");
    // The plain probe is seen each time.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Prober::new().run(&spec(address, ProbeKind::Tcp)).await;
    assert!(has_connection(&listener).await);
}

async fn has_connection(listener: &TcpListener) -> bool {
    // What is in the queue is there already: the probe has ended.
    tokio::time::timeout(Duration::from_millis(50), listener.accept())
        .await
        .is_ok()
}

#[tokio::test]
async fn half_open_is_refused_where_nobody_listens() {
    let server = Server::refusing();
    let outcome = Prober::new()
        .run(&spec(server.address, ProbeKind::TcpHalfOpen))
        .await;
    assert_eq!(outcome.class, Class::Refused, "{outcome:?}");
    let silent = Server::black_hole().await;
    let mut spec = spec(silent.address, ProbeKind::TcpHalfOpen);
    spec.timeout = Duration::from_millis(300);
    let outcome = support::judged(async || Prober::new().run(&spec).await).await;
    assert_eq!(outcome.class, Class::Timeout, "{outcome:?}");
    assert!(outcome.detail.contains("no reply to SYN"), "{outcome:?}");
}
