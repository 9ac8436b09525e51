//! `script`: what a TCP probe sends and expects.

use toml::de::{DeTable, DeValue};

use super::reader::{Problem, Value};
use super::schema::Key;
use super::suggest::nearest;
use super::value::{kind_of, shown, wrong_type};
use crate::model::{Match, Pattern, ScriptStep};

/// Keys of a step.
const KEYS: [&str; 8] = [
    "connect",
    "send",
    "expect",
    "expect_prefix",
    "expect_regex",
    "unless",
    "unless_regex",
    "min_bytes",
];

/// Most bytes that a step may have to wait for: what the prober receives for one step.
const MOST_BYTES: i64 = 16 * 1024;

const HELP: &str =
    "write steps such as [{ send = 'PING\\r\\n' }, { expect = '+PONG' }]; see docs/probes.md";

/// A list of steps.
pub fn steps(key: &Key, value: &Value<'_>) -> Result<Vec<ScriptStep>, Problem> {
    let DeValue::Array(list) = value.get_ref() else {
        return Err(wrong_type(key, value));
    };
    if list.is_empty() {
        return Err(Problem::new("`script` is empty", HELP));
    }
    list.iter()
        .map(|item| step(item).map_err(|problem| or_at(problem, item)))
        .collect()
}

fn or_at(problem: Problem, item: &Value<'_>) -> Problem {
    match problem.span {
        Some(_) => problem,
        None => problem.at(item.span()),
    }
}

fn step(item: &Value<'_>) -> Result<ScriptStep, Problem> {
    let DeValue::Table(table) = item.get_ref() else {
        return Err(Problem::new(
            format!(
                "a step of `script` is {}, not a table",
                kind_of(item.get_ref())
            ),
            HELP,
        ));
    };
    for (key, _) in table.iter() {
        let name: &str = key.get_ref();
        if !KEYS.contains(&name) {
            let help = match nearest(name, &KEYS) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known here: {}", KEYS.join(", ")),
            };
            let problem = Problem::new(format!("unknown key `{name}` in a step of `script`"), help);
            return Err(problem.at(key.span()));
        }
    }
    let send = text(table, "send")?.map(unescape).transpose()?;
    let expect = one(
        table,
        [
            ("expect", literal(table, "expect", Match::Contains)?),
            (
                "expect_prefix",
                literal(table, "expect_prefix", Match::Prefix)?,
            ),
            ("expect_regex", regex(table, "expect_regex")?),
        ],
    )?;
    let unless = one(
        table,
        [
            ("unless", literal(table, "unless", Match::Contains)?),
            ("unless_regex", regex(table, "unless_regex")?),
        ],
    )?;
    let min_bytes = min_bytes(table)?;
    if let Some(port) = port(table)? {
        if table.len() > 1 {
            return Err(Problem::new(
                "a step that connects does nothing else",
                "make two steps of it: { connect = 8081 }, { send = ... }",
            ));
        }
        return Ok(ScriptStep::Connect(port));
    }
    match (send, &expect, &unless, min_bytes) {
        (Some(bytes), None, None, None) => Ok(ScriptStep::Send(bytes)),
        (Some(_), ..) => Err(Problem::new(
            "a step either sends or expects",
            "make two steps of it: { send = ... }, { expect = ... }",
        )),
        (None, None, None, None) => Err(Problem::new("a step of `script` is empty", HELP)),
        (None, ..) => Ok(ScriptStep::Receive {
            expect,
            unless,
            min_bytes: min_bytes.unwrap_or(1),
        }),
    }
}

/// The one that is written; at most one may be.
fn one<const N: usize>(
    table: &DeTable<'_>,
    options: [(&str, Option<Match>); N],
) -> Result<Option<Match>, Problem> {
    let mut found = None;
    for (name, option) in options {
        let Some(option) = option else { continue };
        if let Some((first, _)) = &found {
            let problem = Problem::new(
                format!("a step has both `{first}` and `{name}`"),
                "keep one of the two, or make two steps of it",
            );
            let place = own(table, name).map(Value::span);
            return Err(match place {
                Some(place) => problem.at(place),
                None => problem,
            });
        }
        found = Some((name, option));
    }
    Ok(found.map(|(_, option)| option))
}

