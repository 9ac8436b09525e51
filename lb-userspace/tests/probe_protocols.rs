//! Redis, PostgreSQL, MySQL, SMTP and agent probes against scripted servers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use lb_userspace::model::{
    LdapProbe, MysqlProbe, PostgresProbe, ProbeKind, ProbeSpec, RedisProbe, RedisRole, SmtpProbe,
};
use lb_userspace::probe::{Class, Outcome, Prober, Verdict};
use support::{Connection, Server};
use tokio::io::AsyncReadExt;

const TIMEOUT: Duration = Duration::from_secs(5);

async fn probe(target: SocketAddr, kind: ProbeKind) -> Outcome {
    let spec = ProbeSpec {
        target,
        timeout: TIMEOUT,
        kind: kind.into(),
        egress: Default::default(),
    };
    Prober::new().run(&spec).await
}

/// Talks first if `first` says so, then answers each message with the next of `answers`.
async fn scripted(first: bool, answers: Vec<Vec<u8>>) -> Server {
    let answers = Arc::new(answers);
    Server::start(None, move |_, mut connection: Connection| {
        let answers = answers.clone();
        async move {
            for (count, answer) in answers.iter().enumerate() {
                if count > 0 || !first {
                    let mut buffer = [0; 4096];
                    let _ = connection.stream().read(&mut buffer).await;
                }
                connection.send(answer).await;
            }
            connection.fin().await;
        }
    })
    .await
}

/// Each case: what the server answers, and the class and detail that must come of it.
async fn check(first: bool, kind: &ProbeKind, cases: &[(&[&[u8]], Class, &str)]) {
    for (answers, class, detail) in cases {
        let server = scripted(first, answers.iter().map(|a| a.to_vec()).collect()).await;
        let outcome = probe(server.address, kind.clone()).await;
        assert_eq!(
            (outcome.class, outcome.detail.as_str()),
            (*class, *detail),
            "{answers:?}: {outcome:?}"
        );
    }
}

fn redis(role: Option<RedisRole>) -> ProbeKind {
    ProbeKind::Redis(RedisProbe {
        user: None,
        password_file: None,
        role,
        absent_key: None,
        tls: None,
    })
}

#[tokio::test]
async fn redis_answers() {
    let ping = redis(None);
    let cases: &[(&[&[u8]], Class, &str)] = &[
        (&[b"+PONG\r\n"], Class::Ok, "PONG"),
        (
            &[b"-LOADING Redis is loading the dataset in memory\r\n"],
            Class::Starting,
            "the server is loading its data: \"LOADING Redis is loading the dataset in memory\"",
        ),
        (
            &[b"-MASTERDOWN Link with MASTER is down.\r\n"],
            Class::Application,
            "replica without its master: \"MASTERDOWN Link with MASTER is down.\"",
        ),
        (
            &[b"-NOAUTH Authentication required.\r\n"],
            Class::Application,
            "PING refused, set `password_file`: \"NOAUTH Authentication required.\"",
        ),
        (
            &[b"HTTP/1.1 400 Bad Request\r\n\r\n"],
            Class::Malformed,
            "not Redis: the answer begins with: \"HTTP/1.1 400 Bad Request\"",
        ),
        (
            &[b"SSH-2.0-OpenSSH_9.2\r\n"],
            Class::Malformed,
            "the peer speaks SSH, not Redis, on this port",
        ),
        (&[b""], Class::Empty, "connection closed without an answer"),
        (
            &[b"+PO"],
            Class::Truncated,
            "connection closed in the middle of the answer, after \"+PO\"",
        ),
        (
            &[b"$5\r\nhello\r\n"],
            Class::Malformed,
            "the answer to PING is \"hello\", which Redis does not give",
        ),
        (
            &[b"$99999999999\r\n"],
            Class::TooLarge,
            "a text of 99999999999 bytes, more than 1024",
        ),
    ];
    check(false, &ping, cases).await;
    let endless = [b"+".as_slice(), &[b'x'; 8000]].concat();
    let server = scripted(false, vec![endless]).await;
    let outcome = probe(server.address, ping).await;
    assert_eq!(outcome.class, Class::Malformed, "{outcome:?}");
}

