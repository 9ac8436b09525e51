//! The XDP program of `lb`: parse → service → flow hash → slot → backend → rewrite → send → count.
//!
//! One program for each packet. Whatever ends early ends in a [`Verdict`], which is counted in one
//! place, here. The one tail call hands what is left to the host to another program (`node.chain`).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod count;
mod flows;
mod forward;
mod maps;
mod packet;
mod parse;
mod select;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Forwarding, Service, ServiceKey};
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
#[inline(always)]
pub fn lb_xdp(ctx: XdpContext) -> u32 {
    let mut fate = process(ctx.ctx, false);
    if fate.0 == forward::OPEN as u64 {
        fate = forward::open(ctx.ctx);
        if fate.0 == forward::OPEN as u64 {
            fate = process(ctx.ctx, true);
        }
    }
    match fate.unpack() {
        Ok(action) => action,
        Err(Refusal { service, verdict }) => {
            let verdict = forward::answer(ctx.ctx, verdict);
            count::verdict(service, verdict);
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

/// A [`Fate`] in one register.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Packed(u64);

impl Packed {
    const REFUSED: u64 = 1 << 63;

    #[inline(always)]
    fn pack(fate: Fate) -> Self {
        match fate {
            Ok(action) => Self(action as u64),
            Err(refusal) => {
                Self(Self::REFUSED | (refusal.service as u64) << 8 | refusal.verdict as u64)
            }
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
        })
    }
}

/// The way of nearly every packet; `opened` if its flow has just been recorded. A function of its own, beside the others that `lb_xdp` calls:
/// each may have a large stack, and the kernel adds up what is nested (512 bytes, and before Linux
/// 6.8 each rounded up to 32).
#[inline(always)]
fn process(ctx: *mut xdp_md, opened: bool) -> Packed {
    Packed(lb_process(ctx, opened as u32))
}

/// Does what [`process`] says: a global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_process(ctx: *mut xdp_md, opened: u32) -> u64 {
    let packet = &Packet::new(&XdpContext::new(ctx));
    let opened = opened != 0;
    Packed::pack(read(packet, Balance { opened })).0
}

/// What comes behind the parser.
trait Then {
    fn then<const V6: bool>(self, packet: &Packet, headers: &Headers<V6>) -> Fate;
}

#[inline(always)]
fn read(packet: &Packet, then: impl Then) -> Fate {
    let unserved = |verdict| Refusal {
        service: 0,
        verdict,
    };
    let (ethertype, l3) = parse::ethernet(packet).map_err(unserved)?;
    match ethertype {
        parse::IPV4 => then.then(packet, &parse::ipv4(packet, l3).map_err(unserved)?),
        parse::IPV6 => then.then(packet, &parse::ipv6(packet, l3).map_err(unserved)?),
        _ => Err(unserved(Verdict::PassNotIp)),
    }
}

/// The service that a packet is for.
#[inline(always)]
fn for_service<const V6: bool>(headers: &Headers<V6>) -> Result<Service, Refusal> {
    let key = ServiceKey {
        addr: headers.dst,
        port: headers.dport,
        protocol: headers.protocol,
    };
    select::service(&key).ok_or(Refusal {
        service: 0,
        verdict: Verdict::PassNoService,
    })
}

/// To the backend of the packet's flow, or back to its client.
struct Balance {
    opened: bool,
}

impl Then for Balance {
    #[inline(always)]
    fn then<const V6: bool>(self, packet: &Packet, headers: &Headers<V6>) -> Fate {
        let flow = headers.flow();
        if forward::nat::may_be_reply(&flow)
            && let Some(fate) = forward::nat::reply(packet, headers, &flow)
        {
            return fate;
        }
        let service = &for_service(headers)?;
        if service.forwarding == Forwarding::Nat as u8 {
            forward::nat::request(packet, headers, &flow, self.opened)
        } else {
            forward::dsr::request(packet, headers, &flow, service, self.opened)
        }
        .map_err(|verdict| Refusal {
            service: service.id,
            verdict,
        })
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
