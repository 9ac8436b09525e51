//! Turns single values into what they mean. Every function here takes the key for its messages and
//! either gives the value or says what is wrong and how to mend it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::duration;
use super::reader::{At, Problem, Value};
use super::schema::{Fallback, Key, Kind};
use super::suggest::nearest;
use crate::model::{Endpoint, HeaderMatch, Ports, Prefix, StatusRange};

/// gRPC status codes by number (https://grpc.io/docs/guides/status-codes/).
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Headers that the prober sets itself.
const OWN_HEADERS: [&str; 5] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "user-agent",
];

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

/// IP address and port. Host names are refused: what resolves today may resolve to another host
/// tomorrow, and the data plane would not know.
pub fn address(key: &Key, value: &Value<'_>) -> Result<SocketAddr, Problem> {
    plain_address(key, &text(key, value)?)
}

/// [`address`] of a VIP, where the port may be a range or `*`.
pub fn endpoint(key: &Key, value: &Value<'_>) -> Result<Endpoint, Problem> {
    let written = text(key, value)?;
    let Some((host, ports)) = written.rsplit_once(':') else {
        return Err(bad_address(key, &written));
    };
    if ports != "*" && !ports.contains('-') {
        return plain_address(key, &written).map(Endpoint::from);
    }
    let ip = address_without_port(key, host, &written)?;
    let ports = match ports.split_once('-') {
        None => Ports::Any,
        Some((first, last)) => range(key, first, last, &written)?,
    };
    Ok(Endpoint { ip, ports })
}

fn range(key: &Key, first: &str, last: &str, written: &str) -> Result<Ports, Problem> {
    let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
        return Err(Problem::new(
            format!(
                "`{}` is not an address with a range of ports: \"{}\"",
                key.name,
                shown(written)
            ),
            "write \"ADDRESS:FIRST-LAST\", for example \"203.0.113.10:8000-8099\"",
        ));
    };
    if first == 0 {
        return Err(Problem::new(
            format!("`{}` has port 0", key.name),
            format!("write \"1-{last}\", or `*` for all ports that no other service has"),
        ));
    }
    match first.cmp(&last) {
        std::cmp::Ordering::Less => Ok(Ports::Range(first, last)),
        std::cmp::Ordering::Equal => Ok(Ports::One(first)),
        std::cmp::Ordering::Greater => Err(Problem::new(
            format!("`{}` has no port: {first} is above {last}", key.name),
            format!("write \"{last}-{first}\" if that is meant"),
        )),
    }
}

/// Where a backend is, as it is written. Port 0 where it is left out, 0 or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Address(SocketAddr),
    Name(String, u16),
}

/// [`address`] of a backend, where the port may be left out, 0 or `*`, and the address be a host
/// name.
pub fn server(key: &Key, value: &Value<'_>) -> Result<Place, Problem> {
    let written = text(key, value)?;
    let (host, port) = match written.rsplit_once(':') {
        None => (written.as_str(), Some(0)),
        Some((host, "*" | "0")) => (host, Some(0)),
        Some((host, port)) => (host, port.parse().ok()),
    };
    match port {
        Some(port) if is_host_name(host) => Ok(Place::Name(host.to_owned(), port)),
        _ => plain_server(key, &written).map(Place::Address),
    }
}

/// A name of letters, digits, hyphens and underscores (RFC 1123, section 2.1; underscores are usual
/// beside it) whose last label is not all digits, as an address's would be.
fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let good = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or(name);
    name.len() <= 253
        && name.split('.').all(good)
        && last.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn plain_server(key: &Key, written: &str) -> Result<SocketAddr, Problem> {
    let bare = written
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let host = match written.rsplit_once(':') {
        // Without brackets its last group may have been meant as the port.
        _ if bare.is_some() || written.parse::<Ipv4Addr>().is_ok() => written,
        Some((host, "*" | "0")) => host,
        _ => return plain_address(key, written),
    };
    let ip = address_without_port(key, host, written)?;
    Ok(SocketAddr::new(ip, 0))
}

fn address_without_port(key: &Key, host: &str, written: &str) -> Result<IpAddr, Problem> {
    match format!("{host}:1").parse::<SocketAddr>() {
        // Says what may be wrong with any address.
        Ok(_) => plain_address(key, &format!("{host}:1")).map(|address| address.ip()),
        Err(_) => Err(bad_address(key, written)),
    }
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

fn plain_address(key: &Key, written: &str) -> Result<SocketAddr, Problem> {
    let read: SocketAddr = match written.parse() {
        Ok(read) => read,
        Err(_) => return Err(bad_address(key, written)),
    };
    if read.port() == 0 {
        return Err(Problem::new(
            format!("`{}` has port 0", key.name),
            "write a port from 1 to 65535",
        ));
    }
    match read {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => Err(Problem::new(
            format!("`{}` has a zone (the part after `%`)", key.name),
            "write an address without a zone",
        )),
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => Err(Problem::new(
                format!("`{}` is an IPv4 address in IPv6 form", key.name),
                format!("write \"{v4}:{}\"", v6.port()),
            )),
            None => Ok(read),
        },
        SocketAddr::V4(_) => Ok(read),
    }
}

