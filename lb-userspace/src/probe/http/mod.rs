//! The HTTP/1.1 probe: one request, one complete answer.
//!
//! An answer is complete when its framing says so: a truncated, endless or dripping body fails, and
//! so does a head that two parsers would read differently. Redirects are answers, never followed.

use std::io;

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::{Observed, Seen, Trace};
use super::{Answer, Success, text};
use crate::model::{HttpProbe, Pattern, StatusRange};

mod body;
mod head;
mod kept;
mod request;

use body::{Body, BodyError, MAX_BODY, Progress};
use head::{Head, HeadError};
pub use kept::Kept;

/// So much may all heads of an answer, interim ones included, take together.
const MAX_HEAD: usize = 16 * 1024;

/// Interim (1xx) answers that are skipped before the final one.
const MAX_INTERIM: usize = 64;

/// Room for the first read: most answers to probes fit, and allocators have such pieces at hand.
const FIRST_READ: usize = 1024;
/// Room for those after a first one that was full.
const READ: usize = 8 * 1024;

/// What came of a request.
struct Asked<S> {
    answer: Answer,
    /// The connection, if it can carry another.
    open: Option<S>,
}

/// Sends the request and judges the answer.
async fn ask<S: ProbeStream>(
    stream: S,
    probe: &HttpProbe,
    host: &str,
    trace: &mut Trace,
) -> Asked<S> {
    let request = match request::encode(probe, host) {
        Ok(request) => request,
        Err(error) => {
            return Asked {
                answer: Err(Failure::internal(error.to_string())),
                open: None,
            };
        }
    };
    let mut stream = Observed::new(stream, trace);
    let mut persistent = false;
    let answer = exchange(&mut stream, &request, (probe, host), trace, &mut persistent).await;
    if persistent && probe.reuse.is_some() {
        let open = Some(stream.into_inner());
        return Asked { answer, open };
    }
    // Over TLS this says close_notify. It goes into the socket's buffer or is let go: the verdict
    // is not to wait for it.
    stream.shutdown().now_or_never();
    Asked { answer, open: None }
}

async fn exchange<S: ProbeStream>(
    stream: &mut Observed<S>,
    request: &[u8],
    (probe, host): (&HttpProbe, &str),
    trace: &mut Trace,
    persistent: &mut bool,
) -> Answer {
    // A server may answer, and close, before it has read the request: a failed write is no verdict
    // while there can be something to read. The read will find the error again if there is nothing.
    let written = match stream.write_all(request).await {
        Ok(()) => stream.flush().await,
        Err(error) => Err(error),
    };
    let (method, path) = (&probe.method, &probe.path);
    let body = match &probe.body {
        None => String::new(),
        Some(body) => format!(", {} of body", text::bytes(body.len() as u64)),
    };
    match &written {
        Ok(()) => trace.step("request", format_args!("{method} {path} for {host}{body}")),
        Err(error) => trace.step(
            "request",
            format_args!("{method} {path} for {host}{body}: not all sent: {error}"),
        ),
    }
    let mut reader = Reader::new(stream);
    let (head, rest) = read_head(&mut reader, probe, trace).await?;
    let among = |ranges: &[StatusRange]| ranges.iter().any(|range| range.contains(head.status));
    let drains = head.drains || among(&probe.drain_status);
    if !drains && !among(&probe.expect_status) {
        return Err(Failure::new(
            Class::Status,
            format!(
                "HTTP {}, want {}",
                head.status,
                wanted(&probe.expect_status)
            ),
        ));
    }
    if let (Some(broken), false) = (&head.broken, drains) {
        let detail = format!("HTTP {}, but {broken}", head.status);
        return Err(Failure::new(Class::Content, detail));
    }
    let body = read_body(&mut reader, &head, &rest, probe, trace).await?;
    *persistent = head.persistent && body.is_exact();
    if drains {
        trace.drains();
        return Ok(Success(format!("HTTP {}, asks to be drained", head.status)));
    }
    if let Some(broken) = broken(probe, body.content()) {
        return Err(Failure::new(
            Class::Body,
            format!(
                "HTTP {}, but {broken} the body: {}, \"{}\"",
                head.status,
                text::bytes(body.content().len() as u64),
                text::excerpt(body.content())
            ),
        ));
    }
    let said = probe.degraded_body.as_ref();
    if head.degraded || said.is_some_and(|said| has(body.content(), said)) {
        trace.degraded();
        return Ok(Success(format!("HTTP {}, degraded", head.status)));
    }
    Ok(Success(format!("HTTP {}", head.status)))
}

