//! The bytes of downloads: a fixed pseudo-random sequence with a prime period, so that a byte
//! lost, doubled, swapped or changed anywhere shows when the receiver compares.

use std::sync::OnceLock;

use bytes::Bytes;

/// Length of the period: a prime, so no packet or buffer size divides it.
const PERIOD: usize = 1_048_573;
/// Most bytes given at once.
const CHUNK: usize = 64 * 1024;

fn period() -> &'static Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    BYTES.get_or_init(|| {
        // xorshift32 (Marsaglia 2003)
        let mut state = 0x9e37_79b9_u32;
        let next = std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_be_bytes()[0]
        });
        next.take(PERIOD).collect()
    })
}

/// Some of the bytes from `offset` on: at least one, at most `limit` (which is not 0).
pub fn chunk(offset: u64, limit: u64) -> Bytes {
    let start = usize::try_from(offset % PERIOD as u64).unwrap_or_default();
    let wanted = usize::try_from(limit).unwrap_or(CHUNK).min(CHUNK);
    period().slice(start..(start + wanted).min(PERIOD))
}

/// Whether `received` is what stands at `offset`.
pub fn matches(mut offset: u64, mut received: &[u8]) -> bool {
    while !received.is_empty() {
        let expected = chunk(offset, received.len() as u64);
        let (head, tail) = received.split_at(expected.len());
        if head != &expected[..] {
            return false;
        }
        offset += head.len() as u64;
        received = tail;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            bytes.extend_from_slice(&chunk(bytes.len() as u64, (length - bytes.len()) as u64));
        }
        bytes
    }

    #[test]
    fn the_sequence_matches_itself_beyond_a_period() {
        let bytes = first(PERIOD + 100_000);
        assert!(matches(0, &bytes));
        assert!(matches(70_001, &bytes[70_001..]));
    }

    #[test]
    fn a_change_a_loss_and_a_swap_are_seen() {
        let bytes = first(200_000);
        let mut changed = bytes.clone();
        changed[123_456] ^= 1;
        assert!(!matches(0, &changed));
        let mut lost = bytes.clone();
        lost.drain(50_000..51_448);
        assert!(!matches(0, &lost));
        let mut swapped = bytes;
        let (one, two) = swapped.split_at_mut(100_000);
        one[..1448].swap_with_slice(&mut two[..1448]);
        assert!(!matches(0, &swapped));
    }
}
