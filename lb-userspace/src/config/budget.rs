//! How long the health checks of a service may leave a dead backend in rotation, and what they
//! cost.
//!
//! Probes start at a fixed rate, so the time from a failure to the verdict has three parts: the
//! wait for the next probe, the rest of the probes in a row, and the last probe's own time.
//!
//! - The wait is `interval` at worst (the backend fails just after it answered) and half of it on
//!   average, since a failure does not know the phase of the probes.
//! - After the first failure the remaining `unhealthy_threshold - 1` probes start `fast_interval`
//!   apart.
//! - The last one takes `timeout` if the backend is silent. One that refuses connections is found
//!   up to `timeout` sooner.
//!
//! A return is alike, with `down_interval` and `healthy_threshold`; a backend that is well again
//! answers soon, so the expected time leaves the last probe's own time out.
//!
//! The worst cases are [`health::Budget`]'s, so that `lb check` promises what the engine keeps and
//! events are measured by. What jitter adds to them is given apart.

use std::time::Duration;

use crate::health;
use crate::model::{HealthPolicy, HoldDown, Service};

/// Times and cost of a service's health checks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Longest time from a backend's silence to its ejection.
    pub eject_worst: Duration,
    /// The same on average.
    pub eject_expected: Duration,
    /// Longest time from a backend's recovery to its return.
    pub readmit_worst: Duration,
    /// The same on average.
    pub readmit_expected: Duration,
    /// The most that jitter may add to any of them.
    pub jitter: Duration,
    /// Probes per second while all backends are healthy.
    pub probes_per_second: f64,
    /// By how much a return may be later than that.
    pub hold_down: Option<HoldDown>,
}

impl Budget {
    /// The budget of `policy` for so many backends.
    pub fn new(policy: &HealthPolicy, backends: usize) -> Self {
        let punctual = health::Budget::of(&HealthPolicy {
            jitter: 0,
            ..policy.clone()
        });
        let late = health::Budget::of(policy);
        Self {
            eject_worst: punctual.worst_eject,
            eject_expected: punctual.worst_eject.saturating_sub(policy.interval / 2),
            readmit_worst: punctual.worst_readmit,
            readmit_expected: punctual.expected_readmit,
            jitter: (late.worst_eject.saturating_sub(punctual.worst_eject))
                .max(late.worst_readmit.saturating_sub(punctual.worst_readmit)),
            probes_per_second: backends as f64 / policy.interval.as_secs_f64(),
            hold_down: policy.hold_down,
        }
    }

    /// The budget of a service; `None` if it is not probed. Of several probes the slowest counts:
    /// what is wrong may be seen by that one only.
    pub fn of(service: &Service) -> Option<Self> {
        let budgets = service.health.iter();
        budgets
            .map(|policy| Self::new(policy, service.backends.len()))
            .reduce(|a, b| Self {
                eject_worst: a.eject_worst.max(b.eject_worst),
                eject_expected: a.eject_expected.max(b.eject_expected),
                readmit_worst: a.readmit_worst.max(b.readmit_worst),
                readmit_expected: a.readmit_expected.max(b.readmit_expected),
                jitter: a.jitter.max(b.jitter),
                probes_per_second: a.probes_per_second + b.probes_per_second,
                hold_down: match (a.hold_down, b.hold_down) {
                    (Some(a), Some(b)) => Some(HoldDown {
                        base: a.base.max(b.base),
                        most: a.most.max(b.most),
                    }),
                    (one, other) => one.or(other),
                },
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn policy() -> HealthPolicy {
        HealthPolicy::default()
    }

    #[test]
    fn the_defaults_eject_within_17_seconds() {
        let budget = Budget::new(&policy(), 10);
        assert_eq!(budget.eject_worst, seconds(17));
        assert_eq!(budget.eject_expected, Duration::from_millis(14_500));
        assert_eq!(budget.readmit_worst, seconds(12));
        assert_eq!(budget.readmit_expected, Duration::from_millis(7500));
        assert_eq!(budget.jitter, Duration::from_millis(250));
        assert!((budget.probes_per_second - 2.0).abs() < 1e-9);
    }

    #[test]
    fn fast_and_down_intervals_count() {
        let policy = HealthPolicy {
            interval: seconds(10),
            fast_interval: seconds(3),
            down_interval: seconds(20),
            ..policy()
        };
        let budget = Budget::new(&policy, 1);
        assert_eq!(budget.eject_worst, seconds(10 + 2 * 3 + 2));
        assert_eq!(budget.readmit_worst, seconds(20 + 3 + 2));
    }

    #[test]
    fn one_failure_is_enough() {
        let policy = HealthPolicy {
            unhealthy_threshold: 1,
            ..policy()
        };
        assert_eq!(Budget::new(&policy, 1).eject_worst, seconds(7));
    }
}
