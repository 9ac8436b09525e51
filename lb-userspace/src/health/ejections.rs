//! What an ejection leaves behind: each one within a time holds the backend down longer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::HoldDown;

/// The ejections of a backend that are not forgotten yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ejections {
    count: u32,
    /// When the last one was.
    last: Duration,
    /// Since when it has been healthy, if it is.
    healthy_since: Duration,
}

/// The same for the state file: without a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub ejections: u32,
    /// Time since the last one.
    pub ejected_ago_ms: u64,
    /// How long it has been healthy, if it is.
    pub healthy_for_ms: u64,
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
            ejections: self.ejections,
            ejected_ago_ms: self.ejected_ago_ms.saturating_add(by),
            healthy_for_ms: self.healthy_for_ms.saturating_add(by),
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
            healthy_since: ago(past.healthy_for_ms),
        }
    }

    pub(super) fn past(&self, now: Duration) -> Past {
        let ago = |at| milliseconds(now.saturating_sub(at));
        Past {
            ejections: self.count,
            ejected_ago_ms: ago(self.last),
            healthy_for_ms: ago(self.healthy_since),
        }
    }

    /// How many there are.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Another one, of a backend that was healthy. Tells its number and how long it lasts at least.
    pub(super) fn ejected(&mut self, rule: HoldDown, now: Duration) -> (u32, Duration) {
        let healthy = now.saturating_sub(self.healthy_since).as_nanos();
        let forgotten = healthy / rule.most.as_nanos().max(1);
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        self.count = self.count.saturating_sub(forgotten).saturating_add(1);
        self.last = now;
        (self.count, rule.of(self.count))
    }

    pub(super) const fn readmitted(&mut self, now: Duration) {
        self.healthy_since = now;
    }

    /// When the last one ends at the soonest.
    pub(super) fn held_until(&self, rule: HoldDown) -> Option<Duration> {
        (self.count > 0).then(|| self.last.saturating_add(rule.of(self.count)))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
