//! IP-in-IP and GUE: the packet goes to the backend's address inside an outer header, over as many
//! routers as there are. The backend takes the outer header off, owns the VIP and answers the client
//! itself.
//!
//! Traffic class and ECN are copied outwards (RFC 2983, RFC 6040); the outer TTL is a new one and
//! the inner counts this host as one hop (RFC 2003, section 3.1). An outer IPv4 header forbids
//! fragmentation, so its id may be 0 (RFC 6864). GUE's UDP checksum is 0, which tunnels may do over
//! IPv6 too (RFC 6935, RFC 6936): the inner packet has its own.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Addr, Backend, IPV4_LEN, IPV6_LEN, UDP_LEN};
use lb_common::checksum;
use lb_common::slot::BackendIndex;
use lb_common::verdict::Verdict;
use network_types::eth::EthHdr;
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};
use network_types::vlan::VlanHdr;

use crate::count::{self, Kind};
use crate::forward::{TTL, decrement_ttl, hop, send};
use crate::packet::Packet;
use crate::parse::{IPV4, IPV6, UDP};
use crate::{Packed, Refusal, select};

/// "Don't fragment", in the word of flags and fragment offset.
pub const DONT_FRAGMENT: u16 = 0x4000u16.to_be();
/// First UDP source port: the dynamic range, out of which GUE's entropy is to come
/// (RFC 6335, section 6; draft-ietf-intarea-gue-09, section 5.11).
const FIRST_PORT: u16 = 0xc000;

/// A packet and the backend whose tunnel it goes into, in 51 bits: flow hash, number of the
/// backend, VLAN tags, what is counted, family.
#[derive(Clone, Copy)]
pub struct Order(u64);

impl Order {
    /// `l3` is the offset of the IP header.
    #[inline(always)]
    pub fn new<const V6: bool>(backend: BackendIndex, hash: u32, l3: usize, kind: Kind) -> Self {
        let tags = ((l3 - EthHdr::LEN) / VlanHdr::LEN) as u64 & 3;
        Self(
            hash as u64
                | (backend as u64 & 0x3fff) << 32
                | tags << 46
                | (kind as u64) << 48
                | (V6 as u64) << 50,
        )
    }

    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline(always)]
    fn hash(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    fn backend(self) -> BackendIndex {
        (self.0 >> 32) as u16 & 0x3fff
    }

    /// Offset of the IP header.
    #[inline(always)]
    fn l3(self) -> usize {
        EthHdr::LEN + ((self.0 >> 46) as usize & 3) * VlanHdr::LEN
    }

    #[inline(always)]
    fn kind(self) -> Kind {
        match self.0 >> 48 & 3 {
            0 => Kind::Ordinary,
            1 => Kind::Opens,
            _ => Kind::ByPrevious,
        }
    }

    #[inline(always)]
    fn v6(self) -> bool {
        self.0 >> 50 & 1 != 0
    }
}

/// What the outer header takes from the inner.
struct Inner {
    /// From the IP header on.
    length: u32,
    /// Type of service or traffic class, with ECN.
    class: u8,
    /// Whether a router may cut it up.
    fragments: bool,
}

/// A function of its own: the verifier goes through it once for all that leads here.
#[inline(never)]
pub fn encapsulate(ctx: *mut xdp_md, order: Order) -> Packed {
    let packet = Packet::new(&XdpContext::new(ctx));
    let bytes = packet.len() as u64;
    // Held by its slot, or its record, a moment ago.
    let Some(backend) = select::backend(order.backend()) else {
        return Packed::pack(Err(Refusal::new(0, Verdict::DropNoBackend)));
    };
    let sent = wrap(packet, order, backend);
    if sent.is_ok() {
        count::forwarded(order.backend(), bytes, order.kind());
    }
    Packed::pack(sent.map_err(|(verdict, room)| Refusal {
        service: backend.service,
        verdict,
        room,
    }))
}

/// The action, or the verdict and the room for an inner packet.
#[inline(always)]
fn wrap(packet: Packet, order: Order, backend: &Backend) -> Result<u32, (Verdict, u16)> {
    let refuse = |verdict| (verdict, 0);
    let hop = hop(backend);
    if hop.ifindex == 0 {
        return Err(refuse(Verdict::DropNoNeighbor));
    }
    let inner = inner(&packet, order).ok_or(refuse(Verdict::DropMalformed))?;
    if inner.length as usize > packet.len() - order.l3() {
        return Err(refuse(Verdict::DropMalformed));
    }
    let gue = backend.gue_port != 0;
    let outer_v4 = backend.family == 4;
    let ip = if outer_v4 { IPV4_LEN } else { IPV6_LEN };
    let overhead = if gue { ip + UDP_LEN } else { ip } as u32;
    if inner.length + overhead > backend.mtu {
        let room = backend.mtu.saturating_sub(overhead) as u16;
        return Err(if inner.fragments {
            refuse(Verdict::DropTooBig)
        } else {
            (Verdict::TooBig, room)
        });
    }
    let l3 = packet.start() + order.l3();
    if order.v6() {
        decrement_ttl::<true>(&packet, l3).map_err(refuse)?;
    } else {
        decrement_ttl::<false>(&packet, l3).map_err(refuse)?;
    }
    let front = packet
        .window::<20>(packet.start())
        .ok_or(refuse(Verdict::DropMalformed))?;
    // EtherType and VLAN tags, or what stands where tags would.
    let (tags, more_tags) = (front.u32::<12>(), front.u32::<16>());

    let packet = packet
        .grow(overhead as i32)
        .ok_or(refuse(Verdict::DropNoHeadroom))?;
    let front = packet
        .window::<20>(packet.start())
        .ok_or(refuse(Verdict::DropMalformed))?;
    front.set_u32::<12>(tags);
    front.set_u32::<16>(more_tags);
    let length = inner.length as u16;
    let payload = if gue { length + UDP_LEN } else { length };
    let protocol = match (gue, order.v6()) {
        (true, _) => UDP,
        (false, false) => IpProto::Ipv4 as u8,
        (false, true) => IpProto::Ipv6 as u8,
    };
    let outer = Outer {
        class: inner.class,
        payload,
        protocol,
    };
    let at = packet.start() + order.l3();
    let behind = if outer_v4 {
        outer.ipv4(&packet, at, order, backend)
    } else {
        outer.ipv6(&packet, at, order, backend)
    };
    let behind = behind.ok_or(refuse(Verdict::DropMalformed))?;
    if gue {
        udp(&packet, behind, order, backend, payload).ok_or(refuse(Verdict::DropMalformed))?;
    }
    send(&packet, hop).map_err(refuse)
}

