//! The SMTP probe: greeting 220, EHLO 250, QUIT (RFC 5321, sections 3.1 and 3.2).

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use super::wire::Wire;
use super::{Answer, Success, text};
use crate::model::SmtpProbe;

/// Longest line taken; RFC 5321, 4.5.3.1.5 promises at most 512.
const MAX_LINE: usize = 2048;
/// Most lines of one reply.
const MAX_LINES: usize = 100;

/// Asks and judges.
pub async fn ask<S: ProbeStream>(stream: S, probe: &SmtpProbe, trace: &mut Trace) -> Answer {
    let mut wire = Wire::new(stream, "SMTP", trace);
    trace.waiting("no greeting yet");
    let greeting = reply(&mut wire, trace).await?;
    trace.step("greeting", greeting.shown());
    greeting.must_be_positive("the greeting")?;
    let mut hello = ask_hello(&mut wire, "EHLO", probe, trace).await?;
    if matches!(hello.code, 500 | 502 | 504) {
        // A server without extensions (RFC 5321, 3.2).
        hello = ask_hello(&mut wire, "HELO", probe, trace).await?;
    }
    hello.must_be_positive("the answer to EHLO")?;
    wire.part(b"QUIT\r\n");
    Ok(Success(greeting.shown()))
}

async fn ask_hello<S: ProbeStream>(
    wire: &mut Wire<S>,
    verb: &str,
    probe: &SmtpProbe,
    trace: &mut Trace,
) -> Result<Reply, Failure> {
    wire.send(format!("{verb} {}\r\n", probe.hello).as_bytes())
        .await;
    trace.step("request", format!("{verb} {}", probe.hello));
    let reply = reply(wire, trace).await?;
    trace.step("answer", reply.shown());
    Ok(reply)
}

struct Reply {
    code: u16,
    /// Text of its last line.
    text: String,
}

impl Reply {
    fn shown(&self) -> String {
        format!("{} {}", self.code, self.text).trim_end().to_owned()
    }

    /// Fails unless it is a reply of completion (RFC 5321, 4.2.1).
    fn must_be_positive(&self, what: &str) -> Result<(), Failure> {
        if (200..300).contains(&self.code) {
            return Ok(());
        }
        Err(Failure::new(
            Class::Application,
            format!("{what} is {}, want 2xx", self.shown()),
        ))
    }
}

/// A reply with all its lines: `250-…` and at last `250 …`.
async fn reply<S: ProbeStream>(wire: &mut Wire<S>, trace: &Trace) -> Result<Reply, Failure> {
    let mut first = None;
    for _ in 0..MAX_LINES {
        let line = wire.line(MAX_LINE).await?;
        let malformed = || wire.malformed("want a reply such as 220, received", &line, trace);
        let (code, rest) = line.split_at_checked(3).ok_or_else(malformed)?;
        let code = std::str::from_utf8(code)
            .ok()
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|code| code.parse().ok())
            .filter(|code| *first.get_or_insert(*code) == *code)
            .ok_or_else(malformed)?;
        match rest {
            [b'-', ..] => {}
            [] | [b' ', ..] => {
                let text = text::excerpt(rest.strip_prefix(b" ").unwrap_or(rest));
                return Ok(Reply { code, text });
            }
            _ => return Err(malformed()),
        }
    }
    Err(Failure::new(
        Class::TooLarge,
        format!("a reply of more than {MAX_LINES} lines"),
    ))
}
