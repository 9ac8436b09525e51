//! How much of a service's pool takes traffic: how many of its backends may be ejected, which tiers
//! serve, what is done without any verdict, and how those that come back are eased in.

use std::time::Duration;

/// What holds for the backends of a service together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolRules {
    /// Percent of the backends that may be out for their health at a time; one always may. 100: all.
    pub max_ejection_percent: u8,
    /// Percent of the load that a wholly healthy tier counts for; Envoy's `overprovisioning_factor`.
    pub overprovisioning: u16,
    /// How long higher tiers stay in service when lower ones could carry the load again.
    pub failback_after: Duration,
    /// How long a service without anybody healthy waits before undecided backends get traffic;
    /// `None`: one probe round.
    pub fail_open_after: Option<Duration>,
}

/// Envoy's `slow_start_config`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// Zero: none.
    pub window: Duration,
    /// The share grows with (time / window) ^ (1 / aggression); 1: evenly.
    pub aggression: f64,
    /// Percent that it begins with.
    pub least: u8,
}

impl Default for PoolRules {
    fn default() -> Self {
        Self {
            max_ejection_percent: 100,
            overprovisioning: 140,
            failback_after: Duration::ZERO,
            fail_open_after: None,
        }
    }
}

impl Default for SlowStart {
    fn default() -> Self {
        Self {
            window: Duration::ZERO,
            aggression: 1.0,
            least: 10,
        }
    }
}
