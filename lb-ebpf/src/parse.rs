//! From a frame to addresses and ports. The destination filter comes first.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Addr, FlowKey};
use lb_common::hash;
use lb_common::verdict::Verdict;
use network_types::eth::{EthHdr, EtherType};
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;
use network_types::vlan::VlanHdr;

use crate::maps::{FILTER, VIPS};
use crate::packet::{Packet, Window, unknown};

pub const IPV4: u16 = EtherType::Ipv4 as u16;
pub const IPV6: u16 = EtherType::Ipv6 as u16;
pub const TCP: u8 = IpProto::Tcp as u8;
pub const UDP: u8 = IpProto::Udp as u8;
/// IPv6's fragment header, as a protocol number.
pub const FRAGMENT: u8 = 44;

/// IPv6 extension headers followed before a packet is refused.
const MAX_EXTENSION_HEADERS: usize = 4;

/// TCP flags, byte 13 of the header (RFC 9293, section 3.1).
pub mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Offset of the flags in a TCP header.
pub const TCP_FLAGS: usize = 13;

/// What the packet path needs of a packet for an address of ours.
pub struct Headers<const V6: bool> {
    /// Place of the IP header.
    pub l3: usize,
    /// Place of the TCP or UDP header.
    pub l4: usize,
    /// Addresses and ports as they arrive.
    pub flow: FlowKey,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
}

impl<const V6: bool> Headers<V6> {
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.flow.protocol == TCP as u32
    }

    /// First packet of a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
    }
}

/// An IP packet for an address of ours, before its payload is looked at.
pub struct Located {
    /// Place behind the IP header and the extension headers.
    pub l4: usize,
    pub src: Addr,
    pub dst: Addr,
    /// What is at `l4`; [`FRAGMENT`] only in IPv6, and not for a whole packet with that header.
    pub protocol: u8,
}

/// Ethernet header and up to two VLAN tags (802.1Q, 802.1ad): the type, and the place behind.
#[inline(always)]
pub fn ethernet(packet: &Packet) -> Result<(u16, usize), Verdict> {
    let eth = packet
        .window::<{ EthHdr::LEN }>(packet.start())
        .ok_or(Verdict::PassNotIp)?;
    let ethertype = eth.u16::<{ offset_of!(EthHdr, ether_type) }>();
    let behind = packet.start() + EthHdr::LEN;
    if is_tag(ethertype) {
        tags(packet, behind)
    } else {
        Ok((ethertype, behind))
    }
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    ethertype == EtherType::Ieee8021q as u16 || ethertype == EtherType::Ieee8021ad as u16
}

#[inline(always)]
fn tags(packet: &Packet, start: usize) -> Result<(u16, usize), Verdict> {
    let tag = |at| {
        packet
            .window::<{ VlanHdr::LEN }>(at)
            .ok_or(Verdict::PassNotIp)
    };
    let mut length = VlanHdr::LEN;
    let mut ethertype = tag(start)?.u16::<{ offset_of!(VlanHdr, ether_type) }>();
    if is_tag(ethertype) {
        ethertype = tag(start + VlanHdr::LEN)?.u16::<{ offset_of!(VlanHdr, ether_type) }>();
        length += VlanHdr::LEN;
    }
    let length = unknown::<0xf>(length).ok_or(Verdict::PassNotIp)?;
    Ok((ethertype, start + length))
}

/// A packet for an address of ours, by the filter: place of its IP header from the start of the
/// frame on, and which version it is, in one register.
#[derive(Clone, Copy)]
pub struct Ours(u32);

impl Ours {
    const V6: u32 = 1 << 8;

    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub const fn is_v6(self) -> bool {
        self.0 & Self::V6 != 0
    }

    /// Place of the IP header.
    #[inline(always)]
    pub fn l3(self, packet: &Packet) -> Result<usize, Verdict> {
        // From front to back: what is behind implies it, and LLVM would leave out the check that
        // the verifier wants to see.
        packet
            .window::<{ EthHdr::LEN }>(packet.start())
            .ok_or(Verdict::PassNotIp)?;
        Ok(packet.start() + (self.0 & 0x1f) as usize)
    }
}

/// The destination filter. Traffic for other hosts pays for an Ethernet header, one address and one
/// look-up.
#[inline(always)]
pub fn ours(packet: &Packet) -> Result<Ours, Verdict> {
    let (dst, place) = addressed(packet)?;
    if is_ours(&dst) {
        Ok(place)
    } else {
        Err(Verdict::PassNotVip)
    }
}

/// Destination of an IP packet.
#[inline(always)]
pub fn destination(packet: &Packet) -> Option<Addr> {
    addressed(packet).ok().map(|(dst, _)| dst)
}

