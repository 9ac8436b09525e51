//! The answer to a packet that is too long for its tunnel: ICMP "fragmentation needed" (RFC 1191,
//! section 4) or ICMPv6 "packet too big" (RFC 4443, section 3.2), from the VIP, made out of the
//! packet itself.
//!
//! Their rate is not limited as a router's should be (RFC 4443, section 2.4): each is a tenth as long
//! as the packet it answers, which nobody gains by, and clients ask seldom once they have been told.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use crate::forward::{TTL, macs, reversed, set_macs};
use crate::packet::{Packet, Window};
use crate::parse;

/// Bytes of the packet that the answer quotes. The client needs the IP header with its options or
/// extension headers and the ports behind; all that RFC 4443 would allow (1,232 bytes) tells it no
/// more.
const QUOTE: usize = 128;
const ICMP_LEN: usize = 8;
/// Precedence "internetwork control", which routers' ICMP errors have (RFC 1812, section 4.3.2.5).
const CONTROL: u8 = 0xc0;

/// Ethernet addresses of the answer, and the two words behind them: type and VLAN tags.
struct Link {
    macs: [u32; 3],
    tags: [u32; 2],
}

/// Turns the packet into its answer, which says that `room` bytes are what fits. A function of its
/// own: rare, and large.
#[inline(never)]
pub fn too_big(ctx: *mut xdp_md, room: u16) -> bool {
    let packet = Packet::new(&XdpContext::new(ctx));
    answer(&packet, room).is_some()
}

#[inline(always)]
fn answer(packet: &Packet, room: u16) -> Option<()> {
    let (ethertype, l3) = parse::ethernet(packet).ok()?;
    // What the parser allows at the most, for the verifier.
    let offset = (l3 - packet.start()) & 0x1f;
    let front = packet.window::<20>(packet.start())?;
    let link = Link {
        macs: reversed(macs(front)),
        tags: [front.u32::<12>(), front.u32::<16>()],
    };
    packet.window::<QUOTE>(l3)?;
    let packet = packet.cut(l3 + QUOTE)?;
    match ethertype {
        parse::IPV4 => ipv4(packet.grow(HEADERS4 as i32)?, offset, &link, room),
        parse::IPV6 => ipv6(packet.grow(HEADERS6 as i32)?, offset, &link, room),
        _ => None,
    }
}

const HEADERS4: usize = Ipv4Hdr::LEN + ICMP_LEN;
const HEADERS6: usize = Ipv6Hdr::LEN + ICMP_LEN;

/// Writes the Ethernet header, back to where the packet came from.
#[inline(always)]
fn back(packet: &Packet, link: &Link) -> Option<()> {
    let front = packet.window::<20>(packet.start())?;
    set_macs(front, &link.macs);
    front.set_u32::<12>(link.tags[0]);
    front.set_u32::<16>(link.tags[1]);
    Some(())
}

#[inline(always)]
fn ipv4(packet: Packet, l3: usize, link: &Link, room: u16) -> Option<()> {
    back(&packet, link)?;
    let l3 = packet.start() + l3;
    let all: Window<{ HEADERS4 + QUOTE }> = packet.window(l3)?;
    let (client, vip) = (
        all.u32::<{ HEADERS4 + offset_of!(Ipv4Hdr, src_addr) }>(),
        all.u32::<{ HEADERS4 + offset_of!(Ipv4Hdr, dst_addr) }>(),
    );
    let [high, low] = ((HEADERS4 + QUOTE) as u16).to_be_bytes();
    let first = u32::from_ne_bytes([0x45, CONTROL, high, low]);
    let life = u32::from_ne_bytes([TTL, IpProto::Icmp as u8, 0, 0]);
    let sum = first as u64 + life as u64 + client as u64 + vip as u64;
    all.set_u32::<0>(first);
    all.set_u32::<4>(0);
    all.set_u32::<8>(life);
    all.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(!checksum::fold(sum));
    all.set_u32::<12>(vip);
    all.set_u32::<16>(client);
    // Destination unreachable, fragmentation needed; the MTU in what was unused once.
    let [high, low] = room.to_be_bytes();
    all.set_u32::<20>(u32::from_ne_bytes([3, 4, 0, 0]));
    all.set_u32::<24>(u32::from_ne_bytes([0, 0, high, low]));
    let icmp: Window<{ ICMP_LEN + QUOTE }> = packet.window(l3 + Ipv4Hdr::LEN)?;
    icmp.set_u16::<2>(!checksum::fold(icmp.sum()));
    Some(())
}

#[inline(always)]
fn ipv6(packet: Packet, l3: usize, link: &Link, room: u16) -> Option<()> {
    back(&packet, link)?;
    let l3 = packet.start() + l3;
    let all: Window<{ HEADERS6 + QUOTE }> = packet.window(l3)?;
    let length = (ICMP_LEN + QUOTE) as u16;
    let [high, low] = length.to_be_bytes();
    all.set_u32::<0>(u32::from_ne_bytes([0x60, 0, 0, 0]));
    all.set_u32::<4>(u32::from_ne_bytes([
        high,
        low,
        IpProto::Ipv6Icmp as u8,
        TTL,
    ]));
    // From the VIP, which the packet was for, to its source.
    all.set_u32::<8>(all.u32::<{ HEADERS6 + 24 }>());
    all.set_u32::<12>(all.u32::<{ HEADERS6 + 28 }>());
    all.set_u32::<16>(all.u32::<{ HEADERS6 + 32 }>());
    all.set_u32::<20>(all.u32::<{ HEADERS6 + 36 }>());
    all.set_u32::<24>(all.u32::<{ HEADERS6 + 8 }>());
    all.set_u32::<28>(all.u32::<{ HEADERS6 + 12 }>());
    all.set_u32::<32>(all.u32::<{ HEADERS6 + 16 }>());
    all.set_u32::<36>(all.u32::<{ HEADERS6 + 20 }>());
    all.set_u32::<40>(u32::from_ne_bytes([2, 0, 0, 0]));
    all.set_u32::<44>((room as u32).to_be());
    // With the pseudo-header (RFC 8200, section 8.1): addresses, length, protocol.
    let rest: Window<{ 32 + ICMP_LEN + QUOTE }> = packet.window(l3 + 8)?;
    let sum = rest.sum() + length.to_be() as u64 + (IpProto::Ipv6Icmp as u16).to_be() as u64;
    all.set_u16::<42>(!checksum::fold(sum));
    Some(())
}