/// The first of the probe's rules that a body breaks, in words.
fn broken(probe: &HttpProbe, body: &[u8]) -> Option<String> {
    let matches = |pattern: &Pattern| pattern.find_end(body).is_some();
    if let Some(needle) = &probe.expect_body
        && !has(body, needle)
    {
        return Some(format!("{} is not in", quoted(needle)));
    }
    if let Some(pattern) = &probe.expect_body_regex
        && !matches(pattern)
    {
        return Some(format!(
            "no match of the regex {} in",
            quoted(pattern.as_str())
        ));
    }
    if let Some(needle) = &probe.reject_body
        && has(body, needle)
    {
        return Some(format!("the rejected text {} is in", quoted(needle)));
    }
    if let Some(pattern) = &probe.reject_body_regex
        && matches(pattern)
    {
        return Some(format!(
            "the rejected regex {} matches in",
            quoted(pattern.as_str())
        ));
    }
    None
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text::excerpt(text.as_bytes()))
}

/// Whether a body has a text. That is text, so no replacement of invalid bytes can make or break a
/// match, and str's search is linear.
fn has(body: &[u8], needle: &str) -> bool {
    String::from_utf8_lossy(body).contains(needle)
}

/// Whether a rule of the probe is on what the body says.
const fn looks_into_body(probe: &HttpProbe) -> bool {
    probe.expect_body.is_some()
        || probe.expect_body_regex.is_some()
        || probe.reject_body.is_some()
        || probe.reject_body_regex.is_some()
        || probe.degraded_body.is_some()
}

