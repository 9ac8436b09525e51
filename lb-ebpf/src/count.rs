//! Counters: per CPU, so plain additions.

use lb_common::slot::BackendIndex;
use lb_common::verdict::{VERDICT_STRIDE, Verdict};

use crate::maps::{TRAFFIC, VERDICTS};

/// Counts a verdict for a service (0: none).
#[inline(always)]
pub fn verdict(service: u16, verdict: Verdict) {
    if let Some(counter) = VERDICTS.get_ptr_mut(service as u32 * VERDICT_STRIDE + verdict as u32) {
        // SAFETY: per-CPU slot, and XDP programs do not preempt each other on a CPU.
        unsafe { *counter = (*counter).wrapping_add(1) }
    }
}

/// What is special about a packet that goes to a backend.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Ordinary = 0,
    /// It opens a flow.
    Opens = 1,
    /// It follows the previous owner of its slot.
    ByPrevious = 2,
}

impl Kind {
    /// Of the first packet of a flow, or of another.
    #[inline(always)]
    pub const fn of(opens: bool) -> Self {
        if opens { Self::Opens } else { Self::Ordinary }
    }
}

/// What a backend tells of itself by the packets of its flows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The first answer in a flow.
    Answered,
    /// The same, a RST.
    Refused,
    /// A SYN that comes again before any answer.
    Repeated,
    /// An ICMP error: it, or its port, cannot be reached.
    Unreachable,
    /// An HTTP answer with a status below 500.
    HttpOk,
    /// The same with another one.
    HttpError,
}

impl Sign {
    #[inline(always)]
    pub const fn of_first_reply(refuses: bool) -> Self {
        if refuses {
            Self::Refused
        } else {
            Self::Answered
        }
    }
}

/// Counts a sign that a backend gives.
#[inline(always)]
pub fn sign(backend: BackendIndex, sign: Sign) {
    if let Some(traffic) = TRAFFIC.get_ptr_mut(backend as u32) {
        // SAFETY: as above.
        let traffic = unsafe { &mut *traffic };
        let counter = match sign {
            Sign::Answered => &mut traffic.answered,
            Sign::Refused => {
                traffic.answered = traffic.answered.wrapping_add(1);
                &mut traffic.refused
            }
            Sign::Repeated => &mut traffic.repeated,
            Sign::Unreachable => &mut traffic.unreachable,
            Sign::HttpOk => &mut traffic.http_ok,
            Sign::HttpError => &mut traffic.http_errors,
        };
        *counter = counter.wrapping_add(1);
    }
}

/// Counts a packet towards a backend.
#[inline(always)]
pub fn forwarded(backend: u16, bytes: u64, kind: Kind) {
    if let Some(traffic) = TRAFFIC.get_ptr_mut(backend as u32) {
        // SAFETY: as above.
        unsafe {
            (*traffic).packets = (*traffic).packets.wrapping_add(1);
            (*traffic).bytes = (*traffic).bytes.wrapping_add(bytes);
            match kind {
                Kind::Ordinary => {}
                Kind::Opens => (*traffic).flows = (*traffic).flows.wrapping_add(1),
                Kind::ByPrevious => {
                    (*traffic).by_previous = (*traffic).by_previous.wrapping_add(1);
                }
            }
        }
    }
}
