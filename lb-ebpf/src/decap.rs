//! The other end of a tunnel, on a backend without a tunnel device: takes the outer headers off
//! packets to this host and passes what was inside up to the kernel. Anything else passes
//! untouched, fragments and IP options and extension headers outside included.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_action;
use lb_common::abi::{Addr, IPV4_LEN, IPV6_LEN, Stripped, UDP_LEN};
use lb_common::checksum;
use network_types::eth::EthHdr;
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use crate::maps::{DECAP, STRIPPED};
use crate::packet::{Packet, Window, unknown};
use crate::parse::{self, IPV4, IPV6, UDP};

/// Length of two VLAN tags and an EtherType.
const FRONT: usize = 10;
/// Congestion experienced: both bits of ECN (RFC 3168).
const CE: u8 = 3;

/// The headers to take off.
struct Outer {
    /// Offset of the [`FRONT`] bytes before the outer IP header.
    front: usize,
    /// Bytes of the headers.
    length: usize,
    protocol: u8,
    class: u8,
}

/// Passes the packet, without its outer headers if those are for this host.
#[inline(always)]
pub fn pass(packet: &Packet) -> u32 {
    let bytes = packet.len() as u64;
    let Some(outer) = outer(packet) else {
        return xdp_action::XDP_PASS;
    };
    let Some(v6) = inner_family(packet, &outer) else {
        return xdp_action::XDP_PASS;
    };
    let kind = if outer.protocol == UDP {
        Stripped::Gue
    } else {
        Stripped::Ipip
    };
    let (kind, action) = if !keep_congestion(packet, &outer, v6) {
        (Stripped::Congested, xdp_action::XDP_DROP)
    } else if strip(packet, &outer, v6).is_some() {
        (kind, xdp_action::XDP_PASS)
    } else {
        (Stripped::Refused, xdp_action::XDP_DROP)
    };
    count(kind, bytes);
    action
}

#[inline(always)]
fn count(kind: Stripped, bytes: u64) {
    if let Some(counter) = STRIPPED.get_ptr_mut(kind as u32) {
        // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
        unsafe {
            (*counter)[0] = (*counter)[0].wrapping_add(1);
            (*counter)[1] = (*counter)[1].wrapping_add(bytes);
        }
    }
}

/// The outer headers of a packet to this host.
#[inline(always)]
fn outer(packet: &Packet) -> Option<Outer> {
    let (ethertype, l3) = parse::ethernet(packet).ok()?;
    // LLVM is to know nothing of it, see `tunnel`.
    let front = unknown::<0x1f>(l3 - packet.start() - FRONT)?;
    match ethertype {
        IPV4 => outer_ipv4(packet, front),
        IPV6 => outer_ipv6(packet, front),
        _ => None,
    }
}

#[inline(always)]
fn outer_ipv4(packet: &Packet, front: usize) -> Option<Outer> {
    let ip = packet.window::<{ Ipv4Hdr::LEN }>(packet.start() + front + FRONT)?;
    let protocol = ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>();
    let fragment = ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x3fffu16.to_be() != 0;
    if ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() != 0x45 || fragment || !is_tunnel(protocol) {
        return None;
    }
    let dst = Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>());
    let class = ip.u8::<{ offset_of!(Ipv4Hdr, tos) }>();
    behind(packet, front, IPV4_LEN as usize, protocol, class, &dst)
}

#[inline(always)]
fn outer_ipv6(packet: &Packet, front: usize) -> Option<Outer> {
    let ip = packet.window::<{ Ipv6Hdr::LEN }>(packet.start() + front + FRONT)?;
    let protocol = ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>();
    if !is_tunnel(protocol) {
        return None;
    }
    let dst = ip.addr::<{ offset_of!(Ipv6Hdr, dst_addr) }>();
    let class = (u16::from_be(ip.u16::<0>()) >> 4) as u8;
    behind(packet, front, IPV6_LEN as usize, protocol, class, &dst)
}

