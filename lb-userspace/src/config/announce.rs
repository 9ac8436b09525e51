//! `announce` of a service, and the keys that only an announced one has.

use std::ops::Range;
use std::time::Duration;

use super::kinds::command;
use super::reader::{At, Errors, Problem, Reader, Value};
use super::schema::Key;
use super::value;
use crate::model::{Announce, Node};

/// Keys without a meaning where nothing is announced.
const KEYS: [&str; 5] = [
    "quorum",
    "quorum_hysteresis",
    "announce_after",
    "on_announce",
    "on_withdraw",
];
/// Those that are commands.
const COMMANDS: [&str; 2] = ["on_announce", "on_withdraw"];
/// The kernel's table of its own addresses, which it asks first (RT_TABLE_LOCAL).
const LOCAL: u32 = 255;
/// That of probes by way of VIPs.
const PROBES: u32 = 27_746;

/// The keys as far as they could be read.
#[derive(Debug)]
pub struct AnnounceDraft {
    is_announced: Option<bool>,
    quorum: Option<At<u8>>,
    hysteresis: Option<At<u8>>,
    after: Option<Duration>,
    /// In the order of [`COMMANDS`].
    commands: [Option<At<Vec<String>>>; 2],
    /// Whether one is written and wrong.
    bad_command: bool,
}

/// Reads the keys of one service, and checks them against each other.
pub fn read(reader: &Reader<'_>, errors: &mut Errors<'_>) -> AnnounceDraft {
    let announce = reader.get(errors, "announce", is_announced);
    let commands = COMMANDS.map(|key| reader.get(errors, key, command));
    let mut read = COMMANDS.iter().zip(&commands);
    let bad_command = read.any(|(key, read)| reader.is_wrong(key, read.as_ref()));
    let draft = AnnounceDraft {
        commands,
        bad_command,
        is_announced: announce.map(|at| at.value),
        quorum: reader.get(errors, "quorum", value::integer),
        hysteresis: reader.get(errors, "quorum_hysteresis", value::integer),
        after: reader
            .get(errors, "announce_after", value::duration)
            .map(|at| at.value),
    };
    match draft.is_announced {
        Some(true) => within(&draft, errors),
        Some(false) => without(reader, errors),
        None => {}
    }
    draft
}

/// Checks a service whose VIP is announced.
fn within(draft: &AnnounceDraft, errors: &mut Errors<'_>) {
    let (Some(quorum), Some(hysteresis)) = (&draft.quorum, &draft.hysteresis) else {
        return;
    };
    let sum = u32::from(quorum.value) + u32::from(hysteresis.value);
    if sum > 100 {
        errors.add(
            hysteresis.span.clone(),
            format!(
                "`quorum` and `quorum_hysteresis` are {sum} percent together: the VIP would never be \
                 announced"
            ),
            format!("write quorum_hysteresis = {} or less", 100 - quorum.value),
        );
    }
}

/// Reports what means nothing where nothing is announced.
fn without(reader: &Reader<'_>, errors: &mut Errors<'_>) {
    for key in KEYS {
        if let Some(value) = reader.own(key) {
            let span: Range<usize> = value.span();
            errors.add(
                span,
                format!("`{key}` has no meaning with announce = \"off\""),
                "remove it, or write announce = \"route\"",
            );
        }
    }
}

fn is_announced(key: &Key, value: &Value<'_>) -> Result<bool, Problem> {
    Ok(value::choice(key, value)? == "route")
}

/// A routing table for the routes of announced VIPs.
pub fn table(key: &Key, value: &Value<'_>) -> Result<u32, Problem> {
    let table = value::integer(key, value)?;
    let what = match table {
        LOCAL => "the table of this host's own addresses",
        PROBES => "the table of probes with via = \"vip\"",
        _ => return Ok(table),
    };
    Err(Problem::new(
        format!("`{}` is {table}, {what}", key.name),
        format!("write another, for example {} = 108", key.name),
    ))
}

impl AnnounceDraft {
    /// Checks that commands are run only where the host's own table allows it.
    pub fn check_allowed(&self, node: &Node, errors: &mut Errors<'_>) {
        let commands = COMMANDS.iter().zip(&self.commands);
        let written = commands.filter_map(|(key, at)| Some((key, at.as_ref()?)));
        for (key, at) in written.filter(|_| !node.allow_exec) {
            errors.add(
                at.span.clone(),
                format!("`{key}` is not allowed on this host"),
                "write allow_exec = true in [node] if its commands are trusted: they run with the agent's rights",
            );
        }
    }

    /// Whether (`Some(None)`: no) and when the VIP is announced, if nothing in it is wrong.
    pub fn finish(self) -> Option<Option<Announce>> {
        if self.bad_command {
            return None;
        }
        if !self.is_announced? {
            return Some(None);
        }
        let [on_announce, on_withdraw] = self.commands;
        Some(Some(Announce {
            quorum: self.quorum?.value,
            hysteresis: self.hysteresis?.value,
            after: self.after?,
            on_announce: on_announce.map(|at| at.value),
            on_withdraw: on_withdraw.map(|at| at.value),
        }))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_of_the_probes_is_theirs() {
        assert_eq!(super::PROBES, crate::probe::via::TABLE);
    }
}
