//! Values of keys of HTTP, gRPC and TLS.

use super::reader::{At, Problem, Value};
use super::schema::Key;
use super::script;
use super::value::{self, shown};
use crate::model::Pattern;

/// A regular expression.
pub fn pattern(key: &Key, value: &Value<'_>) -> Result<Pattern, Problem> {
    script::pattern(key.name, &value::text(key, value)?)
}

/// A text that not every answer has.
pub fn not_empty(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    let text = value::text(key, value)?;
    if text.is_empty() {
        return Err(Problem::new(
            format!("`{}` is empty, and every answer has that", key.name),
            "write the text to look for or remove the key",
        ));
    }
    Ok(text)
}

/// Longest body of a request, bytes: one that fits into the sockets' buffers is sent whatever the
/// server does, so that its answer decides.
const MAX_BODY: usize = 16 * 1024;

/// The body of a request.
pub fn body(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    let text = value::text(key, value)?;
    if text.is_empty() {
        return Err(Problem::new(
            "`body` is empty",
            "remove it: a request without a body says that it has none",
        ));
    }
    if text.len() > MAX_BODY {
        return Err(Problem::new(
            format!("`body` has {} bytes", text.len()),
            format!("write at most {MAX_BODY} bytes: it is sent with each probe"),
        ));
    }
    Ok(text)
}

/// Origin-form of a request target (RFC 9112, 3.2.1).
pub fn path(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    let text = value::text(key, value)?;
    if !text.starts_with('/') {
        let help = match text.split_once("://") {
            Some((_, rest)) => {
                let path = rest.find('/').map_or("/", |at| &rest[at..]);
                format!("write the path only: path = \"{}\"", shown(path))
            }
            None => format!("write path = \"/{}\"", shown(&text)),
        };
        return Err(Problem::new("`path` does not start with `/`", help));
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        return Err(Problem::new(
            format!("`path` has a character that cannot stand in a request: {bad:?}"),
            "write it percent-encoded, for example %20 for a space",
        ));
    }
    Ok(text)
}

/// `host` or `host:port` (RFC 3986, 3.2), without user information.
pub fn authority(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    let text = value::text(key, value)?;
    match text.parse::<http::uri::Authority>() {
        Ok(_) if !text.contains('@') => Ok(text),
        _ => Err(Problem::new(
            format!("`{}` is not a host: \"{}\"", key.name, shown(&text)),
            format!(
                "write a name or address, with or without port, and nothing else: {} = \"web.example\"",
                key.name
            ),
        )),
    }
}

/// Protocols to offer by ALPN: names of 1 to 255 bytes (RFC 7301, 3.1), none twice.
pub fn protocols(key: &Key, value: &Value<'_>) -> Result<Vec<String>, Problem> {
    let mut names = Vec::new();
    for At { value: name, span } in value::texts(key, value)? {
        if !(1..=255).contains(&name.len()) {
            let length = name.len();
            return Err(Problem::new(
                format!("a name in `{}` has {length} bytes", key.name),
                "write names of 1 to 255 bytes, such as \"http/1.1\"; [] offers none",
            )
            .at(span));
        }
        if names.contains(&name) {
            return Err(Problem::new(
                format!("\"{}\" is in `{}` twice", shown(&name), key.name),
                "remove one of the two",
            )
            .at(span));
        }
        names.push(name);
    }
    Ok(names)
}

/// A name that can be sent as SNI (RFC 6066, 3: no addresses).
pub fn server_name(key: &Key, value: &Value<'_>) -> Result<String, Problem> {
    let text = value::text(key, value)?;
    if rustls_pki_types::DnsName::try_from(text.as_str()).is_err() {
        return Err(Problem::new(
            format!("`sni` is not a DNS name: \"{}\"", shown(&text)),
            "write a name such as \"web.example\"; addresses are never sent as SNI",
        ));
    }
    Ok(text)
}
