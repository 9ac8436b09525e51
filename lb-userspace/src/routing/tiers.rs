//! Which tiers of a service take traffic.
//!
//! Tiers join from the lowest up until together they can carry the load. A tier's capacity is its
//! healthy weight in percent of the weight of its enabled and decided backends, times
//! `overprovisioning` (Envoy's factor, 140 %), at most 100: so a tier carries everything alone as long
//! as 72 % of it are healthy. Backends of the tiers beyond stand by. With `failback_after` a tier that
//! is needed no more stays in service for so long.

use std::collections::BTreeMap;
use std::time::Duration;

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
    const fn suffices(self, overprovisioning: u64) -> bool {
        self.healthy > 0 && self.healthy * overprovisioning >= self.total * 100
    }

    /// Capacity in millionths of the load.
    fn capacity(self, overprovisioning: u64) -> u64 {
        if self.total == 0 {
            return 0;
        }
        (self.healthy * overprovisioning * 10_000 / self.total).min(1_000_000)
    }
}

/// The tiers that take traffic. Those with nobody healthy are among them while no lower ones
/// suffice, so that they are in service as soon as someone is. `overprovisioning`: percent of the load
/// that a wholly healthy tier counts for.
pub(super) fn in_service(tiers: &BTreeMap<u8, Share>, overprovisioning: u64) -> Vec<u8> {
    let mut capacity = 0;
    let mut joined = Vec::new();
    for (&tier, share) in tiers {
        joined.push(tier);
        capacity += share.capacity(overprovisioning);
        if share.suffices(overprovisioning) || capacity >= 1_000_000 {
            break;
        }
    }
    joined
}

/// Whether, of several tiers, one can carry the load alone.
pub(super) fn one_is_whole(tiers: &BTreeMap<u8, Share>, overprovisioning: u64) -> bool {
    let mut shares = tiers.values();
    tiers.len() > 1 && shares.any(|share| share.suffices(overprovisioning))
}

/// How long higher tiers stay in service.
pub(super) struct Holding<'a> {
    /// Those in service until now.
    pub before: &'a [u8],
    /// Since when fewer would do, if that is so.
    pub since: Option<Duration>,
    pub longest: Duration,
}

impl Holding<'_> {
    /// The tiers that serve where these are wanted, and since when fewer would do.
    pub fn hold(
        &self,
        wanted: Vec<u8>,
        all: impl Iterator<Item = u8>,
        now: Duration,
    ) -> (Vec<u8>, Option<Duration>) {
        let Some(highest) = self.before.last().filter(|tier| wanted.last() < Some(tier)) else {
            return (wanted, None);
        };
        let held: Vec<u8> = all.filter(|tier| tier <= highest).collect();
        let since = self.since.unwrap_or(now);
        if held == wanted || now >= since + self.longest {
            return (wanted, None);
        }
        (held, Some(since))
    }
}
