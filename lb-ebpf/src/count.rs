//! Counters: per CPU, so plain additions.

use lb_common::slot::BackendIndex;
use lb_common::verdict::{VERDICT_STRIDE, Verdict};

use crate::clock;
use crate::maps::{PARAMS, SYN_PLACES, SYNS, TRAFFIC, VERDICTS};

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

/// Counts the first reply of a NAT flow, and ends its timing.
#[inline(always)]
pub fn answer(backend: BackendIndex, nat_port: u16, refuses: bool) {
    lb_count_answer(backend as u32, nat_port as u32, refuses as u32);
}

/// Does what [`answer`] says. A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_count_answer(backend: u32, nat_port: u32, refuses: u32) -> u32 {
    let is = if refuses == 0 {
        Sign::Answered
    } else {
        Sign::Refused
    };
    sign(backend as BackendIndex, is);
    let Some(traffic) = TRAFFIC.get_ptr_mut(backend) else {
        return 0;
    };
    // SAFETY: as above.
    let traffic = unsafe { &mut *traffic };
    if traffic.timing_port == nat_port {
        traffic.timing_port = 0;
        let took = clock::precisely().wrapping_sub(traffic.timing_since);
        traffic.timed_nanos = traffic.timed_nanos.wrapping_add(took);
        traffic.timed = traffic.timed.wrapping_add(1);
    }
    0
}

/// Begins to time the answer to the SYN that has opened a NAT flow, unless another of its backend is
/// being timed. The answer must be seen by the same CPU; one that is not seen within two seconds is
/// given up.
#[inline(always)]
pub fn time(backend: BackendIndex, nat_port: u16) {
    lb_count_time(backend as u32, nat_port as u32);
}

/// Does what [`time`] says. A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_count_time(backend: u32, nat_port: u32) -> u32 {
    let (Some(traffic), Some(params)) = (TRAFFIC.get_ptr_mut(backend), PARAMS.get(0)) else {
        return 0;
    };
    // SAFETY: as above.
    let traffic = unsafe { &mut *traffic };
    if traffic.timing_port == 0 || params.tick.wrapping_sub(traffic.timing_tick) > 2 {
        traffic.timing_port = nat_port;
        traffic.timing_tick = params.tick;
        traffic.timing_since = clock::precisely();
    }
    0
}

/// Notes a SYN of which nothing is recorded, by its flow's hash and its sequence number, and counts it
/// if it came before. Of many SYNs some are forgotten, never is one taken for another's repetition but
/// by one chance in 2^32: a flood of them looks like no repetition.
#[inline(always)]
pub fn syn(backend: BackendIndex, hash: u32, sequence: u32) {
    lb_count_syn(backend as u32, hash, sequence);
}

/// Does what [`syn`] says. A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_count_syn(backend: u32, hash: u32, sequence: u32) -> u32 {
    // One multiplication (Knuth's multiplicative hashing): the bits of the place and of the tag are the
    // highest of a product that is another for each pair.
    let mixed = ((hash as u64) << 32 | sequence as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    const SHIFT: u32 = u64::BITS - SYN_PLACES.ilog2();
    let (place, tag) = ((mixed >> SHIFT) as u32, (mixed >> (SHIFT - 32)) as u32);
    let Some(known) = SYNS.get_ptr_mut(place) else {
        return 0;
    };
    // SAFETY: as above.
    let known = unsafe { &mut *known };
    if *known == tag {
        sign(backend as BackendIndex, Sign::Repeated);
    }
    *known = tag;
    0
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
