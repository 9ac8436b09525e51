//! The gRPC probe: one `grpc.health.v1.Health/Check`, over HTTP/2 with prior knowledge or TLS.
//!
//! Only SERVING with status OK is a success. Everything the server says explicitly (another health
//! status, another gRPC or HTTP status) is [`Class::Application`], what is not gRPC is
//! [`Class::Protocol`], a call broken off on the way is [`Class::Network`]. A call that the server
//! refused without processing (GOAWAY, REFUSED_STREAM) is not repeated: the next probe does that.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ::http::{HeaderMap, Request, Response, StatusCode};
use bytes::Bytes;
use futures::FutureExt;
use h2::client::{Builder, SendRequest};

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::{Observed, Seen, Trace};
use super::{Answer, Success, USER_AGENT, text};

pub mod message;
pub mod watch;

/// Path of the call.
const PATH: &str = "/grpc.health.v1.Health/Check";

/// Most bytes of headers, or of trailers, that are taken.
const MAX_HEADERS: u32 = 16 * 1024;

/// UNIMPLEMENTED and NOT_FOUND: the usual mistakes of a new setup, worth words.
const UNIMPLEMENTED: u32 = 12;
const NOT_FOUND: u32 = 5;

/// What to ask.
pub struct Call<'a> {
    pub service: &'a str,
    pub authority: Cow<'a, str>,
    /// gRPC status codes other than OK that count as a success.
    pub accept_status: &'a [u32],
    /// Further request headers.
    pub metadata: &'a [(String, String)],
    /// Told to the server as `grpc-timeout`.
    pub timeout: Duration,
    pub scheme: &'static str,
}

/// Makes the call and judges the answer.
pub async fn ask<S: ProbeStream>(stream: S, call: &Call<'_>, trace: &mut Trace) -> Answer {
    let request = request(call, PATH, Some(call.timeout))?;
    let stream = Observed::new(stream, trace);
    let seen = trace.seen().clone();
    let (sender, connection) = Builder::new()
        .enable_push(false)
        .max_header_list_size(MAX_HEADERS)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|error| h2_failure(&error, &seen))?;
    // The connection is driven by this same future: there is no task to outlive the probe.
    let mut connection = pin!(connection);
    let mut connection_end = None;
    let answer = {
        let mut exchange = pin!(exchange(sender, request, call, trace));
        poll_fn(|cx| {
            if connection_end.is_none()
                && let Poll::Ready(end) = connection.as_mut().poll(cx)
            {
                connection_end = Some(end);
            }
            exchange.as_mut().poll(cx)
        })
        .await
    };
    if connection_end.is_none() {
        // Sends GOAWAY, as far as the socket's buffer takes it at once.
        connection.now_or_never();
    }
    match answer {
        Ok(success) => Ok(success),
        Err(CallError::Failed(failure)) => Err(failure),
        // When the connection has failed, its own error is the cause.
        Err(CallError::Http2(error)) => match connection_end {
            Some(Err(cause)) if !error.is_remote() => Err(h2_failure(&cause, &seen)),
            _ => Err(h2_failure(&error, &seen)),
        },
    }
}

enum CallError {
    Failed(Failure),
    Http2(h2::Error),
}

