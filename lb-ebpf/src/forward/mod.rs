//! What is done to a packet once its backend is known.

use core::mem::offset_of;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::bpf_redirect;
use lb_common::abi::{Addr, Backend, FlowKey, Hop};
use lb_common::checksum;
use lb_common::verdict::Verdict;
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::fate::Refusal;
use crate::forward::reset::Outcome;
use crate::maps::opening;
use crate::packet::{Packet, Window};
use crate::parse::Ours;

mod budget;
pub mod direct;
pub mod nat;
pub mod nat_fragment;
pub mod nat_icmp;
mod open;
mod reset;
mod too_big;
pub mod tunnel;

pub use open::open;

/// Time to live of what the program itself sends (RFC 1700), outer headers included.
pub const TTL: u8 = 64;

/// Turns the packet into its answer where the verdict says so; gives the verdict that came of it.
#[inline(always)]
pub fn answer(ctx: *mut xdp_md, ours: Ours, refusal: Refusal) -> Verdict {
    let otherwise = match refusal.verdict {
        Verdict::TooBig => {
            return if too_big::too_big(ctx, refusal.room) {
                Verdict::TooBig
            } else {
                Verdict::DropTooBig
            };
        }
        Verdict::ResetBackendOut | Verdict::ResetToBackend => Verdict::DropBackendOut,
        Verdict::ResetNoFlow => Verdict::DropNoFlow,
        other => return other,
    };
    match reset::reset(ctx, ours) {
        Outcome::Sent => refusal.verdict,
        Outcome::Unanswerable => otherwise,
        Outcome::TooMany => Verdict::DropResetRate,
    }
}

/// Destination and source of a frame.
#[inline(always)]
pub fn macs<const N: usize>(eth: Window<N>) -> [u32; 3] {
    [eth.u32::<0>(), eth.u32::<4>(), eth.u32::<8>()]
}

#[inline(always)]
pub fn set_macs<const N: usize>(eth: Window<N>, macs: &[u32; 3]) {
    eth.set_u32::<0>(macs[0]);
    eth.set_u32::<4>(macs[1]);
    eth.set_u32::<8>(macs[2]);
}

/// Destination and source swapped.
#[inline(always)]
pub fn reversed(macs: [u32; 3]) -> [u32; 3] {
    let [a, b, c] = macs.map(u32::from_be);
    [b << 16 | c >> 16, c << 16 | a >> 16, a << 16 | b >> 16].map(u32::to_be)
}

/// Swaps the MAC addresses: the answer goes back the way that the packet came.
#[inline(always)]
pub fn turn_round(eth: Window<{ EthHdr::LEN }>) {
    set_macs(eth, &reversed(macs(eth)));
}

/// Offset of the addresses in an IPv6 header.
pub const IPV6_ADDRESSES: usize = offset_of!(Ipv6Hdr, src_addr);

/// Writes source and destination of an IPv6 header, word by word.
#[inline(always)]
pub fn set_ipv6_addresses(addresses: Window<32>, src: &Addr, dst: &Addr) {
    addresses.set_addr::<0>(src);
    addresses.set_addr::<16>(dst);
}

/// Keeps a flow for [`direct::lb_direct`].
#[inline(always)]
pub fn keep(flow: &FlowKey) -> Result<(), Verdict> {
    opening().ok_or(Verdict::DropFlowTable)?.key = *flow;
    Ok(())
}

/// The hop in force of a backend.
#[inline(always)]
pub fn hop(backend: &Backend) -> &Hop {
    // Not a branch: the verifier would go through all that follows for each of the two.
    // SAFETY: the index is 0 or 1.
    unsafe { backend.hops.get_unchecked((backend.hop & 1) as usize) }
}

/// Counts one hop off the packet's life (RFC 1812, section 5.3.1; RFC 8200, section 3), so that a
/// loop ends.
#[inline(always)]
pub fn decrement_ttl<const V6: bool>(packet: &Packet, l3: usize) -> Result<(), Verdict> {
    if V6 {
        let ip = packet
            .window::<{ Ipv6Hdr::LEN }>(l3)
            .ok_or(Verdict::DropMalformed)?;
        let limit = ip.u8::<{ offset_of!(Ipv6Hdr, hop_limit) }>();
        if limit <= 1 {
            return Err(Verdict::DropTtl);
        }
        ip.set_u8::<{ offset_of!(Ipv6Hdr, hop_limit) }>(limit - 1);
    } else {
        let ip = packet
            .window::<{ Ipv4Hdr::LEN }>(l3)
            .ok_or(Verdict::DropMalformed)?;
        let ttl = ip.u8::<{ offset_of!(Ipv4Hdr, ttl) }>();
        if ttl <= 1 {
            return Err(Verdict::DropTtl);
        }
        ip.set_u8::<{ offset_of!(Ipv4Hdr, ttl) }>(ttl - 1);
        let check = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
        ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(checksum::less_one_hop(check));
    }
    Ok(())
}

/// Writes the hop's MAC addresses and sends the packet out by its interface.
#[inline(always)]
pub fn send(packet: &Packet, hop: &Hop) -> Result<u32, Verdict> {
    if hop.ifindex == 0 {
        return Err(Verdict::DropNoNeighbor);
    }
    let eth = packet
        .window::<{ EthHdr::LEN }>(packet.start())
        .ok_or(Verdict::DropMalformed)?;
    set_macs(eth, &hop.macs);
    if hop.ifindex == packet.interface() {
        Ok(xdp_action::XDP_TX)
    } else {
        // SAFETY: plain numbers.
        Ok(unsafe { bpf_redirect(hop.ifindex, 0) } as u32)
    }
}
