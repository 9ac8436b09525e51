//! The XDP program of `lb`: parse → service → flow hash → slot → backend → rewrite → send → count.
//!
//! One program for each packet, no tail calls. Whatever ends early ends in a [`Verdict`], which is
//! counted in one place, here.
#![no_std]
#![no_main]

mod count;
mod forward;
mod maps;
mod packet;
mod parse;
mod select;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{FlowKey, Forwarding, ServiceKey};
use lb_common::verdict::Verdict;

use crate::packet::Packet;
use crate::parse::Headers;

/// Why a packet is not forwarded, and the service it is counted for (0: none).
pub struct Refusal {
    pub service: u16,
    pub verdict: Verdict,
}

/// An XDP action, or the reason why the packet is not forwarded.
pub type Fate = Result<u32, Refusal>;

#[xdp]
pub fn lb_xdp(ctx: XdpContext) -> u32 {
    let packet = Packet::new(&ctx);
    match process(&packet) {
        Ok(action) => action,
        Err(Refusal { service, verdict }) => {
            let verdict = forward::answer(&packet, verdict);
            count::verdict(service, verdict);
            action(verdict)
        }
    }
}

#[inline(always)]
fn process(packet: &Packet) -> Fate {
    let unserved = |verdict| Refusal {
        service: 0,
        verdict,
    };
    let (ethertype, l3) = parse::ethernet(packet).map_err(unserved)?;
    match ethertype {
        parse::IPV4 => balance(packet, &parse::ipv4(packet, l3).map_err(unserved)?),
        parse::IPV6 => balance(packet, &parse::ipv6(packet, l3).map_err(unserved)?),
        _ => Err(unserved(Verdict::PassNotIp)),
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