fn own<'t, 'a>(table: &'t DeTable<'a>, name: &str) -> Option<&'t Value<'a>> {
    table
        .iter()
        .find(|(key, _)| key.get_ref() == name)
        .map(|(_, value)| value)
}

/// A text that is not empty, with its value for places.
fn text<'t, 'a>(
    table: &'t DeTable<'a>,
    name: &str,
) -> Result<Option<(&'t str, &'t Value<'a>)>, Problem> {
    let Some(value) = own(table, name) else {
        return Ok(None);
    };
    match value.get_ref() {
        DeValue::String(text) if text.is_empty() => Err(Problem::new(
            format!("`{name}` is empty"),
            "write what is meant or remove the key",
        )
        .at(value.span())),
        DeValue::String(text) => Ok(Some((text, value))),
        other => Err(
            Problem::new(format!("`{name}` is {}, not text", kind_of(other)), HELP)
                .at(value.span()),
        ),
    }
}

fn literal(
    table: &DeTable<'_>,
    name: &str,
    make: fn(Vec<u8>) -> Match,
) -> Result<Option<Match>, Problem> {
    Ok(text(table, name)?.map(unescape).transpose()?.map(make))
}

fn regex(table: &DeTable<'_>, name: &str) -> Result<Option<Match>, Problem> {
    let Some((text, value)) = text(table, name)? else {
        return Ok(None);
    };
    match pattern(name, text) {
        Ok(pattern) => Ok(Some(Match::Regex(pattern))),
        Err(problem) => Err(problem.at(value.span())),
    }
}

/// A regular expression that not every answer meets.
pub fn pattern(name: &str, text: &str) -> Result<Pattern, Problem> {
    let pattern = Pattern::new(text).map_err(|error| {
        let cause = match &error {
            // The text of a syntax error repeats the pattern over several lines.
            regex::Error::Syntax(text) => text
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned(),
            other => other.to_string(),
        };
        Problem::new(
            format!("`{name}` is not a regular expression: {cause}"),
            "write it in single quotes, so that \\ is not taken as TOML's; look-around and back-references do not exist here",
        )
    })?;
    if pattern.find_end(b"").is_some() {
        return Err(Problem::new(
            format!("`{name}` matches empty text, so every answer meets it"),
            "write a pattern that needs at least one character",
        ));
    }
    Ok(pattern)
}

/// The port of a step that connects.
fn port(table: &DeTable<'_>) -> Result<Option<u16>, Problem> {
    let Some(value) = own(table, "connect") else {
        return Ok(None);
    };
    let port = integer(value).and_then(|number| u16::try_from(number).ok());
    let port = port.filter(|port| *port > 0);
    let problem = || {
        Problem::new(
            "`connect` is not a port",
            "write a port of the backend from 1 to 65535: { connect = 8081 }",
        )
    };
    port.map(Some).ok_or_else(|| problem().at(value.span()))
}

fn min_bytes(table: &DeTable<'_>) -> Result<Option<usize>, Problem> {
    let Some(value) = own(table, "min_bytes") else {
        return Ok(None);
    };
    integer(value)
        .filter(|number| (1..=MOST_BYTES).contains(number))
        .and_then(|number| usize::try_from(number).ok())
        .map(Some)
        .ok_or_else(|| {
            Problem::new(
                "`min_bytes` is not a number of bytes",
                format!("write a whole number from 1 to {MOST_BYTES}"),
            )
            .at(value.span())
        })
}

