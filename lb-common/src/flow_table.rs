//! The flow table: one record for each flow, for both of its directions, in two plain arrays.
//!
//! A flow's hash names a [`Bucket`] and a way in it, its home. A record sits at home if that was
//! free when the flow was opened, else anywhere in the bucket, where its tag tells it from the
//! others. So an established flow mostly costs one cache line, and a flow that is not there two. The
//! replies of NAT flows come with other addresses: a second array of references, by the hash of what
//! a reply carries, leads to the same record.
//!
//! What has no place is refused or takes the place of a flow that is over or was never answered: a
//! flood cannot push out an established flow, and memory does not grow.
//!
//! Changes go by compare-and-swap of one word. A way is free (tag 0), held by whoever is about to
//! fill or to clear it ([`HELD`]), or has a flow (any other tag). A record is readable while its
//! [`Flow::protocol`] is not 0, which is written last and cleared first.

use crate::abi::{Addr, Flow, FlowKey};
use crate::hash::{fold, mix};

/// Records in a bucket.
pub const WAYS: usize = 32;
/// References in a line of [`Replies`].
pub const REFERENCES: usize = 16;
/// Tag of a way that somebody is filling or clearing.
pub const HELD: u32 = 1;
/// Most records that references can tell apart.
pub const MAX_RECORDS: u32 = (1 << 24) - WAYS as u32;
/// References with one tag that a line may have; a look-up stops after as many.
pub const SAME_TAG: usize = 3;

/// Records that share a hash.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Bucket {
    pub tags: [u32; WAYS],
    pub records: [Flow; WAYS],
}

/// References to the records of NAT flows, by the hash of their replies: a tag in the highest 8
/// bits, below it the record's number plus one. 0 in a free place.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Replies(pub [u32; REFERENCES]);

const _: () = {
    assert!(size_of::<Bucket>() == WAYS * (4 + 64));
    assert!(size_of::<Replies>() == 64);
};

/// How many buckets, and twice as many lines of references, have room for this many flows: so many
/// that with all of them open, five eighths of the ways are taken, and one flow in some thousand finds
/// its bucket full.
pub const fn buckets_for(flows: u32) -> u32 {
    let wanted = (flows as u64 * 8).div_ceil(5 * WAYS as u64);
    let most = MAX_RECORDS as u64 / WAYS as u64;
    (if wanted < most { wanted } else { most }) as u32
}

/// Flows that so many buckets have room for.
pub const fn capacity(buckets: u32) -> u32 {
    (buckets as u64 * WAYS as u64 * 5 / 8) as u32
}

/// Lines of references beside so many buckets.
pub const fn reply_lines(buckets: u32) -> u32 {
    buckets * (WAYS / REFERENCES) as u32
}

/// Where a flow or a reply is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(u64);

impl Place {
    /// Of a packet by its addresses and ports as they arrive. `seed` is drawn once for each table,
    /// so that nobody outside can aim at one bucket.
    #[inline(always)]
    pub const fn of(key: &FlowKey, seed: u32) -> Self {
        let ports = (key.sport as u64) << 32 | (key.dport as u64) << 16 | key.protocol as u64;
        let h = mix(fold(&key.src) ^ (seed as u64) << 32 ^ seed as u64).wrapping_add(ports);
        Self(mix(h ^ fold(&key.dst)))
    }

    /// Index of the bucket or line among `count`.
    #[inline(always)]
    pub const fn index(self, count: u32) -> u32 {
        (((self.0 >> 32) * count as u64) >> 32) as u32
    }

    /// The way to look at first.
    #[inline(always)]
    pub const fn home(self) -> usize {
        self.0 as usize & (WAYS - 1)
    }

    /// The place in a line of replies to look at first.
    #[inline(always)]
    pub const fn reply_home(self) -> usize {
        (self.0 >> 8) as usize & (REFERENCES - 1)
    }

    /// What tells the flow from the others in its bucket, as far as 32 bits do.
    #[inline(always)]
    pub const fn tag(self) -> u32 {
        // Bits 0 and 1 must not make it 0 or HELD; the home says them.
        self.0 as u32 | 2
    }

    /// Reference to the record of this number, for a line of replies.
    #[inline(always)]
    pub const fn reference(self, record: u32) -> u32 {
        self.reply_tag() << 24 | (record + 1) & 0xff_ffff
    }

    /// The tag of references for this reply; never 0, which free places show.
    #[inline(always)]
    pub const fn reply_tag(self) -> u32 {
        let tag = self.0 as u8;
        if tag == 0 { 1 } else { tag as u32 }
    }
}

/// Number of the record that a reference is to; none if it is 0.
#[inline(always)]
pub const fn record_of(reference: u32) -> Option<u32> {
    (reference & 0xff_ffff).checked_sub(1)
}

impl Flow {
    /// Whether this is the record of the flow that such packets come from the client for.
    #[inline(always)]
    pub fn is_of(&self, key: &FlowKey) -> bool {
        let ends = self.client.difference(&key.src) | self.vip.difference(&key.dst);
        let ports = (self.client_port ^ key.sport) | (self.vip_port ^ key.dport);
        ends | ports as u64 | (self.protocol as u32 ^ key.protocol) as u64 == 0
    }

    /// Packets of the client as they arrive.
    pub fn key(&self) -> FlowKey {
        FlowKey {
            src: self.client,
            dst: self.vip,
            sport: self.client_port,
            dport: self.vip_port,
            protocol: self.protocol.into(),
        }
    }

    /// Replies as they arrive, from this backend to this source address. A `port` of 0 stands for
    /// the one that the client sends to.
    #[inline(always)]
    pub const fn reply_key(&self, backend: Addr, port: u16, source: Addr) -> FlowKey {
        FlowKey {
            src: backend,
            dst: source,
            sport: if port == 0 { self.vip_port } else { port },
            dport: self.nat_port,
            protocol: self.protocol as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_references_are_never_empty() {
        for low in [0, 1, 2, 3, u64::MAX, 0xff00, 0x100] {
            let place = Place(low);
            assert!(place.tag() > HELD);
            for record in [0, 77, MAX_RECORDS - 1] {
                let reference = place.reference(record);
                assert_eq!(record_of(reference), Some(record));
                assert_eq!(reference >> 24, place.reply_tag());
                assert_ne!(place.reply_tag(), 0);
            }
        }
        assert_eq!(record_of(0), None);
    }

    #[test]
    fn a_table_has_room_for_what_was_asked() {
        for flows in [1, 20, 4096, 262_144, 8_388_608] {
            assert!(capacity(buckets_for(flows)) >= flows, "{flows}");
        }
        assert_eq!(buckets_for(u32::MAX) as usize * WAYS, MAX_RECORDS as usize);
        let record = buckets_for(u32::MAX) * WAYS as u32 - 1;
        assert!(record < MAX_RECORDS);
        assert_eq!(reply_lines(3) as usize * REFERENCES, 3 * WAYS);
    }
}
