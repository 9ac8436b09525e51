//! The PostgreSQL probe: a start-up packet, up to the server's request for authentication, or its
//! readiness where it asks for none.
//!
//! That needs no password, and proves that the server would take a session: it answers only when it
//! accepts connections. Protocol 3.0
//! (<https://www.postgresql.org/docs/current/protocol-message-formats.html>).

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use super::wire::Wire;
use super::{Answer, Success, text};
use crate::model::PostgresProbe;

/// Protocol 3.0.
const PROTOCOL: u32 = 3 << 16;
/// Longest message taken; real ones here have less than 500 bytes.
const MAX_MESSAGE: usize = 16 * 1024;
/// Messages skipped before the one that decides (notices, NegotiateProtocolVersion).
const MAX_MESSAGES: usize = 16;
/// `cannot_connect_now`: starting, stopping, or a standby that is not consistent yet.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// Asks and judges.
pub async fn ask<S: ProbeStream>(stream: S, probe: &PostgresProbe, trace: &mut Trace) -> Answer {
    let mut wire = Wire::new(stream, "PostgreSQL", trace);
    wire.send(&startup(probe)).await;
    trace.step("request", format!("start-up as user {}", probe.user));
    for _ in 0..MAX_MESSAGES {
        let (kind, body) = message(&mut wire, trace).await?;
        match kind {
            b'R' => {
                let method = authentication(&body)
                    .ok_or_else(|| wire.malformed("a request for authentication", &body, trace))?;
                trace.step("authentication", method.clone());
                // Terminate; the server logs no broken connection.
                wire.part(b"X\0\0\0\x04");
                return Ok(Success(format!("accepts connections ({method})")));
            }
            b'E' => return Err(error(&body)),
            // NoticeResponse, NegotiateProtocolVersion.
            b'N' | b'v' => {}
            _ => return Err(wire.malformed("the answer begins with", &[kind], trace)),
        }
    }
    Err(Failure::new(
        Class::Malformed,
        format!("more than {MAX_MESSAGES} messages before an answer"),
    ))
}

/// StartupMessage: length, protocol, then names and values, each with a zero after it.
fn startup(probe: &PostgresProbe) -> Vec<u8> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    let database = probe.database.as_deref();
    let parameters = [
        Some(("user", probe.user.as_str())),
        database.map(|name| ("database", name)),
        Some(("application_name", "lb probe")),
    ];
    for (name, value) in parameters.into_iter().flatten() {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let mut packet = length.to_be_bytes().to_vec();
    packet.append(&mut body);
    packet
}

/// The type and body of the next message.
async fn message<S: ProbeStream>(
    wire: &mut Wire<S>,
    trace: &Trace,
) -> Result<(u8, Vec<u8>), Failure> {
    // A first byte that no answer here has tells more than the length that is read out of it.
    let kind = wire.exact(1).await?[0];
    if !matches!(kind, b'R' | b'E' | b'N' | b'v') {
        let mut shown = vec![kind];
        shown.extend_from_slice(wire.received());
        return Err(wire.malformed("the answer begins with", &shown, trace));
    }
    let length = wire.exact(4).await?;
    let length = usize::try_from(big_endian(&length)).unwrap_or(usize::MAX);
    // Older servers, and those out of memory, send errors of protocol 2: 'E' and a text.
    let (least, most) = (4, MAX_MESSAGE);
    if !(least..=most).contains(&length) {
        return Err(Failure::new(
            Class::Malformed,
            format!("not PostgreSQL: a message of {length} bytes"),
        ));
    }
    Ok((kind, wire.exact(length - 4).await?))
}

fn big_endian(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// What the server asks for.
fn authentication(body: &[u8]) -> Option<String> {
    let code = big_endian(body.get(..4)?);
    Some(match code {
        0 => "no password asked".to_owned(),
        2 => "asks for Kerberos".to_owned(),
        3 => "asks for a password".to_owned(),
        5 => "asks for an MD5 password".to_owned(),
        7 => "asks for GSSAPI".to_owned(),
        9 => "asks for SSPI".to_owned(),
        10 => "asks for SCRAM".to_owned(),
        other => format!("asks for authentication of type {other}"),
    })
}

/// ErrorResponse: fields of a letter and a text each.
fn error(body: &[u8]) -> Failure {
    let field = |wanted: u8| {
        body.split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&wanted))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
            .unwrap_or_default()
    };
    let (severity, code, said) = (field(b'S'), field(b'C'), field(b'M'));
    let shown = text::excerpt(said.as_bytes());
    let detail = format!(
        "{}: \"{shown}\" ({})",
        text::excerpt(severity.as_bytes()),
        text::excerpt(code.as_bytes())
    );
    // Stopping has the same code, and so has a standby that is configured not to serve.
    let no_start = ["shutting down", "not accepting connections"];
    let class = if code == CANNOT_CONNECT_NOW && !no_start.iter().any(|text| said.contains(text)) {
        Class::Starting
    } else {
        Class::Application
    };
    Failure::new(class, detail)
}
