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

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{FlowKey, Forwarding, ServiceKey};
use lb_common::verdict::Verdict;

use crate::forward::Step;
use crate::forward::tunnel::{self, Order};
use crate::packet::Packet;
use crate::parse::Headers;

/// Why a packet is not forwarded, and the service it is counted for (0: none).
pub struct Refusal {
    pub service: u16,
    pub verdict: Verdict,
    /// For [`Verdict::TooBig`]: the longest packet that would not be, from the IP header on.
    pub room: u16,
}

impl Refusal {
    #[inline(always)]
    pub const fn new(service: u16, verdict: Verdict) -> Self {
        Self {
            service,
            verdict,
            room: 0,
        }
    }
}

/// An XDP action, or the reason why the packet is not forwarded.
pub type Fate = Result<u32, Refusal>;

#[xdp]
#[inline(always)]
pub fn lb_xdp(ctx: XdpContext) -> u32 {
    let mut packed = process(ctx.ctx);
    if let Some(order) = packed.order() {
        packed = tunnel::encapsulate(ctx.ctx, order);
    }
    match packed.unpack() {
        Ok(action) => action,
        Err(refusal) => {
            let verdict = forward::answer(ctx.ctx, &refusal);
            count::verdict(refusal.service, verdict);
            action(verdict)
        }
    }
}

/// A [`Fate`], or an order to encapsulate, in one register.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Packed(u64);

impl Packed {
    const REFUSED: u64 = 1 << 63;
    const ORDER: u64 = 1 << 62;

    #[inline(always)]
    fn pack_step(step: Result<Step, Refusal>) -> Self {
        match step {
            Ok(Step::Encapsulate(order)) => Self(Self::ORDER | order.bits()),
            Ok(Step::Done(action)) => Self::pack(Ok(action)),
            Err(refusal) => Self::pack(Err(refusal)),
        }
    }

    #[inline(always)]
    fn order(self) -> Option<Order> {
        if self.0 & Self::ORDER == 0 {
            None
        } else {
            Some(Order::from_bits(self.0 & !Self::ORDER))
        }
    }

    #[inline(always)]
    pub fn pack(fate: Fate) -> Self {
        match fate {
            Ok(action) => Self(action as u64),
            Err(refusal) => Self(
                Self::REFUSED
                    | (refusal.room as u64) << 24
                    | (refusal.service as u64) << 8
                    | refusal.verdict as u64,
            ),
        }
    }

    #[inline(always)]
    fn unpack(self) -> Fate {
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

/// A function of its own, beside those that make outer headers and answers: each may have a large
/// stack, and the kernel adds up what is nested (512 bytes, and before Linux 6.8 each rounded up to 32).
#[inline(never)]
fn process(ctx: *mut xdp_md) -> Packed {
    let packet = &Packet::new(&XdpContext::new(ctx));
    Packed::pack_step(read(packet))
}

#[inline(always)]
fn read(packet: &Packet) -> Result<Step, Refusal> {
    let unserved = |verdict| Refusal::new(0, verdict);
    let (ethertype, l3) = parse::ethernet(packet).map_err(unserved)?;
    match ethertype {
        parse::IPV4 => balance(packet, &parse::ipv4(packet, l3).map_err(unserved)?),
        parse::IPV6 => balance(packet, &parse::ipv6(packet, l3).map_err(unserved)?),
        _ => Err(unserved(Verdict::PassNotIp)),
    }
}

#[inline(always)]
fn balance<const V6: bool>(packet: &Packet, headers: &Headers<V6>) -> Result<Step, Refusal> {
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
        return fate.map(Step::Done);
    }
    let key = ServiceKey {
        addr: flow.dst,
        port: flow.dport,
        protocol: headers.protocol,
        pad: 0,
    };
    // SAFETY: the agent replaces values whole and frees none while a program runs (RCU).
    let Some(service) = (unsafe { maps::SERVICES.get(&key) }) else {
        return Err(Refusal::new(0, Verdict::PassNoService));
    };
    if service.forwarding == Forwarding::Nat as u8 {
        forward::nat::request(packet, headers, &flow, service).map(Step::Done)
    } else {
        forward::direct::request(packet, headers, &flow, service)
    }
    .map_err(|verdict| Refusal::new(service.id, verdict))
}

#[inline(always)]
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::PassNotVip
        | Verdict::PassNotIp
        | Verdict::PassOtherProtocol
        | Verdict::PassNoService => xdp_action::XDP_PASS,
        Verdict::ResetBackendOut
        | Verdict::ResetNoFlow
        | Verdict::TooBig
        | Verdict::NatReply => xdp_action::XDP_TX,
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
