//! The time between verdicts and the data plane that follows them.

use std::collections::VecDeque;
use std::time::Duration;

use crate::api::lateness::Lateness;

/// Measures from the first verdict that turned until the contents that were built with it are in the
/// maps. Verdicts that are put in force together count once.
#[derive(Debug, Default)]
pub struct Gap {
    /// When the first verdict turned for which nothing was built yet.
    turned: Option<Duration>,
    /// What was built for verdicts and is not in the maps yet: its number, and when the first of them
    /// turned.
    built: VecDeque<(u64, Duration)>,
    /// All so far.
    pub total: Lateness,
}

impl Gap {
    /// A verdict has turned.
    pub fn turned(&mut self, now: Duration) {
        self.turned.get_or_insert(now);
    }

    /// All verdicts so far are in the contents of this number; the maps hold those of number
    /// `applied`.
    pub fn built(&mut self, generation: u64, applied: u64) {
        // A verdict that changes no contents leaves the data plane nothing to follow.
        if let Some(turned) = self.turned.take()
            && generation > applied
        {
            self.built.push_back((generation, turned));
        }
    }

    /// The maps have held the contents of this number since `at`.
    pub fn applied(&mut self, generation: u64, at: Duration) {
        while let Some((_, turned)) = self.built.pop_front_if(|(built, _)| *built <= generation) {
            self.total.count(at.saturating_sub(turned));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_is_counted_from_the_first_verdict_to_the_maps() {
        let mut gap = Gap::default();
        gap.turned(ms(100));
        gap.turned(ms(130));
        gap.built(2, 1);
        gap.turned(ms(140));
        gap.built(3, 1);
        gap.applied(1, ms(141));
        assert_eq!(gap.total.probes(), 0, "nothing of it is in the maps");
        gap.applied(3, ms(150));
        assert_eq!(gap.total.probes(), 2);
        assert!((gap.total.seconds() - 0.06).abs() < 1e-9);
    }

    #[test]
    fn what_changes_nothing_leaves_no_gap() {
        let mut gap = Gap::default();
        gap.built(2, 1);
        gap.turned(ms(100));
        gap.built(2, 2);
        gap.applied(2, ms(200));
        assert_eq!(gap.total.probes(), 0);
    }
}
