//! The Redis probe: PING or EXISTS, with AUTH before it and ROLE after it as asked for.
//!
//! RESP2 (<https://redis.io/docs/latest/develop/reference/protocol-spec/>), which every server
//! speaks until told otherwise.

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use super::wire::Wire;
use super::{Answer, Success, text};
use crate::model::{RedisProbe, RedisRole};

/// Longest line taken.
const MAX_LINE: usize = 1024;
/// Longest bulk string taken: a host name in the answer to ROLE.
const MAX_BULK: usize = 1024;
/// Most values taken of one answer, those within others included. A master lists its replicas with
/// three values each.
const MAX_VALUES: usize = 1024;

/// Asks and judges. `password`: what the password file holds.
pub async fn ask<S: ProbeStream>(
    stream: S,
    probe: &RedisProbe,
    password: Option<&str>,
    trace: &mut Trace,
) -> Answer {
    let mut wire = Wire::new(stream, "Redis", trace);
    if let Some(password) = password {
        let command = match &probe.user {
            Some(user) => command(&["AUTH", user, password]),
            None => command(&["AUTH", password]),
        };
        wire.send(&command).await;
        trace.step(
            "request",
            match &probe.user {
                Some(user) => format!("AUTH as {user}"),
                None => "AUTH".to_owned(),
            },
        );
        match value(&mut wire, trace).await? {
            Reply::Simple(said) if said == "OK" => trace.step("auth", "OK"),
            Reply::Error(error) => return Err(refused(&error, "AUTH")),
            other => return Err(strange(&other, "AUTH")),
        }
    }
    let said = alive(&mut wire, probe.absent_key.as_deref(), trace).await?;
    trace.step("answer", said.clone());
    let detail = match probe.role {
        None => said,
        Some(wanted) => format!("{said}, {}", role(&mut wire, wanted, trace).await?),
    };
    wire.part(&command(&["QUIT"]));
    Ok(Success(detail))
}

/// Asks whether the server answers, and whether the key that must not exist does; gives what it says.
async fn alive<S: ProbeStream>(
    wire: &mut Wire<S>,
    absent_key: Option<&str>,
    trace: &mut Trace,
) -> Result<String, Failure> {
    let (words, name) = match absent_key {
        None => (vec!["PING"], "PING"),
        Some(key) => (vec!["EXISTS", key], "EXISTS"),
    };
    wire.send(&command(&words)).await;
    trace.step("request", words.join(" "));
    match (value(wire, trace).await?, absent_key) {
        (Reply::Simple(said), None) if said == "PONG" => Ok(said),
        (Reply::Integer(0), Some(key)) => {
            Ok(format!("no key \"{}\"", text::excerpt(key.as_bytes())))
        }
        (Reply::Integer(_), Some(key)) => Err(Failure::new(
            Class::Application,
            format!("the key \"{}\" exists", text::excerpt(key.as_bytes())),
        )),
        // A cluster's node that sends clients elsewhere is up.
        (Reply::Error(said), _) if said.starts_with("MOVED ") || said.starts_with("ASK ") => {
            Ok(text::excerpt(said.as_bytes()))
        }
        (Reply::Error(error), _) => Err(refused(&error, name)),
        (other, _) => Err(strange(&other, name)),
    }
}

/// Asks for the role; gives it, with the state of a replica's link, if it is the one wanted.
async fn role<S: ProbeStream>(
    wire: &mut Wire<S>,
    wanted: RedisRole,
    trace: &mut Trace,
) -> Result<String, Failure> {
    wire.send(&command(&["ROLE"])).await;
    trace.step("request", "ROLE");
    let reply = reply(wire, trace).await?;
    let parts = match reply.as_slice() {
        [Reply::Error(error), ..] => return Err(refused(error, "ROLE")),
        [Reply::Array(_), parts @ ..] => parts,
        [other, ..] => return Err(strange(other, "ROLE")),
        [] => return Err(Failure::internal("an empty answer was taken for one")),
    };
    // master, offset, [replica ...] or slave, host, port, state of the link, offset.
    let (is_master, shown) = match parts {
        [Reply::Bulk(role), ..] if role == b"master" => (true, "master".to_owned()),
        [
            Reply::Bulk(role),
            Reply::Bulk(host),
            Reply::Integer(port),
            Reply::Bulk(link),
            ..,
        ] if role == b"slave" => {
            let link = text::excerpt(link);
            let master = format!("{}:{port}", text::excerpt(host));
            if link != "connected" {
                return Err(Failure::new(
                    Class::Application,
                    format!("replica without its master: the link to {master} is \"{link}\""),
                ));
            }
            (false, format!("replica of {master}"))
        }
        [Reply::Bulk(role), ..] if role == b"sentinel" => {
            return Err(Failure::new(
                Class::Application,
                "this is a Sentinel, not a Redis server; probe it without `role`",
            ));
        }
        _ => {
            return Err(Failure::new(
                Class::Malformed,
                "the answer to ROLE is none that Redis gives",
            ));
        }
    };
    trace.step("role", shown.clone());
    let (right, want) = match wanted {
        RedisRole::Any => (true, "any role"),
        RedisRole::Master => (is_master, "a master"),
        RedisRole::Replica => (!is_master, "a replica"),
    };
    if right {
        Ok(shown)
    } else {
        Err(Failure::new(
            Class::Application,
            format!("{shown}, want {want}"),
        ))
    }
}

