//! The agent probe: reads one line in the words of HAProxy's agent check, and judges it.
//!
//! A line by itself is judged here: an explicit no (`down`, `drain`, `maint`, `0%`) is an answer, so
//! the backend drains. What a line leaves out stays as it was, which the engine knows.

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use super::wire::Wire;
use super::{Answer, Success, text};
use crate::health::agent::{self, Axis, MAX_LINE};

/// Reads and judges.
pub async fn ask<S: ProbeStream>(stream: S, trace: &mut Trace) -> Answer {
    let mut wire = Wire::new(stream, "an agent's words", trace);
    trace.waiting("no line from the agent yet");
    // An agent may close after its line instead of ending it.
    while !wire.received().contains(&b'\n') {
        if wire.received().len() > MAX_LINE {
            return Err(Failure::new(
                Class::TooLarge,
                format!("the agent's line is longer than {MAX_LINE} bytes"),
            ));
        }
        if !wire.more().await? {
            break;
        }
    }
    let received = wire.received();
    if received.is_empty() {
        return Err(wire.closed());
    }
    let report = agent::parse(received)
        .map_err(|error| wire.malformed(&error.to_string(), received, trace))?;
    let line = received.split(|byte| matches!(byte, b'\r' | b'\n')).next();
    let said = text::excerpt(line.unwrap_or_default());
    trace.step("answer", format!("\"{said}\""));
    let mut axis = Axis::default();
    axis.apply(&report);
    trace.reported(report);
    if axis.is_no() {
        Err(Failure::new(
            Class::Application,
            format!("the agent says \"{said}\""),
        ))
    } else {
        Ok(Success(format!("the agent says \"{said}\"")))
    }
}
