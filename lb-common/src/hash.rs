//! The flow hash. The same function runs in the XDP program and in the agent.
//!
//! Two rounds of multiply-and-fold (the 64×64→128 bit folding of wyhash needs a wide multiply that
//! BPF lacks, so each round is murmur3's finaliser, whose avalanche is complete). Keyed by nothing
//! but the addresses, so that several balancers agree.

use crate::abi::{Addr, FRAGMENT_IDS, SERVICE_PLACES};

/// murmur3's 64-bit finaliser.
#[inline(always)]
pub const fn mix(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[inline(always)]
pub(crate) const fn fold(addr: &Addr) -> u64 {
    let [first, last] = addr.0;
    let first = u64::from_le(first).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    first.rotate_left(29) ^ u64::from_le(last)
}

/// Hash of a flow's 5-tuple, ports as they stand in the packet.
#[inline(always)]
pub const fn flow(src: &Addr, dst: &Addr, sport: u16, dport: u16, protocol: u8) -> u32 {
    let ports = (sport as u64) << 32 | (dport as u64) << 16 | protocol as u64;
    let h = fold(src).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ fold(dst).rotate_left(32);
    (mix(h.wrapping_add(ports.wrapping_mul(0xd6e8_feb8_6659_fd93))) >> 32) as u32
}

/// First place of a service in its table, `0..`[`SERVICE_PLACES`], by its address and
/// [`crate::abi::ServiceKey::word`].
#[inline(always)]
pub const fn service_place(addr: &Addr, word: u32) -> u32 {
    let h = (fold(addr) ^ word as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    ((h ^ h >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32 & (SERVICE_PLACES - 1)
}

/// Hash of a client's address, for `affinity = "client"`.
#[inline(always)]
pub const fn client(src: &Addr) -> u32 {
    (mix(fold(src)) >> 32) as u32
}

/// One of the further hashes of a flow, each as good as the first.
#[inline(always)]
pub const fn again(hash: u32, turn: u32) -> u32 {
    (mix((turn as u64 + 1) << 32 | hash as u64) >> 32) as u32
}

/// Hash of a name, the same in every version: phases of probes and names of pins follow from it.
pub fn name(seed: u64, bytes: &[u8]) -> u64 {
    let step = |hash, byte: &u8| mix(hash ^ *byte as u64);
    bytes.iter().fold(mix(seed), step)
}

/// Maps a hash to `0..size` without a division (Lemire's fastrange).
#[inline(always)]
pub const fn slot(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

/// Bit of the destination filter for an address, `0..65536`.
#[inline(always)]
pub const fn filter_bit(addr: &Addr) -> u32 {
    (fold(addr).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32
}

/// The counter that identifications of fragments for this address are drawn from.
#[inline(always)]
pub const fn fragment_counter(addr: &Addr) -> u32 {
    filter_bit(addr) & (FRAGMENT_IDS - 1)
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    /// Chi-squared over 1,024 buckets for flows that differ in few bits.
    #[test]
    fn neighbouring_flows_spread_evenly() {
        const BUCKETS: u32 = 1024;
        const FLOWS: u32 = 1 << 18;
        let vip = Addr::v4(u32::from_ne_bytes([203, 0, 113, 10]));
        let by_port = |i: u32| {
            let src = Addr::v4(u32::from_ne_bytes([10, 0, (i >> 16) as u8, 1]));
            flow(&src, &vip, (i as u16).to_be(), 80u16.to_be(), 6)
        };
        let by_addr = |i: u32| flow(&Addr::v4((0x0a00_0000 + i).to_be()), &vip, 1, 2, 17);
        let v6 = |i: u32| {
            let src = Addr::from_words([u32::from_ne_bytes([0x20, 1, 0xd, 0xb8]), 0, 0, i.to_be()]);
            flow(&src, &vip, 1000, 2000, 6)
        };
        let client_only = |i: u32| client(&Addr::v4((0x0a00_0000 + i).to_be()));
        let hashes: [&dyn Fn(u32) -> u32; 4] = [&by_port, &by_addr, &v6, &client_only];
        for (n, hash) in hashes.iter().enumerate() {
            let mut counts = vec![0u32; BUCKETS as usize];
            for i in 0..FLOWS {
                counts[slot(hash(i), BUCKETS) as usize] += 1;
            }
            let expected = f64::from(FLOWS / BUCKETS);
            let chi2: f64 = counts
                .iter()
                .map(|&c| (f64::from(c) - expected).powi(2) / expected)
                .sum();
            // 1,023 degrees of freedom: mean 1023, standard deviation 45.
            assert!((750.0..1300.0).contains(&chi2), "hash {n}: chi2 {chi2}");
        }
    }

    #[test]
    fn slot_stays_in_range() {
        for size in crate::slot::TABLE_SIZES {
            assert_eq!(slot(0, size), 0);
            assert_eq!(slot(u32::MAX, size), size - 1);
        }
    }
}
