//! Captures: packets as they came in, with what became of them, for `lb capture`.
//!
//! A packet is held in memory of this CPU before anything is written to it, and told when its fate
//! is known, if it is one that was asked for. While nobody captures, that costs one test of a word
//! that lies beside one in use.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::generated::{bpf_ringbuf_output, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use lb_common::capture::{ALL_SERVICES, Captured, FORWARDED, MAX_KEPT, SENT_BYTES, keep, service};
use lb_common::verdict::Verdict;

use crate::atomic::opaque_long;
use crate::fate::{Fate, Refusal, Sent};
use crate::maps::{BACKENDS, CAPTURE, CAPTURE_LOST, HELD, PARAMS};
use crate::packet::Packet;
use crate::{clock, parse};

/// Whether a packet that nobody held may still be wanted: it is for a VIP and was refused before
/// its service was known, so nothing has been written to it.
#[inline(always)]
pub fn may_want(service: u16, verdict: Verdict) -> bool {
    service == 0 && !matches!(verdict, Verdict::PassNotVip | Verdict::PassNotIp)
}

/// Keeps the packet as it is now, if there is a capture; whether there is.
#[inline(always)]
pub fn hold(ctx: *mut xdp_md) -> bool {
    lb_capture_hold(ctx) != 0
}

/// From here on what is held stays held, or may be replaced again: a packet that is changed before it
/// is looked at once more.
#[inline(always)]
pub fn fix(fixed: bool) {
    if let Some(held) = HELD.get_ptr_mut(0) {
        // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
        unsafe { (*held).fixed = fixed as u64 };
    }
}

/// Writes the record of a packet, if it is one that was asked for.
#[inline(always)]
pub fn tell(ctx: *mut xdp_md, fate: Fate) {
    lb_capture_tell(ctx, fate.bits());
}

/// Does what [`hold`] says. Ends a capture whose agent no longer renews it. A global function, as the
/// other: the verifier goes through them once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_capture_hold(ctx: *mut xdp_md) -> u32 {
    let (Some(params), Some(held)) = (PARAMS.get_ptr_mut(0), HELD.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: `HELD` is per-CPU, and programs do not preempt each other on a CPU; of the parameters
    // whole words are read and written.
    let (params, held) = unsafe { (&mut *params, &mut *held) };
    if held.fixed != 0 {
        return (held.head.kept != 0) as u32;
    }
    held.head.kept = 0;
    if params.capture == 0 {
        return 0;
    }
    let now = clock::precisely();
    if now > params.capture_until {
        params.capture = 0;
        return 0;
    }
    // SAFETY: the context outlives the program's run.
    let length = unsafe { bpf_xdp_get_buff_len(ctx) };
    let wanted = keep(params.capture) as u64;
    let kept = if length < wanted { length } else { wanted };
    if kept == 0 {
        return 0;
    }
    let kept = bounded::<{ MAX_KEPT as u64 }>(kept);
    // SAFETY: room for `MAX_KEPT` bytes; the helper checks against the packet's end.
    let result = unsafe { bpf_xdp_load_bytes(ctx, 0, held.bytes.as_mut_ptr().cast(), kept as u32) };
    if result != 0 {
        return 0;
    }
    held.head.time = now;
    held.head.length = length as u32;
    held.head.ifindex = Packet::new(&XdpContext::new(ctx)).interface();
    held.head.kept = kept as u16;
    1
}

/// A number from 1 to `MOST`, a power of two, as the verifier of Linux 6.1 sees that it is one: of a
/// comparison it learns only if the very register is compared, and LLVM prefers another.
#[inline(always)]
fn bounded<const MOST: u64>(number: u64) -> u64 {
    const { assert!(MOST.is_power_of_two()) };
    (opaque_long(number.wrapping_sub(1)) & (MOST - 1)) + 1
}

/// Does what [`tell`] says.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_capture_tell(ctx: *mut xdp_md, fate: u64) -> u32 {
    let (Some(params), Some(held)) = (PARAMS.get(0), HELD.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: as above.
    let held = unsafe { &mut *held };
    let wanted = params.capture;
    let fate = Fate::from_bits(fate).end();
    if wanted != 0
        && let Err(refusal) = &fate
        && held.head.kept == 0
        && may_want(refusal.service, refusal.verdict)
    {
        hold(ctx);
    }
    let kept = held.head.kept as u64;
    // Whatever comes next on this CPU, it is not this packet.
    held.head.kept = 0;
    if wanted == 0 || kept == 0 || !is_wanted(ctx, service(wanted), &fate, &mut held.head) {
        return 0;
    }
    held.head.kept = kept as u16;
    held.head.sent_kept = 0;
    if fate.is_ok() || held.head.action == xdp_action::XDP_TX {
        sent(ctx, &mut held.head);
    }
    let size = bounded::<{ MAX_KEPT as u64 }>(kept) + size_of::<Captured>() as u64;
    // SAFETY: the record's head with the bytes behind it.
    let result = unsafe {
        bpf_ringbuf_output(
            (&raw const CAPTURE).cast_mut().cast(),
            (&raw mut held.head).cast(),
            size,
            0,
        )
    };
    held.head.kept = 0;
    if result != 0
        && let Some(lost) = CAPTURE_LOST.get_ptr_mut(0)
    {
        // SAFETY: per-CPU.
        unsafe { *lost = (*lost).wrapping_add(1) };
    }
    0
}

/// Whether the packet was asked for; fills in what became of it.
#[inline(always)]
fn is_wanted(
    ctx: *mut xdp_md,
    wanted: u16,
    fate: &Result<Sent, Refusal>,
    head: &mut Captured,
) -> bool {
    match *fate {
        Ok(Sent {
            action,
            backend,
            is_reply,
        }) => {
            head.service = BACKENDS
                .get(backend as u32)
                .map_or(0, |entry| entry.service);
            head.backend = backend;
            head.action = action;
            head.verdict = if is_reply {
                Verdict::NatReply as u8
            } else {
                FORWARDED
            };
        }
        Err(Refusal {
            service, verdict, ..
        }) => {
            head.service = service;
            head.backend = 0;
            head.action = crate::action(verdict);
            head.verdict = verdict as u8;
        }
    }
    if wanted != ALL_SERVICES {
        return head.service == wanted;
    }
    // Of what has no service, only what is for a VIP: not the host's own traffic from and to an
    // address that NAT sends from.
    head.service != 0
        || parse::destination(&Packet::new(&XdpContext::new(ctx)))
            .is_some_and(|addr| parse::is_vip(&addr))
}

/// Keeps how the packet begins as it is sent.
#[inline(always)]
fn sent(ctx: *mut xdp_md, head: &mut Captured) {
    // SAFETY: the context outlives the program's run.
    let length = unsafe { bpf_xdp_get_buff_len(ctx) };
    const WANTED: u64 = SENT_BYTES as u64;
    let kept = if length < WANTED { length } else { WANTED };
    let kept = bounded::<{ WANTED.next_power_of_two() }>(kept);
    // SAFETY: room for `SENT_BYTES` bytes.
    if unsafe { bpf_xdp_load_bytes(ctx, 0, head.sent.as_mut_ptr().cast(), kept as u32) } == 0 {
        head.sent_kept = kept as u8;
    }
}
