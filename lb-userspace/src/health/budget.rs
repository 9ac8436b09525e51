//! How long it takes, at the worst, from a backend's death to its ejection, and back.

use std::time::Duration;

use crate::model::{Class, HealthPolicy};

/// Worst and expected times to a verdict, and the load of the probes. The worst cases hold for a
/// backend that changes right after a probe of it began, and whose failing probes all time out (an
/// eject) or whose probes all take nearly the timeout to succeed (a readmission).
///
/// They follow from [`super::schedule`]; jitter makes a start late, and so adds its share of the
/// interval once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// `interval + (unhealthy_threshold − 1) × fast_interval + timeout`, and jitter; sooner if another
    /// rule ejects after fewer failures.
    pub worst_eject: Duration,
    /// The same for a backend that dies at a random moment and refuses at once.
    pub expected_eject: Duration,
    /// After its hold-down: `down_interval + (healthy_threshold − 1) × fast_interval + timeout`, and jitter.
    pub worst_readmit: Duration,
    /// The same for a backend that recovers at a random moment and answers at once.
    pub expected_readmit: Duration,
}

impl Budget {
    pub fn of(policy: &HealthPolicy) -> Self {
        let jitter = |interval: Duration| interval * u32::from(policy.jitter.min(50)) / 100;
        let fast = policy.fast_interval.max(Duration::from_millis(1));
        let down = policy.down_interval.max(Duration::from_millis(1));
        // From one probe that takes its whole timeout to the next. Probes of a target do not
        // overlap: if the one before started late, or takes longer than the interval, starts are
        // left out.
        let step = |interval: Duration, late: Duration| {
            let busy = policy.timeout + late;
            let steps = busy.as_nanos().div_ceil(interval.as_nanos()).max(1);
            interval * u32::try_from(steps).unwrap_or(u32::MAX)
        };
        let worst = |wait: Duration, first: Duration, threshold: u32| {
            let steps = match threshold.saturating_sub(1) {
                0 => jitter(first),
                more => {
                    step(fast, jitter(first)) + step(fast, jitter(fast)) * (more - 1) + jitter(fast)
                }
            };
            wait + steps + policy.timeout
        };
        // Failures of a backend that is silent, until the first rule ejects it.
        let failures = match &policy.unhealthy_window {
            _ if policy.immediate_on.contains(&Class::Timeout) => 1,
            Some(window) => policy.unhealthy_threshold.min(window.failures),
            None => policy.unhealthy_threshold,
        };
        let expected =
            |first: Duration, threshold: u32| first / 2 + fast * threshold.saturating_sub(1);
        Self {
            worst_eject: worst(policy.interval, policy.interval, failures),
            expected_eject: expected(policy.interval, failures),
            worst_readmit: worst(step(down, jitter(down)), down, policy.healthy_threshold),
            expected_readmit: expected(down, policy.healthy_threshold),
        }
    }
}