impl From<h2::Error> for CallError {
    fn from(error: h2::Error) -> Self {
        Self::Http2(error)
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// `timeout`: how long the server is to work at it at the most.
fn request(call: &Call<'_>, path: &str, timeout: Option<Duration>) -> Result<Request<()>, Failure> {
    let mut request = Request::post(format!("{}://{}{path}", call.scheme, call.authority))
        .version(::http::Version::HTTP_2)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("user-agent", USER_AGENT);
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", grpc_timeout(timeout));
    }
    let metadata = call.metadata.iter();
    metadata
        .fold(request, |request, (name, value)| {
            request.header(name, value)
        })
        .body(())
        .map_err(|error| {
            Failure::internal(format!(
                "the gRPC call to \"{}\" cannot be made: {error}",
                call.authority.escape_debug()
            ))
        })
}

/// At most eight digits and a unit.
fn grpc_timeout(timeout: Duration) -> String {
    let millis = timeout.as_millis();
    if millis < 100_000_000 {
        format!("{millis}m")
    } else {
        format!("{}S", timeout.as_secs().min(99_999_999))
    }
}

async fn exchange(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    call: &Call<'_>,
    trace: &mut Trace,
) -> Result<Success, CallError> {
    let mut sender = sender.ready().await?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(message::encode_request(call.service).into(), true)?;
    trace.step(
        "request",
        if call.service.is_empty() {
            "Check of the whole server".to_owned()
        } else {
            format!("Check of {}", call.service)
        },
    );
    let response = response.await?;
    trace.step("headers", format!("HTTP/2 {}", response.status()));
    if let Some(code) = grpc_status(response.headers())? {
        // Headers and trailers in one: there is no message.
        return Ok(judge(code, response.headers(), &[], call)?);
    }
    check_headers(&response)?;
    let (content, trailers) = read_answer(response.into_body()).await?;
    trace.step(
        "body",
        format!("{} and trailers", text::bytes(content.len() as u64)),
    );
    let Some(code) = grpc_status(&trailers)? else {
        return Err(protocol("no grpc-status at the end of the answer").into());
    };
    Ok(judge(code, &trailers, &content, call)?)
}

async fn read_answer(mut body: h2::RecvStream) -> Result<(Vec<u8>, HeaderMap), CallError> {
    let mut content = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        // The limit is far below the flow-control window, so that never has to be widened.
        let room = message::MAX_ANSWER + 1 - content.len().min(message::MAX_ANSWER + 1);
        content.extend_from_slice(&data[..data.len().min(room)]);
        message::check_prefix(&content).map_err(|error| protocol(error.to_string()))?;
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok((content, trailers))
}

/// A response that can carry an answer: HTTP 200 and gRPC's content type.
fn check_headers(response: &Response<h2::RecvStream>) -> Result<(), Failure> {
    let status = response.status();
    if status != StatusCode::OK {
        return Err(Failure::new(
            Class::Application,
            format!("HTTP {} instead of a gRPC answer", status.as_u16()),
        ));
    }
    let content_type = response.headers().get("content-type");
    let value = content_type
        .map(|value| value.as_bytes())
        .unwrap_or_default();
    let rest = value.strip_prefix(b"application/grpc");
    match rest {
        Some([] | [b'+' | b';', ..]) => Ok(()),
        _ if value.is_empty() => Err(protocol("no content-type: the answer is not gRPC")),
        _ => Err(protocol(format!(
            "content-type \"{}\" is not gRPC",
            text::excerpt(value)
        ))),
    }
}

fn protocol(detail: impl Into<String>) -> Failure {
    Failure::new(Class::Protocol, detail)
}

fn grpc_status(headers: &HeaderMap) -> Result<Option<u32>, Failure> {
    let Some(value) = headers.get("grpc-status") else {
        return Ok(None);
    };
    let bytes = value.as_bytes();
    let digits = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    let code = value.to_str().ok().and_then(|text| text.parse().ok());
    match code {
        Some(code) if digits => Ok(Some(code)),
        _ => Err(protocol(format!(
            "grpc-status \"{}\" is no number",
            text::excerpt(bytes)
        ))),
    }
}

fn judge(
    code: u32,
    trailers: &HeaderMap,
    content: &[u8],
    call: &Call<'_>,
) -> Result<Success, Failure> {
    if code != 0 {
        let mut detail = message::status_name(code);
        let said = trailers.get("grpc-message").map(|value| value.as_bytes());
        match said.map(percent_decode) {
            Some(said) if !said.is_empty() => {
                detail.push_str(": ");
                detail.push_str(&text::excerpt(&said));
            }
            _ if code == UNIMPLEMENTED => detail.push_str(": server has no health service"),
            _ if code == NOT_FOUND => detail.push_str(": server does not know this service"),
            _ => {}
        }
        return if call.accept_status.contains(&code) {
            Ok(Success(detail))
        } else {
            Err(Failure::new(Class::Application, detail))
        };
    }
    let response = message::decode_response(content)
        .map_err(|error| protocol(format!("not a health answer: {error}")))?;
    judge_status(response.status)
}

fn judge_status(status: i32) -> Answer {
    let name = message::serving_status(status);
    if status == message::SERVING {
        Ok(Success(name))
    } else {
        Err(Failure::new(Class::Application, name))
    }
}

/// Decodes `grpc-message`; what is not a valid escape stays as it is, as gRPC asks.
fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        let escape = after.get(..2).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
        });
        match escape {
            Some(escaped) if *byte == b'%' => {
                decoded.push(escaped);
                rest = &after[2..];
            }
            _ => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    decoded
}

fn h2_failure(error: &h2::Error, seen: &Seen) -> Failure {
    if seen.starts_with(b"HTTP/1.") {
        return protocol("peer speaks HTTP/1.1, not HTTP/2");
    }
    if let Some(other @ ("TLS" | "SSH")) = seen.other_protocol() {
        return protocol(format!("peer speaks {other}, not HTTP/2 in plain text"));
    }
    if let Some(io) = error.get_io() {
        let failure = Failure::established(io);
        return match failure.class {
            // Here these mean one thing: the call was broken off.
            Class::Reset | Class::Internal | Class::Shortage | Class::Empty | Class::Truncated => {
                let detail = match io.kind() {
                    // h2 calls the end of the stream a broken pipe.
                    ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe => {
                        "connection closed before the answer was complete".to_owned()
                    }
                    ErrorKind::ConnectionReset => {
                        "connection reset before the answer was complete".to_owned()
                    }
                    _ => format!("connection broken before the answer was complete: {io}"),
                };
                Failure::new(Class::Network, detail)
            }
            _ => failure,
        };
    }
    let reason = error.reason().map_or_else(
        || error.to_string(),
        |reason| format!("{reason:?} ({})", reason.description()),
    );
    if error.is_remote() {
        let frame = if error.is_go_away() {
            "the server closed the connection with GOAWAY"
        } else {
            "the server broke off the call with RST_STREAM"
        };
        Failure::new(Class::Network, format!("{frame}: {reason}"))
    } else if error.is_library() {
        protocol(format!("peer breaks HTTP/2: {reason}"))
    } else {
        Failure::new(Class::Network, format!("HTTP/2 failed: {error}"))
    }
}
