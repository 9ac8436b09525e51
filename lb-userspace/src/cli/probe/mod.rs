//! `lb probe`: outcomes, for a program and for a person.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Failure, output};
use crate::api::{ApiError, BackendName};
use crate::config;
use crate::model::{Model, ProbeSpec};
use crate::probe::{Outcome, Prober, Verdict};

mod group;

pub use group::{Group, NoProbe};

/// How `lb probe` is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub name: &'a BackendName,
    /// Only the probe of this name.
    pub only: Option<&'a str>,
    pub json: bool,
    /// The exit code tells whether all is well.
    pub strict: bool,
}

impl Wish<'_> {
    /// Prints a result, as JSON and as text, and gives the exit code.
    pub fn print(&self, json: &Value, text: &str) -> Result<u8, Failure> {
        if self.json {
            output::print_json(json)?;
        } else {
            output::print(text)?;
        }
        let well = json["outcome"] == verdict_name(Verdict::Success);
        Ok(u8::from(self.strict && !well))
    }
}

/// `lb probe --config`: the probes of a backend once, without an agent.
pub(super) fn run(config: &Path, wish: Wish<'_>) -> Result<u8, Failure> {
    let model = config::load(config)?.model;
    let (service, backend) = model
        .backend(&wish.name.key())
        .ok_or_else(|| unknown(&model, wish.name))?;
    let group = Group::new(service, backend, wish.only);
    let group = group.map_err(|none| Failure::Usage(none.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let prober = Prober::new();
    let answers = runtime.block_on(group.ask(&prober));
    wish.print(&answers.json(), &answers.text())
}

/// Why there is no such backend.
pub fn unknown(model: &Model, name: &BackendName) -> ApiError {
    match model.service(&name.service) {
        None => {
            let known = model.services.iter().map(|service| &*service.name);
            ApiError::unknown_service(&name.service, known)
        }
        Some(service) => {
            let known = service.backends.iter().map(|backend| &*backend.name);
            ApiError::unknown_backend(name, known)
        }
    }
}

/// `{"outcome", "class", "detail", "latency_ms", "steps": [{"name", "at_ms", "detail"}]}`; all
/// times in milliseconds from the probe's start. With `certificate_not_after` if there was one.
pub fn to_json(outcome: &Outcome) -> Value {
    let steps = outcome.steps.iter().map(|step| {
        json!({
            "name": step.name,
            "at_ms": millis(step.at),
            "detail": step.detail,
        })
    });
    let mut found = json!({
        "outcome": verdict_name(outcome.verdict),
        "class": outcome.class.name(),
        "detail": outcome.detail,
        "latency_ms": millis(outcome.latency),
        "steps": steps.collect::<Vec<_>>(),
    });
    if let Some(end) = outcome.certificate_not_after {
        found["certificate_not_after"] = json!(end);
    }
    found
}

/// The probe step by step with its times, then the verdict and what the agent makes of it.
///
/// `target_name`: `service/backend`.
pub fn to_text(target_name: &str, spec: &ProbeSpec, outcome: &Outcome) -> String {
    let mut text = format!(
        "{target_name}: {} probe of {}, deadline {}\n\n",
        spec.kind.name(),
        spec.target,
        duration(spec.timeout)
    );
    let width = outcome.steps.iter().map(|step| step.name.len()).max();
    let width = width.unwrap_or_default();
    for step in &outcome.steps {
        line(
            &mut text,
            format_args!(
                "{:>10}  {:width$}  {}",
                duration(step.at),
                step.name,
                step.detail
            ),
        );
    }
    let verdict = match outcome.verdict {
        Verdict::Success => format!("SUCCESS: {}", outcome.detail),
        Verdict::Failure => format!("FAILURE ({}): {}", outcome.class.name(), outcome.detail),
        Verdict::Internal => format!("INTERNAL: {}", outcome.detail),
    };
    if width > 0 {
        text.push('\n');
    }
    line(
        &mut text,
        format_args!("{verdict}, after {}", duration(outcome.latency)),
    );
    line(&mut text, format_args!("{}", meaning(outcome)));
    text
}

/// What such an outcome does to a backend.
fn meaning(outcome: &Outcome) -> &'static str {
    match outcome.verdict {
        Verdict::Success => "The agent counts this as a success.",
        Verdict::Failure if outcome.class.is_answer() => {
            "The agent counts this as a failure. The backend answers: when it has failed often \
             enough, it is drained."
        }
        Verdict::Failure => {
            "The agent counts this as a failure. The backend gives no usable answer: when it has \
             failed often enough, it is taken for dead and its flows are given up."
        }
        Verdict::Internal => {
            "The agent does not count this: the fault is on this host and says nothing about the \
             backend."
        }
    }
}

const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Success => "success",
        Verdict::Failure => "failure",
        Verdict::Internal => "internal",
    }
}

