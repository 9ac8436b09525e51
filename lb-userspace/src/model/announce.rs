//! When a service's VIP is announced.

use std::time::Duration;

/// How much of a service must be able to serve for its VIP to be announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Percent of the weight, 1 to 100; below it the VIP is withdrawn. Above no backend at all in any
    /// case.
    pub quorum: u8,
    /// Percent of the weight beyond `quorum` that the VIP is announced at; together at most 100.
    pub hysteresis: u8,
    /// How long that must have been so without interruption.
    pub after: Duration,
}

impl Announce {
    /// Percent of the weight at which the VIP is announced.
    pub const fn regained_at(&self) -> u8 {
        self.quorum.saturating_add(self.hysteresis)
    }
}
