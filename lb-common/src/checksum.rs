//! Incremental Internet checksums (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')).
//!
//! Sums are kept unfolded in 64 bits and work on words as they stand in memory: one's complement
//! addition does not care about byte order (RFC 1071, section 2 B).

/// Adds to `sum` the change of one 32-bit word.
#[inline(always)]
pub const fn replace32(sum: u64, old: u32, new: u32) -> u64 {
    sum + (!old) as u64 + new as u64
}

/// Adds to `sum` the change of one 16-bit word.
#[inline(always)]
pub const fn replace16(sum: u64, old: u16, new: u16) -> u64 {
    sum + (!old) as u64 + new as u64
}

/// Applies an accumulated change to a checksum field.
#[inline(always)]
pub const fn apply(check: u16, sum: u64) -> u16 {
    !fold(sum + (!check) as u64)
}

/// The checksum of an IPv4 header after its TTL went down by one. The TTL is the high byte of its
/// word, so the sum grows by one there, with the carry added back: what [`apply`] does, in fewer
/// steps (RFC 1141).
#[inline(always)]
pub const fn less_one_hop(check: u16) -> u16 {
    let sum = check as u32 + 0x0100u16.to_be() as u32;
    // The one that is carried, and another for a sum of all ones, which is to be 0.
    (sum + ((sum + 1) >> 16)) as u16
}

/// Folds a sum into 16 bits. A number added to itself with its halves swapped has in its upper half
/// the sum of the two, with the carry added back.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(words: &[u16]) -> u16 {
        !fold(words.iter().map(|&w| w as u64).sum())
    }

    #[test]
    fn a_hop_less_equals_the_general_change() {
        let change = replace16(0, 0x0100u16.to_be(), 0);
        for check in 0..=u16::MAX {
            assert_eq!(less_one_hop(check), apply(check, change), "{check:04x}");
        }
    }

    #[test]
    fn incremental_equals_recomputed() {
        let mut state = 1u64;
        for _ in 0..10_000 {
            let mut words = [0u16; 20];
            for word in &mut words {
                state = crate::hash::mix(state.wrapping_add(1));
                *word = state as u16;
            }
            words[0] |= 1; // an all-zero header does not exist
            let before = full(&words);
            let old = (words[4] as u32) << 16 | words[5] as u32;
            let new = (state >> 20) as u32;
            (words[4], words[5]) = ((new >> 16) as u16, new as u16);
            let (old16, new16) = (words[7], (state >> 50) as u16);
            words[7] = new16;
            let sum = replace16(replace32(0, old, new), old16, new16);
            assert_eq!(apply(before, sum), full(&words));
        }
    }
}
