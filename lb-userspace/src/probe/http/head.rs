//! The head of an HTTP/1 response: status line, headers, and how the body is framed.
//!
//! `httparse` reads the grammar; what it leaves to its user is decided here: RFC 9112 section 6
//! for the framing, and refusal wherever two readers could disagree about where a message ends.

use std::mem::MaybeUninit;

use httparse::{Header, ParserConfig, Response, Status};

use crate::model::{HeaderMatch, HttpProbe};
use crate::probe::text;

/// Most headers of one response.
pub const MAX_HEADERS: usize = 256;

/// Headers by which a backend says that it serves, but not as well as it should.
const DEGRADED: [&str; 2] = ["x-lb-degraded", "x-envoy-degraded"];

/// A parsed head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Minor version: 0 or 1.
    pub minor: u8,
    pub status: u16,
    /// The status line, for people.
    pub summary: String,
    pub framing: Framing,
    /// The connection may be used again after this message (RFC 9112, section 9.3). Not so in
    /// HTTP/1.0, where it would have to be negotiated.
    pub persistent: bool,
    /// The backend calls itself degraded: the header is there, whatever its value (as in Envoy).
    pub degraded: bool,
    /// It has the header by which it asks to be drained.
    pub drains: bool,
    /// Which of the probe's rules on headers it breaks, in words, if any.
    pub broken: Option<String>,
    /// Bytes it took.
    pub length: usize,
}

/// Where the body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After this many bytes.
    Length(u64),
    Chunked,
    /// When the connection closes.
    UntilClose,
}

/// A head that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("{0}")]
    Malformed(String),
    #[error("more than {MAX_HEADERS} headers")]
    TooManyHeaders,
}

impl HeadError {
    fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }
}

/// Reads the head of an answer to `probe` from the start of `bytes`; `None`: it goes on.
pub fn parse(bytes: &[u8], probe: &HttpProbe) -> Result<Option<Head>, HeadError> {
    let skipped = empty_line(bytes)?;
    // Filled by the parser as far as it needs: to clear them costs more than to parse.
    let mut headers = [MaybeUninit::uninit(); MAX_HEADERS];
    let mut response = Response::new(&mut []);
    let parsed = ParserConfig::default()
        .allow_obsolete_multiline_headers_in_responses(true)
        .parse_response_with_uninit_headers(&mut response, &bytes[skipped..], &mut headers);
    let length = match parsed {
        Ok(Status::Complete(length)) => skipped + length,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyHeaders),
        Err(error @ (httparse::Error::Version | httparse::Error::Status)) => {
            return Err(HeadError::malformed(format!(
                "not an HTTP/1 answer ({error}): it starts with \"{}\"",
                text::excerpt(bytes)
            )));
        }
        Err(error) => {
            return Err(HeadError::malformed(format!(
                "not an HTTP/1 answer: {error}"
            )));
        }
    };
    let (Some(minor), Some(status)) = (response.version, response.code) else {
        return Err(HeadError::malformed("no status line"));
    };
    if status < 100 {
        return Err(HeadError::malformed(format!(
            "status {status:03} does not exist"
        )));
    }
    let declared = declared_framing(response.headers, minor)?;
    let bodiless = probe.method == "HEAD" || status < 200 || status == 204 || status == 304;
    let framing = if bodiless { Framing::None } else { declared };
    let closes = values(response.headers, "connection").any(|value| {
        value
            .split(',')
            .any(|word| word.trim().eq_ignore_ascii_case("close"))
    });
    let reason = response.reason.unwrap_or_default();
    Ok(Some(Head {
        minor,
        status,
        summary: format!(
            "HTTP/1.{minor} {status}{}{}",
            if reason.is_empty() { "" } else { " " },
            text::excerpt(reason.as_bytes())
        ),
        framing,
        degraded: DEGRADED
            .iter()
            .any(|name| values(response.headers, name).next().is_some()),
        drains: (probe.drain_header.as_ref()).is_some_and(|header| has(response.headers, header)),
        broken: broken(response.headers, probe),
        persistent: minor > 0 && !closes && framing != Framing::UntilClose,
        length,
    }))
}

