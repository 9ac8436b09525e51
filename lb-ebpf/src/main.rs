//! The XDP program of `lb`: parse → service → flow hash → slot → backend → rewrite → send → count.
//!
//! One program for each packet, no tail calls. Whatever ends early ends in a [`Verdict`], which is
//! counted in one place, here.
#![no_std]
#![no_main]

mod count;
mod forward;
mod fragment;
mod icmp;
mod maps;
mod packet;
mod parse;
mod select;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{FlowKey, Forwarding};
use lb_common::verdict::Verdict;

use crate::packet::Packet;
use crate::parse::Headers;

/// Why a packet is not forwarded, and the service it is counted for (0: none).
///
/// One word, like the action that it may stand in place of: a struct's parts LLVM would put together
/// before it is known that there is a refusal, out of registers that may hold pointers.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Refusal(u32);

impl Refusal {
    #[inline(always)]
    pub const fn new(service: u16, verdict: Verdict) -> Self {
        Self((service as u32) << 8 | verdict as u32)
    }

    /// Before a service is known.
    #[inline(always)]
    pub const fn unserved(verdict: Verdict) -> Self {
        Self::new(0, verdict)
    }

    #[inline(always)]
    fn service(self) -> u16 {
        (self.0 >> 8) as u16
    }

    #[inline(always)]
    fn verdict(self) -> Verdict {
        Verdict::from_number(self.0 as u8).unwrap_or(Verdict::DropMalformed)
    }
}

/// An XDP action, or the reason why the packet is not forwarded.
pub type Fate = Result<u32, Refusal>;

#[xdp]
#[inline(always)]
pub fn lb_xdp(ctx: XdpContext) -> u32 {
    let fate = process(ctx.ctx).unpack();
    match fate.or_else(|refusal| reconsider(ctx.ctx, refusal)) {
        Ok(action) => action,
        Err(refusal) => {
            let verdict = refusal.verdict();
            count::verdict(refusal.service(), verdict);
            action(verdict)
        }
    }
}

/// What is rare is looked at a second time, by the function that knows about it.
#[inline(always)]
fn reconsider(ctx: *mut xdp_md, refusal: Refusal) -> Fate {
    match refusal.verdict() {
        Verdict::PassOtherProtocol => icmp::serve(ctx).unpack(),
        Verdict::DropFragment => fragment::serve(ctx).unpack(),
        verdict @ (Verdict::ResetBackendOut | Verdict::ResetNoFlow) => {
            let verdict = forward::answer(ctx, verdict);
            Err(Refusal::new(refusal.service(), verdict))
        }
        _ => Err(refusal),
    }
}

/// A [`Fate`] in one register.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Packed(u64);

impl Packed {
    const REFUSED: u64 = 1 << 63;

    #[inline(always)]
    pub const fn pack(fate: Fate) -> Self {
        match fate {
            Ok(action) => Self(action as u64),
            Err(refusal) => Self(Self::REFUSED | refusal.0 as u64),
        }
    }

    #[inline(always)]
    fn unpack(self) -> Fate {
        if self.0 & Self::REFUSED == 0 {
            return Ok(self.0 as u32);
        }
        Err(Refusal(self.0 as u32))
    }
}

/// A function of its own, beside the one that makes RSTs: each may have a large stack, and the
/// kernel adds up what is nested (512 bytes, and before Linux 6.8 each rounded up to 32).
#[inline(never)]
fn process(ctx: *mut xdp_md) -> Packed {
    let packet = &Packet::new(&XdpContext::new(ctx));
    Packed::pack(read(packet))
}

#[inline(always)]
fn read(packet: &Packet) -> Fate {
    let unserved = Refusal::unserved;
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
    let service =
        select::service(&flow).ok_or_else(|| Refusal::unserved(Verdict::PassNoService))?;
    if service.forwarding == Forwarding::Nat as u8 {
        forward::nat::request(packet, headers, &flow, service)
    } else {
        forward::dsr::request(packet, headers, &flow, service)
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
        | Verdict::NatReply
        | Verdict::IcmpError
        | Verdict::EchoReply => xdp_action::XDP_TX,
        Verdict::DropMalformed
        | Verdict::DropFragment
        | Verdict::DropFragmentNat
        | Verdict::DropExtensionHeaders
        | Verdict::DropNoBackend
        | Verdict::DropBackendOut
        | Verdict::DropNoFlow
        | Verdict::DropIcmpNoFlow
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
