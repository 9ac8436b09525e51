//! From a frame to addresses and ports. The destination filter comes first: traffic for other
//! hosts pays for an Ethernet header, one address and one look-up.

use core::mem::offset_of;

use lb_common::abi::Addr;
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
    pub src: Addr,
    pub dst: Addr,
    /// In network order.
    pub sport: u16,
    /// In network order.
    pub dport: u16,
    pub protocol: u8,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
}

impl<const V6: bool> Headers<V6> {
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol == TCP
    }

    /// First packet of a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
    }
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

/// Destination of an IP packet.
#[inline(always)]
pub fn destination(packet: &Packet) -> Option<Addr> {
    let (ethertype, l3) = ethernet(packet).ok()?;
    match ethertype {
        IPV4 => {
            let ip = packet.window::<{ Ipv4Hdr::LEN }>(l3)?;
            Some(Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>()))
        }
        IPV6 => {
            let ip = packet.window::<{ Ipv6Hdr::LEN }>(l3)?;
            Some(ipv6_destination(ip))
        }
        _ => None,
    }
}

#[inline(always)]
fn ipv6_destination(ip: Window<{ Ipv6Hdr::LEN }>) -> Addr {
    Addr([
        ip.u32::<{ offset_of!(Ipv6Hdr, dst_addr) }>(),
        ip.u32::<{ offset_of!(Ipv6Hdr, dst_addr) + 4 }>(),
        ip.u32::<{ offset_of!(Ipv6Hdr, dst_addr) + 8 }>(),
        ip.u32::<{ offset_of!(Ipv6Hdr, dst_addr) + 12 }>(),
    ])
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
/// or that only looks like one of ours in the filter, is left to the host.
#[inline(always)]
fn refuse(dst: &Addr, verdict: Verdict) -> Verdict {
    let unreadable = matches!(
        verdict,
        Verdict::DropMalformed | Verdict::DropFragment | Verdict::DropExtensionHeaders
    );
    if unreadable && !is_vip(dst) {
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
    let dst = Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>());
    if !is_ours(&dst) {
        return Err(Verdict::PassNotVip);
    }
    behind_ipv4(packet, l3, ip, dst).map_err(|verdict| refuse(&dst, verdict))
}

#[inline(always)]
fn behind_ipv4(
    packet: &Packet,
    l3: usize,
    ip: Window<{ Ipv4Hdr::LEN }>,
    dst: Addr,
) -> Result<Headers<false>, Verdict> {
    let src = Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, src_addr) }>());
    let length = (ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() & 0x0f) as usize * 4;
    let protocol = ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>();
    if length < Ipv4Hdr::LEN {
        return Err(Verdict::DropMalformed);
    }
    // More-fragments flag or an offset: everything but "don't fragment" and the reserved bit.
    if ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x3fffu16.to_be() != 0 {
        return Err(Verdict::DropFragment);
    }
    transport(packet, l3, l3 + length, src, dst, protocol)
}

#[inline(always)]
pub fn ipv6(packet: &Packet, l3: usize) -> Result<Headers<true>, Verdict> {
    let ip = packet
        .window::<{ Ipv6Hdr::LEN }>(l3)
        .ok_or(Verdict::PassNotIp)?;
    let dst = ipv6_destination(ip);
    if !is_ours(&dst) {
        return Err(Verdict::PassNotVip);
    }
    behind_ipv6(packet, l3, ip, dst).map_err(|verdict| refuse(&dst, verdict))
}

#[inline(always)]
fn behind_ipv6(
    packet: &Packet,
    l3: usize,
    ip: Window<{ Ipv6Hdr::LEN }>,
    dst: Addr,
) -> Result<Headers<true>, Verdict> {
    let src = Addr([
        ip.u32::<{ offset_of!(Ipv6Hdr, src_addr) }>(),
        ip.u32::<{ offset_of!(Ipv6Hdr, src_addr) + 4 }>(),
        ip.u32::<{ offset_of!(Ipv6Hdr, src_addr) + 8 }>(),
        ip.u32::<{ offset_of!(Ipv6Hdr, src_addr) + 12 }>(),
    ]);
    let next = ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>();
    if next == TCP || next == UDP {
        return transport(packet, l3, l3 + Ipv6Hdr::LEN, src, dst, next);
    }
    let (length, protocol) = extension_headers(packet, l3 + Ipv6Hdr::LEN, next)?;
    let length = unknown::<0x3fff>(length).ok_or(Verdict::DropMalformed)?;
    transport(packet, l3, l3 + Ipv6Hdr::LEN + length, src, dst, protocol)
}

/// Length of the extension headers (RFC 8200, section 4) from `start` on, and the protocol behind.
#[inline(always)]
fn extension_headers(packet: &Packet, start: usize, first: u8) -> Result<(usize, u8), Verdict> {
    let (mut length, mut next) = (0, first);
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {}
            FRAGMENT => return Err(Verdict::DropFragment),
            _ => return Ok((length, next)),
        }
        let header = packet
            .window::<8>(start + length)
            .ok_or(Verdict::DropMalformed)?;
        next = header.u8::<0>();
        length += (header.u8::<1>() as usize + 1) * 8;
    }
    match next {
        HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT => Err(Verdict::DropExtensionHeaders),
        _ => Ok((length, next)),
    }
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

#[inline(always)]
fn transport<const V6: bool>(
    packet: &Packet,
    l3: usize,
    l4: usize,
    src: Addr,
    dst: Addr,
    protocol: u8,
) -> Result<Headers<V6>, Verdict> {
    let flags = match protocol {
        TCP => {
            let tcp: Window<{ TcpHdr::LEN }> = packet.window(l4).ok_or(Verdict::DropMalformed)?;
            tcp.u8::<TCP_FLAGS>()
        }
        UDP => 0,
        _ => return Err(Verdict::PassOtherProtocol),
    };
    let ports: Window<{ UdpHdr::LEN }> = packet.window(l4).ok_or(Verdict::DropMalformed)?;
    Ok(Headers {
        l3,
        l4,
        src,
        dst,
        sport: ports.u16::<{ offset_of!(UdpHdr, src) }>(),
        dport: ports.u16::<{ offset_of!(UdpHdr, dst) }>(),
        protocol,
        flags,
    })
}
