//! IP-in-IP and GUE: the packet goes to the backend's address inside an outer header, over as many
//! routers as there are. The backend takes the outer header off, owns the VIP and answers the client
//! itself.
//!
//! Traffic class and ECN are copied outwards (RFC 2983, RFC 6040); the outer TTL is a new one and
//! the inner counts this host as one hop (RFC 2003, section 3.1). An outer IPv4 header forbids
//! fragmentation, so its id may be 0 (RFC 6864). GUE's UDP checksum is 0, which tunnels may do over
//! IPv6 too (RFC 6935, RFC 6936): the inner packet has its own.

use core::mem::offset_of;

use lb_common::abi::{Backend, Hop, IPV4_LEN, IPV6_LEN, UDP_LEN};
use lb_common::checksum;
use lb_common::verdict::Verdict;
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use crate::atomic::opaque_long;
use crate::forward::{TTL, decrement_ttl, send};
use crate::packet::Packet;
use crate::parse::{IPV4, IPV6, UDP};

/// "Don't fragment", in the word of flags and fragment offset.
pub const DONT_FRAGMENT: u16 = 0x4000u16.to_be();
/// First UDP source port: the dynamic range, out of which GUE's entropy is to come
/// (RFC 6335, section 6; draft-ietf-intarea-gue-09, section 5.11).
const FIRST_PORT: u16 = 0xc000;

/// Length of two VLAN tags and an EtherType.
const FRONT: usize = 10;

/// What the outer header takes from the inner.
struct Inner {
    /// From the IP header on.
    length: u32,
    /// Type of service or traffic class, with ECN.
    class: u8,
    /// Whether a router may cut it up.
    fragments: bool,
    /// The words up to the EtherType: VLAN tags if there are any.
    tags: [u32; 2],
}

/// What came of a packet.
pub enum Put {
    /// It is in its tunnel; the XDP action.
    Sent(u32),
    /// Too long by the outer header, where `room` bytes would fit.
    TooLong { room: u16 },
}

/// Puts a packet, whose IP header is at the place `l3`, into the tunnel to a backend. Outer headers
/// vary with the flow's `hash`.
#[inline(always)]
pub fn put_in<const V6: bool>(
    packet: &Packet,
    l3: usize,
    backend: &Backend,
    hop: &Hop,
    hash: u32,
) -> Result<Put, Verdict> {
    // First this: what there is room for is known with the way.
    if hop.ifindex == 0 {
        return Err(Verdict::DropNoNeighbor);
    }
    let front = front(packet, l3);
    let inner = inner::<V6>(packet, front).ok_or(Verdict::DropMalformed)?;
    // Read once: the agent may change it at any moment.
    // SAFETY: a reference is valid to read from.
    let gue_port = unsafe { (&raw const backend.gue_port).read_volatile() };
    let ip = if backend.family == 4 {
        IPV4_LEN
    } else {
        IPV6_LEN
    };
    let overhead = if gue_port == 0 { ip } else { ip + UDP_LEN } as u32;
    if inner.length + overhead > backend.mtu {
        return if inner.fragments {
            Err(Verdict::DropTooBig)
        } else {
            let room = backend.mtu.saturating_sub(overhead) as u16;
            Ok(Put::TooLong { room })
        };
    }
    let outer = Outer::<V6> {
        hash,
        front,
        backend,
        inner,
        gue_port,
    };
    outer.wrap(packet, hop, overhead).map(Put::Sent)
}

/// Offset of the bytes before the IP header that are looked at with it: two VLAN tags, or what
/// stands where tags would, and the EtherType. In ignorance of where that is, LLVM does not leave
/// out or move checks that the verifier wants to see.
#[inline(always)]
fn front(packet: &Packet, l3: usize) -> usize {
    (opaque_long((l3 - packet.start() - FRONT) as u64) & 0x1f) as usize
}

#[inline(always)]
fn inner<const V6: bool>(packet: &Packet, front: usize) -> Option<Inner> {
    let all = packet.window::<{ FRONT + Ipv4Hdr::LEN }>(packet.start() + front)?;
    let tags = [all.u32::<0>(), all.u32::<4>()];
    let inner = if V6 {
        let payload = u16::from_be(all.u16::<{ FRONT + offset_of!(Ipv6Hdr, payload_len) }>());
        Inner {
            length: Ipv6Hdr::LEN as u32 + payload as u32,
            class: (u16::from_be(all.u16::<FRONT>()) >> 4) as u8,
            fragments: false,
            tags,
        }
    } else {
        let frags = all.u16::<{ FRONT + offset_of!(Ipv4Hdr, frags) }>();
        Inner {
            length: u16::from_be(all.u16::<{ FRONT + offset_of!(Ipv4Hdr, tot_len) }>()) as u32,
            class: all.u8::<{ FRONT + offset_of!(Ipv4Hdr, tos) }>(),
            fragments: frags & DONT_FRAGMENT == 0,
            tags,
        }
    };
    // A frame may be longer than its packet, by padding, but not shorter.
    let there = packet.len() - front - FRONT;
    (inner.length as usize <= there).then_some(inner)
}

