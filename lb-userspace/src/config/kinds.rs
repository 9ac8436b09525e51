//! Keys of the probes of further protocols: TCP scripts, Redis, PostgreSQL, MySQL, SMTP, DNS and
//! commands.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::reader::{At, Errors, Problem, Reader, Value};
use super::schema::Key;
use super::value::{self, shown, wrong_type};
use super::{health::Probe, script};
use crate::model::{
    DnsProbe, ExecProbe, LdapProbe, MysqlProbe, PostgresProbe, ProbeKind, RedisProbe, RedisRole,
    ScriptStep, SmtpProbe, TcpScript, TlsOptions,
};

/// Query types by name (IANA, Domain Name System Parameters).
const QUERY_TYPES: [(&str, u16); 10] = [
    ("A", 1),
    ("AAAA", 28),
    ("NS", 2),
    ("SOA", 6),
    ("CNAME", 5),
    ("PTR", 12),
    ("MX", 15),
    ("TXT", 16),
    ("SRV", 33),
    ("CAA", 257),
];

/// Response codes that a probe may want.
const RCODES: [(&str, u8); 4] = [
    ("NOERROR", 0),
    ("NXDOMAIN", 3),
    ("SERVFAIL", 2),
    ("REFUSED", 5),
];

/// What the tables say, value by value.
#[derive(Debug)]
pub struct Settings {
    half_open: Option<At<bool>>,
    script: Option<At<Vec<ScriptStep>>>,
    user: Option<At<String>>,
    password_file: Option<At<PathBuf>>,
    role: Option<At<&'static str>>,
    absent_key: Option<At<String>>,
    database: Option<At<String>>,
    hello: Option<At<String>>,
    query: Option<At<String>>,
    query_type: Option<At<&'static str>>,
    expect_rcode: Option<At<&'static str>>,
    expect_answer: Option<At<Vec<IpAddr>>>,
    command: Option<At<Vec<String>>>,
}

/// Reads every key and reports what is wrong with any by itself.
pub fn read(reader: &Reader<'_>, errors: &mut Errors<'_>) -> Settings {
    Settings {
        half_open: reader.get(errors, "half_open", value::boolean),
        script: reader.get(errors, "script", script::steps),
        user: reader.get(errors, "user", word),
        password_file: reader.get(errors, "password_file", value::path),
        role: reader.get(errors, "role", value::choice),
        absent_key: reader.get(errors, "absent_key", word),
        database: reader.get(errors, "database", word),
        hello: reader.get(errors, "hello", word),
        query: reader.get(errors, "query", domain),
        query_type: reader.get(errors, "query_type", value::choice),
        expect_rcode: reader.get(errors, "expect_rcode", value::choice),
        expect_answer: reader.get(errors, "expect_answer", addresses),
        command: reader.get(errors, "command", command),
    }
}

/// What a probe of one of these kinds asks, the same for all backends except for their names.
/// `None` only if there are errors.
pub fn question(
    probe: Probe,
    mut settings: Settings,
    tls: Option<TlsOptions>,
    reader: &Reader<'_>,
    errors: &mut Errors<'_>,
) -> Option<ProbeKind> {
    let user = settings.user.take().map(|user| user.value);
    Some(match probe {
        Probe::Tcp => {
            let half_open = settings.half_open?;
            match (half_open.value, settings.script) {
                (true, script) => {
                    if script.is_some() || tls.is_some() {
                        let with = if script.is_some() { "script" } else { "tls" };
                        errors.add(
                            half_open.span,
                            format!("`half_open` cannot stand with `{with}`: the connection is never established"),
                            format!("remove one of the two: `half_open` or `{with}`"),
                        );
                        return None;
                    }
                    ProbeKind::TcpHalfOpen
                }
                (false, None) if tls.is_none() => ProbeKind::Tcp,
                (false, script) => ProbeKind::TcpScript(TcpScript {
                    steps: script.map(|script| script.value).unwrap_or_default(),
                    tls,
                }),
            }
        }
        Probe::Redis => {
            if let (Some(_), None) = (&user, &settings.password_file) {
                errors.add(
                    place(reader, "user"),
                    "`user` without `password_file`: Redis knows no login without a password",
                    "add password_file = \"/etc/lb/redis.password\", or remove `user`",
                );
                return None;
            }
            ProbeKind::Redis(RedisProbe {
                user,
                password_file: settings.password_file.map(|file| file.value),
                role: settings.role.map(|role| match role.value {
                    "master" => RedisRole::Master,
                    "replica" => RedisRole::Replica,
                    _ => RedisRole::Any,
                }),
                absent_key: settings.absent_key.map(|key| key.value),
                tls,
            })
        }
        Probe::Postgres => ProbeKind::Postgres(PostgresProbe {
            user: user.unwrap_or_else(|| "postgres".to_owned()),
            database: settings.database.map(|name| name.value),
        }),
        Probe::Mysql => ProbeKind::Mysql(MysqlProbe { user }),
        Probe::Smtp => ProbeKind::Smtp(SmtpProbe {
            hello: settings.hello?.value,
            tls,
        }),
        Probe::Ldap => ProbeKind::Ldap(LdapProbe { tls }),
        Probe::Agent => ProbeKind::Agent,
        Probe::Dns => dns(settings, reader, errors)?,
        Probe::Exec => {
            let Some(command) = settings.command else {
                missing(reader, "command", "[\"/usr/local/bin/check-web\"]", errors);
                return None;
            };
            ProbeKind::Exec(ExecProbe {
                command: command.value,
                // Filled in for each backend.
                service: Arc::from(""),
                backend: Arc::from(""),
            })
        }
        // The keys of these are read in `health`.
        Probe::None | Probe::Http | Probe::Https | Probe::Grpc => return None,
    })
}