#[tokio::test]
async fn redis_roles() {
    const PONG: &[u8] = b"+PONG\r\n";
    const MASTER: &[u8] =
        b"*3\r\n$6\r\nmaster\r\n:0\r\n*1\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9001\r\n$1\r\n0\r\n";
    const REPLICA: &[u8] =
        b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:9000\r\n$9\r\nconnected\r\n:3167038\r\n";
    const DOWN: &[u8] =
        b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:9000\r\n$7\r\nconnect\r\n:-1\r\n";
    const BOMB: &[u8] = b"*1000\r\n*1000\r\n*1000\r\n*1000\r\n*1000\r\n";
    let down = "replica without its master: the link to 127.0.0.1:9000 is \"connect\"";
    use Class::{Application, Ok, TooLarge};
    check(
        false,
        &redis(Some(RedisRole::Any)),
        &[
            (&[PONG, MASTER], Ok, "PONG, master"),
            (&[PONG, REPLICA], Ok, "PONG, replica of 127.0.0.1:9000"),
            (&[PONG, DOWN], Application, down),
            (
                &[PONG, b"-NOPERM this user has no permissions\r\n"],
                Application,
                "the probe's user may not run ROLE: \"NOPERM this user has no permissions\"",
            ),
            (
                &[PONG, BOMB],
                TooLarge,
                "an answer of more than 1024 values",
            ),
        ],
    )
    .await;
    check(
        false,
        &redis(Some(RedisRole::Master)),
        &[
            (&[PONG, MASTER], Ok, "PONG, master"),
            (
                &[PONG, REPLICA],
                Application,
                "replica of 127.0.0.1:9000, want a master",
            ),
        ],
    )
    .await;
    check(
        false,
        &redis(Some(RedisRole::Replica)),
        &[(&[PONG, MASTER], Application, "master, want a replica")],
    )
    .await;
}

#[tokio::test]
async fn a_password_file_that_cannot_be_read_is_our_fault() {
    let server = scripted(false, vec![b"+OK\r\n".to_vec()]).await;
    let empty = tempfile::NamedTempFile::new().unwrap();
    for path in [std::path::Path::new("/nonexistent/password"), empty.path()] {
        let outcome = probe(
            server.address,
            ProbeKind::Redis(RedisProbe {
                user: None,
                password_file: Some(path.to_owned()),
                role: None,
                absent_key: None,
                tls: None,
            }),
        )
        .await;
        assert_eq!(outcome.verdict, Verdict::Internal, "{outcome:?}");
        assert!(
            outcome.detail.contains(path.to_str().unwrap()),
            "{outcome:?}"
        );
    }
}

/// ErrorResponse with these fields.
fn postgres_error(severity: &str, code: &str, said: &str) -> Vec<u8> {
    let body = format!("S{severity}\0V{severity}\0C{code}\0M{said}\0Fpostmaster.c\0\0");
    let length = u32::try_from(body.len() + 4).unwrap();
    [b"E", length.to_be_bytes().as_slice(), body.as_bytes()].concat()
}

#[tokio::test]
async fn postgres_answers() {
    let kind = ProbeKind::Postgres(PostgresProbe {
        user: "lb".to_owned(),
        database: Some("postgres".to_owned()),
    });
    let starting = postgres_error("FATAL", "57P03", "the database system is starting up");
    let stopping = postgres_error("FATAL", "57P03", "the database system is shutting down");
    let full = postgres_error("FATAL", "53300", "sorry, too many clients already");
    check(
        false,
        &kind,
        &[
            (
                &[b"R\0\0\0\x08\0\0\0\0"],
                Class::Ok,
                "accepts connections (no password asked)",
            ),
            (
                &[b"N\0\0\0\x05\0R\0\0\0\x0c\0\0\0\x05salt"],
                Class::Ok,
                "accepts connections (asks for an MD5 password)",
            ),
            (
                &[&starting],
                Class::Starting,
                "FATAL: \"the database system is starting up\" (57P03)",
            ),
            (
                &[&stopping],
                Class::Application,
                "FATAL: \"the database system is shutting down\" (57P03)",
            ),
            (
                &[&full],
                Class::Application,
                "FATAL: \"sorry, too many clients already\" (53300)",
            ),
            (
                &[b"HTTP/1.1 400 Bad Request\r\n"],
                Class::Malformed,
                "not PostgreSQL: the answer begins with: \"HTTP/1.1 400 Bad Request\\r\\n\"",
            ),
            (
                &[b"R\xff\xff\xff\xff"],
                Class::Malformed,
                "not PostgreSQL: a message of 4294967295 bytes",
            ),
            (
                &[b"R\0\0\0\x08"],
                Class::Empty,
                "connection closed without an answer",
            ),
        ],
    )
    .await;
}

/// The greeting of MySQL 8.0.19, from the recorded cases.
const GREETING: &[u8] = b"\x4a\0\0\0\x0a8.0.19\0\x0a\0\0\0\x6f\x3c\x02\x5e\x62\x49\x41\x0d\0\xff\xff\xff\x02\0\xff\xc7\x15\0\0\0\0\0\0\0\0\0\0\x7c\x18\x21\x59\x10\x6e\x27\x61\x14\x43\x22\x20\0caching_sha2_password\0";

