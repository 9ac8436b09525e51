//! Backends that are good for less than their weight: degraded ones, and those whose agent says so.
//!
//! Their share is lowered as in a slow start, so that no slot of another backend moves: what they
//! give up goes to the others, and comes back. Shares are relative: where all are lowered, they are
//! scaled so that the best has its whole share. They go in steps of 5 %, since each writes a table.

use std::collections::BTreeMap;

use super::{Decision, Routing};
use crate::model::BackendKey;

/// Step of a share, percent, and the least one.
const STEP: u32 = 5;

/// Lowers the shares of active backends. `weights`: percent of its weight that a backend is good for,
/// for all but those that have none.
pub(super) fn lower(
    backends: &mut BTreeMap<BackendKey, Decision>,
    weights: &BTreeMap<&BackendKey, u8>,
) {
    let lowered = |key: &BackendKey, decision: &Decision| {
        let weight = match decision.routing {
            Routing::Active => *weights.get(key)?,
            Routing::Panic => weights.get(key).map(|_| 100)?,
            Routing::Draining { .. } | Routing::Out | Routing::Standby => return None,
        };
        Some(u32::from(decision.share) * u32::from(weight))
    };
    let shares = backends
        .iter()
        .map(|(key, decision)| lowered(key, decision));
    let shares: Vec<Option<u32>> = shares.collect();
    let most = shares.iter().flatten().max().copied().unwrap_or(0).max(1);
    for (decision, share) in backends.values_mut().zip(shares) {
        let Some(share) = share.filter(|_| decision.routing == Routing::Active) else {
            continue;
        };
        let percent = share * 100 / most;
        decision.share = match percent {
            100.. => 100,
            less => (less / STEP * STEP).max(STEP) as u8,
        };
    }
}
