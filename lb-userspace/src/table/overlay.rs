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
        let eligible: Vec<bool> = self.members.iter().map(|m| eligible(m.index)).collect();
        if !eligible.contains(&true) {
            return vec![0; self.size as usize];
        }
        let candidates: Vec<Candidate> = self
            .members
            .iter()
            .zip(&eligible)
            .enumerate()
            .filter(|(_, (_, eligible))| **eligible)
            .map(|(position, (member, _))| Candidate {
                position,
                hash: identity_hash(&member.identity),
                weight: f64::from(member.weight),
            })
            .collect();
        self.owners
            .iter()
            .zip(0u64..)
            .map(|(&owner, slot)| {
                let owner = usize::from(owner);
                let position = if eligible[owner] {
                    owner
                } else {
                    self.preferred(slot, &eligible)
                        .unwrap_or_else(|| rendezvous(slot, &candidates))
                };
                self.members[position].index
            })
            .collect()
    }

    /// First eligible backend of the slot's sequence.
    fn preferred(&self, slot: u64, eligible: &[bool]) -> Option<usize> {
        (1..=ATTEMPTS)
            .map(|attempt| {
                let hash = mix(mix(slot.wrapping_add(0x006f_7665_726c_6179)) ^ attempt);
                let at = (u128::from(hash) * u128::from(self.size)) >> 64;
                usize::from(self.owners[at as usize])
            })
            .find(|&position| eligible[position])
    }
}

struct Candidate {
    position: usize,
    hash: u64,
    weight: f64,
}

/// Weighted rendezvous hashing: the candidate with the least `−ln(u) / weight` for its own uniform
/// `u` of this slot. (The minimum of exponential variates falls on each in proportion to its rate.)
fn rendezvous(slot: u64, candidates: &[Candidate]) -> usize {
    let score = |candidate: &Candidate| {
        let hash = mix(mix(slot ^ 0x7265_6e64_657a) ^ candidate.hash);
        // 53 bits, shifted by half a step: never 0, where the logarithm has no value.
        let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -uniform.ln() / candidate.weight
    };
    candidates
        .iter()
        .map(|candidate| (score(candidate), candidate.position))
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
        .map_or(0, |(_, position)| position)
}
