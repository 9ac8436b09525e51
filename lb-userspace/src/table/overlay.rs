//! Refilling the slots whose owner may not take new flows.
//!
//! Each slot has a fixed sequence of preferences: attempt k is the owner, in the base table, of the
//! slot `hash(slot, k)`. So a backend comes up in proportion to its slots, that is to its weight.
//! The first eligible one takes the slot. Because the sequence knows nothing of who is eligible:
//!
//! - a slot whose owner is eligible never moves;
//! - an ejection moves only the slots that its backend held, its own and those it stood in for;
//! - a return gives the backend exactly these back, and the same set of eligible backends gives the
//!   same table, whatever happened in between.
//!
//! When few are eligible the sequence is cut off after [`ATTEMPTS`] and weighted rendezvous hashing
//! decides among them, which has the same three properties.

use lb_common::hash::mix;
use lb_common::slot::BackendIndex;

use super::{Base, maglev::identity_hash};

/// Length of a slot's sequence of preferences. With a share p of the weight eligible, (1 − p)^64 of
/// the slots get beyond it: none to speak of above 10 %; below, rendezvous has few to choose from.
const ATTEMPTS: u64 = 64;

impl Base {
    /// Owner of each slot when only some backends may take new flows; 0 where nobody may.
    pub fn overlay(&self, eligible: impl Fn(BackendIndex) -> bool) -> Vec<BackendIndex> {
        self.overlay_shares(|index| if eligible(index) { 100 } else { 0 })
    }

    /// The same for backends that take only a share, in percent, of what they would (slow start):
    /// 0 is not eligible, 100 or more is eligible without reserve. Which slots are in the share is
    /// fixed for each backend and grows with it, so a step moves only the slots it adds. Where
    /// nobody takes a slot by its share, all who are eligible at all are asked.
    pub fn overlay_shares(&self, share: impl Fn(BackendIndex) -> u8) -> Vec<BackendIndex> {
        let candidates: Vec<Candidate> = self
            .members
            .iter()
            .map(|member| Candidate {
                hash: identity_hash(&member.identity),
                weight: f64::from(member.weight),
                share: share(member.index),
            })
            .collect();
        let eligible: Vec<usize> = (0..candidates.len())
            .filter(|&position| candidates[position].share > 0)
            .collect();
        if eligible.is_empty() {
            return vec![0; self.size as usize];
        }
        let position = |owner: usize, slot: u64| {
            if candidates[owner].takes(slot) {
                return owner;
            }
            let taking = |position: &usize| candidates[*position].takes(slot);
            self.preferences(slot)
                .find(taking)
                .or_else(|| rendezvous(slot, &candidates, eligible.iter().copied().filter(taking)))
                .or_else(|| rendezvous(slot, &candidates, eligible.iter().copied()))
                .unwrap_or(owner)
        };
        self.owners
            .iter()
            .zip(0u64..)
            .map(|(&owner, slot)| self.members[position(usize::from(owner), slot)].index)
            .collect()
    }

    /// The slot's sequence of preferences.
    fn preferences(&self, slot: u64) -> impl Iterator<Item = usize> {
        let seed = mix(slot.wrapping_add(0x006f_7665_726c_6179));
        (1..=ATTEMPTS).map(move |attempt| {
            let at = (u128::from(mix(seed ^ attempt)) * u128::from(self.size)) >> 64;
            usize::from(self.owners[at as usize])
        })
    }
}

/// A member of the table, by its position.
struct Candidate {
    hash: u64,
    weight: f64,
    share: u8,
}

impl Candidate {
    /// Whether the slot is in its share.
    fn takes(&self, slot: u64) -> bool {
        match self.share {
            0 => false,
            100.. => true,
            share => mix(mix(slot ^ 0x7368_6172_6573) ^ self.hash) % 100 < u64::from(share),
        }
    }
}

/// Weighted rendezvous hashing: the candidate with the least `−ln(u) / weight` for its own uniform
/// `u` of this slot. (The minimum of exponential variates falls on each in proportion to its rate.)
fn rendezvous(
    slot: u64,
    candidates: &[Candidate],
    positions: impl Iterator<Item = usize>,
) -> Option<usize> {
    let score = |position: usize| {
        let candidate = &candidates[position];
        let hash = mix(mix(slot ^ 0x7265_6e64_657a) ^ candidate.hash);
        // 53 bits, shifted by half a step: never 0, where the logarithm has no value.
        let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -uniform.ln() / candidate.weight
    };
    positions
        .map(|position| (score(position), position))
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
        .map(|(_, position)| position)
}
