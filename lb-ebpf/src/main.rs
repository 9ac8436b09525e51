//! The XDP program of `lb`: parse → service → flow hash → slot → backend → rewrite → send → count.
//!
//! One program for each packet, no tail calls. Whatever ends early ends in a [`Verdict`], which is
//! counted in one place, here.
#![no_std]
#![no_main]

mod capture;
mod count;
mod fate;
mod forward;
mod maps;
mod packet;
mod parse;
mod select;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{FlowKey, Forwarding, Params, ServiceKey};
use lb_common::verdict::Verdict;

use crate::fate::Packed;
pub use crate::fate::{Fate, Refusal, Sent};
use crate::packet::Packet;
use crate::parse::Headers;

#[xdp]
#[inline(always)]
pub fn lb_xdp(ctx: XdpContext) -> u32 {
    let packed = process(ctx.ctx);
    if let Some(action) = packed.plainly_sent() {
        return action;
    }
    let fate = match packed.unpack() {
        Ok(sent) => Ok(sent),
        Err(Refusal { service, verdict }) => {
            let verdict = forward::answer(ctx.ctx, verdict);
            count::verdict(service, verdict);
            Err(Refusal { service, verdict })
        }
    };
    let action = action_of(&fate);
    if packed.is_captured() || capture::may_want(&fate) {
        capture::tell(ctx.ctx, Packed::pack(fate));
    }
    action
}

/// A function of its own, beside the one that makes RSTs: each may have a large stack, and the
/// kernel adds up what is nested (512 bytes, and before Linux 6.8 each rounded up to 32).
#[inline(never)]
fn process(ctx: *mut xdp_md) -> Packed {
    let packet = &Packet::new(&XdpContext::new(ctx));
    read(packet).unwrap_or_else(|verdict| {
        Packed::pack(Err(Refusal {
            service: 0,
            verdict,
        }))
    })
}

#[inline(always)]
fn read(packet: &Packet) -> Result<Packed, Verdict> {
    let (ethertype, l3) = parse::ethernet(packet)?;
    match ethertype {
        parse::IPV4 => Ok(balance(packet, &parse::ipv4(packet, l3)?)),
        parse::IPV6 => Ok(balance(packet, &parse::ipv6(packet, l3)?)),
        _ => Err(Verdict::PassNotIp),
    }
}

/// Packets are captured as they come in: held before anything is written to them.
#[inline(always)]
fn balance<const V6: bool>(packet: &Packet, headers: &Headers<V6>) -> Packed {
    let Some(params) = maps::PARAMS.get(0) else {
        return Packed::pack(Err(Refusal {
            service: 0,
            verdict: Verdict::PassNoService,
        }));
    };
    if params.capture != 0 {
        capture::hold(packet.ctx());
    }
    Packed::pack(route(packet, headers, params)).captured(params)
}

#[inline(always)]
fn route<const V6: bool>(packet: &Packet, headers: &Headers<V6>, params: &Params) -> Fate {
    let flow = FlowKey {
        src: headers.src,
        dst: headers.dst,
        sport: headers.sport,
        dport: headers.dport,
        protocol: headers.protocol as u32,
    };
    if forward::nat::may_be_reply(&flow, params)
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
        return Err(Refusal {
            service: 0,
            verdict: Verdict::PassNoService,
        });
    };
    if service.forwarding == Forwarding::Nat as u8 {
        forward::nat::request(packet, headers, &flow, service)
    } else {
        forward::dsr::request(packet, headers, &flow, service)
    }
    .map_err(|verdict| Refusal {
        service: service.id,
        verdict,
    })
}

#[inline(always)]
fn action_of(fate: &Fate) -> u32 {
    match fate {
        Ok(sent) => sent.action,
        Err(refusal) => action(refusal.verdict),
    }
}

#[inline(always)]
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::PassNotVip
        | Verdict::PassNotIp
        | Verdict::PassOtherProtocol
        | Verdict::PassNoService => xdp_action::XDP_PASS,
        Verdict::ResetBackendOut | Verdict::ResetNoFlow | Verdict::NatReply => xdp_action::XDP_TX,
        Verdict::DropMalformed
        | Verdict::DropFragment
        | Verdict::DropExtensionHeaders
        | Verdict::DropNoBackend
        | Verdict::DropBackendOut
        | Verdict::DropNoFlow
        | Verdict::DropNoNeighbor
        | Verdict::DropNoPort
        | Verdict::DropFlowTable
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
