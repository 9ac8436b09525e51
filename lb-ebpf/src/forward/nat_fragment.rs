//! NAT of fragments. The first of a datagram goes the way of a whole packet; the others have no ports,
//! so only their addresses change.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::FlowKey;
use lb_common::verdict::Verdict;
use lb_common::{checksum, hash};
use network_types::eth::EthHdr;
use network_types::ip::Ipv4Hdr;

use crate::atomic::add_one;
use crate::fate::Fate;
use crate::forward::nat_icmp::{self, Known};
use crate::forward::{IPV6_ADDRESSES, decrement_ttl, send, set_ipv6_addresses};
use crate::maps::{FRAGMENT_IDS, PARAMS};
use crate::packet::Packet;
use crate::{count, flows, select};

/// Sends another fragment than the first on to the other end of its flow. Its IP header has the offset
/// `l3`; without a flow it is refused for this service.
#[inline(always)]
pub fn later<const V6: bool>(ctx: *mut xdp_md, l3: u32, flow: &FlowKey, service: u16) -> Fate {
    let what = l3 & 0x1f | (V6 as u32) << 8 | (service as u32) << 16;
    Fate::from_bits(lb_nat_later(ctx, what, flow))
}

/// Does what [`later`] says. A global function, as the other one here: the verifier goes through them
/// once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_nat_later(ctx: *mut xdp_md, what: u32, flow: *const FlowKey) -> u64 {
    let packet = &Packet::new(&XdpContext::new(ctx));
    // From front to back, or the check that the verifier wants to see would be left out.
    if flow.is_null() || packet.window::<{ EthHdr::LEN }>(packet.start()).is_none() {
        return Fate::refused(0, Verdict::DropMalformed).bits();
    }
    // SAFETY: the caller's.
    let flow = unsafe { &*flow };
    let Some(known) = nat_icmp::known(flow) else {
        return Fate::refused((what >> 16) as u16, Verdict::DropFragment).bits();
    };
    let l3 = packet.start() + (what & 0x1f) as usize;
    let sent = if what & 0x100 != 0 {
        send_on::<true>(packet, l3, flow, &known)
    } else {
        send_on::<false>(packet, l3, flow, &known)
    };
    sent.unwrap_or_else(|verdict| Fate::refused(known.service(), verdict))
        .bits()
}

#[inline(always)]
fn send_on<const V6: bool>(
    packet: &Packet,
    l3: usize,
    flow: &FlowKey,
    known: &Known,
) -> Result<Fate, Verdict> {
    let bytes = packet.len() as u64;
    let hop = known.hop()?;
    decrement_ttl::<V6>(packet, l3)?;
    readdress::<V6>(packet, l3, flow, known).ok_or(Verdict::DropMalformed)?;
    let fate = known.sent(bytes, send(packet, hop)?);
    if known.to_client() {
        count::verdict(known.service(), Verdict::NatReply);
    }
    Ok(fate)
}

#[inline(always)]
fn readdress<const V6: bool>(
    packet: &Packet,
    l3: usize,
    flow: &FlowKey,
    known: &Known,
) -> Option<()> {
    let to = known.ends();
    if V6 {
        let addresses = packet.window::<32>(l3 + IPV6_ADDRESSES)?;
        set_ipv6_addresses(addresses, to.src, to.dst);
        return Some(());
    }
    let ip = packet.window::<{ Ipv4Hdr::LEN }>(l3)?;
    let mut sum = checksum::replace32(0, flow.src.last_word(), to.src.last_word());
    sum = checksum::replace32(sum, flow.dst.last_word(), to.dst.last_word());
    ip.set_u32::<{ offset_of!(Ipv4Hdr, src_addr) }>(to.src.last_word());
    ip.set_u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>(to.dst.last_word());
    let check = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
    ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(checksum::apply(check, sum));
    Some(())
}

/// The next identification of datagrams for the backend that this client's will go to; `None` if there
/// is none. They are counted for each address, whatever services have it, from a secret start, so that
/// nobody who does not see them can guess them (RFC 7739). If the datagram goes to another backend
/// after all, two may have the same.
#[inline(always)]
pub fn identification(flow: &FlowKey) -> Option<u32> {
    let drawn = lb_fragment_id(flow);
    (drawn >> 32 == 0).then_some(drawn as u32)
}

/// Does what [`identification`] says; all ones for `None`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_fragment_id(flow: *const FlowKey) -> u64 {
    if flow.is_null() {
        return u64::MAX;
    }
    // SAFETY: the caller's.
    let flow = unsafe { &*flow };
    next(flow).map_or(u64::MAX, u64::from)
}

#[inline(always)]
fn next(flow: &FlowKey) -> Option<u32> {
    let record = flows::find(flow).filter(|record| record.source != 0);
    let backend = match record {
        Some(record) => record.backend,
        None => {
            let service = &select::service(flow)?;
            select::slot(service, select::hash(service, flow))?.current()
        }
    };
    let counter = hash::fragment_counter(&select::backend(backend)?.addr);
    let drawn = add_one(FRAGMENT_IDS.get_ptr_mut(counter)?);
    let start = hash::mix((PARAMS.get(0)?.seed as u64) << 32 | counter as u64) as u32;
    Some(start.wrapping_add(drawn))
}
