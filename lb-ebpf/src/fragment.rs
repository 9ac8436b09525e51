//! Fragments of datagrams for a VIP. Only the first has the ports, so they are kept for the others,
//! which go where the first went. Nothing is put together, and nothing waits: a fragment that comes
//! before the first of its datagram is dropped.
//!
//! NAT cannot serve them: behind one source address the identifications of different clients
//! collide, and the ports' checksum is in the first only (RFC 4787, section 11, REQ-14).

use core::mem::offset_of;

use aya_ebpf::bindings::{BPF_ANY, xdp_md};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{FRAGMENT_LIFETIME, FlowKey, Forwarding, Fragment, FragmentKey};
use lb_common::verdict::Verdict;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::fate::Fate;
use crate::maps::FRAGMENTS;
use crate::packet::Packet;
use crate::parse::{self, FRAGMENT, FRAGMENTED_IPV6, Headers, Located, TCP, UDP};
use crate::{clock, forward, select};

/// What a fragment says of itself.
struct Part {
    /// As it stands in the packet.
    id: u32,
    /// It begins the datagram.
    is_first: bool,
    /// Bytes of the datagram that it has, by the IP header.
    length: u32,
}

/// Serves a packet that was refused as a fragment for a VIP. A function of its own: rare, and large.
#[inline(never)]
pub fn serve(ctx: *mut xdp_md) -> Fate {
    let packet = &Packet::new(&XdpContext::new(ctx));
    read(packet).unwrap_or_else(|verdict| Fate::refused(0, verdict))
}

#[inline(always)]
fn read(packet: &Packet) -> Result<Fate, Verdict> {
    let (ethertype, l3) = parse::ethernet(packet)?;
    match ethertype {
        parse::IPV4 => {
            let (at, part) = ipv4(packet, l3)?;
            balance::<false>(packet, l3, at, &part)
        }
        parse::IPV6 => {
            let (at, part) = ipv6(packet, l3)?;
            balance::<true>(packet, l3, at, &part)
        }
        _ => Err(Verdict::PassNotIp),
    }
}

#[inline(always)]
fn ipv4(packet: &Packet, l3: usize) -> Result<(Located, Part), Verdict> {
    let at = parse::locate_ipv4(packet, l3)?;
    let ip = packet
        .window::<{ Ipv4Hdr::LEN }>(l3)
        .ok_or(Verdict::DropMalformed)?;
    let total = u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>()) as u32;
    let header = (ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() & 0x0f) as u32 * 4;
    let part = Part {
        id: ip.u16::<{ offset_of!(Ipv4Hdr, id) }>() as u32,
        is_first: ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x1fffu16.to_be() == 0,
        length: total.saturating_sub(header),
    };
    Ok((at, part))
}

#[inline(always)]
fn ipv6(packet: &Packet, l3: usize) -> Result<(Located, Part), Verdict> {
    let mut at = parse::locate_ipv6(packet, l3)?;
    if at.protocol != FRAGMENT {
        return Err(Verdict::DropFragment);
    }
    let ip = packet
        .window::<{ Ipv6Hdr::LEN }>(l3)
        .ok_or(Verdict::DropMalformed)?;
    let header = packet.window::<8>(at.l4).ok_or(Verdict::DropMalformed)?;
    let offset_mask = FRAGMENTED_IPV6 & !1u16.to_be();
    at.protocol = header.u8::<0>();
    at.l4 += 8;
    let payload = u16::from_be(ip.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>()) as u32;
    let before = (at.l4 - l3 - Ipv6Hdr::LEN) as u32;
    let part = Part {
        id: header.u32::<4>(),
        is_first: header.u16::<2>() & offset_mask == 0,
        length: payload.saturating_sub(before),
    };
    Ok((at, part))
}

#[inline(always)]
fn balance<const V6: bool>(
    packet: &Packet,
    l3: usize,
    at: Located,
    part: &Part,
) -> Result<Fate, Verdict> {
    let headers = headers::<V6>(packet, l3, at, part)?;
    let flow = &headers.flow;
    let service = select::service(flow).ok_or(Verdict::PassNoService)?;
    if service.forwarding == Forwarding::Nat as u8 {
        return Ok(Fate::refused(service.id, Verdict::DropFragmentNat));
    }
    forward::keep(flow)?;
    Ok(Fate::direct((l3 - packet.start()) as u32, V6, false))
}

/// The headers of a first fragment, whose ports are kept; of a later one by what was kept.
#[inline(always)]
fn headers<const V6: bool>(
    packet: &Packet,
    l3: usize,
    at: Located,
    part: &Part,
) -> Result<Headers<V6>, Verdict> {
    let least = match at.protocol {
        TCP => TcpHdr::LEN,
        UDP => UdpHdr::LEN,
        // The ports are behind more headers, perhaps in another fragment.
        protocol if V6 && parse::is_extension_header(protocol) => {
            return Err(Verdict::DropFragment);
        }
        _ => return Err(Verdict::PassOtherProtocol),
    };
    let key = FragmentKey {
        src: at.src,
        dst: at.dst,
        id: part.id,
        protocol: at.protocol as u32,
    };
    let now = clock::seconds();
    if part.is_first {
        // What is behind the end that IP tells would be the frame's padding.
        if (part.length as usize) < least {
            return Err(Verdict::DropMalformed);
        }
        let headers = parse::transport(packet, l3, at)?;
        let ports = Fragment {
            sport: headers.flow.sport,
            dport: headers.flow.dport,
            seen: now,
        };
        FRAGMENTS
            .insert(&key, &ports, BPF_ANY as u64)
            .map_err(|_| Verdict::DropFragment)?;
        return Ok(headers);
    }
    if part.length == 0 || packet.window::<1>(at.l4).is_none() {
        return Err(Verdict::DropMalformed);
    }
    // SAFETY: entries are preallocated; a racing eviction leaves readable memory of this type.
    let ports = unsafe { FRAGMENTS.get(&key) }
        .filter(|ports| now.wrapping_sub(ports.seen) <= FRAGMENT_LIFETIME)
        .ok_or(Verdict::DropFragment)?;
    Ok(Headers {
        l3,
        l4: at.l4,
        flow: FlowKey {
            src: at.src,
            dst: at.dst,
            sport: ports.sport,
            dport: ports.dport,
            protocol: at.protocol as u32,
        },
        flags: 0,
    })
}
