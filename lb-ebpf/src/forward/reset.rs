//! The RST that tells a client at once that its flow is gone, made out of the packet that asked
//! (RFC 9293, section 3.10.7.1).

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;

use crate::forward::{TTL, budget, turn_round};
use crate::packet::Packet;
use crate::parse::{self, Headers, Ours, TCP, TCP_FLAGS, flag};

/// A function of its own: rare, and large.
#[inline(never)]
pub fn reset(ctx: *mut xdp_md, ours: Ours) -> Outcome {
    let packet = Packet::new(&XdpContext::new(ctx));
    reset_frame(&packet, ours).unwrap_or(Outcome::Unanswerable)
}

/// What became of a packet that was to be answered with a RST.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// It is one.
    Sent,
    /// It cannot be read, or is a RST, which must not be answered.
    Unanswerable,
    /// As many were sent as may be.
    TooMany,
}

#[inline(always)]
fn reset_frame(packet: &Packet, ours: Ours) -> Option<Outcome> {
    let l3 = ours.l3(packet).ok()?;
    if ours.is_v6() {
        reset_ip(packet, &parse::ipv6(packet, l3).ok()?)
    } else {
        reset_ip(packet, &parse::ipv4(packet, l3).ok()?)
    }
}

#[inline(always)]
fn reset_ip<const V6: bool>(packet: &Packet, headers: &Headers<V6>) -> Option<Outcome> {
    if headers.flags & flag::RST != 0 {
        return None;
    }
    if !budget::allows() {
        return Some(Outcome::TooMany);
    }
    let tcp = packet.window::<{ TcpHdr::LEN }>(headers.l4)?;
    let header = (tcp.u8::<12>() >> 4) as usize * 4;
    let l3_offset = headers.l3 - packet.start();
    let l4_offset = headers.l4 - packet.start();
    let end = l3_offset
        + if V6 {
            let ip = packet.window::<{ Ipv6Hdr::LEN }>(headers.l3)?;
            Ipv6Hdr::LEN + u16::from_be(ip.u16::<{ offset_of!(Ipv6Hdr, payload_len) }>()) as usize
        } else {
            let ip = packet.window::<{ Ipv4Hdr::LEN }>(headers.l3)?;
            u16::from_be(ip.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>()) as usize
        };
    let mut length = end.saturating_sub(l4_offset + header) as u32;
    length += (headers.flags & flag::FIN != 0) as u32 + (headers.flags & flag::SYN != 0) as u32;
    let (sequence, acknowledgement, flags) = if headers.flags & flag::ACK != 0 {
        (tcp.u32::<8>(), 0, flag::RST)
    } else {
        let next = u32::from_be(tcp.u32::<4>()).wrapping_add(length).to_be();
        (0, next, flag::RST | flag::ACK)
    };

    let packet = packet.cut(headers.l4 + TcpHdr::LEN)?;
    // What the parser allows at the most, for the verifier, which has lost sight of it.
    let l3 = packet.start() + (l3_offset & 0x1f);
    let l4 = packet.start() + (l4_offset & 0x3fff);

    // Windows from front to back: a later one implies the earlier, and LLVM would leave out the
    // check that the verifier wants to see.
    let eth = packet.window::<{ EthHdr::LEN }>(packet.start())?;
    let ip4 = packet.window::<{ Ipv4Hdr::LEN }>(l3)?;
    let ip6 = packet.window::<{ Ipv6Hdr::LEN }>(l3);
    turn_round(eth);

    let tcp = packet.window::<{ TcpHdr::LEN }>(l4)?;
    let offset_and_flags = u16::from_be_bytes([5 << 4, flags]).to_be();
    tcp.set_u16::<0>(headers.flow.dport);
    tcp.set_u16::<2>(headers.flow.sport);
    tcp.set_u32::<4>(sequence);
    tcp.set_u32::<8>(acknowledgement);
    tcp.set_u16::<{ TCP_FLAGS - 1 }>(offset_and_flags);
    tcp.set_u16::<14>(0);
    tcp.set_u16::<18>(0);

    let mut sum =
        (headers.flow.sport as u64) + (headers.flow.dport as u64) + offset_and_flags as u64;
    sum += sequence as u64 + acknowledgement as u64;
    sum += (TcpHdr::LEN as u16).to_be() as u64 + (TCP as u16).to_be() as u64;
    if V6 {
        let ip = ip6?;
        for word in 0..4 {
            sum += headers.flow.src.words()[word] as u64 + headers.flow.dst.words()[word] as u64;
        }
        let payload = (l4_offset + TcpHdr::LEN - l3_offset - Ipv6Hdr::LEN) as u16;
        ip.set_u16::<{ offset_of!(Ipv6Hdr, payload_len) }>(payload.to_be());
        ip.set_u8::<{ offset_of!(Ipv6Hdr, hop_limit) }>(TTL);
        ip.set_addr::<{ offset_of!(Ipv6Hdr, src_addr) }>(&headers.flow.dst);
        ip.set_addr::<{ offset_of!(Ipv6Hdr, dst_addr) }>(&headers.flow.src);
    } else {
        let ip = ip4;
        sum += headers.flow.src.last_word() as u64 + headers.flow.dst.last_word() as u64;
        let total = ((l4_offset + TcpHdr::LEN - l3_offset) as u16).to_be();
        let old_total = ip.u16::<{ offset_of!(Ipv4Hdr, tot_len) }>();
        let old_word = ip.u16::<{ offset_of!(Ipv4Hdr, ttl) }>();
        ip.set_u16::<{ offset_of!(Ipv4Hdr, tot_len) }>(total);
        ip.set_u8::<{ offset_of!(Ipv4Hdr, ttl) }>(TTL);
        let word = ip.u16::<{ offset_of!(Ipv4Hdr, ttl) }>();
        ip.set_u32::<{ offset_of!(Ipv4Hdr, src_addr) }>(headers.flow.dst.last_word());
        ip.set_u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>(headers.flow.src.last_word());
        // The swap of the addresses does not change the sum.
        let change = checksum::replace16(checksum::replace16(0, old_total, total), old_word, word);
        let check = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
        ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(checksum::apply(check, change));
    }
    tcp.set_u16::<16>(!checksum::fold(sum));
    Some(Outcome::Sent)
}