/// A command as an array of bulk strings.
fn command(words: &[&str]) -> Vec<u8> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    command.into_bytes()
}

/// One value.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Simple(String),
    /// Without the `-`.
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    /// Its elements follow.
    Array(usize),
}

/// A value with everything in it, each array before its elements.
async fn reply<S: ProbeStream>(wire: &mut Wire<S>, trace: &Trace) -> Result<Vec<Reply>, Failure> {
    let mut values = Vec::new();
    let mut left = 1;
    while left > 0 {
        let next = value(wire, trace).await?;
        left -= 1;
        if let Reply::Array(elements) = next {
            left += elements;
        }
        values.push(next);
        if values.len() + left > MAX_VALUES {
            return Err(Failure::new(
                Class::TooLarge,
                format!("an answer of more than {MAX_VALUES} values"),
            ));
        }
    }
    Ok(values)
}

async fn value<S: ProbeStream>(wire: &mut Wire<S>, trace: &Trace) -> Result<Reply, Failure> {
    let line = wire.line(MAX_LINE).await.map_err(|failure| {
        // What does not even have lines may tell which protocol it is.
        match (failure.class, trace.seen().other_protocol()) {
            (Class::Malformed | Class::Truncated, Some(_)) => {
                wire.malformed("no line", wire.received(), trace)
            }
            _ => failure,
        }
    })?;
    let malformed = || wire.malformed("the answer begins with", &line, trace);
    let (kind, rest) = line.split_first().ok_or_else(malformed)?;
    let number = || std::str::from_utf8(rest).ok()?.parse::<i64>().ok();
    let shown = || String::from_utf8_lossy(rest).into_owned();
    Ok(match kind {
        b'+' => Reply::Simple(shown()),
        b'-' => Reply::Error(shown()),
        b':' => Reply::Integer(number().ok_or_else(malformed)?),
        b'*' => match number().ok_or_else(malformed)? {
            -1 => Reply::Null,
            count => Reply::Array(usize::try_from(count).map_err(|_| malformed())?),
        },
        b'$' => match number().ok_or_else(malformed)? {
            -1 => Reply::Null,
            length => {
                let length = usize::try_from(length).map_err(|_| malformed())?;
                if length > MAX_BULK {
                    return Err(Failure::new(
                        Class::TooLarge,
                        format!("a text of {length} bytes, more than {MAX_BULK}"),
                    ));
                }
                let mut bytes = wire.exact(length + 2).await?;
                bytes.truncate(length);
                Reply::Bulk(bytes)
            }
        },
        _ => return Err(malformed()),
    })
}

/// The server has answered with an error.
fn refused(error: &str, to: &str) -> Failure {
    let said = text::excerpt(error.as_bytes());
    match error.split(' ').next().unwrap_or_default() {
        "LOADING" => Failure::new(
            Class::Starting,
            format!("the server is loading its data: \"{said}\""),
        ),
        "MASTERDOWN" => Failure::new(
            Class::Application,
            format!("replica without its master: \"{said}\""),
        ),
        "NOAUTH" => Failure::new(
            Class::Application,
            format!("{to} refused, set `password_file`: \"{said}\""),
        ),
        "WRONGPASS" => Failure::new(
            Class::Application,
            format!("{to} refused, see `user` and `password_file`: \"{said}\""),
        ),
        "NOPERM" => Failure::new(
            Class::Application,
            format!("the probe's user may not run {to}: \"{said}\""),
        ),
        _ => Failure::new(Class::Application, format!("{to} refused: \"{said}\"")),
    }
}

/// The server has answered, but not to this.
fn strange(reply: &Reply, to: &str) -> Failure {
    let said = match reply {
        Reply::Simple(said) | Reply::Error(said) => text::excerpt(said.as_bytes()),
        Reply::Bulk(said) => text::excerpt(said),
        Reply::Integer(number) => number.to_string(),
        Reply::Null => "nothing".to_owned(),
        Reply::Array(_) => "a list".to_owned(),
    };
    Failure::new(
        Class::Malformed,
        format!("the answer to {to} is \"{said}\", which Redis does not give"),
    )
}
