//! Keys of a service that say how much of its pool takes traffic.

use std::time::Duration;

use super::reader::{Errors, Reader, Value};
use super::value;
use crate::model::{PoolRules, SlowStart};

/// Keys without a meaning where one backend is active.
const OF_MANY: [&str; 3] = ["max_ejection_percent", "overprovisioning", "failback_after"];
/// Keys without a meaning where nothing is eased in.
const OF_SLOW_START: [&str; 2] = ["slow_start_aggression", "slow_start_min_percent"];

/// The keys as far as they could be read.
#[derive(Debug)]
pub struct PoolDraft {
    max_ejection_percent: Option<u8>,
    passive_max_ejection_percent: Option<u8>,
    overprovisioning: Option<u16>,
    failback_after: Option<Duration>,
    fail_open_after: Option<Duration>,
    slow_start: Option<Duration>,
    slow_start_aggression: Option<f64>,
    slow_start_min_percent: Option<u8>,
}

/// Reads the keys of one service, and checks them against each other.
pub fn read(reader: &Reader<'_>, is_active_passive: bool, errors: &mut Errors<'_>) -> PoolDraft {
    let duration = |errors: &mut Errors<'_>, key| {
        let at = reader.get(errors, key, value::duration);
        at.map(|at| at.value)
    };
    let percent = |errors: &mut Errors<'_>, key| {
        let at = reader.get(errors, key, value::integer);
        at.map(|at| at.value)
    };
    let draft = PoolDraft {
        max_ejection_percent: percent(errors, "max_ejection_percent"),
        passive_max_ejection_percent: percent(errors, "passive_max_ejection_percent"),
        overprovisioning: reader
            .get(errors, "overprovisioning", value::integer)
            .map(|at| at.value),
        failback_after: duration(errors, "failback_after"),
        fail_open_after: duration(errors, "fail_open_after"),
        slow_start: duration(errors, "slow_start"),
        slow_start_aggression: reader
            .get(errors, "slow_start_aggression", value::decimal)
            .map(|at| at.value),
        slow_start_min_percent: percent(errors, "slow_start_min_percent"),
    };
    if is_active_passive {
        let help = "remove it, or write mode = \"balance\"";
        refuse(
            reader,
            &OF_MANY,
            "with mode = \"active_passive\"",
            help,
            errors,
        );
    }
    if draft.slow_start == Some(Duration::ZERO) {
        let help = "remove it, or write how long: slow_start = \"30s\"";
        refuse(reader, &OF_SLOW_START, "without `slow_start`", help, errors);
    }
    draft
}

fn refuse(reader: &Reader<'_>, keys: &[&str], with: &str, help: &str, errors: &mut Errors<'_>) {
    for key in keys {
        if let Some(span) = reader.own(key).map(Value::span) {
            errors.add(span, format!("`{key}` has no meaning {with}"), help);
        }
    }
}

impl PoolDraft {
    /// Percent of the backends that packets may eject, if that is right.
    pub const fn passive_max_ejection_percent(&self) -> Option<u8> {
        self.passive_max_ejection_percent
    }

    /// The rules, if nothing in them is wrong.
    pub fn finish(&self) -> Option<PoolRules> {
        Some(PoolRules {
            max_ejection_percent: self.max_ejection_percent?,
            overprovisioning: self.overprovisioning?,
            failback_after: self.failback_after?,
            fail_open_after: self.fail_open_after,
        })
    }

    /// The same of easing in.
    pub fn slow_start(&self) -> Option<SlowStart> {
        Some(SlowStart {
            window: self.slow_start?,
            aggression: self.slow_start_aggression?,
            least: self.slow_start_min_percent?,
        })
    }
}