/// Whether a header is among them: one of its lines has the value, if one is asked for.
fn has(headers: &[Header<'_>], header: &HeaderMatch) -> bool {
    let wanted = header.value.as_deref();
    values(headers, &header.name)
        .any(|value| wanted.is_none_or(|wanted| value.eq_ignore_ascii_case(wanted)))
}

/// The first of the probe's rules that these headers break, with what is there instead.
fn broken(headers: &[Header<'_>], probe: &HttpProbe) -> Option<String> {
    let missing = (probe.expect_header.iter()).find(|header| !has(headers, header));
    if let Some(header) = missing {
        let instead = values(headers, &header.name).next();
        let instead = instead.map(|value| format!(" but \"{}\"", text::excerpt(value.as_bytes())));
        return Some(format!(
            "no header \"{header}\"{}",
            instead.unwrap_or_default()
        ));
    }
    let rejected = (probe.reject_header.iter()).find(|header| has(headers, header))?;
    Some(format!("the header \"{rejected}\", which is rejected"))
}

/// Length of the one empty line that may come before a status line (RFC 9112 section 2.2 allows it
/// before requests; servers that end a body with a surplus CRLF send it here).
fn empty_line(bytes: &[u8]) -> Result<usize, HeadError> {
    let skipped = match bytes {
        [b'\r', b'\n', ..] => 2,
        [b'\n', ..] => 1,
        _ => 0,
    };
    match bytes.get(skipped) {
        Some(b'\r' | b'\n') if skipped > 0 => {
            Err(HeadError::malformed("empty lines instead of a status line"))
        }
        _ => Ok(skipped),
    }
}

fn declared_framing(headers: &[Header<'_>], minor: u8) -> Result<Framing, HeadError> {
    let length = content_length(headers)?;
    let codings = transfer_codings(headers);
    if codings.is_empty() {
        return Ok(length.map_or(Framing::UntilClose, Framing::Length));
    }
    if length.is_some() {
        return Err(HeadError::malformed(
            "both Content-Length and Transfer-Encoding: where the body ends is ambiguous",
        ));
    }
    if minor == 0 {
        return Err(HeadError::malformed(
            "Transfer-Encoding in an HTTP/1.0 answer",
        ));
    }
    let chunked = |coding: &String| coding.eq_ignore_ascii_case("chunked");
    match codings.split_last() {
        Some((last, before)) if chunked(last) && !before.iter().any(chunked) => {
            Ok(Framing::Chunked)
        }
        Some((only, [])) if only.eq_ignore_ascii_case("identity") => Ok(Framing::UntilClose),
        _ => Err(HeadError::malformed(format!(
            "Transfer-Encoding \"{}\" is not understood",
            text::excerpt(codings.join(", ").as_bytes())
        ))),
    }
}

/// The body's length, if declared. The same length said twice counts once (RFC 9112 section 6.3,
/// rule 5); two different ones are refused.
fn content_length(headers: &[Header<'_>]) -> Result<Option<u64>, HeadError> {
    let mut declared = None;
    for value in values(headers, "content-length") {
        for item in value.split(',') {
            let length = digits(item.trim_matches([' ', '\t'])).ok_or_else(|| {
                HeadError::malformed(format!(
                    "Content-Length \"{}\" is no length",
                    text::excerpt(value.as_bytes())
                ))
            })?;
            if declared.is_some_and(|declared| declared != length) {
                return Err(HeadError::malformed("two different Content-Lengths"));
            }
            declared = Some(length);
        }
    }
    Ok(declared)
}

fn digits(text: &str) -> Option<u64> {
    // `parse` alone would take a sign.
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn transfer_codings(headers: &[Header<'_>]) -> Vec<String> {
    values(headers, "transfer-encoding")
        .flat_map(|value| {
            let items = value
                .split(',')
                .map(|item| item.trim_matches([' ', '\t']).to_owned());
            items.collect::<Vec<_>>()
        })
        .collect()
}

/// Values of the headers of this name, line folds replaced by spaces (RFC 9112 section 5.2).
fn values<'a>(headers: &'a [Header<'_>], name: &'a str) -> impl Iterator<Item = String> + 'a {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| String::from_utf8_lossy(header.value).replace(['\r', '\n'], " "))
        .map(|value| value.trim_matches([' ', '\t']).to_owned())
}
