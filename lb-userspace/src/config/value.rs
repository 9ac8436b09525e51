//! Turns single values into what they mean. Every function here takes the key for its messages and
//! either gives the value or says what is wrong and how to mend it.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::duration;
use super::reader::{At, Problem, Value};
use super::schema::{Key, Kind};
use super::suggest::nearest;

mod address;
mod protocol;

pub use address::{Place, address, addresses, endpoint, port_range, prefix, server};
pub use protocol::{grpc_codes, header, header_rules, headers, statuses};

pub fn text(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        _ => Err(wrong_type(key, value)),
    }
}

pub fn boolean(key: &Key, value: &Value<'_>) -> Result<bool, Problem> {
    match value.get_ref() {
        DeValue::Boolean(value) => Ok(*value),
        _ => Err(wrong_type(key, value)),
    }
}

/// A whole number in the range of the key and of `T`.
pub fn integer<T: TryFrom<i64>>(key: &Key, value: &Value<'_>) -> Result<T, Problem> {
    let DeValue::Integer(written) = value.get_ref() else {
        return Err(wrong_type(key, value));
    };
    let (min, max) = match key.kind {
        Kind::Integer(min, max) => (min, max),
        _ => (i64::MIN, i64::MAX),
    };
    i64::from_str_radix(written.as_str(), written.radix())
        .ok()
        .filter(|number| (min..=max).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| {
            Problem::new(
                format!("`{}` is {written}, which is out of range", key.name),
                format!("write a whole number from {min} to {max}"),
            )
        })
}

/// A number in the range of the key, with or without decimals.
pub fn decimal(key: &Key, value: &Value<'_>) -> Result<f64, Problem> {
    let written = match value.get_ref() {
        DeValue::Float(written) => written.as_str(),
        DeValue::Integer(written) if written.radix() == 10 => written.as_str(),
        _ => return Err(wrong_type(key, value)),
    };
    let (min, max) = match key.kind {
        Kind::Decimal(min, max) => (f64::from(min) / 1e3, f64::from(max) / 1e3),
        _ => (f64::MIN, f64::MAX),
    };
    let number = written.parse().ok();
    number
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| {
            Problem::new(
                format!("`{}` is {written}, which is out of range", key.name),
                format!("write a number from {min} to {max}"),
            )
        })
}

/// One of the words of the key.
pub fn choice(key: &Key, value: &Value<'_>) -> Result<&'static str, Problem> {
    let Kind::Choice(words) = key.kind else {
        return Err(wrong_type(key, value));
    };
    let written = text(key, value)?;
    if let Some(word) = words.iter().find(|word| **word == written) {
        return Ok(word);
    }
    let list = words.join(", ");
    let meant = words
        .iter()
        .find(|word| word.eq_ignore_ascii_case(&written))
        .copied()
        .or_else(|| nearest(&written, words));
    let help = match meant {
        Some(meant) => format!("did you mean \"{meant}\"? It can be: {list}"),
        None => format!("write one of: {list}"),
    };
    Err(Problem::new(
        format!("`{}` cannot be \"{}\"", key.name, shown(&written)),
        help,
    ))
}

pub fn duration(key: &Key, value: &Value<'_>) -> Result<Duration, Problem> {
    if let DeValue::Integer(number) = value.get_ref() {
        return Err(Problem::new(
            format!("`{}` is {number} without a unit", key.name),
            format!("write {} = \"{number}s\" for seconds", key.name),
        ));
    }
    let written = text(key, value)?;
    duration::parse(&written).map_err(|error| {
        let help = match &error {
            duration::DurationError::NoUnit(number) => {
                format!("write \"{written}s\" if {number} means seconds, \"{written}ms\" if milliseconds")
            }
            _ => "write whole numbers with the units d, h, m, s, ms, for example \"500ms\", \"5s\", \"1m30s\""
                .into(),
        };
        Problem::new(
            format!("`{}` is not a duration: {error}", key.name),
            help,
        )
    })
}

/// A duration above zero.
pub fn positive_duration(key: &Key, value: &Value<'_>) -> Result<Duration, Problem> {
    let read = duration(key, value)?;
    if read.is_zero() {
        return Err(Problem::new(
            format!("`{}` is zero", key.name),
            format!("write at least {} = \"1ms\"; usual is \"5s\"", key.name),
        ));
    }
    Ok(read)
}

/// Octets in hexadecimal, at most eight of them: how many, and as a number.
pub fn hex(key: &Key, value: &Value<'_>) -> Result<(u8, u64), Problem> {
    let written = text(key, value)?;
    let digits = written.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u64::from_str_radix(&written, 16).ok();
    match number.filter(|_| digits && written.len().is_multiple_of(2) && written.len() <= 16) {
        Some(number) => Ok((written.len() as u8 / 2, number)),
        None => Err(Problem::new(
            format!(
                "`{}` is not octets in hexadecimal: \"{}\"",
                key.name,
                shown(&written)
            ),
            format!(
                "write two digits for each of one to eight octets, for example {}",
                key.kind.example()
            ),
        )),
    }
}

/// A path on this host; absolute, so that it does not depend on where the agent was started.
pub fn path(key: &Key, value: &Value<'_>) -> Result<PathBuf, Problem> {
    let written = PathBuf::from(text(key, value)?);
    if !written.is_absolute() {
        return Err(Problem::new(
            format!("`{}` is not an absolute path", key.name),
            "write a path that starts with `/`",
        ));
    }
    Ok(written)
}

/// A list of texts, each with its place.
pub fn texts(key: &Key, value: &Value<'_>) -> Result<Vec<At<String>>, Problem> {
    let DeValue::Array(list) = value.get_ref() else {
        return Err(wrong_type(key, value));
    };
    list.iter()
        .map(|item| match item.get_ref() {
            DeValue::String(text) => Ok(At {
                value: text.to_string(),
                span: item.span(),
            }),
            other => Err(Problem::new(
                format!("an entry of `{}` is {}, not text", key.name, kind_of(other)),
                format!("write {} = {}", key.name, key.kind.example()),
            )
            .at(item.span())),
        })
        .collect()
}

/// A value of another type than the key's.
pub fn wrong_type(key: &Key, value: &Value<'_>) -> Problem {
    let help = match (key.kind, value.get_ref()) {
        (Kind::Integer(..), DeValue::String(text)) if text.parse::<i64>().is_ok() => {
            format!("write it without quotes: {} = {text}", key.name)
        }
        (Kind::Boolean, DeValue::String(text)) if matches!(&**text, "true" | "false") => {
            format!("write it without quotes: {} = {text}", key.name)
        }
        (
            Kind::Texts
            | Kind::Statuses
            | Kind::HeaderRules
            | Kind::GrpcCodes
            | Kind::IpAddresses
            | Kind::Addresses
            | Kind::Command,
            DeValue::String(text),
        ) => {
            format!("write a list: {} = [\"{}\"]", key.name, shown(text))
        }
        (Kind::Statuses, DeValue::Integer(number)) => {
            format!("write a list of texts: {} = [\"{number}\"]", key.name)
        }
        (kind, _) => format!("write {} = {}", key.name, kind.example()),
    };
    Problem::new(
        format!(
            "`{}` must be {}, not {}",
            key.name,
            key.kind.noun(),
            kind_of(value.get_ref())
        ),
        help,
    )
}

/// Name of a TOML type, with its article.
pub fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Part of the file in a message: short, without control characters.
pub fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(60)
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect();
    if text.chars().count() > 60 {
        out.push_str("...");
    }
    out
}