/// Milliseconds, to the microsecond.
fn millis(duration: Duration) -> f64 {
    // A probe lasts seconds at most: its microseconds are exact in an f64.
    duration.as_micros() as f64 / 1000.0
}

/// `0.42 ms`, `2 s`.
fn duration(duration: Duration) -> String {
    if duration >= Duration::from_secs(1) {
        format!("{} s", trimmed(duration.as_secs_f64(), 3))
    } else {
        format!("{} ms", trimmed(millis(duration), 2))
    }
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProbeKind;
    use crate::probe::{Class, Step};

    fn outcome() -> Outcome {
        let step = |name, micros, detail: &str| Step {
            name,
            at: Duration::from_micros(micros),
            detail: detail.to_owned(),
        };
        Outcome {
            detail: "HTTP 503, want 200".to_owned(),
            latency: Duration::from_micros(1234),
            steps: vec![
                step("connect", 420, "10.0.0.11:8080 from 10.0.0.5:43210"),
                step("headers", 1200, "HTTP/1.1 503 Service Unavailable"),
            ],
            ..Outcome::of(Class::Status)
        }
    }

    #[test]
    fn json_has_the_end_of_a_certificate() {
        let mut outcome = outcome();
        assert!(to_json(&outcome).get("certificate_not_after").is_none());
        outcome.certificate_not_after = Some("2027-01-01T00:00:00Z".parse().unwrap());
        let end = &to_json(&outcome)["certificate_not_after"];
        assert_eq!(end, "2027-01-01T00:00:00Z");
    }

    #[test]
    fn json_is_the_contract() {
        assert_eq!(
            to_json(&outcome()),
            json!({
                "outcome": "failure",
                "class": "status",
                "detail": "HTTP 503, want 200",
                "latency_ms": 1.234,
                "steps": [
                    {
                        "name": "connect",
                        "at_ms": 0.42,
                        "detail": "10.0.0.11:8080 from 10.0.0.5:43210",
                    },
                    {
                        "name": "headers",
                        "at_ms": 1.2,
                        "detail": "HTTP/1.1 503 Service Unavailable",
                    },
                ],
            })
        );
    }

    #[test]
    fn text_is_for_people() {
        let spec = ProbeSpec {
            target: "10.0.0.11:8080".parse().unwrap(),
            timeout: Duration::from_secs(2),
            kind: ProbeKind::Tcp.into(),
            egress: Default::default(),
        };
        assert_eq!(
            to_text("web/web-1", &spec, &outcome()),
            "\
web/web-1: tcp probe of 10.0.0.11:8080, deadline 2 s

   0.42 ms  connect  10.0.0.11:8080 from 10.0.0.5:43210
    1.2 ms  headers  HTTP/1.1 503 Service Unavailable

FAILURE (status): HTTP 503, want 200, after 1.23 ms
The agent counts this as a failure. The backend answers: when it has failed often enough, it is \
drained.
"
        );
        let silent = Outcome {
            detail: "no answer within 2s (no reply to SYN)".to_owned(),
            latency: Duration::from_millis(2001),
            ..Outcome::of(Class::Timeout)
        };
        assert!(to_text("web/web-1", &spec, &silent).contains(
            "deadline 2 s\n\nFAILURE (timeout): no answer within 2s (no reply to SYN), after \
                 2.001 s\n"
        ));
    }
}