fn dns(settings: Settings, reader: &Reader<'_>, errors: &mut Errors<'_>) -> Option<ProbeKind> {
    let Some(query) = settings.query else {
        missing(reader, "query", "\"www.example.org\"", errors);
        return None;
    };
    let query_type = settings.query_type?.value;
    let rcode = settings.expect_rcode?.value;
    let answers = settings.expect_answer?;
    let other = answers.value.iter().find(|ip| match query_type {
        "A" => ip.is_ipv6(),
        "AAAA" => ip.is_ipv4(),
        _ => true,
    });
    if let Some(other) = other {
        errors.add(
            answers.span,
            format!("`expect_answer` has {other}, which no answer of type {query_type} has"),
            "IPv4 addresses are asked for with query_type = \"A\", IPv6 addresses with \"AAAA\"",
        );
        return None;
    }
    let number =
        |list: &[(&'static str, u16)], name| list.iter().find(|(n, _)| *n == name).copied();
    Some(ProbeKind::Dns(DnsProbe {
        name: query.value,
        query_type: number(&QUERY_TYPES, query_type)?,
        rcode: RCODES.iter().find(|(name, _)| *name == rcode).copied()?,
        answers: answers.value,
    }))
}

/// Reports a key that this kind of probe needs. One that is written and wrong is reported already.
fn missing(reader: &Reader<'_>, key: &str, example: &str, errors: &mut Errors<'_>) {
    if reader.written(key).is_none() {
        errors.add(
            place(reader, "probe"),
            format!("this probe needs `{key}`"),
            format!("add {key} = {example}"),
        );
    }
}

fn place(reader: &Reader<'_>, key: &str) -> std::ops::Range<usize> {
    reader
        .written(key)
        .map_or_else(|| reader.span.clone(), Value::span)
}

/// Text that goes into a line or a zero-terminated field of a protocol: without white space and
/// control characters.
fn word(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    let text = value::text(key, value)?;
    if text.is_empty() {
        return Err(Problem::new(
            format!("`{}` is empty", key.name),
            "write a name or remove the key",
        ));
    }
    if text.len() > 255 || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Problem::new(
            format!("`{}` cannot be \"{}\"", key.name, shown(&text)),
            "write a name of at most 255 bytes without spaces",
        ));
    }
    Ok(text)
}

/// A domain name: labels of 1 to 63 bytes, 253 in all (RFC 1035, 2.3.4). `.` is the root.
fn domain(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    let text = value::text(key, value)?;
    let name = text.strip_suffix('.').unwrap_or(&text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'\\')
    };
    let root = text == ".";
    if !root && (name.len() > 253 || !name.split('.').all(label)) {
        return Err(Problem::new(
            format!("`{}` is not a domain name: \"{}\"", key.name, shown(&text)),
            "write a name such as \"www.example.org\", in ASCII; \".\" is the root",
        ));
    }
    Ok(name.to_owned())
}

fn addresses(key: &Key, value: &Value<'_>) -> Result<Vec<IpAddr>, Problem> {
    value::texts(key, value)?
        .into_iter()
        .map(|item| {
            item.value.parse().map_err(|_| {
                Problem::new(
                    format!("\"{}\" is not an IP address", shown(&item.value)),
                    format!("write {} = [\"192.0.2.1\"]", key.name),
                )
                .at(item.span)
            })
        })
        .collect()
}

/// A program by its absolute path, and its arguments. There is no shell to take them apart.
pub(super) fn command(key: &Key, value: &Value<'_>) -> Result<Vec<String>, Problem> {
    if !matches!(value.get_ref(), toml::de::DeValue::Array(_)) {
        return Err(wrong_type(key, value));
    }
    let words = value::texts(key, value)?;
    let Some(program) = words.first() else {
        return Err(Problem::new(
            format!("`{}` is empty", key.name),
            format!(
                "write the program and its arguments: {} = [\"/usr/local/bin/check-web\"]",
                key.name
            ),
        ));
    };
    if !program.value.starts_with('/') {
        return Err(Problem::new(
            format!(
                "the program of `{}` is not an absolute path: \"{}\"",
                key.name,
                shown(&program.value)
            ),
            "write where it is, for example \"/usr/local/bin/check-web\"; `command -v NAME` tells",
        )
        .at(program.span.clone()));
    }
    if program.value.contains(char::is_whitespace) && words.len() == 1 {
        return Err(Problem::new(
            "there is no shell to take the command apart",
            "write the arguments as entries of their own: [\"/usr/local/bin/check\", \"--fast\"]",
        )
        .at(program.span.clone()));
    }
    if let Some(bad) = words.iter().find(|word| word.value.contains('\0')) {
        return Err(Problem::new(
            "an argument has a zero byte, which no argument can have",
            "remove it",
        )
        .at(bad.span.clone()));
    }
    Ok(words.into_iter().map(|word| word.value).collect())
}
