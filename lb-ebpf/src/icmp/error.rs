//! ICMP errors: which flow one is about, by the packet that it quotes.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Addr, FlowKey, Forwarding};
use lb_common::verdict::Verdict;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::fate::Fate;
use crate::icmp::{HEADER, LEFT, Message, message};
use crate::packet::{Packet, unknown};
use crate::parse::{FRAGMENT, FRAGMENTED_IPV6, Headers, TCP, UDP};
use crate::{count, forward, select};

/// What every error quotes of the header behind IP, at the least (RFC 792): TCP's and UDP's ports.
const QUOTED: usize = 8;

/// Sends an error on, or leaves it to the host if it is about no flow of ours. A function of its
/// own, and one for each family: the kernel adds up the stacks of what is nested.
#[inline(never)]
pub fn serve<const V6: bool>(ctx: *mut xdp_md, l3: u32) -> Fate {
    let packet = &Packet::new(&XdpContext::new(ctx));
    read::<V6>(packet, l3).unwrap_or(LEFT)
}

#[inline(always)]
fn read<const V6: bool>(packet: &Packet, l3: u32) -> Option<Fate> {
    let message = message::<V6>(packet, l3)?;
    let (start, length) = (message.l4 + HEADER, message.length - HEADER);
    let quote = if V6 {
        quoted_ipv6(packet, start, length)?
    } else {
        quoted_ipv4(packet, start, length)?
    };
    send_on(packet, &message, &quote)
}

/// The packet that an error quotes.
pub struct Quote {
    /// Place of its IP header.
    pub l3: usize,
    /// Place of its TCP or UDP header.
    pub l4: usize,
    /// How much of that header and its payload is quoted, in bytes.
    pub length: usize,
    /// The flow as the other end of it sends: the quoted addresses and ports, exchanged.
    pub flow: FlowKey,
}

#[inline(always)]
fn quoted_ipv4(packet: &Packet, l3: usize, length: usize) -> Option<Quote> {
    let ip = packet.window::<{ Ipv4Hdr::LEN }>(l3)?;
    let version_and_length = ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>();
    let header = (version_and_length & 0x0f) as usize * 4;
    // Only the first fragment has the ports.
    let offset = ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x1fffu16.to_be();
    if version_and_length >> 4 != 4 || header < Ipv4Hdr::LEN || offset != 0 {
        return None;
    }
    let sender = Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, src_addr) }>());
    let receiver = Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>());
    let protocol = ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>();
    let length = length.checked_sub(header)?;
    quoted(packet, l3, l3 + header, length, sender, receiver, protocol)
}

#[inline(always)]
fn quoted_ipv6(packet: &Packet, l3: usize, length: usize) -> Option<Quote> {
    let ip = packet.window::<{ Ipv6Hdr::LEN }>(l3)?;
    if ip.u8::<0>() >> 4 != 6 {
        return None;
    }
    let sender = ip.addr::<{ offset_of!(Ipv6Hdr, src_addr) }>();
    let receiver = ip.addr::<{ offset_of!(Ipv6Hdr, dst_addr) }>();
    let mut protocol = ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>();
    let mut header = 0;
    // The one extension header that a backend's kernel puts in by itself, into large datagrams.
    if protocol == FRAGMENT {
        let fragment = packet.window::<8>(l3 + Ipv6Hdr::LEN)?;
        // Only the first has the ports.
        if fragment.u16::<2>() & FRAGMENTED_IPV6 & !1u16.to_be() != 0 {
            return None;
        }
        protocol = fragment.u8::<0>();
        header = 8;
    }
    let header = Ipv6Hdr::LEN + unknown::<0x8>(header)?;
    let length = length.checked_sub(header)?;
    quoted(packet, l3, l3 + header, length, sender, receiver, protocol)
}

#[inline(always)]
fn quoted(
    packet: &Packet,
    l3: usize,
    l4: usize,
    length: usize,
    sender: Addr,
    receiver: Addr,
    protocol: u8,
) -> Option<Quote> {
    if length < QUOTED || (protocol != TCP && protocol != UDP) {
        return None;
    }
    let ports = packet.window::<QUOTED>(l4)?;
    Some(Quote {
        l3,
        l4,
        length,
        flow: FlowKey {
            src: receiver,
            dst: sender,
            sport: ports.u16::<2>(),
            dport: ports.u16::<0>(),
            protocol: protocol as u32,
        },
    })
}

/// Sends an error where the next packet of its flow would go.
#[inline(always)]
fn send_on<const V6: bool>(packet: &Packet, message: &Message<V6>, quote: &Quote) -> Option<Fate> {
    let flow = &quote.flow;
    // The quoted packet must come from where the error was sent to. Not `!=`, which makes LLVM 22
    // crash here.
    if flow.dst.difference(&message.dst) != 0 {
        return None;
    }
    let headers = &Headers::<V6> {
        l3: message.l3,
        l4: message.l4,
        flow: FlowKey {
            src: message.src,
            dst: message.dst,
            ..*flow
        },
        flags: 0,
    };
    let service = select::service(flow);
    if let Some(service) = service
        && service.forwarding != Forwarding::Nat as u8
    {
        let l3 = (message.l3 - packet.start()) as u32;
        return Some(match forward::keep(flow) {
            Ok(()) => Fate::direct(l3, V6, true),
            Err(verdict) => Fate::refused(service.id, verdict),
        });
    }
    let Some(known) = forward::nat_icmp::known(flow) else {
        return service.map(|service| Fate::refused(service.id, Verdict::DropIcmpNoFlow));
    };
    if message.is_unreachable() {
        known.unreachable();
    }
    let sent = forward::nat_icmp::error(packet, headers, quote, &known);
    let id = known.service();
    Some(match sent {
        Ok(fate) => {
            count::verdict(id, Verdict::IcmpError);
            fate
        }
        Err(verdict) => Fate::refused(id, verdict),
    })
}
