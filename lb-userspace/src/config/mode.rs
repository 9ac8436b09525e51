//! `mode` of a service, and the keys that only `active_passive` has.

use std::ops::Range;
use std::time::Duration;

use super::kinds::command;
use super::reader::{At, Errors, Problem, Reader, Value};
use super::schema::Key;
use super::value;
use crate::model::{ActivePassive, Fence, Mode, Node};

/// Keys without a meaning where the backends share the traffic.
const KEYS: [&str; 4] = ["promote_after", "failback", "fence", "fence_timeout"];

/// The keys as far as they could be read.
#[derive(Debug)]
pub struct ModeDraft {
    is_active_passive: Option<bool>,
    promote_after: Option<Duration>,
    failback: Option<bool>,
    fence: Option<At<Vec<String>>>,
    /// Whether the command is written and wrong.
    bad_fence: bool,
    fence_timeout: Option<Duration>,
}

/// Reads the keys of one service, and checks them against each other.
pub fn read(reader: &Reader<'_>, errors: &mut Errors<'_>) -> ModeDraft {
    let mode = reader.get(errors, "mode", is_active_passive);
    let fence = reader.get(errors, "fence", command);
    let draft = ModeDraft {
        is_active_passive: mode.map(|at| at.value),
        promote_after: reader
            .get(errors, "promote_after", value::duration)
            .map(|at| at.value),
        failback: reader
            .get(errors, "failback", value::boolean)
            .map(|at| at.value),
        bad_fence: reader.is_wrong("fence", fence.as_ref()),
        fence,
        fence_timeout: reader
            .get(errors, "fence_timeout", value::duration)
            .map(|at| at.value),
    };
    match draft.is_active_passive {
        Some(true) => within(reader, &draft, errors),
        Some(false) => without(reader, errors),
        None => {}
    }
    draft
}

/// Checks a service with one active backend.
fn within(reader: &Reader<'_>, draft: &ModeDraft, errors: &mut Errors<'_>) {
    if draft.fence_timeout == Some(Duration::ZERO) {
        errors.add(
            span(reader, "fence_timeout"),
            "`fence_timeout` is 0: no command could ever succeed",
            "write how long the command may take, for example \"30s\"",
        );
    }
    if reader.own("fence").is_none() && reader.own("fence_timeout").is_some() {
        errors.add(
            span(reader, "fence_timeout"),
            "`fence_timeout` without `fence`",
            "remove it, or write the command: fence = [\"/usr/local/sbin/fence-db\"]",
        );
    }
}

/// Reports what means nothing where the backends share the traffic.
fn without(reader: &Reader<'_>, errors: &mut Errors<'_>) {
    for key in KEYS.iter().filter(|key| reader.own(key).is_some()) {
        errors.add(
            span(reader, key),
            format!("`{key}` has no meaning with mode = \"balance\""),
            "remove it, or write mode = \"active_passive\"",
        );
    }
}

fn span(reader: &Reader<'_>, key: &str) -> Range<usize> {
    reader
        .own(key)
        .map_or_else(|| reader.span.clone(), Value::span)
}

fn is_active_passive(key: &Key, value: &Value<'_>) -> Result<bool, Problem> {
    Ok(value::choice(key, value)? == "active_passive")
}

impl ModeDraft {
    /// Whether one backend is active; no, if that could not be read.
    pub fn is_active_passive(&self) -> bool {
        self.is_active_passive == Some(true)
    }

    /// Checks that the command is run only where the host's own table allows it.
    pub fn check_allowed(&self, node: &Node, errors: &mut Errors<'_>) {
        if let Some(fence) = &self.fence
            && !node.allow_exec
        {
            errors.add(
                fence.span.clone(),
                "`fence` is not allowed on this host",
                "write allow_exec = true in [node] if its commands are trusted: they run with the agent's rights",
            );
        }
    }

    /// The mode, if nothing in it is wrong.
    pub fn finish(self) -> Option<Mode> {
        if self.bad_fence {
            return None;
        }
        if !self.is_active_passive? {
            return Some(Mode::Balance);
        }
        let timeout = self.fence_timeout?;
        Some(Mode::ActivePassive(ActivePassive {
            promote_after: self.promote_after?,
            failback: self.failback?,
            fence: self.fence.map(|fence| Fence {
                command: fence.value,
                timeout,
            }),
        }))
    }
}
