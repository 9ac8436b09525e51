//! How many RSTs the program sends: made out of whatever packet asks, they must not make of this
//! host a loudspeaker for packets with forged sources, nor take the CPU that flows need.
//!
//! The generic cell rate algorithm (ITU-T I.371, annex A): one number says until when the RSTs sent
//! so far would last at the allowed rate. It may lie ahead of the clock by [`BURST`].

use crate::clock::{self, SECOND};
use crate::maps::{PARAMS, RESETS};

/// What may be sent at once, as the time in which it would be sent at the allowed rate. Well above
/// the steps of the coarse clock (1 to 10 ms).
const BURST: u64 = SECOND;

/// Whether one more RST may be sent by this CPU; counts it.
#[inline(always)]
pub fn allows() -> bool {
    lb_reset_allowed() != 0
}

/// Does what [`allows`] says. A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_reset_allowed() -> u32 {
    let (Some(params), Some(due)) = (PARAMS.get(0), RESETS.get_ptr_mut(0)) else {
        return 0;
    };
    let rate = params.reset_rate as u64;
    if rate == 0 {
        return 0;
    }
    let now = clock::nanoseconds();
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    let due = unsafe { &mut *due };
    let next = (*due).max(now) + SECOND / rate;
    if next > now + BURST {
        return 0;
    }
    *due = next;
    1
}