/// Destination of an IP packet, and where its header is.
#[inline(always)]
fn addressed(packet: &Packet) -> Result<(Addr, Ours), Verdict> {
    let (ethertype, l3) = ethernet(packet)?;
    let (dst, version) = match ethertype {
        IPV4 => {
            let ip = packet
                .window::<{ Ipv4Hdr::LEN }>(l3)
                .ok_or(Verdict::PassNotIp)?;
            (ipv4_destination(ip), 0)
        }
        IPV6 => {
            let ip = packet
                .window::<{ Ipv6Hdr::LEN }>(l3)
                .ok_or(Verdict::PassNotIp)?;
            (ipv6_destination(ip), Ours::V6)
        }
        _ => return Err(Verdict::PassNotIp),
    };
    Ok((dst, Ours((l3 - packet.start()) as u32 | version)))
}

#[inline(always)]
fn ipv4_destination(ip: Window<{ Ipv4Hdr::LEN }>) -> Addr {
    Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>())
}

#[inline(always)]
fn ipv6_destination(ip: Window<{ Ipv6Hdr::LEN }>) -> Addr {
    ip.addr::<{ offset_of!(Ipv6Hdr, dst_addr) }>()
}

/// Whether some service has this address.
#[inline(always)]
pub fn is_vip(addr: &Addr) -> bool {
    // SAFETY: only whether there is an entry counts.
    unsafe { VIPS.get(addr) }.is_some()
}

#[inline(always)]
fn is_ours(addr: &Addr) -> bool {
    let bit = hash::filter_bit(addr);
    match FILTER.get(0) {
        Some(filter) => match filter.0.get((bit >> 6) as usize) {
            Some(word) => word >> (bit & 63) & 1 != 0,
            None => false,
        },
        None => false,
    }
}

/// What becomes of a packet that cannot be read: the host's own, for an address that NAT sends from
/// or that only looks like one of ours in the filter, is left to the host. Fragments are looked at
/// again first.
#[inline(always)]
fn refuse(dst: Addr, verdict: Verdict) -> Verdict {
    let unreadable = matches!(
        verdict,
        Verdict::DropMalformed | Verdict::DropExtensionHeaders
    );
    if unreadable && !is_vip(&dst) {
        Verdict::PassNotVip
    } else {
        verdict
    }
}

#[inline(always)]
pub fn ipv4(packet: &Packet, l3: usize) -> Result<Headers<false>, Verdict> {
    let ip = packet
        .window::<{ Ipv4Hdr::LEN }>(l3)
        .ok_or(Verdict::PassNotIp)?;
    let dst = ipv4_destination(ip);
    behind_ipv4(packet, l3, ip, dst).map_err(|verdict| refuse(dst, verdict))
}

#[inline(always)]
fn behind_ipv4(
    packet: &Packet,
    l3: usize,
    ip: Window<{ Ipv4Hdr::LEN }>,
    dst: Addr,
) -> Result<Headers<false>, Verdict> {
    let at = inside_ipv4(l3, ip, dst)?;
    // More-fragments flag or an offset: everything but "don't fragment" and the reserved bit.
    if ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x3fffu16.to_be() != 0 {
        return Err(Verdict::DropFragment);
    }
    transport(packet, l3, at)
}

#[inline(always)]
fn inside_ipv4(l3: usize, ip: Window<{ Ipv4Hdr::LEN }>, dst: Addr) -> Result<Located, Verdict> {
    let length = (ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() & 0x0f) as usize * 4;
    if length < Ipv4Hdr::LEN {
        return Err(Verdict::DropMalformed);
    }
    Ok(Located {
        l4: l3 + length,
        src: Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, src_addr) }>()),
        dst,
        protocol: ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>(),
    })
}

/// Looks again at an IPv4 packet that [`ours`] has found to be for an address of ours.
#[inline(always)]
pub fn locate_ipv4(packet: &Packet, l3: usize) -> Result<Located, Verdict> {
    let ip = packet
        .window::<{ Ipv4Hdr::LEN }>(l3)
        .ok_or(Verdict::PassNotIp)?;
    let dst = ipv4_destination(ip);
    inside_ipv4(l3, ip, dst)
}

#[inline(always)]
pub fn ipv6(packet: &Packet, l3: usize) -> Result<Headers<true>, Verdict> {
    let ip = packet
        .window::<{ Ipv6Hdr::LEN }>(l3)
        .ok_or(Verdict::PassNotIp)?;
    let dst = ipv6_destination(ip);
    behind_ipv6(packet, l3, ip, dst).map_err(|verdict| refuse(dst, verdict))
}