#[inline(always)]
fn is_tunnel(protocol: u8) -> bool {
    protocol == IpProto::Ipv4 as u8 || protocol == IpProto::Ipv6 as u8 || protocol == UDP
}

/// The headers with a UDP header that belongs to them, if `dst` is this host's.
#[inline(always)]
fn behind(
    packet: &Packet,
    front: usize,
    ip: usize,
    protocol: u8,
    class: u8,
    dst: &Addr,
) -> Option<Outer> {
    // SAFETY: a word, which is written whole.
    let gue_port = *unsafe { DECAP.get(dst) }? as u16;
    let mut length = ip;
    if protocol == UDP {
        let udp = packet.window::<{ UDP_LEN as usize }>(packet.start() + front + FRONT + ip)?;
        if gue_port == 0 || udp.u16::<2>() != gue_port {
            return None;
        }
        length += UDP_LEN as usize;
    }
    // The verifier need not go through what follows once for each length.
    let length = unknown::<0x3f>(length)?;
    Some(Outer {
        front,
        length,
        protocol,
        class,
    })
}

/// Start of the inner IP header.
#[inline(always)]
fn inner(packet: &Packet, outer: &Outer) -> Option<Window<{ Ipv4Hdr::LEN }>> {
    packet.window(packet.start() + outer.front + FRONT + outer.length)
}

/// Whether the inner packet is IPv6; `None` if it is none that this tunnel carries: GUE has
/// variants with a header of its own, which are left to the kernel.
#[inline(always)]
fn inner_family(packet: &Packet, outer: &Outer) -> Option<bool> {
    let version = inner(packet, outer)?.u8::<0>() >> 4;
    let carries = |protocol: IpProto| outer.protocol == UDP || outer.protocol == protocol as u8;
    match version {
        4 if carries(IpProto::Ipv4) => Some(false),
        6 if carries(IpProto::Ipv6) => Some(true),
        _ => None,
    }
}

/// Carries a mark of congestion over into the inner packet (RFC 6040, section 4.2); false if the
/// inner packet must be dropped, because its ends know nothing of such marks.
#[inline(always)]
fn keep_congestion(packet: &Packet, outer: &Outer, v6: bool) -> bool {
    if outer.class & CE != CE {
        return true;
    }
    let Some(ip) = inner(packet, outer) else {
        return false;
    };
    let old = ip.u16::<0>();
    // The traffic class of IPv6 begins in the middle of the first byte.
    let mark = if v6 { [0, CE << 4] } else { [0, CE] };
    let mark = u16::from_ne_bytes(mark);
    if old & mark == 0 {
        return false;
    }
    ip.set_u16::<0>(old | mark);
    if !v6 {
        let sum = checksum::replace16(0, old, old | mark);
        let check = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
        ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(checksum::apply(check, sum));
    }
    true
}

/// Takes the outer headers out from between the Ethernet header, tags included, and the inner
/// packet.
#[inline(always)]
fn strip(packet: &Packet, outer: &Outer, v6: bool) -> Option<()> {
    let eth = packet.window::<{ EthHdr::LEN }>(packet.start())?;
    let macs = [eth.u32::<0>(), eth.u32::<4>(), eth.u32::<8>()];
    let tags = packet.window::<FRONT>(packet.start() + outer.front)?;
    let tags = [tags.u32::<0>(), tags.u32::<4>()];
    let packet = packet.grow(-(outer.length as i32))?;
    let eth = packet.window::<{ EthHdr::LEN }>(packet.start())?;
    eth.set_u32::<0>(macs[0]);
    eth.set_u32::<4>(macs[1]);
    eth.set_u32::<8>(macs[2]);
    // Where there are no tags, these are bytes of the addresses once more.
    let front = packet.window::<FRONT>(packet.start() + outer.front)?;
    front.set_u32::<0>(tags[0]);
    front.set_u32::<4>(tags[1]);
    front.set_u16::<8>(if v6 { IPV6 } else { IPV4 });
    Some(())
}