/// What the outer headers are made from.
struct Outer<'a, const V6: bool> {
    hash: u32,
    front: usize,
    backend: &'a Backend,
    inner: Inner,
    /// In network order; 0 for IP-in-IP.
    gue_port: u16,
}

impl<const V6: bool> Outer<'_, V6> {
    /// Counts one hop off the inner packet and puts the outer headers before it.
    #[inline(always)]
    fn wrap(&self, packet: &Packet, hop: &Hop, overhead: u32) -> Result<u32, Verdict> {
        decrement_ttl::<V6>(packet, packet.start() + self.front + FRONT)?;
        let packet = packet
            .grow(overhead as i32)
            .ok_or(Verdict::DropNoHeadroom)?;
        // First this: where there are no tags, it writes over the addresses.
        self.write(&packet).ok_or(Verdict::DropMalformed)?;
        send(&packet, hop)
    }

    #[inline(always)]
    fn write(&self, packet: &Packet) -> Option<()> {
        let length = self.inner.length as u16;
        let (protocol, payload) = match self.gue_port {
            0 if V6 => (IpProto::Ipv6 as u8, length),
            0 => (IpProto::Ipv4 as u8, length),
            _ => (UDP, length + UDP_LEN),
        };
        let behind = if self.backend.family == 4 {
            self.ipv4(packet, protocol, payload)
        } else {
            self.ipv6(packet, protocol, payload)
        }?;
        if self.gue_port == 0 {
            return Some(());
        }
        self.udp(packet, behind, payload)
    }

    /// Writes tags, type and an IP header; gives the place behind.
    #[inline(always)]
    fn ipv4(&self, packet: &Packet, protocol: u8, payload: u16) -> Option<usize> {
        let ip = packet.window::<{ FRONT + Ipv4Hdr::LEN }>(packet.start() + self.front)?;
        let [high, low] = (payload + IPV4_LEN).to_be_bytes();
        let first = u32::from_ne_bytes([0x45, self.inner.class, high, low]);
        let fragment = u32::from_ne_bytes([0, 0, 0x40, 0]);
        let life = u32::from_ne_bytes([TTL, protocol, 0, 0]);
        let src = self.source();
        let dst = self.backend.addr.last_word();
        let sum = first as u64 + fragment as u64 + life as u64 + src as u64 + dst as u64;
        ip.set_u32::<0>(self.inner.tags[0]);
        ip.set_u32::<4>(self.inner.tags[1]);
        ip.set_u16::<8>(IPV4);
        ip.set_u32::<10>(first);
        ip.set_u32::<14>(fragment);
        ip.set_u32::<18>(life);
        ip.set_u16::<20>(!checksum::fold(sum));
        ip.set_u32::<22>(src);
        ip.set_u32::<26>(dst);
        Some(packet.start() + self.front + FRONT + Ipv4Hdr::LEN)
    }

    /// The same. The flow label tells flows apart on the way (RFC 6438).
    #[inline(always)]
    fn ipv6(&self, packet: &Packet, protocol: u8, payload: u16) -> Option<usize> {
        let ip = packet.window::<{ FRONT + Ipv6Hdr::LEN }>(packet.start() + self.front)?;
        let label = self.hash & 0xf_ffff;
        let first = 6 << 28 | (self.inner.class as u32) << 20 | label;
        let [high, low] = payload.to_be_bytes();
        let src = self.backend.source.words();
        ip.set_u32::<0>(self.inner.tags[0]);
        ip.set_u32::<4>(self.inner.tags[1]);
        ip.set_u16::<8>(IPV6);
        ip.set_u32::<10>(first.to_be());
        ip.set_u32::<14>(u32::from_ne_bytes([high, low, protocol, TTL]));
        ip.set_u32::<18>(src[0]);
        ip.set_u32::<22>(src[1]);
        ip.set_u32::<26>(src[2]);
        ip.set_u32::<30>(self.source());
        ip.set_addr::<34>(&self.backend.addr);
        Some(packet.start() + self.front + FRONT + Ipv6Hdr::LEN)
    }

    /// Last word of the outer source address.
    #[inline(always)]
    fn source(&self) -> u32 {
        self.backend.source.last_word() | self.hash.to_be() & self.backend.source_bits
    }

    /// GUE, variant 1: a UDP header right in front of the inner packet, whose first bits say which
    /// version of IP it is.
    #[inline(always)]
    fn udp(&self, packet: &Packet, at: usize, length: u16) -> Option<()> {
        let udp = packet.window::<{ UDP_LEN as usize }>(at)?;
        udp.set_u16::<0>((FIRST_PORT | self.hash as u16).to_be());
        udp.set_u16::<2>(self.gue_port);
        udp.set_u16::<4>(length.to_be());
        udp.set_u16::<6>(0);
        Some(())
    }
}