fn integer(value: &Value<'_>) -> Option<i64> {
    match value.get_ref() {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

/// Bytes written as text: `\r`, `\n`, `\t`, `\0`, `\\` and `\xNN`; all else stands for itself, in
/// UTF-8. These are the script's own escapes: in TOML's single quotes a backslash is a backslash.
fn unescape((text, value): (&str, &Value<'_>)) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let after = &rest[at + 1..];
        let (byte, length) = match after.as_bytes() {
            [b'r', ..] => (b'\r', 1),
            [b'n', ..] => (b'\n', 1),
            [b't', ..] => (b'\t', 1),
            [b'0', ..] => (0, 1),
            [b'\\', ..] => (b'\\', 1),
            [b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
                (digit(*high) << 4 | digit(*low), 3)
            }
            _ => {
                let escape: String = after.chars().take(1).collect();
                return Err(Problem::new(
                    format!("\"\\{}\" is no escape", shown(&escape)),
                    "there are \\r, \\n, \\t, \\0, \\\\ and \\xNN; a backslash itself is \\\\",
                )
                .at(value.span()));
            }
        };
        bytes.push(byte);
        rest = &after[length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TcpScript;

    fn read(text: &str) -> Result<Vec<ScriptStep>, String> {
        let value = DeValue::parse(text).unwrap();
        let key = crate::config::schema::HEALTH.key("script").unwrap();
        steps(key, &value).map_err(|problem| problem.message)
    }

    #[test]
    fn bytes_are_written_as_text() {
        let steps = read(r#"[{ send = 'a\r\n\t\0\\\xff\x0A' }, { send = "b\r\n\\x01é" }]"#);
        assert_eq!(
            steps.unwrap(),
            [
                ScriptStep::Send(b"a\r\n\t\0\\\xff\n".to_vec()),
                ScriptStep::Send(b"b\r\n\x01\xc3\xa9".to_vec()),
            ]
        );
    }

    #[test]
    fn a_script_may_go_on_by_another_connection() {
        let steps = read("[{ send = 'a' }, { connect = 81 }, { connect = 82 }, { expect = 'b' }]");
        let script = TcpScript {
            steps: steps.unwrap(),
            tls: None,
        };
        let parts: Vec<_> = (script.parts().into_iter())
            .map(|(port, steps)| (port, steps.len()))
            .collect();
        assert_eq!(parts, [(None, 1), (Some(81), 0), (Some(82), 1)]);
    }

    #[test]
    fn a_step_receives_by_any_of_its_keys() {
        let steps = read(
            r"[{ expect = 'x', unless = '-ERR', min_bytes = 5 }, { expect_prefix = '2' },
               { expect_regex = '^2\d\d ' }, { unless_regex = 'a+' }, { min_bytes = 3 }]",
        );
        let steps = steps.unwrap();
        assert_eq!(
            steps[0],
            ScriptStep::Receive {
                expect: Some(Match::Contains(b"x".to_vec())),
                unless: Some(Match::Contains(b"-ERR".to_vec())),
                min_bytes: 5,
            }
        );
        assert_eq!(
            steps[2],
            ScriptStep::Receive {
                expect: Some(Match::Regex(Pattern::new(r"^2\d\d ").unwrap())),
                unless: None,
                min_bytes: 1,
            }
        );
        assert_eq!(steps.len(), 5);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("[]", "`script` is empty"),
            ("[{}]", "a step of `script` is empty"),
            ("['x']", "a step of `script` is text, not a table"),
            (
                "[{ expct = 'x' }]",
                "unknown key `expct` in a step of `script`",
            ),
            ("[{ send = '' }]", "`send` is empty"),
            ("[{ send = 1 }]", "`send` is a whole number, not text"),
            (r"[{ send = '\q' }]", r#""\q" is no escape"#),
            (r"[{ send = '\xf' }]", r#""\x" is no escape"#),
            (r"[{ send = '\' }]", r#""\" is no escape"#),
            (
                "[{ send = 'a', expect = 'b' }]",
                "a step either sends or expects",
            ),
            (
                "[{ expect = 'a', expect_regex = 'b' }]",
                "a step has both `expect` and `expect_regex`",
            ),
            (
                "[{ expect_regex = '(' }]",
                "`expect_regex` is not a regular expression: unclosed group",
            ),
            (
                "[{ expect_regex = 'a*' }]",
                "`expect_regex` matches empty text, so every answer meets it",
            ),
            ("[{ connect = 0 }]", "`connect` is not a port"),
            ("[{ connect = '80' }]", "`connect` is not a port"),
            (
                "[{ connect = 80, send = 'a' }]",
                "a step that connects does nothing else",
            ),
            (
                "[{ min_bytes = 0 }]",
                "`min_bytes` is not a number of bytes",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), message, "{text}");
        }
    }
}
