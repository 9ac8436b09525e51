//! How long it takes, at the worst, from a backend's death to its ejection, and back.

use std::time::Duration;

use crate::model::HealthPolicy;

/// Worst and expected times to a verdict, and the load of the probes. The worst cases hold for a
/// backend that changes right after a probe of it began, and whose failing probes all time out (an
/// eject) or whose probes all take nearly the timeout to succeed (a readmission).
///
/// They follow from [`super::schedule`]; jitter makes a start late, and so adds its share of the
/// interval once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// `interval + (unhealthy_threshold − 1) × fast_interval + timeout`, and jitter.
    pub worst_eject: Duration,
    /// The same for a backend that dies at a random moment and refuses at once.
    pub expected_eject: Duration,
    /// `down_interval + (healthy_threshold − 1) × fast_interval + timeout`, and jitter.
    pub worst_readmit: Duration,
    /// The same for a backend that recovers at a random moment and answers at once.
    pub expected_readmit: Duration,
}

impl Budget {
    pub fn of(policy: &HealthPolicy) -> Self {
        let jitter = |interval: Duration| interval * u32::from(policy.jitter.min(50)) / 100;
        // Probes of a target do not overlap: a step shorter than a late start and the timeout
        // becomes the next multiple of it that is not.
        let fast = policy.fast_interval.max(Duration::from_millis(1));
        let busy = policy.timeout + jitter(fast);
        let steps = busy.as_nanos().div_ceil(fast.as_nanos()).max(1);
        let slow_fast = fast * u32::try_from(steps).unwrap_or(u32::MAX);
        let worst = |first: Duration, threshold: u32| {
            let last_step = if threshold > 1 { fast } else { first };
            first + slow_fast * threshold.saturating_sub(1) + policy.timeout + jitter(last_step)
        };
        let expected =
            |first: Duration, threshold: u32| first / 2 + fast * threshold.saturating_sub(1);
        Self {
            worst_eject: worst(policy.interval, policy.unhealthy_threshold),
            expected_eject: expected(policy.interval, policy.unhealthy_threshold),
            worst_readmit: worst(policy.down_interval, policy.healthy_threshold),
            expected_readmit: expected(policy.down_interval, policy.healthy_threshold),
        }
    }
}
