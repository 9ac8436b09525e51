//! Weighted Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4).
//!
//! Each backend has its own permutation of the slots, made from its identity. Backends take turns,
//! and each takes the first slot of its permutation that is still free. The weights come in by the
//! number of slots a backend takes in a round: its weight over the mean weight, fractions carried
//! over. With equal weights that is the paper's algorithm.
//!
//! A backend ends within one slot, or one round's worth, of its exact share: relative to the share
//! that is at most `backends / size` or `1 / slots of the backend`, whichever is more.

use lb_common::hash::mix;
use lb_common::slot::TABLE_SIZES;

use super::Member;

/// Slots that the backend with the least weight should have, so that one slot is one percent of
/// its share (Maglev, section 3.4, asks for a hundred slots for each backend).
pub const SLOTS_PER_BACKEND: u64 = 100;

/// Smallest table size that gives each of these weights its share within about one percent, or the
/// largest there is. Weights of 0 do not count.
///
/// A running service should keep a larger table than it needs rather than shrink: a change of size
/// moves slots (see [`super::resize`]).
pub fn size_for(weights: impl IntoIterator<Item = u32>) -> u32 {
    let (mut total, mut least) = (0u64, u64::MAX);
    for weight in weights.into_iter().filter(|&weight| weight > 0) {
        total += u64::from(weight);
        least = least.min(u64::from(weight));
    }
    let [small, .., large] = TABLE_SIZES;
    if total == 0 {
        return small;
    }
    let wanted = u128::from(total) * u128::from(SLOTS_PER_BACKEND);
    let fits = |size: &u32| u128::from(*size) * u128::from(least) >= wanted;
    TABLE_SIZES.into_iter().find(fits).unwrap_or(large)
}

/// Where a backend is in its permutation of the slots.
struct Cursor {
    at: u32,
    skip: u32,
    /// Slots owed to it, in units of 1/total weight.
    credit: u64,
    /// Credit it gets in each round.
    earns: u64,
}

impl Cursor {
    /// The next slot of the permutation, which is `offset + i × skip` modulo the prime size.
    fn step(&mut self, size: u32) -> u32 {
        let slot = self.at;
        let next = u64::from(slot) + u64::from(self.skip);
        let size = u64::from(size);
        self.at = (if next >= size { next - size } else { next }) as u32;
        slot
    }
}

/// Position in `members` of each slot's owner. Members are in an order that is theirs alone (by
/// identity) and all have a weight.
pub(super) fn fill(members: &[Member], size: u32) -> Vec<u16> {
    if members.is_empty() || size < 2 {
        return vec![0; if members.is_empty() { 0 } else { size as usize }];
    }
    let total: u64 = members.iter().map(|m| u64::from(m.weight)).sum();
    let mut cursors: Vec<Cursor> = members
        .iter()
        .map(|member| {
            let hash = identity_hash(&member.identity);
            Cursor {
                at: (mix(hash ^ 0x6f66_6673_6574) % u64::from(size)) as u32,
                skip: (mix(hash ^ 0x736b_6970) % u64::from(size - 1)) as u32 + 1,
                // Half a slot ahead: shares are rounded to the nearest slot, not down.
                credit: total / 2,
                earns: u64::from(member.weight) * members.len() as u64,
            }
        })
        .collect();

    // A bit for each slot: the search for a free slot stays in the L1 or L2 cache.
    let mut taken = vec![0u64; size.div_ceil(64) as usize];
    let mut owners = vec![0u16; size as usize];
    let mut free = size;
    loop {
        for (position, cursor) in cursors.iter_mut().enumerate() {
            cursor.credit += cursor.earns;
            while cursor.credit >= total {
                cursor.credit -= total;
                let slot = loop {
                    let slot = cursor.step(size);
                    let (word, bit) = (slot as usize / 64, 1u64 << (slot % 64));
                    if taken[word] & bit == 0 {
                        taken[word] |= bit;
                        break slot;
                    }
                };
                owners[slot as usize] = position as u16;
                free -= 1;
                if free == 0 {
                    return owners;
                }
            }
        }
    }
}

/// FNV-1a over the bytes, then murmur3's finaliser.
pub(super) fn identity_hash(identity: &str) -> u64 {
    let fnv = identity
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    mix(fnv)
}
