//! The TCP probe with a script: bytes to send, bytes to expect.

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use super::wire::Wire;
use super::{Answer, Success, text};
use crate::model::{Match, ScriptStep};

/// So much may one step receive without being satisfied.
const MAX_RECEIVED: usize = 16 * 1024;

/// Plays the steps of a script on a connection.
pub async fn ask<S: ProbeStream>(stream: S, steps: &[ScriptStep], trace: &mut Trace) -> Answer {
    let mut wire = Wire::new(stream, "what the script expects", trace);
    let mut last = "the script was played".to_owned();
    for step in steps {
        match step {
            // Between two connections, and so in neither.
            ScriptStep::Connect(_) => {}
            ScriptStep::Send(bytes) => {
                let rest = wire.received().len();
                wire.consume(rest);
                wire.send(bytes).await;
                trace.step("send", format!("\"{}\"", text::excerpt(bytes)));
            }
            ScriptStep::Receive {
                expect,
                unless,
                min_bytes,
            } => {
                let wanted = Wanted {
                    expect: expect.as_ref(),
                    unless: unless.as_ref(),
                    min_bytes: *min_bytes,
                };
                let received = receive(&mut wire, &wanted, trace).await?;
                last = format!("received \"{}\"", text::excerpt(&received));
                trace.step("expect", last.clone());
            }
        }
    }
    wire.part(&[]);
    Ok(Success(last))
}

struct Wanted<'a> {
    expect: Option<&'a Match>,
    unless: Option<&'a Match>,
    min_bytes: usize,
}

/// Receives until the step is satisfied; gives what it has consumed.
async fn receive<S: ProbeStream>(
    wire: &mut Wire<S>,
    wanted: &Wanted<'_>,
    trace: &mut Trace,
) -> Result<Vec<u8>, Failure> {
    let mut open = true;
    loop {
        let received = wire.received();
        if let Some(found) = judge(received, wanted)? {
            let bytes = received[..found].to_vec();
            wire.consume(found);
            return Ok(bytes);
        }
        if !open {
            return Err(ended(received, wanted));
        }
        if received.len() >= MAX_RECEIVED {
            return Err(Failure::new(
                Class::TooLarge,
                format!(
                    "{} within the first {MAX_RECEIVED} bytes, which begin with \"{}\"",
                    wanted.missing(),
                    text::excerpt(received)
                ),
            ));
        }
        trace.waiting(if received.is_empty() {
            wanted.missing()
        } else {
            format!("{} in \"{}\"", wanted.missing(), text::excerpt(received))
        });
        open = wire.more().await?;
    }
}

/// How much of `received` satisfies the step; `None`: more is needed.
fn judge(received: &[u8], wanted: &Wanted<'_>) -> Result<Option<usize>, Failure> {
    if let Some(unless) = wanted.unless
        && let Found::At(_) = find(unless, received)
    {
        return Err(Failure::new(
            Class::Content,
            format!(
                "received {}, which the script refuses, in \"{}\"",
                show(unless),
                text::excerpt(received)
            ),
        ));
    }
    let enough = received.len() >= wanted.min_bytes;
    let Some(expect) = wanted.expect else {
        return Ok(enough.then_some(received.len()));
    };
    match find(expect, received) {
        Found::At(end) if enough => Ok(Some(end)),
        Found::At(_) | Found::NotYet => Ok(None),
        Found::Never => Err(Failure::new(
            Class::Content,
            format!(
                "want {}, received \"{}\"",
                show(expect),
                text::excerpt(received)
            ),
        )),
    }
}

enum Found {
    /// The match ends here.
    At(usize),
    /// More bytes may bring it.
    NotYet,
    /// No further byte can.
    Never,
}

fn find(wanted: &Match, bytes: &[u8]) -> Found {
    match wanted {
        Match::Contains(needle) => memchr::memmem::find(bytes, needle)
            .map_or(Found::NotYet, |at| Found::At(at + needle.len())),
        Match::Prefix(prefix) if bytes.starts_with(prefix) => Found::At(prefix.len()),
        Match::Prefix(prefix) if prefix.starts_with(bytes) => Found::NotYet,
        Match::Prefix(_) => Found::Never,
        Match::Regex(pattern) => pattern.find_end(bytes).map_or(Found::NotYet, Found::At),
    }
}

/// The peer has closed, and the step is not satisfied.
fn ended(received: &[u8], wanted: &Wanted<'_>) -> Failure {
    if received.is_empty() {
        return Failure::new(
            Class::Empty,
            format!("connection closed by the backend: {}", wanted.missing()),
        );
    }
    Failure::new(
        Class::Content,
        format!(
            "connection closed by the backend: {} in \"{}\"",
            wanted.missing(),
            text::excerpt(received)
        ),
    )
}

impl Wanted<'_> {
    /// `no "+PONG"`.
    fn missing(&self) -> String {
        match self.expect {
            Some(expect) => format!("no {}", show(expect)),
            None => format!("less than {}", text::bytes(self.min_bytes as u64)),
        }
    }
}

fn show(wanted: &Match) -> String {
    match wanted {
        Match::Contains(bytes) => format!("\"{}\"", text::excerpt(bytes)),
        Match::Prefix(bytes) => format!("\"{}\" at the start", text::excerpt(bytes)),
        Match::Regex(pattern) => {
            format!(
                "match of the regex \"{}\"",
                text::excerpt(pattern.as_str().as_bytes())
            )
        }
    }
}
