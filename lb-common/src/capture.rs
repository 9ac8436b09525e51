//! Records of captured packets: the program writes them into a ring, the agent reads them.

use crate::verdict::Verdict;

/// Most bytes of a packet that a record keeps. XDP without fragments sees at most a page.
pub const MAX_KEPT: u16 = 4096;
/// Bytes of the packet as it was sent: the headers of two layers.
pub const SENT_BYTES: usize = 96;
/// Capacity of the ring, bytes.
pub const RING_BYTES: u32 = 4 << 20;
/// Instead of a service's number: everything that is for a VIP.
pub const ALL_SERVICES: u16 = u16::MAX;
/// Instead of a verdict's number: sent to a backend.
pub const FORWARDED: u8 = u8::MAX;

/// [`crate::abi::Params::capture`] for a service's number, or [`ALL_SERVICES`], and bytes to keep of
/// each packet, at least one.
#[inline(always)]
pub const fn word(service: u16, keep: u16) -> u32 {
    service as u32 | (keep as u32) << 16
}

/// The service that a capture's word asks for.
#[inline(always)]
pub const fn service(word: u32) -> u16 {
    word as u16
}

/// The bytes of each packet that a capture's word asks for.
#[inline(always)]
pub const fn keep(word: u32) -> u16 {
    (word >> 16) as u16
}

/// Head of a record; `kept` bytes of the packet as it came in follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Captured {
    /// When the program saw it: CLOCK_MONOTONIC, nanoseconds.
    pub time: u64,
    /// Interface that it came in by.
    pub ifindex: u32,
    /// Its length as it came in.
    pub length: u32,
    /// Number of its service; 0 if it has none.
    pub service: u16,
    /// Number of the backend that it is for or from; 0 if there is none.
    pub backend: u16,
    /// Bytes of it that follow.
    pub kept: u16,
    /// Bytes of `sent` that mean something.
    pub sent_kept: u8,
    /// Number of a [`Verdict`], or [`FORWARDED`].
    pub verdict: u8,
    /// The XDP action.
    pub action: u32,
    pub pad: u32,
    /// How it begins as it was sent on, or the answer to it.
    pub sent: [u64; SENT_BYTES / 8],
}

impl Captured {
    /// What became of the packet; `None` if it went to a backend.
    ///
    /// # Errors
    /// The number, if it is no verdict's.
    pub const fn verdict(&self) -> Result<Option<Verdict>, u8> {
        match Verdict::from_number(self.verdict) {
            Some(verdict) => Ok(Some(verdict)),
            None if self.verdict == FORWARDED => Ok(None),
            None => Err(self.verdict),
        }
    }
}

const _: () = {
    assert!(size_of::<Captured>() == 128);
    assert!(SENT_BYTES <= u8::MAX as usize);
    assert!(Verdict::ALL.len() <= FORWARDED as usize);
    assert!(RING_BYTES.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_keeps_its_parts_apart_and_is_never_zero() {
        for (wanted, bytes) in [(0, 1), (7, 256), (ALL_SERVICES, MAX_KEPT)] {
            let word = word(wanted, bytes);
            assert_eq!((service(word), keep(word)), (wanted, bytes));
            assert_ne!(word, 0);
        }
    }
}
