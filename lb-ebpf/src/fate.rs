//! What becomes of a packet, in one register: what is returned from function to function in several
//! words would leave some of them undefined, which the verifier refuses to read.

use lb_common::slot::BackendIndex;
use lb_common::verdict::Verdict;

/// An XDP action, what is to be done next, or the reason why the packet is not forwarded.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Fate(u64);

/// A packet that was sent on.
#[derive(Clone, Copy)]
pub struct Sent {
    /// The XDP action.
    pub action: u32,
    /// Where it goes; of a reply, where it comes from.
    pub backend: BackendIndex,
    /// Whether it goes to a client.
    pub is_reply: bool,
}

/// Why a packet is not forwarded, and the service it is counted for (0: none).
#[derive(Clone, Copy)]
pub struct Refusal {
    pub service: u16,
    pub verdict: Verdict,
    /// For [`Verdict::TooBig`]: the longest packet that would not be, from the IP header on.
    pub room: u16,
}

impl Fate {
    const REFUSED: u64 = 1 << 63;
    const DIRECT: u64 = 1 << 60;
    const BEGUN: u64 = 1 << 57;
    const CAPTURED: u64 = 1 << 59;
    const REPLY: u64 = 1 << 24;

    /// The flow is to be recorded first; see [`crate::forward::open`].
    pub const OPEN: Self = Self(1 << 61);
    /// The flow was to be recorded, but stays as it is.
    pub const KEEP: Self = Self(1 << 58);

    /// Sent to a backend.
    #[inline(always)]
    pub const fn sent(backend: BackendIndex, action: u32) -> Self {
        Self((action & 0xff) as u64 | (backend as u64) << 8)
    }

    /// Sent from a backend to its client.
    #[inline(always)]
    pub const fn replied(backend: BackendIndex, action: u32) -> Self {
        Self(Self::sent(backend, action).0 | Self::REPLY)
    }

    /// The same, and it is wanted by a capture.
    #[inline(always)]
    pub const fn captured(self) -> Self {
        Self(self.0 | Self::CAPTURED)
    }

    #[inline(always)]
    pub const fn is_captured(self) -> bool {
        self.0 & Self::CAPTURED != 0
    }

    #[inline(always)]
    pub const fn refused(service: u16, verdict: Verdict) -> Self {
        Self(Self::REFUSED | (service as u64) << 8 | verdict as u64)
    }

    /// Too long by the outer header, where `room` bytes would fit.
    #[inline(always)]
    pub const fn too_big(service: u16, room: u16) -> Self {
        let Self(refused) = Self::refused(service, Verdict::TooBig);
        Self(refused | (room as u64) << 24)
    }

    /// As a number, and back: functions that the verifier goes through once return numbers.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & Self::OPEN.0 != 0
    }

    #[inline(always)]
    pub const fn keeps(self) -> bool {
        self.0 & Self::KEEP.0 != 0
    }

    /// To the backend of the flow in [`crate::maps::OPENING`], by `forward::direct`, as a packet whose
    /// IP header has this offset; `is_error` if it is an ICMP error.
    #[inline(always)]
    pub const fn direct(l3: u32, v6: bool, is_error: bool) -> Self {
        Self(Self::DIRECT | (l3 & 0xff) as u64 | (v6 as u64) << 8 | (is_error as u64) << 9)
    }

    /// What [`Self::direct`] has put together, in the low word.
    #[inline(always)]
    pub const fn directly(self) -> Option<u32> {
        if self.0 & Self::DIRECT == 0 {
            None
        } else {
            Some(self.0 as u32)
        }
    }

    /// Made to look like a whole packet, to be taken for one; see [`crate::fragment::unmask`].
    #[inline(always)]
    pub const fn begin(what: u32) -> Self {
        Self(Self::BEGUN | what as u64)
    }

    /// What [`Self::begin`] was given; 0 if it is another fate.
    #[inline(always)]
    pub const fn begun(self) -> u32 {
        if self.0 & Self::BEGUN == 0 {
            0
        } else {
            self.0 as u32
        }
    }

    /// The action, if the packet was sent and nothing else is to be done.
    #[inline(always)]
    pub const fn plainly_sent(self) -> Option<u32> {
        if self.0 < 1 << 32 {
            Some(self.0 as u32 & 0xff)
        } else {
            None
        }
    }

    /// Why the packet is not forwarded, if it is not.
    #[inline(always)]
    pub fn refusal(self) -> Option<Verdict> {
        if self.0 & Self::REFUSED == 0 {
            None
        } else {
            Verdict::from_number(self.0 as u8)
        }
    }

    /// Of a packet that nothing more is to be done with.
    #[inline(always)]
    pub fn end(self) -> Result<Sent, Refusal> {
        if self.opens() || self.keeps() {
            // Recorded, and gone again at once.
            return Err(Refusal {
                service: 0,
                verdict: Verdict::DropFlowTable,
                room: 0,
            });
        }
        if self.0 & Self::REFUSED == 0 {
            return Ok(Sent {
                action: self.0 as u32 & 0xff,
                backend: (self.0 >> 8) as u16,
                is_reply: self.0 & Self::REPLY != 0,
            });
        }
        Err(Refusal {
            service: (self.0 >> 8) as u16,
            verdict: Verdict::from_number(self.0 as u8).unwrap_or(Verdict::DropMalformed),
            room: (self.0 >> 24) as u16,
        })
    }
}
