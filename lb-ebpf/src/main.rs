//! The XDP program of `lb`: parse → service → flow hash → slot → backend → rewrite → send → count.
//!
//! One program for each packet, no tail calls. Whatever ends early ends in a [`Verdict`], which is
//! counted in one place, here.
#![no_std]
#![no_main]

mod count;
mod decap;
mod fate;
mod forward;
mod maps;
mod packet;
mod parse;
mod select;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{FlowKey, Forwarding, ServiceKey};
use lb_common::verdict::Verdict;

use crate::fate::Fate;
use crate::forward::tunnel;
use crate::packet::Packet;
use crate::parse::Headers;

#[xdp]
#[inline(always)]
pub fn lb_xdp(ctx: XdpContext) -> u32 {
    let mut fate = process(ctx.ctx);
    if let Some(order) = fate.order() {
        fate = tunnel::encapsulate(ctx.ctx, order);
    }
    match fate.end() {
        Ok(action) => action,
        Err(refusal) => {
            let verdict = forward::answer(ctx.ctx, refusal);
            count::verdict(refusal.service, verdict);
            action(verdict)
        }
    }
}

/// The program of `lb decap`; see [`decap`].
#[xdp]
#[inline(always)]
pub fn lb_decap(ctx: XdpContext) -> u32 {
    decap::pass(&Packet::new(&ctx))
}

/// A function of its own, beside those that make outer headers and answers: each may have a large
/// stack, and the kernel adds up what is nested (512 bytes, and before Linux 6.8 each rounded up to 32).
#[inline(never)]
fn process(ctx: *mut xdp_md) -> Fate {
    let packet = &Packet::new(&XdpContext::new(ctx));
    read(packet).unwrap_or_else(|verdict| Fate::refused(0, verdict))
}

#[inline(always)]
fn read(packet: &Packet) -> Result<Fate, Verdict> {
    let (ethertype, l3) = parse::ethernet(packet)?;
    match ethertype {
        parse::IPV4 => Ok(balance(packet, &parse::ipv4(packet, l3)?)),
        parse::IPV6 => Ok(balance(packet, &parse::ipv6(packet, l3)?)),
        _ => Err(Verdict::PassNotIp),
    }
}

#[inline(always)]
fn balance<const V6: bool>(packet: &Packet, headers: &Headers<V6>) -> Fate {
    let flow = FlowKey {
        src: headers.src,
        dst: headers.dst,
        sport: headers.sport,
        dport: headers.dport,
        protocol: headers.protocol as u32,
    };
    if forward::nat::may_be_reply(&flow)
        && let Some(fate) = forward::nat::reply(packet, headers, &flow)
    {
        return fate;
    }
    let key = ServiceKey {
        addr: flow.dst,
        port: flow.dport,
        protocol: headers.protocol,
        pad: 0,
    };
    // SAFETY: the agent replaces values whole and frees none while a program runs (RCU).
    let Some(service) = (unsafe { maps::SERVICES.get(&key) }) else {
        return Fate::refused(0, Verdict::PassNoService);
    };
    let sent = if service.forwarding == Forwarding::Nat as u8 {
        forward::nat::request(packet, headers, &flow, service).map(Fate::action)
    } else {
        forward::direct::request(packet, headers, &flow, service)
    };
    sent.unwrap_or_else(|verdict| Fate::refused(service.id, verdict))
}

#[inline(always)]
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::PassNotVip
        | Verdict::PassNotIp
        | Verdict::PassOtherProtocol
        | Verdict::PassNoService => xdp_action::XDP_PASS,
        Verdict::ResetBackendOut | Verdict::ResetNoFlow | Verdict::TooBig | Verdict::NatReply => {
            xdp_action::XDP_TX
        }
        Verdict::DropMalformed
        | Verdict::DropFragment
        | Verdict::DropExtensionHeaders
        | Verdict::DropNoBackend
        | Verdict::DropBackendOut
        | Verdict::DropNoFlow
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
