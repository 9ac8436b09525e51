//! The kernel's coarse monotonic clock: cheap to read, in steps of a timer tick (1 to 10 ms). Linux
//! 5.11.

use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};

pub const SECOND: u64 = 1_000_000_000;

/// Now, in nanoseconds.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Now, in nanoseconds of the precise clock, which takes longer to read.
#[inline(always)]
pub fn precisely() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Now, in seconds.
#[inline(always)]
pub fn seconds() -> u32 {
    (nanoseconds() / SECOND) as u32
}
