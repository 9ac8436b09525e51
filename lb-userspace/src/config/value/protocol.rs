//! Status codes and headers of HTTP and gRPC.

use toml::de::DeValue;

use super::{shown, text, texts, wrong_type};
use crate::config::reader::{Problem, Value};
use crate::config::schema::{Fallback, Key};
use crate::config::suggest::nearest;
use crate::model::{GRPC_CODES, HeaderMatch, StatusRange};

/// Headers that the prober sets itself.
const OWN_HEADERS: [&str; 5] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "user-agent",
];

/// HTTP status codes and inclusive ranges of them; at least one.
pub fn statuses(key: &Key, value: &Value<'_>) -> Result<Vec<StatusRange>, Problem> {
    let list = texts(key, value)?;
    if list.is_empty() {
        let problem = match key.default {
            Fallback::Absent(_) => Problem::new(
                format!("`{}` is empty", key.name),
                "write the status codes, or leave the key out",
            ),
            _ => Problem::new(
                format!(
                    "`{}` is empty, so no answer would count as a success",
                    key.name
                ),
                "write [\"200\"] or leave the key out",
            ),
        };
        return Err(problem);
    }
    list.into_iter()
        .map(|item| status(&item.value).map_err(|problem| problem.at(item.span)))
        .collect()
}

fn status(written: &str) -> Result<StatusRange, Problem> {
    let class = written.strip_suffix("xx").or(written.strip_suffix("XX"));
    if let Some(digit @ ("1" | "2" | "3" | "4" | "5")) = class {
        return Err(Problem::new(
            format!("\"{written}\" is not a status code or a range"),
            format!("write \"{digit}00-{digit}99\""),
        ));
    }
    let (first, last) = written.split_once('-').unwrap_or((written, written));
    let code = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|code| (100..=599).contains(code) && text.len() == 3)
    };
    let (Some(first), Some(last)) = (code(first), code(last)) else {
        return Err(Problem::new(
            format!("\"{}\" is not a status code or a range", shown(written)),
            "write codes from 100 to 599, single as \"200\" or as a range \"200-299\"",
        ));
    };
    if first > last {
        return Err(Problem::new(
            format!("the range \"{written}\" is empty"),
            format!("write \"{last}-{first}\""),
        ));
    }
    Ok(StatusRange { first, last })
}

/// gRPC status codes by number or name, without repetition, in rising order.
pub fn grpc_codes(key: &Key, value: &Value<'_>) -> Result<Vec<u32>, Problem> {
    let DeValue::Array(list) = value.get_ref() else {
        return Err(wrong_type(key, value));
    };
    let mut codes = list
        .iter()
        .map(|item| grpc_code(item).map_err(|problem| problem.at(item.span())))
        .collect::<Result<Vec<_>, _>>()?;
    codes.sort_unstable();
    codes.dedup();
    Ok(codes)
}

fn grpc_code(item: &Value<'_>) -> Result<u32, Problem> {
    let code = match item.get_ref() {
        DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|code| (*code as usize) < GRPC_CODES.len()),
        DeValue::String(name) => GRPC_CODES
            .iter()
            .zip(0..)
            .find(|(known, _)| **known == *name)
            .map(|(_, code)| code),
        _ => None,
    };
    code.ok_or_else(|| {
        let help = match item.get_ref() {
            DeValue::String(name) => nearest(&name.to_uppercase(), &GRPC_CODES)
                .map(|meant| format!("did you mean \"{meant}\"?")),
            _ => None,
        };
        Problem::new(
            "this is not a gRPC status code",
            help.unwrap_or_else(|| {
                "write a number from 0 to 16 or a name such as \"UNIMPLEMENTED\"".into()
            }),
        )
    })
}

/// A header of an answer: its name, with or without a value.
pub fn header(key: &Key, value: &Value<'_>) -> Result<HeaderMatch, Problem> {
    header_rule(key, &text(key, value)?)
}

/// Several headers of an answer; at least one.
pub fn header_rules(key: &Key, value: &Value<'_>) -> Result<Vec<HeaderMatch>, Problem> {
    let list = texts(key, value)?;
    if list.is_empty() {
        return Err(Problem::new(
            format!("`{}` is empty", key.name),
            "write the headers, or leave the key out",
        ));
    }
    list.into_iter()
        .map(|item| header_rule(key, &item.value).map_err(|problem| problem.at(item.span)))
        .collect()
}

fn header_rule(key: &Key, written: &str) -> Result<HeaderMatch, Problem> {
    let (name, wanted) = match written.split_once(':') {
        None => (written, None),
        Some((name, value)) => (name, Some(value.trim())),
    };
    let help = format!("write {} = {}", key.name, key.kind.example());
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(Problem::new(
            format!("\"{}\" is not a header name", shown(name)),
            help,
        ));
    }
    let good = |value: &str| !value.is_empty() && http::HeaderValue::from_str(value).is_ok();
    if wanted.is_some_and(|value| !good(value)) {
        return Err(Problem::new(
            format!("`{}` has a value that no header has", key.name),
            format!("{help}, or the name alone for any value"),
        ));
    }
    Ok(HeaderMatch {
        name: name.to_lowercase(),
        value: wanted.map(str::to_owned),
    })
}

/// Request headers in the order of their names.
pub fn headers(key: &Key, value: &Value<'_>) -> Result<Vec<(String, String)>, Problem> {
    let DeValue::Table(table) = value.get_ref() else {
        return Err(wrong_type(key, value));
    };
    let mut headers = Vec::new();
    for (name, value) in table.iter() {
        let DeValue::String(content) = value.get_ref() else {
            return Err(Problem::new(
                format!("header `{}` is not text", name.get_ref()),
                format!("write {} = {}", key.name, key.kind.example()),
            )
            .at(value.span()));
        };
        let lower = name.get_ref().to_lowercase();
        if OWN_HEADERS.contains(&lower.as_str()) {
            let help = match lower.as_str() {
                "host" => "write it as the key `host`",
                _ => "remove it: the prober sets this header itself",
            };
            return Err(
                Problem::new(format!("header `{lower}` cannot be set here"), help).at(name.span()),
            );
        }
        if http::HeaderName::from_bytes(name.get_ref().as_bytes()).is_err() {
            return Err(Problem::new(
                format!("\"{}\" is not a header name", shown(name.get_ref())),
                "write letters, digits and `-`, for example \"X-Probe\"",
            )
            .at(name.span()));
        }
        if http::HeaderValue::from_str(content).is_err() {
            return Err(Problem::new(
                format!("the value of header `{lower}` has characters a header cannot have"),
                "write printable ASCII text on one line",
            )
            .at(value.span()));
        }
        if headers
            .iter()
            .any(|(known, _): &(String, String)| known.eq_ignore_ascii_case(&lower))
        {
            return Err(Problem::new(
                format!("header `{lower}` is given twice"),
                "keep one of the two: case does not distinguish headers",
            )
            .at(name.span()));
        }
        headers.push((name.get_ref().to_string(), content.to_string()));
    }
    headers.sort();
    Ok(headers)
}
