//! Failed probes as events, for services that ask for it.

use std::time::Duration;

use super::core::Core;
use crate::api::event::{Change, Evidence, Kind, Origin};
use crate::probe::{Outcome, Verdict};

/// Of all services, so that they do not push other events out of the journal: it keeps 10,000.
const EACH: Duration = Duration::from_secs(1);
/// As many may come at once, as when the backends of a service fail together.
const BURST: u32 = 100;

/// Bounds the rate of events: a bucket that gains room for one each [`EACH`], and holds [`BURST`].
#[derive(Debug, Default)]
pub struct Bound {
    /// When it will be as it was at first. At most [`BURST`] times [`EACH`] ahead.
    full_at: Duration,
    /// Since the last one that was let through.
    left_out: u64,
}

impl Bound {
    /// Whether there is room for one now; if so, how many were left out before it.
    fn take(&mut self, now: Duration) -> Option<u64> {
        let full_at = self.full_at.max(now) + EACH;
        if full_at > now + EACH * BURST {
            self.left_out += 1;
            return None;
        }
        self.full_at = full_at;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Core {
    /// Tells of a failed probe to those who asked for it and want to know.
    pub(super) fn log_failure(&mut self, seq: u64, outcome: &Outcome, now: Duration) {
        if outcome.verdict != Verdict::Failure {
            return;
        }
        let told: Vec<_> = self.engine.asked_by_loud(seq).cloned().collect();
        for key in told {
            let Some(left_out) = self.failures.take(now) else {
                continue;
            };
            let mut what = outcome.detail.clone();
            if left_out > 0 {
                what.push_str(&format!(
                    " ({left_out} failed probes before it were not told)"
                ));
            }
            let change = Change::backend(Kind::ProbeFailed, &key, Origin::Probe, what);
            self.record(change.on(Evidence::probe(outcome)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_is_bounded_and_counted() {
        let mut bound = Bound::default();
        let start = Duration::from_secs(1000);
        let through = (0..500).filter_map(|_| bound.take(start)).count();
        assert_eq!(through, 100);
        assert_eq!(bound.take(start + Duration::from_millis(900)), None);
        assert_eq!(bound.take(start + EACH), Some(401), "one each second");
        assert_eq!(bound.take(start + EACH), None);
        let later = start + EACH * 1000;
        let through = (0..500).filter_map(|_| bound.take(later)).count();
        assert_eq!(through, 100, "and no more after a long silence");
    }
}