fn bad_address(key: &Key, written: &str) -> Problem {
    let name = key.name;
    if let Ok(IpAddr::V6(_)) = written.parse() {
        // Its last group may have been meant as the port.
        return Problem::new(
            format!("`{name}` has an IPv6 address without brackets"),
            "write \"[ADDRESS]:PORT\", for example \"[2001:db8::10]:80\"",
        );
    }
    if let Ok(ip) = written.trim_matches(['[', ']']).parse::<IpAddr>() {
        let host = crate::model::host_text(ip);
        return Problem::new(
            format!("`{name}` has no port"),
            format!("write \"{host}:80\" with the port that is meant"),
        );
    }
    let (host, port) = written.rsplit_once(':').unwrap_or((written, ""));
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if bare == host => Problem::new(
            format!("`{name}` has an IPv6 address without brackets"),
            format!("write \"[{v6}]:{port}\""),
        ),
        Ok(_) => Problem::new(
            format!("`{name}` has the port \"{}\"", shown(port)),
            "write a port from 1 to 65535",
        ),
        Err(_) if looks_like_name(bare) && key.kind == Kind::Server => Problem::new(
            format!(
                "`{name}` is neither an address nor a host name: \"{}\"",
                shown(bare)
            ),
            "a host name has labels of letters, digits, `-` and `_`, the last one with a letter: \
             \"app.internal:8080\"",
        ),
        Err(_) if looks_like_name(bare) => Problem::new(
            format!("`{name}` has the host name \"{}\"", shown(bare)),
            "host names are resolved for backends only: write the IP address, for example \"10.0.0.11:8080\"",
        ),
        Err(_) => Problem::new(
            format!(
                "`{name}` is not an address with a port: \"{}\"",
                shown(written)
            ),
            format!("write {}", key.kind.example()),
        ),
    }
}

fn looks_like_name(host: &str) -> bool {
    host.chars().any(|c| c.is_ascii_alphabetic())
        && !host.contains(':')
        && (host.chars()).all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'))
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

/// `FIRST-LAST`, none of them a well-known port.
pub fn port_range(key: &Key, value: &Value<'_>) -> Result<RangeInclusive<u16>, Problem> {
    let written = text(key, value)?;
    let help = "write \"FIRST-LAST\", for example \"16384-32767\"";
    let ports = written
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    let Some((first, last)): Option<(u16, u16)> = ports else {
        return Err(Problem::new(
            format!(
                "`{}` is not a range of ports: \"{}\"",
                key.name,
                shown(&written)
            ),
            help,
        ));
    };
    if first < 1024 {
        return Err(Problem::new(
            format!(
                "`{}` starts below 1024, among the well-known ports",
                key.name
            ),
            help,
        ));
    }
    if first > last {
        return Err(Problem::new(
            format!("`{}` is empty: {first} is above {last}", key.name),
            format!("write \"{last}-{first}\" if that is meant"),
        ));
    }
    Ok(first..=last)
}

/// A network of the key's family with at least two addresses.
pub fn prefix(key: &Key, value: &Value<'_>) -> Result<Prefix, Problem> {
    let written = text(key, value)?;
    let v4 = key.kind == Kind::Prefix4;
    let help = format!("write ADDRESS/BITS, for example {}", key.kind.example());
    let parts = written.split_once('/').and_then(|(address, length)| {
        let address: IpAddr = address.parse().ok()?;
        Some((address, length.parse::<u8>().ok()?))
    });
    let parts = parts.filter(|(address, _)| address.is_ipv4() == v4);
    let Some((address, prefix)) =
        parts.and_then(|(address, length)| Some((address, Prefix::new(address, length)?)))
    else {
        return Err(Problem::new(
            format!(
                "`{}` is not {}: \"{}\"",
                key.name,
                if v4 {
                    "an IPv4 network"
                } else {
                    "an IPv6 network"
                },
                shown(&written)
            ),
            help,
        ));
    };
    if prefix.address() != address {
        return Err(Problem::new(
            format!(
                "`{}` has bits set behind its length: \"{written}\"",
                key.name
            ),
            format!("write \"{prefix}\" if that is meant"),
        ));
    }
    if prefix.host_bits() == 0 {
        return Err(Problem::new(
            format!("`{}` is a single address: \"{written}\"", key.name),
            help,
        ));
    }
    if address.is_multicast() || address.is_loopback() || prefix.is_all() {
        return Err(Problem::new(
            format!(
                "`{}` is no network that packets come from: \"{written}\"",
                key.name
            ),
            help,
        ));
    }
    Ok(prefix)
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
    let written = text(key, value)?;
    let (name, wanted) = match written.split_once(':') {
        None => (written.as_str(), None),
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

/// Addresses of servers that listen on `port` unless another is written; at least one.
pub fn addresses(key: &Key, value: &Value<'_>, port: u16) -> Result<Vec<SocketAddr>, Problem> {
    let items = texts(key, value)?;
    if items.is_empty() {
        return Err(Problem::new(
            format!("`{}` is empty", key.name),
            format!("write {} = {}, or remove it", key.name, key.kind.example()),
        ));
    }
    let read = |item: At<String>| match item.value.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, port)),
        Err(_) => plain_address(key, &item.value).map_err(|problem| problem.at(item.span)),
    };
    items.into_iter().map(read).collect()
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