fn mysql_packet(sequence: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len()).unwrap();
    [&[length, 0, 0, sequence], body].concat()
}

#[tokio::test]
async fn mysql_answers() {
    let ok = mysql_packet(2, &[0, 0, 0, 2, 0, 0, 0]);
    let denied = mysql_packet(2, b"\xff\x15\x04#28000Access denied for user 'lb'@'h'");
    let switch = mysql_packet(2, b"\xfemysql_native_password\0saltsaltsaltsaltsalt\0");
    let full = mysql_packet(0, b"\xff\x10\x04Too many connections");
    let blocked = mysql_packet(0, b"\xff\x69\x04Host 'h' is blocked");
    let mysql = |user: Option<&str>| {
        ProbeKind::Mysql(MysqlProbe {
            user: user.map(str::to_owned),
        })
    };
    check(
        true,
        &mysql(None),
        &[
            (&[GREETING], Class::Ok, "MySQL 8.0.19"),
            (
                &[&full],
                Class::Application,
                "error 1040: \"Too many connections\"",
            ),
            (
                &[&blocked],
                Class::Application,
                "the server has blocked this host (1129) because of connections without a login: \
                 run FLUSH HOSTS there and set `user`: \"Host 'h' is blocked\"",
            ),
            (
                &[b"SSH-2.0-OpenSSH_9.2\r\n"],
                Class::Malformed,
                "the peer speaks SSH, not MySQL, on this port",
            ),
        ],
    )
    .await;
    check(
        true,
        &mysql(Some("lb")),
        &[
            (&[GREETING, &ok], Class::Ok, "MySQL 8.0.19, login OK"),
            (
                &[GREETING, &switch, &ok],
                Class::Ok,
                "MySQL 8.0.19, login OK",
            ),
            (
                &[GREETING, &denied],
                Class::Application,
                "login refused (1045), see `user`: \"Access denied for user 'lb'@'h'\"",
            ),
            (
                &[GREETING, &switch, &switch],
                Class::Application,
                "user lb cannot log in without a password; make one that can, or see `user`",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn smtp_answers() {
    let kind = ProbeKind::Smtp(SmtpProbe {
        hello: "lb.test".to_owned(),
        tls: None,
    });
    const READY: &[u8] = b"220 mail.test ESMTP\r\n";
    check(
        true,
        &kind,
        &[
            (
                &[READY, b"250-mail.test\r\n250 SIZE\r\n"],
                Class::Ok,
                "220 mail.test ESMTP",
            ),
            (
                &[READY, b"502 what?\r\n", b"250 mail.test\r\n"],
                Class::Ok,
                "220 mail.test ESMTP",
            ),
            (
                &[b"421 too busy\r\n"],
                Class::Application,
                "the greeting is 421 too busy, want 2xx",
            ),
            (
                &[READY, b"550 go away\r\n"],
                Class::Application,
                "the answer to EHLO is 550 go away, want 2xx",
            ),
            (
                &[b"+OK POP3\r\n"],
                Class::Malformed,
                "not SMTP: want a reply such as 220, received: \"+OK POP3\"",
            ),
            (
                &[READY, b"250-a\r\n251 b\r\n"],
                Class::Malformed,
                "not SMTP: want a reply such as 220, received: \"251 b\"",
            ),
        ],
    )
    .await;
}

/// Whatever a server sends ends in a verdict on the server, never in a fault of ours.
#[tokio::test]
async fn mutated_answers_are_judged() {
    let ok = mysql_packet(2, &[0, 0, 0, 2, 0, 0, 0]);
    let role: &[u8] = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
    let cases: [(ProbeKind, bool, [&[u8]; 2]); 4] = [
        (redis(Some(RedisRole::Any)), false, [b"+PONG\r\n", role]),
        (
            ProbeKind::Postgres(PostgresProbe {
                user: "lb".to_owned(),
                database: None,
            }),
            false,
            [&postgres_error("FATAL", "57P03", "starting up"), b""],
        ),
        (
            ProbeKind::Mysql(MysqlProbe {
                user: Some("lb".to_owned()),
            }),
            true,
            [GREETING, &ok],
        ),
        (
            ProbeKind::Smtp(SmtpProbe {
                hello: "lb.test".to_owned(),
                tls: None,
            }),
            true,
            [b"220 mail.test ESMTP\r\n", b"250-mail.test\r\n250 SIZE\r\n"],
        ),
    ];
    let mut runs = Vec::new();
    for (kind, first, answers) in cases {
        for place in (0..2).filter(|place| !answers[*place].is_empty()) {
            for mutated in support::mutations(answers[place], 40) {
                let mut answers = answers.map(<[u8]>::to_vec).to_vec();
                answers[place] = mutated;
                runs.push((kind.clone(), first, answers));
            }
        }
    }
    let judged = stream::iter(runs).map(async |(kind, first, answers)| {
        let server = scripted(first, answers.clone()).await;
        // Many leave both sides waiting.
        let spec = ProbeSpec {
            target: server.address,
            timeout: Duration::from_secs(1),
            kind: kind.into(),
            egress: Default::default(),
        };
        let outcome = support::judged(async || Prober::new().run(&spec).await).await;
        (spec, answers, outcome)
    });
    let mut judged = pin!(judged.buffer_unordered(40));
    while let Some((spec, answers, outcome)) = judged.next().await {
        assert_ne!(
            outcome.verdict,
            Verdict::Internal,
            "{}: {answers:?}: {outcome:?}",
            spec.kind.name()
        );
    }
}

#[tokio::test]
async fn agents_are_taken_at_their_word() {
    let says = |line: &str| format!("the agent says \"{line}\"");
    for (line, class, detail) in [
        ("up\n", Class::Ok, says("up")),
        ("ready 75%", Class::Ok, says("ready 75%")),
        ("drain\n", Class::Application, says("drain")),
        ("maint\r\n", Class::Application, says("maint")),
        ("0%\n", Class::Application, says("0%")),
        (
            "down#disk full\n",
            Class::Application,
            says("down#disk full"),
        ),
        (
            "hello\n",
            Class::Malformed,
            "not an agent's words: \"hello\" is no word of an agent: \"hello\\n\"".to_owned(),
        ),
        (
            "",
            Class::Empty,
            "connection closed without an answer".to_owned(),
        ),
    ] {
        let cases: &[(&[&[u8]], Class, &str)] = &[(&[line.as_bytes()], class, &detail)];
        check(true, &ProbeKind::Agent, cases).await;
    }
    let endless = scripted(true, vec![vec![b'u'; 5000]]).await;
    let outcome = probe(endless.address, ProbeKind::Agent).await;
    assert_eq!(outcome.class, Class::TooLarge, "{outcome:?}");
}

#[tokio::test]
async fn ldap_answers() {
    let bind = ProbeKind::Ldap(LdapProbe { tls: None });
    let long: &[u8] =
        b"\x30\x84\x00\x00\x00\x10\x02\x01\x01\x61\x84\x00\x00\x00\x07\x0a\x01\x00\x04\x00\x04\x00";
    let cases: &[(&[&[u8]], Class, &str)] = &[
        (
            &[b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00"],
            Class::Ok,
            "anonymous bind: success",
        ),
        (&[long], Class::Ok, "anonymous bind: success"),
        (
            &[b"\x30\x10\x02\x01\x01\x61\x0b\x0a\x01\x33\x04\x00\x04\x04wait"],
            Class::Application,
            "anonymous bind refused: busy (51), \"wait\"",
        ),
        (
            &[b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x63\x04\x00\x04\x00"],
            Class::Application,
            "anonymous bind refused: result code 99",
        ),
        (
            &[b"\x30\x0c\x02\x01\x00\x78\x07\x0a\x01\x34\x04\x00\x04\x00"],
            Class::Application,
            "the server takes no sessions: unavailable (52)",
        ),
        (
            &[b"HTTP/1.1 400 Bad Request\r\n\r\n"],
            Class::Malformed,
            "not LDAP: the answer begins with: \"HTTP/1.1 400 Bad Request\\r\\n\\r\\n\"",
        ),
        (&[b""], Class::Empty, "connection closed without an answer"),
        (
            &[b"\x30\x0c\x02\x01"],
            Class::Truncated,
            "connection closed in the middle of the answer, after \"\\u{2}\\u{1}\"",
        ),
    ];
    check(false, &bind, cases).await;
    // An answer to another message, a length that leads out of its message, one that is indefinite,
    // and one that is too long.
    let malformed: [&[u8]; 4] = [
        b"\x30\x0c\x02\x01\x07\x61\x07\x0a\x01\x00\x04\x00\x04\x00",
        b"\x30\x05\x02\x7f\x01ab",
        b"\x30\x80\x02\x01",
        b"\x30\x84\x7f\xff\xff\xff",
    ];
    for answer in malformed {
        let server = scripted(false, vec![answer.to_vec()]).await;
        let outcome = probe(server.address, bind.clone()).await;
        assert_eq!(outcome.class, Class::Malformed, "{outcome:?}");
    }
}
