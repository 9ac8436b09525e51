//! What becomes of a packet, in one register: what is returned from function to function in several
//! words would leave some of them undefined, which the verifier refuses to read.

use lb_common::verdict::Verdict;

use crate::forward::tunnel::Order;

/// An XDP action, an order to encapsulate, or the reason why the packet is not forwarded.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Fate(u64);

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
    const ORDER: u64 = 1 << 62;
    const DIRECT: u64 = 1 << 60;

    /// The flow is to be recorded first; see [`crate::forward::open`].
    pub const OPEN: Self = Self(1 << 61);

    #[inline(always)]
    pub const fn action(action: u32) -> Self {
        Self(action as u64)
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
        self.0 == Self::OPEN.0
    }

    /// Outer headers, made beside the function that chose the backend rather than in it.
    #[inline(always)]
    pub const fn encapsulate(order: Order) -> Self {
        Self(Self::ORDER | order.bits())
    }

    #[inline(always)]
    pub fn order(self) -> Option<Order> {
        if self.0 & Self::ORDER == 0 {
            None
        } else {
            Some(Order::from_bits(self.0))
        }
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

    /// Why the packet is not forwarded, if it is not.
    #[inline(always)]
    pub fn refusal(self) -> Option<Verdict> {
        if self.0 & Self::REFUSED == 0 {
            None
        } else {
            Verdict::from_number(self.0 as u8)
        }
    }

    /// Of a packet that is not to be encapsulated, or has been.
    #[inline(always)]
    pub fn end(self) -> Result<u32, Refusal> {
        if self.opens() {
            // Recorded, and gone again at once.
            return Err(Refusal {
                service: 0,
                verdict: Verdict::DropFlowTable,
                room: 0,
            });
        }
        if self.0 & Self::REFUSED == 0 {
            return Ok(self.0 as u32);
        }
        Err(Refusal {
            service: (self.0 >> 8) as u16,
            verdict: Verdict::from_number(self.0 as u8).unwrap_or(Verdict::DropMalformed),
            room: (self.0 >> 24) as u16,
        })
    }
}
