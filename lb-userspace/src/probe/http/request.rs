//! The request of an HTTP probe.

use ::http::HeaderName;

use crate::model::{BODY_METHODS, HttpProbe};
use crate::probe::USER_AGENT;

/// Headers that say where the request and the connection end, which nobody else can.
const OWN: [&str; 3] = ["connection", "content-length", "transfer-encoding"];

/// A request that would not be one: the configuration let through what it must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} \"{}\" cannot be sent: it would break the lines of the request", value.escape_debug())]
pub struct RequestError {
    what: &'static str,
    value: String,
}

/// `GET /path HTTP/1.1` with `Host`, `User-Agent` and, unless the connection is to be
/// kept, `Connection: close`; then the body. The configured headers take the place of these, except
/// of the last. A body is text, so that is its type unless a header names another.
///
/// # Errors
/// A part would break the request's lines.
pub fn encode(probe: &HttpProbe, host: &str) -> Result<Vec<u8>, RequestError> {
    word("method", &probe.method)?;
    word("path", &probe.path)?;
    word("host", host)?;
    // Most are shorter than that.
    let mut request = String::with_capacity(256);
    for part in [&*probe.method, " ", &*probe.path, " HTTP/1.1\r\n"] {
        request.push_str(part);
    }
    let own = [
        ("Host", host),
        ("User-Agent", USER_AGENT),
        ("Accept", "*/*"),
    ];
    for (name, value) in own {
        if !configured(probe, name) {
            line(&mut request, name, value);
        }
    }
    for (name, value) in &probe.headers {
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(RequestError {
                what: "header name",
                value: name.clone(),
            });
        }
        if value
            .bytes()
            .any(|byte| byte.is_ascii_control() && byte != b'\t')
        {
            return Err(RequestError {
                what: "header value",
                value: value.clone(),
            });
        }
        if !OWN.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            line(&mut request, name, value);
        }
    }
    let body = probe.body.as_deref();
    if body.is_some() && !configured(probe, "Content-Type") {
        line(&mut request, "Content-Type", "text/plain; charset=utf-8");
    }
    // A method that usually has a body must say so if this one has none (RFC 9110 section 8.6).
    if body.is_some() || BODY_METHODS.contains(&probe.method.as_str()) {
        let length = body.unwrap_or_default().len().to_string();
        line(&mut request, "Content-Length", &length);
    }
    if probe.reuse.is_none() {
        line(&mut request, "Connection", "close");
    }
    request.push_str("\r\n");
    request.push_str(body.unwrap_or_default());
    Ok(request.into_bytes())
}

fn configured(probe: &HttpProbe, name: &str) -> bool {
    probe
        .headers
        .iter()
        .any(|(configured, _)| configured.eq_ignore_ascii_case(name))
}

fn line(request: &mut String, name: &str, value: &str) {
    request.push_str(name);
    request.push_str(": ");
    request.push_str(value);
    request.push_str("\r\n");
}

fn word(what: &'static str, value: &str) -> Result<(), RequestError> {
    let bad = |byte: u8| byte.is_ascii_control() || byte == b' ';
    if value.is_empty() || value.bytes().any(bad) {
        return Err(RequestError {
            what,
            value: value.to_owned(),
        });
    }
    Ok(())
}