/// `200` or `200-299, 401`.
fn wanted(ranges: &[StatusRange]) -> String {
    let texts = ranges.iter().map(|range| {
        if range.first == range.last {
            range.first.to_string()
        } else {
            format!("{}-{}", range.first, range.last)
        }
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// Reads until the final head; returns it with what was read beyond it.
async fn read_head<S: ProbeStream>(
    reader: &mut Reader<'_, S>,
    probe: &HttpProbe,
    trace: &mut Trace,
) -> Result<(Head, Vec<u8>), Failure> {
    let mut buffer = Vec::new();
    let mut used = 0;
    let mut interim = 0;
    loop {
        let parsed = if buffer.is_empty() {
            None
        } else {
            head::parse(&buffer, probe).map_err(|error| head_failure(&error, trace.seen()))?
        };
        match parsed {
            Some(head) => {
                used += head.length;
                if used > MAX_HEAD {
                    return Err(too_large());
                }
                buffer.drain(..head.length);
                // 101 ends HTTP on this connection: it is final, and not what was asked for.
                if head.status >= 200 || head.status == 101 {
                    trace.step("headers", &head.summary);
                    return Ok((head, buffer));
                }
                trace.step("interim", head.summary);
                interim += 1;
                if interim > MAX_INTERIM {
                    return Err(Failure::new(
                        Class::Malformed,
                        format!("more than {MAX_INTERIM} interim answers (1xx)"),
                    ));
                }
            }
            None if used + buffer.len() > MAX_HEAD => return Err(too_large()),
            None => loop {
                // Parsing starts over each time, so it is not worth while for a byte that ends
                // no line, except near the start, where a wrong protocol shows.
                match reader.read().await? {
                    Read::Bytes(bytes) => {
                        buffer.extend_from_slice(bytes);
                        let early = buffer.len() <= 64;
                        if early || bytes.contains(&b'\n') || used + buffer.len() > MAX_HEAD {
                            break;
                        }
                    }
                    Read::Closed { .. } if buffer.is_empty() && interim == 0 => {
                        return Err(Failure::new(
                            Class::Empty,
                            "connection closed without an answer",
                        ));
                    }
                    Read::Closed { .. } => {
                        return Err(Failure::new(
                            Class::Truncated,
                            if buffer.is_empty() {
                                "connection closed after an interim answer (1xx)".to_owned()
                            } else {
                                format!(
                                    "connection closed in the headers, after {}",
                                    text::bytes(buffer.len() as u64)
                                )
                            },
                        ));
                    }
                }
            },
        }
    }
}

fn too_large() -> Failure {
    Failure::new(
        Class::TooLarge,
        format!("headers larger than {MAX_HEAD} bytes"),
    )
}

fn head_failure(error: &HeadError, seen: &Seen) -> Failure {
    let (class, detail) = match (error, seen.other_protocol()) {
        (HeadError::Malformed(_), Some(protocol)) => (
            Class::Malformed,
            format!("the peer speaks {protocol}, not HTTP/1, on this port"),
        ),
        (HeadError::Malformed(_), None) => (Class::Malformed, error.to_string()),
        (HeadError::TooManyHeaders, _) => (Class::TooLarge, error.to_string()),
    };
    Failure::new(class, detail)
}

async fn read_body<S: ProbeStream>(
    reader: &mut Reader<'_, S>,
    head: &Head,
    rest: &[u8],
    probe: &HttpProbe,
    trace: &mut Trace,
) -> Result<Body, Failure> {
    let mut body = Body::new(head.framing, looks_into_body(probe));
    let mut progress = body
        .push(rest)
        .map_err(|error| body_failure(head, &error))?;
    while progress == Progress::More {
        match reader.read().await? {
            Read::Bytes(bytes) => {
                progress = body
                    .push(bytes)
                    .map_err(|error| body_failure(head, &error))?;
            }
            Read::Closed { clean } => {
                body.close(clean)
                    .map_err(|error| body_failure(head, &error))?;
                progress = Progress::Complete;
            }
        }
    }
    trace.step(
        "body",
        match progress {
            Progress::Capped => format!("{MAX_BODY} bytes, the rest not read"),
            Progress::More | Progress::Complete => text::bytes(body.received()),
        },
    );
    Ok(body)
}

fn body_failure(head: &Head, error: &BodyError) -> Failure {
    let class = match error {
        BodyError::Malformed(_) => Class::Malformed,
        BodyError::TrailersTooLarge => Class::TooLarge,
        BodyError::Truncated(_) => Class::Truncated,
    };
    Failure::new(class, format!("HTTP {}, but {error}", head.status))
}

/// Reads from the stream, and knows the ways in which it can end.
struct Reader<'a, S> {
    stream: &'a mut Observed<S>,
    buffer: Vec<u8>,
}

enum Read<'a> {
    Bytes(&'a [u8]),
    /// `clean`: not merely cut off, which over TLS anybody on the way can do.
    Closed {
        clean: bool,
    },
}

impl<'a, S: ProbeStream> Reader<'a, S> {
    fn new(stream: &'a mut Observed<S>) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(FIRST_READ),
        }
    }

    async fn read(&mut self) -> Result<Read<'_>, Failure> {
        // More than a short answer: fewer and larger reads from now on.
        if self.buffer.len() == self.buffer.capacity() && self.buffer.len() < READ {
            self.buffer = Vec::with_capacity(READ);
        }
        self.buffer.clear();
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Ok(Read::Closed { clean: true }),
            Ok(_) => Ok(Read::Bytes(&self.buffer)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Read::Closed { clean: false })
            }
            Err(error) => Err(Failure::established(&error)),
        }
    }
}

#[cfg(test)]
mod tests;