#[inline(always)]
fn behind_ipv6(
    packet: &Packet,
    l3: usize,
    ip: Window<{ Ipv6Hdr::LEN }>,
    dst: Addr,
) -> Result<Headers<true>, Verdict> {
    let next = ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>();
    if next == TCP || next == UDP {
        return transport(packet, l3, directly_in_ipv6(l3, ip, dst, next));
    }
    transport(packet, l3, inside_ipv6(packet, l3, ip, dst, next)?)
}

#[inline(always)]
fn directly_in_ipv6(l3: usize, ip: Window<{ Ipv6Hdr::LEN }>, dst: Addr, protocol: u8) -> Located {
    Located {
        l4: l3 + Ipv6Hdr::LEN,
        src: ip.addr::<{ offset_of!(Ipv6Hdr, src_addr) }>(),
        dst,
        protocol,
    }
}

#[inline(always)]
fn inside_ipv6(
    packet: &Packet,
    l3: usize,
    ip: Window<{ Ipv6Hdr::LEN }>,
    dst: Addr,
    next: u8,
) -> Result<Located, Verdict> {
    let start = (l3 + Ipv6Hdr::LEN - packet.start()) as u32;
    let found = lb_extension_headers(packet.context(), start, next as u32);
    if found & REFUSED != 0 {
        return Err(Verdict::from_number(found as u8).unwrap_or(Verdict::DropMalformed));
    }
    Ok(Located {
        l4: l3 + Ipv6Hdr::LEN + (found >> 8) as usize % 0x4000,
        ..directly_in_ipv6(l3, ip, dst, found as u8)
    })
}

/// Looks again at an IPv6 packet that [`ours`] has found to be for an address of ours.
#[inline(always)]
pub fn locate_ipv6(packet: &Packet, l3: usize) -> Result<Located, Verdict> {
    let ip = packet
        .window::<{ Ipv6Hdr::LEN }>(l3)
        .ok_or(Verdict::PassNotIp)?;
    let next = ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>();
    inside_ipv6(packet, l3, ip, ipv6_destination(ip), next)
}

/// In the answer of [`lb_extension_headers`]: the rest is the number of a verdict.
const REFUSED: u32 = 1 << 31;

/// Length of the extension headers (RFC 8200, section 4) from this offset on, shifted left by eight,
/// and the protocol behind: [`FRAGMENT`] before the header of a fragment. A fragment header on a
/// packet that is whole (an "atomic fragment", RFC 6946) is passed over. A global function, which the
/// verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_extension_headers(ctx: *mut xdp_md, start: u32, first: u32) -> u32 {
    let packet = Packet::new(&XdpContext::new(ctx));
    let start = packet.start() + (start & 0x7f) as usize;
    let (mut length, mut next) = (0, first as u8);
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension_header(next) {
            return (length as u32) << 8 | next as u32;
        }
        let Some(header) = packet.window::<8>(start + length) else {
            return REFUSED | Verdict::DropMalformed as u32;
        };
        if next == FRAGMENT {
            if header.u16::<2>() & FRAGMENTED_IPV6 != 0 {
                return (length as u32) << 8 | next as u32;
            }
            length += 8;
        } else {
            length += (header.u8::<1>() as usize + 1) * 8;
        }
        next = header.u8::<0>();
    }
    if is_extension_header(next) {
        return REFUSED | Verdict::DropExtensionHeaders as u32;
    }
    (length as u32) << 8 | next as u32
}

/// Offset and more-fragments flag of IPv6's fragment header, in network order.
pub const FRAGMENTED_IPV6: u16 = 0xfff9u16.to_be();

/// Headers of IPv6 that stand between it and the protocol (RFC 8200, section 4.1), but those of IPsec.
#[inline(always)]
pub fn is_extension_header(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT)
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

#[inline(always)]
pub fn transport<const V6: bool>(
    packet: &Packet,
    l3: usize,
    at: Located,
) -> Result<Headers<V6>, Verdict> {
    let l4 = at.l4;
    let flags = match at.protocol {
        TCP => {
            let tcp: Window<{ TcpHdr::LEN }> = packet.window(l4).ok_or(Verdict::DropMalformed)?;
            tcp.u8::<TCP_FLAGS>()
        }
        UDP => 0,
        FRAGMENT if V6 => return Err(Verdict::DropFragment),
        _ => return Err(Verdict::PassOtherProtocol),
    };
    let ports: Window<{ UdpHdr::LEN }> = packet.window(l4).ok_or(Verdict::DropMalformed)?;
    Ok(Headers {
        l3,
        l4,
        flow: FlowKey {
            src: at.src,
            dst: at.dst,
            sport: ports.u16::<{ offset_of!(UdpHdr, src) }>(),
            dport: ports.u16::<{ offset_of!(UdpHdr, dst) }>(),
            protocol: at.protocol as u32,
        },
        flags,
    })
}
