//! Traces: recorded outcomes, a line of JSON each.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::config::suggest::nearest;
use crate::model::{BackendKey, Model};
use crate::probe::{Class, Outcome, Verdict};

/// Backends named in an error that has no better suggestion.
const NAMED: usize = 8;

/// How a probe of a backend ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Since the start of the simulated agent.
    pub at: Duration,
    pub key: BackendKey,
    /// Which of the backend's probes, from 0.
    pub check: usize,
    pub outcome: Outcome,
}

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be read.
    #[error(
        "{}: cannot read the trace: {source}; give --trace a file with a line of JSON for each \
         outcome",
        .file.display()
    )]
    Unreadable { file: PathBuf, source: io::Error },
    /// What a line says is not usable.
    #[error("{}:{line}: {fault}", .file.display())]
    Line {
        file: PathBuf,
        /// From 1.
        line: usize,
        fault: LineError,
    },
}

/// What is wrong with a line of a trace, and the mend.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("not UTF-8; write the trace as JSON in UTF-8")]
    NotUtf8,
    #[error(
        "not an outcome: {cause} (column {column}); write a line like \
         {{\"at_ms\": 1500, \"backend\": \"web/web-1\", \"outcome\": \"success\"}}, where outcome \
         is success, degraded, drain, failure or timeout, and detail and probe may be added"
    )]
    NotAnOutcome { cause: String, column: usize },
    #[error("the configuration has no backend {name:?}; {suggestion}")]
    UnknownBackend { name: String, suggestion: String },
    #[error(
        "{0} is not probed, so no outcome counts for it; leave its lines out or give its service \
         a probe other than \"none\""
    )]
    NotProbed(BackendKey),
    #[error("{key} has no probe {name:?}; it has {known}")]
    UnknownProbe {
        key: BackendKey,
        name: String,
        known: String,
    },
    #[error(
        "at_ms {at_ms} is before the {before_ms} of line {before_line}; sort the lines by at_ms"
    )]
    Backwards {
        at_ms: u64,
        before_ms: u64,
        before_line: usize,
    },
}

/// A line as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at_ms: u64,
    backend: String,
    outcome: Word,
    detail: Option<String>,
    /// Name of the probe; the first one if absent.
    probe: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Success,
    Degraded,
    Drain,
    Failure,
    Timeout,
}

/// The trace in a file, for a model.
///
/// # Errors
/// The first thing that is wrong: see [`TraceError`].
pub fn read(file: &Path, model: &Model) -> Result<Vec<Observation>, TraceError> {
    let bytes = std::fs::read(file).map_err(|source| TraceError::Unreadable {
        file: file.to_owned(),
        source,
    })?;
    parse(&bytes, model).map_err(|(line, fault)| TraceError::Line {
        file: file.to_owned(),
        line,
        fault,
    })
}

/// The trace in a text; empty lines are left out.
///
/// # Errors
/// The first fault, with the number of its line, from 1.
pub fn parse(text: &[u8], model: &Model) -> Result<Vec<Observation>, (usize, LineError)> {
    let mut trace = Vec::new();
    let mut before: Option<(usize, u64)> = None;
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let fault = |fault| (number, fault);
        let line = std::str::from_utf8(line).map_err(|_| fault(LineError::NotUtf8))?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(line).map_err(|error| fault(not_json(&error)))?;
        if let Some((before_line, before_ms)) = before.filter(|(_, ms)| line.at_ms < *ms) {
            return Err(fault(LineError::Backwards {
                at_ms: line.at_ms,
                before_ms,
                before_line,
            }));
        }
        before = Some((number, line.at_ms));
        trace.push(Observation {
            at: Duration::from_millis(line.at_ms),
            check: check(&line, model).map_err(fault)?,
            key: probed(&line.backend, model).map_err(fault)?,
            outcome: outcome(line.outcome, line.detail),
        });
    }
    Ok(trace)
}

fn not_json(error: &serde_json::Error) -> LineError {
    // The position that serde_json adds is that within the line; the number of the line is ours.
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let cause = text.strip_suffix(&place).unwrap_or(&text);
    LineError::NotAnOutcome {
        // It quotes the line, which must not drive the terminal.
        cause: cause.replace(char::is_control, "\u{fffd}"),
        column: error.column(),
    }
}

/// The backend of this name, if its outcomes count.
fn probed(name: &str, model: &Model) -> Result<BackendKey, LineError> {
    let key = name
        .split_once('/')
        .map(|(service, backend)| BackendKey::new(service, backend));
    match key.and_then(|key| model.backend(&key).map(|found| (key, found))) {
        Some((key, (service, backend))) if service.probes_of(backend).next().is_some() => Ok(key),
        Some((key, _)) => Err(LineError::NotProbed(key)),
        None => Err(LineError::UnknownBackend {
            name: name.to_owned(),
            suggestion: suggestion(name, model),
        }),
    }
}

/// Which of the backend's probes the line is about.
fn check(line: &Line, model: &Model) -> Result<usize, LineError> {
    let Some(name) = &line.probe else {
        return Ok(0);
    };
    let key = probed(&line.backend, model)?;
    let policies = model.service(&key.service).map(|service| &service.health);
    let mut names = policies.into_iter().flatten().map(|policy| &*policy.name);
    names
        .clone()
        .position(|known| known == name)
        .ok_or_else(|| LineError::UnknownProbe {
            name: name.clone(),
            known: names.by_ref().collect::<Vec<_>>().join(", "),
            key,
        })
}

/// `did you mean "web/web-1"?`, or what there is.
fn suggestion(name: &str, model: &Model) -> String {
    let known: Vec<String> = model
        .services
        .iter()
        .flat_map(|service| service.backends.iter().map(|b| service.key(b).to_string()))
        .collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    if let Some(nearest) = nearest(name, &known) {
        return format!("did you mean {nearest:?}?");
    }
    let shown = known.iter().take(NAMED).copied().collect::<Vec<_>>();
    let more = match known.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("there are {}{more}", shown.join(", "))
}

/// As a prober would have reported it. Traces do not tell a failure's class, so its detail does.
fn outcome(word: Word, detail: Option<String>) -> Outcome {
    let (verdict, class, otherwise) = match word {
        Word::Success => (Verdict::Success, Class::Ok, "success"),
        Word::Degraded => (Verdict::Success, Class::Degraded, "degraded"),
        Word::Drain => (Verdict::Success, Class::Drain, "asks to be drained"),
        Word::Failure => {
            let class = failure(detail.as_deref().unwrap_or_default());
            (Verdict::Failure, class, "failure")
        }
        Word::Timeout => (Verdict::Failure, Class::Timeout, "timeout"),
    };
    Outcome {
        verdict,
        class,
        detail: detail.unwrap_or_else(|| otherwise.to_owned()),
        latency: Duration::ZERO,
        steps: Vec::new(),
        agent: None,
        certificate_not_after: None,
    }
}

/// A bad answer, unless the detail says that there was none.
fn failure(detail: &str) -> Class {
    let detail = detail.to_lowercase();
    let classes = [
        ("refused", Class::Refused),
        ("reset", Class::Reset),
        ("unreachable", Class::Unreachable),
    ];
    classes
        .into_iter()
        .find(|(word, _)| detail.contains(word))
        .map_or(Class::Status, |(_, class)| class)
}
