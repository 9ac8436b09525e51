//! The LDAP probe: an anonymous simple bind (RFC 4511, section 4.2).

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use super::wire::Wire;
use super::{Answer, Success, text};

/// LDAPMessage 1: BindRequest of version 3, with neither name nor password.
const BIND: &[u8] = &[
    0x30, 0x0c, 0x02, 0x01, 0x01, 0x60, 0x07, 0x02, 0x01, 0x03, 0x04, 0x00, 0x80, 0x00,
];
/// LDAPMessage 2: UnbindRequest.
const UNBIND: &[u8] = &[0x30, 0x05, 0x02, 0x01, 0x02, 0x42, 0x00];
/// Longest message taken.
const MAX_MESSAGE: usize = 16 * 1024;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const ENUMERATED: u8 = 0x0a;
const OCTET_STRING: u8 = 0x04;
/// `[APPLICATION 1]`, constructed.
const BIND_RESPONSE: u8 = 0x61;
/// `[APPLICATION 24]`, constructed: with message number 0 a Notice of Disconnection (4.4.1).
const EXTENDED_RESPONSE: u8 = 0x78;

/// Result codes that a bind may have (RFC 4511, appendix A).
const RESULTS: [(u8, &str); 13] = [
    (0, "success"),
    (1, "operationsError"),
    (2, "protocolError"),
    (7, "authMethodNotSupported"),
    (8, "strongerAuthRequired"),
    (10, "referral"),
    (13, "confidentialityRequired"),
    (48, "inappropriateAuthentication"),
    (49, "invalidCredentials"),
    (51, "busy"),
    (52, "unavailable"),
    (53, "unwillingToPerform"),
    (80, "other"),
];

/// Asks and judges.
pub async fn ask<S: ProbeStream>(stream: S, trace: &mut Trace) -> Answer {
    let mut wire = Wire::new(stream, "LDAP", trace);
    wire.send(BIND).await;
    trace.step("request", "anonymous bind");
    trace.waiting("no answer to the bind yet");
    let message = message(&mut wire, trace).await?;
    let Some(answer) = Result::parse(&message) else {
        return Err(wire.malformed("the answer to the bind is", &message, trace));
    };
    let name = answer.name();
    trace.step("answer", name.clone());
    if answer.disconnects {
        let said = said(answer.diagnostic);
        let detail = format!("the server takes no sessions: {name}{said}");
        return Err(Failure::new(Class::Application, detail));
    }
    if answer.code != 0 {
        let said = said(answer.diagnostic);
        return Err(Failure::new(
            Class::Application,
            format!("anonymous bind refused: {name}{said}"),
        ));
    }
    wire.part(UNBIND);
    Ok(Success("anonymous bind: success".to_owned()))
}

fn said(diagnostic: &[u8]) -> String {
    match diagnostic {
        [] => String::new(),
        some => format!(", \"{}\"", text::excerpt(some)),
    }
}

/// The contents of the next LDAPMessage.
async fn message<S: ProbeStream>(
    wire: &mut Wire<S>,
    trace: &Trace,
) -> std::result::Result<Vec<u8>, Failure> {
    let mut header = wire.exact(2).await?;
    let length = match header[1] {
        short @ ..=0x7f => Some(usize::from(short)),
        long @ 0x81..=0x84 if header[0] == SEQUENCE => {
            let octets = wire.exact(usize::from(long & 0x7f)).await?;
            header.extend_from_slice(&octets);
            Some(
                octets
                    .iter()
                    .fold(0, |sum, octet| sum << 8 | usize::from(*octet)),
            )
        }
        // LDAP has definite lengths only (5.1).
        _ => None,
    };
    match length {
        Some(length) if header[0] == SEQUENCE && length <= MAX_MESSAGE => wire.exact(length).await,
        _ => {
            header.extend_from_slice(wire.received());
            Err(wire.malformed("the answer begins with", &header, trace))
        }
    }
}

/// LDAPResult, as far as it is looked at.
#[derive(Debug, PartialEq, Eq)]
struct Result<'m> {
    code: u8,
    diagnostic: &'m [u8],
    /// It ends the session instead of answering.
    disconnects: bool,
}

impl<'m> Result<'m> {
    /// Of the contents of an LDAPMessage; `None` if it neither answers the bind nor ends the session.
    fn parse(message: &'m [u8]) -> Option<Self> {
        let (number, rest) = element(message, INTEGER)?;
        let (tag, body) = match number {
            [1] => (BIND_RESPONSE, element(rest, BIND_RESPONSE)?.0),
            [0] => (EXTENDED_RESPONSE, element(rest, EXTENDED_RESPONSE)?.0),
            _ => return None,
        };
        let (code, rest) = element(body, ENUMERATED)?;
        let &[code] = code else { return None };
        let (_matched, rest) = element(rest, OCTET_STRING)?;
        let (diagnostic, _) = element(rest, OCTET_STRING)?;
        Some(Self {
            code,
            diagnostic,
            disconnects: tag == EXTENDED_RESPONSE,
        })
    }

    fn name(&self) -> String {
        let known = RESULTS.iter().find(|(code, _)| *code == self.code);
        known.map_or_else(
            || format!("result code {}", self.code),
            |(code, name)| format!("{name} ({code})"),
        )
    }
}

/// The contents of the element at the front, which must have this tag, and what follows it (X.690,
/// 8.1, with lengths of up to two octets: the message is no longer).
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match bytes {
        [found, ..] if *found != tag => return None,
        [_, length @ ..=0x7f, rest @ ..] => (usize::from(*length), rest),
        [_, 0x81, length, rest @ ..] => (usize::from(*length), rest),
        [_, 0x82, high, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
        // Some servers write every length in four octets.
        [_, 0x84, 0, 0, high, low, rest @ ..] => {
            (usize::from(*high) << 8 | usize::from(*low), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}
