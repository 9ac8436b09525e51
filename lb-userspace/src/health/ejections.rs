//! What an ejection leaves behind: each one within a time keeps the backend out longer.
//!
//! There is one count for a backend, whichever axis ejected it: its probes or the packets of its
//! flows. What flaps is out longer each time, whoever notices, and a death that both notice is one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::HoldDown;

/// The ejections of a backend that are not forgotten yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ejections {
    count: u32,
    /// When the last one was.
    last: Duration,
    /// It is not back from the last one.
    out: bool,
    /// Since when it has been back, if it is.
    back_since: Duration,
}

/// The same for the state file: without a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub ejections: u32,
    /// Time since the last one.
    pub ejected_ago_ms: u64,
    /// Whether it is not back from it.
    #[serde(default)]
    pub out: bool,
    /// How long it has been healthy, if it is.
    pub healthy_for_ms: u64,
}

/// What an ejection comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// The how manieth it is.
    pub number: u32,
    /// How long it lasts, from its beginning.
    pub length: Duration,
    /// When it ends.
    pub until: Duration,
    /// The configuration asks for that time, so nothing ends it sooner.
    pub firm: bool,
}

impl Past {
    /// Whether there is nothing to keep.
    pub const fn is_clean(&self) -> bool {
        self.ejections == 0
    }

    /// The same some time later.
    #[must_use]
    pub fn later(self, by: Duration) -> Self {
        let by = milliseconds(by);
        Self {
            ejected_ago_ms: self.ejected_ago_ms.saturating_add(by),
            healthy_for_ms: self.healthy_for_ms.saturating_add(by),
            ..self
        }
    }
}

impl Ejections {
    /// As an earlier agent left it. A clock that began later than the ejection makes the hold-down
    /// longer, never shorter.
    pub(super) fn restored(past: Past, now: Duration) -> Self {
        let ago = |ms| now.saturating_sub(Duration::from_millis(ms));
        Self {
            count: past.ejections,
            last: ago(past.ejected_ago_ms),
            out: past.out,
            back_since: ago(past.healthy_for_ms),
        }
    }

    pub(super) fn past(&self, now: Duration) -> Past {
        let ago = |at| milliseconds(now.saturating_sub(at));
        Past {
            ejections: self.count,
            ejected_ago_ms: ago(self.last),
            out: self.out,
            healthy_for_ms: ago(self.back_since),
        }
    }

    /// How many there are.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether it is not back from the last one.
    pub(super) const fn out(&self) -> bool {
        self.out
    }

    /// It is ejected: once more, unless it is out already. `None`: no hold-down is configured.
    pub(super) fn ejected(&mut self, rule: Option<HoldDown>, now: Duration) -> Term {
        let usual = rule.unwrap_or(HoldDown::USUAL);
        if !self.out {
            let healthy = now.saturating_sub(self.back_since).as_nanos();
            let forgotten = healthy / usual.most.as_nanos().max(1);
            let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
            self.count = self.count.saturating_sub(forgotten).saturating_add(1);
            self.last = now;
            self.out = true;
        }
        // One that an earlier agent did not count is the first.
        let number = self.count.max(1);
        let length = usual.of(number);
        Term {
            number,
            length,
            until: self.last.saturating_add(length),
            firm: rule.is_some(),
        }
    }

    /// It is back, whoever ejected it.
    pub(super) const fn readmitted(&mut self, now: Duration) {
        self.out = false;
        self.back_since = now;
    }

    /// When the last one ends at the soonest.
    pub(super) fn held_until(&self, rule: HoldDown) -> Option<Duration> {
        (self.count > 0).then(|| self.last.saturating_add(rule.of(self.count)))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
