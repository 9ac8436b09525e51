//! Addresses, ports and networks.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use super::{shown, text, texts};
use crate::config::reader::{At, Problem, Value};
use crate::config::schema::{Key, Kind};
use crate::model::{Endpoint, Ports, Prefix};

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
