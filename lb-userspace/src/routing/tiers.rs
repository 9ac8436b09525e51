//! Which tiers of a service take traffic.
//!
//! Tiers join from the lowest up until together they can carry the load. A tier's capacity is its
//! healthy weight in percent of the weight of its enabled and decided backends, times Envoy's
//! overprovisioning factor of 1.4, at most 100: so a tier carries everything alone as long as 72 %
//! of it are healthy. Backends of the tiers beyond stand by.

use std::collections::BTreeMap;

/// Overprovisioning: percent of capacity that a wholly healthy tier counts for.
const OVERPROVISIONING: u64 = 140;

/// Weights of the enabled and decided backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub healthy: u64,
    pub total: u64,
    /// Backends, whatever their weights.
    pub healthy_count: u32,
    pub count: u32,
}

impl Share {
    pub(super) fn add(&mut self, weight: u32, healthy: bool) {
        self.total += u64::from(weight);
        self.count += 1;
        if healthy {
            self.healthy_count += 1;
            self.healthy += u64::from(weight);
        }
    }

    /// Healthy percent; 0 of nothing.
    pub fn percent(self) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        100.0 * self.healthy as f64 / self.total as f64
    }

    /// Whether the healthy share is at least this many percent.
    pub const fn reaches(self, percent: u64) -> bool {
        self.healthy * 100 >= self.total * percent
    }

    /// Whether it can carry the service's load alone.
    pub const fn suffices(self) -> bool {
        self.healthy > 0 && self.healthy * OVERPROVISIONING >= self.total * 100
    }

    /// Capacity in millionths of the load.
    fn capacity(self) -> u64 {
        if self.total == 0 {
            return 0;
        }
        (self.healthy * OVERPROVISIONING * 10_000 / self.total).min(1_000_000)
    }
}

/// The tiers that take traffic. Those with nobody healthy are among them while no lower ones
/// suffice, so that they are in service as soon as someone is.
pub(super) fn in_service(tiers: &BTreeMap<u8, Share>) -> Vec<u8> {
    let mut capacity = 0;
    let mut joined = Vec::new();
    for (&tier, share) in tiers {
        joined.push(tier);
        capacity += share.capacity();
        if share.suffices() || capacity >= 1_000_000 {
            break;
        }
    }
    joined
}

/// Whether, of several tiers, one can carry the load alone.
pub(super) fn one_is_whole(tiers: &BTreeMap<u8, Share>) -> bool {
    tiers.len() > 1 && tiers.values().any(|share| share.suffices())
}
