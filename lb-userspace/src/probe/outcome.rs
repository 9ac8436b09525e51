//! What one probe found.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::health::agent::Report;
pub use crate::model::Class;

/// What one probe means for the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Success,
    Failure,
    /// The prober itself could not ask (no descriptors, no ports, no time): says nothing about the
    /// backend and is never counted.
    Internal,
}

/// A step of a probe, for `lb probe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `connect`, `tls`, `request`, `headers`, `body`, …
    pub name: &'static str,
    /// When it was done, from the probe's start.
    pub at: Duration,
    /// What was seen, for people.
    pub detail: String,
}

/// Result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub class: Class,
    /// One line for people: `HTTP 200`, `connection refused`, `NOT_SERVING`.
    pub detail: String,
    /// From the probe's start to its verdict.
    pub latency: Duration,
    pub steps: Vec<Step>,
    /// What an agent has said, if one was asked and answered in an agent's words.
    pub agent: Option<Report>,
    /// When the server's certificate expires, if one was shown: not on a kept connection.
    pub certificate_not_after: Option<Timestamp>,
}

#[cfg(test)]
impl Outcome {
    /// What tests make up: of this class, with its name for a detail, in no time.
    pub fn of(class: Class) -> Self {
        Self {
            verdict: match class {
                Class::Ok | Class::Degraded | Class::Drain => Verdict::Success,
                Class::Internal | Class::Shortage => Verdict::Internal,
                _ => Verdict::Failure,
            },
            class,
            detail: class.name().to_owned(),
            latency: Duration::ZERO,
            steps: Vec::new(),
            agent: None,
            certificate_not_after: None,
        }
    }
}
