//! The XDP program of `lb`: parse → service → flow hash → slot → backend → rewrite → send → count.
//!
//! One program for each packet. Whatever ends early ends in a [`Verdict`], which is counted in one
//! place, here. The one tail call hands what is left to the host to another program (`node.chain`).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod capture;
mod clock;
mod count;
mod decap;
mod fate;
mod flows;
mod forward;
mod fragment;
mod http;
mod icmp;
mod maps;
mod packet;
mod parse;
mod quic;
mod select;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Forwarding, Params};
use lb_common::verdict::Verdict;

use crate::fate::Fate;
use crate::packet::Packet;
use crate::parse::{Headers, Ours};

#[xdp]
#[inline(always)]
pub fn lb_xdp(ctx: XdpContext) -> u32 {
    let ours = match parse::ours(&Packet::new(&ctx)) {
        Ok(ours) => ours,
        Err(verdict) => {
            count::verdict(0, verdict);
            pass_on(&ctx);
            return xdp_action::XDP_PASS;
        }
    };
    let mut fate = process(ctx.ctx, ours, Look::First);
    // Nearly all packets, with one comparison.
    if let Some(action) = fate.plainly_sent() {
        return action;
    }
    let mut captured = fate.is_captured();
    let mut begun = 0;
    match fate.refusal() {
        Some(Verdict::PassOtherProtocol) => {
            captured = capture::hold(ctx.ctx);
            fate = icmp::serve(ctx.ctx);
        }
        Some(Verdict::DropFragment) => {
            captured = capture::hold(ctx.ctx);
            fate = if ours.is_v6() {
                fragment::serve::<true>(ctx.ctx, ours)
            } else {
                fragment::serve::<false>(ctx.ctx, ours)
            };
            begun = fate.begun();
            if begun != 0 {
                capture::fix(true);
                fate = process(ctx.ctx, ours, Look::First);
            }
        }
        _ => {}
    }
    if fate.opens() {
        fate = forward::open(ctx.ctx, ours);
        if fate.opens() {
            fate = process(ctx.ctx, ours, Look::Opened);
        } else if fate.keeps() {
            fate = process(ctx.ctx, ours, Look::Kept);
        }
    }
    if begun != 0 {
        // Before anything is answered: no fragment is.
        fragment::unmask(ctx.ctx, begun);
        capture::fix(false);
    }
    if let Some(what) = fate.directly() {
        fate = Fate::from_bits(forward::direct::lb_direct(ctx.ctx, what));
    }
    match fate.end() {
        Ok(sent) => {
            if captured {
                capture::tell(ctx.ctx, fate);
            }
            sent.action
        }
        Err(refusal) => {
            let verdict = forward::answer(ctx.ctx, ours, refusal);
            count::verdict(refusal.service, verdict);
            if captured || capture::may_want(refusal.service, verdict) {
                capture::tell(ctx.ctx, Fate::refused(refusal.service, verdict));
            }
            let action = action(verdict);
            if action == xdp_action::XDP_PASS {
                pass_on(&ctx);
            }
            action
        }
    }
}

/// Hands the packet to the program in `CHAIN`, and comes back only if there is none.
///
/// Map and index are constants, so the kernel patches a jump into the program (x86: a no-op while
/// the place is empty) and nothing is looked up. Only the top function may do this: what a tail
/// call leaves behind stays on the stack, and the verifier allows 256 bytes of callers at most.
#[inline(always)]
fn pass_on(ctx: &XdpContext) {
    // SAFETY: nothing here needs to be dropped.
    unsafe { maps::CHAIN.tail_call(ctx, 0) };
}

/// The program of `lb decap`; see [`decap`].
#[xdp]
#[inline(always)]
pub fn lb_decap(ctx: XdpContext) -> u32 {
    decap::pass(&Packet::new(&ctx))
}

/// A packet is gone through once, or once more after an attempt to record its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Look {
    First = 0,
    /// Its flow was recorded.
    Opened = 1 << 16,
    /// Its flow stays as it was.
    Kept = 2 << 16,
}

/// The way of nearly every packet.
#[inline(always)]
fn process(ctx: *mut xdp_md, ours: Ours, look: Look) -> Fate {
    Fate::from_bits(lb_process(ctx, ours.bits() | look as u32))
}

