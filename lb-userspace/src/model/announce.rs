//! When a service's VIP is announced.

use std::time::Duration;

/// How much of a service must be able to serve for its VIP to be announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Percent of the weight, 1 to 100; below it the VIP is withdrawn. Above no backend at all in any
    /// case.
    pub quorum: u8,
    /// Percent of the weight beyond `quorum` that the VIP is announced at; together at most 100.
    pub hysteresis: u8,
    /// How long that must have been so without interruption.
    pub after: Duration,
    /// Program by its absolute path, and its arguments: run when the VIP's route stands.
    pub on_announce: Option<Vec<String>>,
    /// The same: run when it is gone.
    pub on_withdraw: Option<Vec<String>>,
}

impl Announce {
    /// Percent of the weight at which the VIP is announced.
    pub const fn regained_at(&self) -> u8 {
        self.quorum.saturating_add(self.hysteresis)
    }
}
