//! When health is ignored.
//!
//! A service is in panic when fewer than `panic_threshold` percent, by weight, of its enabled and
//! decided backends are healthy, or fewer than `panic_min_healthy` of them by number: then either the
//! probes are wrong or those left could not carry the load. Backends that are undecided, disabled
//! or drained by the operator do not count, so neither a deploy nor a drain starts one. There is none
//!
//! - with a threshold of 0 and no number;
//! - when of several tiers one could carry the load alone: that is what it stands by for;
//! - in a service's first probe round while some are undecided: the first failure of a hundred
//!   backends is not a hundred percent.
//!
//! It ends at once when threshold + 10 percent (at most 100) and one backend more than the number (at
//! most all) are healthy, or when both have been reached for one probe interval without interruption:
//! no flapping at the border, and a service of two with one dead does not stay in panic.
//!
//! Who gets new flows in panic is the service's `panic_action`: all backends, none, or those with
//! `fallback = true`, which get none otherwise and count nowhere. Nothing overrides the operator, and
//! unless `panic_exclude_refused` is false, a backend whose own port refuses connections gets none
//! either, as long as there is another one to get it: a closed port is no fault of the probes. Where all
//! refuse, leaving them out would serve nobody; with traffic their clients at least learn at once that
//! nobody is there, and the first that is back has them before a probe has found it.

use std::time::Duration;

use super::tiers::Share;

/// Percent above the threshold at which panic ends at once.
const HYSTERESIS: u64 = 10;

/// What the rule looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    /// Percent; 0: never.
    pub threshold: u8,
    /// Backends; 0: never.
    pub min_healthy: u32,
    /// Probe interval.
    pub interval: Duration,
    /// All enabled and decided backends.
    pub share: Share,
    /// A tier can carry the load alone.
    pub spared: bool,
    /// Until then panic does not begin.
    pub not_before: Option<Duration>,
}

/// Result: whether there is panic, since when it is about to end, and when to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mood {
    pub panic: bool,
    pub enough_since: Option<Duration>,
    pub look_again: Option<Duration>,
}

pub(super) fn judge(
    situation: &Situation,
    was_in_panic: bool,
    enough_since: Option<Duration>,
    now: Duration,
) -> Mood {
    let calm = Mood {
        panic: false,
        enough_since: None,
        look_again: None,
    };
    let threshold = u64::from(situation.threshold);
    let share = situation.share;
    let wanted = situation.min_healthy;
    if (threshold == 0 && wanted == 0) || share.count == 0 || situation.spared {
        return calm;
    }
    let reaches = |percent, count| share.reaches(percent) && share.healthy_count >= count;
    if !reaches(threshold, wanted) {
        if !was_in_panic
            && let Some(not_before) = situation.not_before
            && now < not_before
        {
            return Mood {
                look_again: Some(not_before),
                ..calm
            };
        }
        return Mood {
            panic: true,
            ..calm
        };
    }
    let percent = if threshold == 0 {
        0
    } else {
        (threshold + HYSTERESIS).min(100)
    };
    let count = if wanted == 0 {
        0
    } else {
        // A number beyond that of the backends is never reached.
        (wanted + 1).min(share.count.max(wanted))
    };
    if !was_in_panic || reaches(percent, count) {
        return calm;
    }
    let since = enough_since.unwrap_or(now);
    let ends = since + situation.interval;
    if now >= ends {
        return calm;
    }
    Mood {
        panic: true,
        enough_since: Some(since),
        look_again: Some(ends),
    }
}