/// Does what [`process`] says. A function of its own, beside those that open flows and make
/// answers: each may have a large stack, and the kernel adds up what is nested (512
/// bytes, and before Linux 6.8 each rounded up to 32). Exported, which makes it a global function
/// that the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_process(ctx: *mut xdp_md, what: u32) -> u64 {
    let packet = &Packet::new(&XdpContext::new(ctx));
    let look = match what >> 16 {
        0 => Look::First,
        1 => Look::Opened,
        _ => Look::Kept,
    };
    read(packet, Ours::from_bits(what), Balance { look }).bits()
}

/// What comes behind the parser.
trait Then {
    fn then<const V6: bool>(self, packet: &Packet, headers: &Headers<V6>) -> Fate;
}

#[inline(always)]
fn read(packet: &Packet, ours: Ours, then: impl Then) -> Fate {
    parsed(packet, ours, then).unwrap_or_else(|verdict| Fate::refused(0, verdict))
}

#[inline(always)]
fn parsed(packet: &Packet, ours: Ours, then: impl Then) -> Result<Fate, Verdict> {
    let l3 = ours.l3(packet)?;
    Ok(if ours.is_v6() {
        then.then(packet, &parse::ipv6(packet, l3)?)
    } else {
        then.then(packet, &parse::ipv4(packet, l3)?)
    })
}

/// To the backend of the packet's flow, or back to its client.
struct Balance {
    look: Look,
}

impl Then for Balance {
    /// Packets are captured as they come in: held before anything is written to them.
    #[inline(always)]
    fn then<const V6: bool>(self, packet: &Packet, headers: &Headers<V6>) -> Fate {
        let Some(params) = maps::PARAMS.get(0) else {
            return Fate::refused(0, Verdict::PassNoService);
        };
        if params.capture != 0 {
            capture::hold(packet.context());
        }
        let fate = self.route(packet, headers, params);
        // Read again, not kept: the verifier would follow a word that it has seen compared through
        // all that lies between.
        // SAFETY: a reference is valid to read from.
        if unsafe { (&raw const params.capture).read_volatile() } != 0 {
            fate.captured()
        } else {
            fate
        }
    }
}

impl Balance {
    #[inline(always)]
    fn route<const V6: bool>(
        &self,
        packet: &Packet,
        headers: &Headers<V6>,
        params: &Params,
    ) -> Fate {
        let flow = &headers.flow;
        if forward::nat::may_be_reply(flow, params)
            && let Some(fate) = forward::nat::reply(packet, headers, flow)
        {
            return fate;
        }
        let Some(service) = &select::service(flow) else {
            return Fate::refused(0, Verdict::PassNoService);
        };
        let sent = if service.forwarding == Forwarding::Nat as u8 {
            forward::nat::request(packet, headers, flow, self.look)
        } else {
            forward::direct::request(packet, headers, flow, service, self.look)
        };
        sent.unwrap_or_else(|verdict| Fate::refused(service.id, verdict))
    }
}

#[inline(always)]
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::PassNotVip
        | Verdict::PassNotIp
        | Verdict::PassOtherProtocol
        | Verdict::PassNoService => xdp_action::XDP_PASS,
        Verdict::ResetBackendOut
        | Verdict::ResetToBackend
        | Verdict::ResetNoFlow
        | Verdict::TooBig
        | Verdict::Rescued
        | Verdict::NatReply
        | Verdict::IcmpError
        | Verdict::EchoReply => xdp_action::XDP_TX,
        Verdict::DropMalformed
        | Verdict::DropFragment
        | Verdict::DropExtensionHeaders
        | Verdict::DropNoBackend
        | Verdict::DropBackendOut
        | Verdict::DropResetRate
        | Verdict::DropNoFlow
        | Verdict::DropIcmpNoFlow
        | Verdict::DropRefusal
        | Verdict::DropNoNeighbor
        | Verdict::DropNoPort
        | Verdict::DropFlowTable
        | Verdict::DropTooBig
        | Verdict::DropNoHeadroom
        | Verdict::DropTtl => xdp_action::XDP_DROP,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
