//! The answer to an echo request, made out of the request (RFC 792; RFC 4443, section 4.2).

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::Addr;
use lb_common::checksum;
use lb_common::verdict::Verdict;
use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::fate::Fate;
use crate::forward::{IPV6_ADDRESSES, TTL, set_ipv6_addresses, turn_round};
use crate::icmp::{HEADER, LEFT, message};
use crate::maps::{PARAMS, VIPS};
use crate::packet::Packet;

const ECHO_REPLY: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

/// Turns a request to a VIP round, or leaves it to the host: a request to another address, all of
/// them if the operator wants it so, one with IP options (a source route would have to be
/// reversed), and one that must not be answered.
#[inline(never)]
pub fn serve<const V6: bool>(ctx: *mut xdp_md, l3: u32) -> Fate {
    let packet = &Packet::new(&XdpContext::new(ctx));
    answer::<V6>(packet, l3).map_or(LEFT, |()| Fate::refused(0, Verdict::EchoReply))
}

#[inline(always)]
fn answer<const V6: bool>(packet: &Packet, l3: u32) -> Option<()> {
    let at = &message::<V6>(packet, l3)?;
    let eth = packet.window::<{ EthHdr::LEN }>(packet.start())?;
    let is_wanted = PARAMS.get(0).is_some_and(|params| params.answer_ping != 0);
    // SAFETY: only whether there is an entry counts.
    if !is_wanted || unsafe { VIPS.get(&at.dst) }.is_none() {
        return None;
    }
    let to_a_group = eth.u8::<0>() & 1 != 0;
    if to_a_group || !is_a_host::<V6>(&at.src) || at.src.difference(&at.dst) == 0 {
        return None;
    }
    // Back with the same addresses the other way round, so with the same sums but for what follows.
    if V6 {
        let ip = packet.window::<{ Ipv6Hdr::LEN }>(at.l3)?;
        ip.set_u8::<{ offset_of!(Ipv6Hdr, hop_limit) }>(TTL);
        let addresses = packet.window::<32>(at.l3 + IPV6_ADDRESSES)?;
        set_ipv6_addresses(addresses, &at.dst, &at.src);
    } else {
        let ip = packet.window::<{ Ipv4Hdr::LEN }>(at.l3)?;
        if ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>() & 0x0f != 5 {
            return None;
        }
        let old = ip.u16::<{ offset_of!(Ipv4Hdr, ttl) }>();
        ip.set_u8::<{ offset_of!(Ipv4Hdr, ttl) }>(TTL);
        let sum = checksum::replace16(0, old, ip.u16::<{ offset_of!(Ipv4Hdr, ttl) }>());
        let check = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
        ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(checksum::apply(check, sum));
        ip.set_u32::<{ offset_of!(Ipv4Hdr, src_addr) }>(at.dst.last_word());
        ip.set_u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>(at.src.last_word());
    }
    let icmp = packet.window::<HEADER>(at.l4)?;
    let old = icmp.u16::<0>();
    icmp.set_u8::<0>(if V6 { ECHO_REPLY_V6 } else { ECHO_REPLY });
    let sum = checksum::replace16(0, old, icmp.u16::<0>());
    icmp.set_u16::<2>(checksum::apply(icmp.u16::<2>(), sum));
    turn_round(eth);
    Some(())
}

/// Whether a source address is that of one host somewhere, as RFC 1122, section 3.2.1.3, and RFC
/// 4291, section 2.5, have it.
#[inline(always)]
fn is_a_host<const V6: bool>(src: &Addr) -> bool {
    let [a, b, c, d] = src.words();
    if V6 {
        u32::from_be(a) >> 24 != 0xff && a | b | c != 0
    } else {
        let first = u32::from_be(d) >> 24;
        first != 0 && first != 127 && first < 224
    }
}
