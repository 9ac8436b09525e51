//! When to probe: a fixed rate with a phase of its own for each target.
//!
//! Starts follow a grid, not the end of the probe before, so that slow answers and timeouts do not
//! stretch the time to eject:
//!
//! - *steady* (healthy, nothing pending): the grid `phase + k × interval`, where the phase is a hash
//!   of target and agent. It is the same after a restart, if the agent's clock is one that goes on
//!   (CLOCK_MONOTONIC), and it spreads the targets evenly from the first moment.
//! - *pending* (undecided, or counting towards a change): `fast_interval` after the planned start of
//!   the probe before. The very first probe is on the grid `phase + k × fast_interval`.
//! - *down* (unhealthy, no success yet): `down_interval` after the planned start of the one before.
//!
//! Back in the steady state the next start is the next point of the steady grid, so an excursion
//! does not shift the phase, and the wait is never longer than the interval.
//!
//! A start that comes while the probe before is in flight, or when the agent is late by more than
//! the interval in force, is left out; it is not made up for. Each start may be late by a share of
//! the interval (`jitter`), drawn from a hash of the target and the planned start: late, and not
//! accumulating, since it does not move the grid.

use std::time::Duration;

use lb_common::hash::mix;

use super::check::CheckView;
use super::target::Health;
use crate::model::HealthPolicy;

/// What a target's probes follow at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rhythm {
    Steady(Duration),
    /// Pending or down.
    Every(Duration),
}

impl Rhythm {
    pub(super) fn of(view: &CheckView, policy: &HealthPolicy) -> Self {
        if view.is_pending() {
            Self::Every(at_least(policy.fast_interval))
        } else {
            match view.health {
                Health::Unhealthy => Self::Every(at_least(policy.down_interval)),
                Health::Healthy | Health::Unknown => Self::Steady(at_least(policy.interval)),
            }
        }
    }

    pub(super) const fn interval(self) -> Duration {
        match self {
            Self::Steady(interval) | Self::Every(interval) => interval,
        }
    }
}

/// A probe rate without bound would starve everything else.
fn at_least(interval: Duration) -> Duration {
    interval.max(Duration::from_millis(1))
}

/// A start: when it is planned, and with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub nominal: Duration,
    pub due: Duration,
    /// Starts left out before this one.
    pub skipped: u64,
}

/// The grid of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    hash: u64,
    jitter_percent: u8,
}

impl Grid {
    /// `identity` tells targets apart, `agent` the agents that probe the same target.
    pub(super) fn new(identity: &str, agent: u64, jitter_percent: u8) -> Self {
        Self {
            hash: lb_common::hash::name(agent, identity.as_bytes()),
            jitter_percent: jitter_percent.min(50),
        }
    }

    /// Offset of the grid with this period, less than the period.
    pub(super) fn phase(self, period: Duration) -> Duration {
        nanos((u128::from(self.hash) * period.as_nanos()) >> 64)
    }

    /// First point of the grid with this period at or after `from`.
    fn at_or_after(self, from: Duration, period: Duration) -> Duration {
        let (from, period_ns) = (from.as_nanos(), period.as_nanos());
        let phase = self.phase(period).as_nanos();
        let steps = from.saturating_sub(phase).div_ceil(period_ns);
        nanos(phase + steps * period_ns)
    }

    /// The first probe of a target.
    pub(super) fn first(self, rhythm: Rhythm, now: Duration) -> Planned {
        let period = rhythm.interval();
        self.planned(self.at_or_after(now, period), period, 0)
    }

    /// The probe after one that was planned for `last` and ended at `now`.
    pub(super) fn next(self, rhythm: Rhythm, last: Duration, now: Duration) -> Planned {
        let period = rhythm.interval();
        let planned = match rhythm {
            Rhythm::Steady(_) => self.at_or_after(last + Duration::from_nanos(1), period),
            Rhythm::Every(_) => last + period,
        };
        let missed = now
            .saturating_sub(planned)
            .as_nanos()
            .div_ceil(period.as_nanos());
        let nominal = planned + nanos(missed * period.as_nanos());
        self.planned(nominal, period, missed as u64)
    }

    fn planned(self, nominal: Duration, period: Duration, skipped: u64) -> Planned {
        let window = period.as_nanos() * u128::from(self.jitter_percent) / 100;
        let draw = mix(self.hash ^ mix(nominal.as_nanos() as u64));
        Planned {
            nominal,
            due: nominal + nanos((u128::from(draw) * window) >> 64),
            skipped,
        }
    }
}

/// Whole intervals by which a start planned for `nominal` is late.
pub(super) fn whole_intervals_late(nominal: Duration, interval: Duration, now: Duration) -> u32 {
    let late = now.saturating_sub(nominal).as_nanos() / interval.as_nanos().max(1);
    u32::try_from(late).unwrap_or(u32::MAX)
}

/// Durations here are far below 2^64 ns, which is 584 years.
fn nanos(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}