#[inline(always)]
fn inner(packet: &Packet, order: Order) -> Option<Inner> {
    let ip = packet.window::<{ Ipv4Hdr::LEN }>(packet.start() + order.l3())?;
    Some(if order.v6() {
        let payload = u16::from_be(ip.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>());
        Inner {
            length: Ipv6Hdr::LEN as u32 + payload as u32,
            class: (u16::from_be(ip.u16::<0>()) >> 4) as u8,
            fragments: false,
        }
    } else {
        let frags = ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>();
        Inner {
            length: u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>()) as u32,
            class: ip.u8::<{ offset_of!(Ipv4Hdr, tos) }>(),
            fragments: frags & DONT_FRAGMENT == 0,
        }
    })
}

struct Outer {
    class: u8,
    /// Length of what follows the outer IP header.
    payload: u16,
    protocol: u8,
}

impl Outer {
    /// Writes the header to `at` and its type before it; gives the place behind.
    #[inline(always)]
    fn ipv4(&self, packet: &Packet, at: usize, order: Order, backend: &Backend) -> Option<usize> {
        let ip = packet.window::<{ 2 + Ipv4Hdr::LEN }>(at - 2)?;
        let [high, low] = (self.payload + IPV4_LEN).to_be_bytes();
        let first = u32::from_ne_bytes([0x45, self.class, high, low]);
        let fragment = u32::from_ne_bytes([0, 0, 0x40, 0]);
        let life = u32::from_ne_bytes([TTL, self.protocol, 0, 0]);
        let src = source(backend, order);
        let dst = backend.addr.0[3];
        let sum = first as u64 + fragment as u64 + life as u64 + src as u64 + dst as u64;
        ip.set_u16::<0>(IPV4);
        ip.set_u32::<2>(first);
        ip.set_u32::<6>(fragment);
        ip.set_u32::<10>(life);
        ip.set_u16::<12>(!checksum::fold(sum));
        ip.set_u32::<14>(src);
        ip.set_u32::<18>(dst);
        Some(at + Ipv4Hdr::LEN)
    }

    /// The same. The flow label tells flows apart on the way (RFC 6438).
    #[inline(always)]
    fn ipv6(&self, packet: &Packet, at: usize, order: Order, backend: &Backend) -> Option<usize> {
        let ip = packet.window::<{ 2 + Ipv6Hdr::LEN }>(at - 2)?;
        let first = 6 << 28 | (self.class as u32) << 20 | order.hash() & 0xf_ffff;
        let [high, low] = self.payload.to_be_bytes();
        let Addr(src) = &backend.source;
        let Addr(dst) = &backend.addr;
        ip.set_u16::<0>(IPV6);
        ip.set_u32::<2>(first.to_be());
        ip.set_u32::<6>(u32::from_ne_bytes([high, low, self.protocol, TTL]));
        ip.set_u32::<10>(src[0]);
        ip.set_u32::<14>(src[1]);
        ip.set_u32::<18>(src[2]);
        ip.set_u32::<22>(source(backend, order));
        ip.set_u32::<26>(dst[0]);
        ip.set_u32::<30>(dst[1]);
        ip.set_u32::<34>(dst[2]);
        ip.set_u32::<38>(dst[3]);
        Some(at + Ipv6Hdr::LEN)
    }
}

/// Last word of the outer source address.
#[inline(always)]
fn source(backend: &Backend, order: Order) -> u32 {
    backend.source.0[3] | order.hash().to_be() & backend.source_bits
}

/// GUE, variant 1: a UDP header right in front of the inner packet, whose first bits say which
/// version of IP it is.
#[inline(always)]
fn udp(packet: &Packet, at: usize, order: Order, backend: &Backend, length: u16) -> Option<()> {
    let udp = packet.window::<{ UDP_LEN as usize }>(at)?;
    udp.set_u16::<0>((FIRST_PORT | order.hash() as u16).to_be());
    udp.set_u16::<2>(backend.gue_port);
    udp.set_u16::<4>(length.to_be());
    udp.set_u16::<6>(0);
    Some(())
}
