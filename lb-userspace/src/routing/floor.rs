//! How many backends may be out for their health at a time.
//!
//! `max_ejection_percent` of a service's enabled and decided backends, and always one, may be out
//! because their probes or their packets are against them (Envoy's `max_ejection_percent`, for all
//! tiers together). Whoever is out holds a place, also one that never came in. What would be one too
//! many is refused: it is routed as if it were healthy, though it counts as unhealthy for panic and
//! tiers. When a place becomes free, the one that has been unhealthy for the longest time takes it.
//! Who is out stays out until healthy, also if fewer places are left.
//!
//! In panic there are no places: who gets traffic is then for the service's `panic_action` to say. A
//! backend that asks to be drained needs none.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::BackendKey;

/// A backend whose probes or packets are against it.
pub(super) struct Unhealthy<'a> {
    pub key: &'a BackendKey,
    /// It is out already.
    pub out: bool,
    /// Since when it is unhealthy.
    pub since: Duration,
}

/// How many may be out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Floor {
    /// Percent.
    pub most: u8,
    /// Backends that it is of.
    pub count: u32,
}

impl Floor {
    /// Whether it can stand in the way of an ejection.
    pub const fn is_any(self) -> bool {
        self.most < 100
    }

    pub fn places(self) -> usize {
        let places = u64::from(self.count) * u64::from(self.most) / 100;
        usize::try_from(places.max(1)).unwrap_or(usize::MAX)
    }

    /// Those for whom there is no place.
    pub fn refused<'a>(self, mut unhealthy: Vec<Unhealthy<'a>>) -> BTreeSet<&'a BackendKey> {
        unhealthy.sort_by_key(|one| (!one.out, one.since, one.key));
        let beyond = unhealthy.into_iter().skip(self.places());
        beyond.filter(|one| !one.out).map(|one| one.key).collect()
    }
}
