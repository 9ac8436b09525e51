//! When the outcomes of a probe make a verdict.

use std::sync::Arc;
use std::time::Duration;

use super::Class;

/// Thresholds and rhythm of one probe of a service's backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPolicy {
    /// Tells the service's probes apart.
    pub name: Arc<str>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures in a row that make a backend unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_threshold: u32,
    /// Interval while a change is pending or nothing is decided yet; default: `interval`.
    pub fast_interval: Duration,
    /// Interval while unhealthy; default: `interval`.
    pub down_interval: Duration,
    /// Random share of the interval by which a probe may start late, percent, 0–50.
    pub jitter: u8,
    /// Failures that eject though successes are among them.
    pub unhealthy_window: Option<Window>,
    /// Failures that eject at once.
    pub immediate_on: Vec<Class>,
    /// `None`: a backend is back as soon as it has its successes.
    pub hold_down: Option<HoldDown>,
    /// Percent of its weight that a backend gets which says that it is degraded.
    pub degraded_weight: u8,
    /// Whether failures that change nothing are events too.
    pub always_log_failures: bool,
    /// What it is taken for before its first verdict.
    pub assume: Assume,
}

/// What a backend is taken for before the first verdict of a probe. HAProxy's `init-state` is alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assume {
    /// It gets no traffic, whatever an earlier agent knew of it.
    Down,
    /// It has the verdict of the earlier agent; one of which nothing is known gets traffic.
    Up,
    /// It has the verdict of the earlier agent; one of which nothing is known gets no traffic.
    #[default]
    Restore,
}

/// So many failures out of the last so many outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub failures: u32,
    /// At most [`Window::LONGEST`].
    pub outcomes: u32,
}

impl Window {
    /// Outcomes that are remembered for it: the bits of a word.
    pub const LONGEST: u32 = u64::BITS;
}

/// How long an ejected backend stays out, whatever its probes say. The rule is Envoy's
/// (`base_ejection_time`, `max_ejection_time`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldDown {
    /// For the first ejection; n times as long for the n-th.
    pub base: Duration,
    /// At most this long. So much time of good health makes one ejection forgotten.
    pub most: Duration,
}

impl HoldDown {
    /// Without one in the configuration: how long ejections by what the packets say last at the
    /// most, and when ejections are forgotten. Envoy's defaults.
    pub const USUAL: Self = Self {
        base: Duration::from_secs(30),
        most: Duration::from_secs(300),
    };

    /// How long the n-th ejection lasts at least.
    pub fn of(self, ejections: u32) -> Duration {
        self.base.saturating_mul(ejections).min(self.most)
    }
}

/// The defaults of the configuration.
impl Default for HealthPolicy {
    fn default() -> Self {
        let interval = Duration::from_secs(5);
        Self {
            name: "tcp".into(),
            interval,
            timeout: Duration::from_secs(2),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            fast_interval: interval,
            down_interval: interval,
            jitter: 5,
            unhealthy_window: None,
            immediate_on: Vec::new(),
            hold_down: None,
            degraded_weight: 50,
            always_log_failures: false,
            assume: Assume::default(),
        }
    }
}
