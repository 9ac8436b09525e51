//! Full NAT: a request leaves from an address and port of this host to the backend, and the reply
//! comes back through here. One record serves both directions; see [`crate::flows`].

use core::mem::offset_of;

use lb_common::abi::{Addr, Backend, Flow, FlowKey, Hop, Params, tcp_seen};
use lb_common::checksum;
use lb_common::verdict::Verdict;
use network_types::eth::EthHdr;
use network_types::ip::Ipv4Hdr;

use crate::count::{self, Kind};
use crate::fate::Fate;
use crate::forward::{
    IPV6_ADDRESSES, decrement_ttl, hop, macs, reversed, send, set_ipv6_addresses,
};
use crate::maps::{BACKENDS, SOURCES};
use crate::packet::Packet;
use crate::parse::{Headers, flag};
use crate::{Look, flows, http, select};

/// What a packet leaves with.
pub struct Ends {
    pub src: &'static Addr,
    pub dst: &'static Addr,
    pub sport: u16,
    pub dport: u16,
}

impl Ends {
    /// Of a request.
    #[inline(always)]
    pub fn of_request(record: &Flow, backend: &'static Backend) -> Option<Self> {
        Some(Self {
            src: SOURCES.get(record.source as u32)?,
            dst: &backend.addr,
            sport: record.nat_port,
            dport: select::port(backend, record.vip_port),
        })
    }

    /// Of a reply.
    #[inline(always)]
    pub fn of_reply(record: &'static Flow) -> Self {
        Self {
            src: &record.vip,
            dst: &record.client,
            sport: record.vip_port,
            dport: record.client_port,
        }
    }
}

/// Whether the destination port is one that NAT uses.
#[inline(always)]
pub fn may_be_reply(flow: &FlowKey, params: &Params) -> bool {
    u16::from_be(flow.dport).wrapping_sub(params.snat_first) < params.snat_count
}

/// Sends a backend's packet on to its client; `None` if it belongs to no flow. A backend that is
/// out is told that its flow is over, unless it says so itself, but not before its client: one that
/// only receives would wait for ever, where what it still gets makes it ask.
#[inline(always)]
pub fn reply<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
) -> Option<Fate> {
    let record = flows::find_reply(flow)?;
    let backend = BACKENDS.get(record.backend as u32)?;
    let service = backend.service;
    if record.forward & tcp_seen::RST != 0
        && headers.is_tcp()
        && headers.flags & flag::RST == 0
        && select::for_established(record.backend).is_none()
    {
        return Some(Fate::refused(service, Verdict::ResetToBackend));
    }
    if record.forward & tcp_seen::HOLDS_REFUSAL != 0 && headers.flags & flag::RST != 0 {
        // Whether or not it is this answer: there is one at the most.
        record.forward &= !tcp_seen::HOLDS_REFUSAL;
        if record.reply == 0 {
            count::answer(record.backend, record.nat_port, true);
            return Some(Fate::refused(service, Verdict::DropRefusal));
        }
    }
    flows::see(record);
    let reply = seen(
        record.reply,
        headers,
        tcp_seen::BACKEND_FIN,
        tcp_seen::REPLY,
    );
    if record.reply != reply {
        if record.reply & tcp_seen::REPLY == 0 {
            let refuses = headers.flags & flag::RST != 0;
            count::answer(record.backend, record.nat_port, refuses);
        }
        record.reply = reply;
    }
    if backend.watches_http != 0 && headers.is_tcp() {
        http::watch(packet, headers, record.backend);
    }
    let ends = Ends::of_reply(record);
    let sent = decrement_ttl::<V6>(packet, headers.l3)
        .and_then(|()| rewrite(packet, headers, &ends))
        .and_then(|()| send(packet, &record.way_back));
    Some(match sent {
        Ok(action) => {
            count::verdict(service, Verdict::NatReply);
            Fate::replied(record.backend, action)
        }
        Err(verdict) => Fate::refused(service, verdict),
    })
}

/// Sends a client's packet on to its backend, if its flow is recorded; else [`Fate::OPEN`], if it
/// may be. What becomes of a SYN is for [`super::open`] to say, which comes back here with it.
#[inline(always)]
pub fn request<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
    look: Look,
) -> Result<Fate, Verdict> {
    if headers.is_syn() && look == Look::First {
        return Ok(Fate::OPEN);
    }
    // What a service left behind that was `dsr` before says nothing here.
    if let Some(record) = flows::find(flow).filter(|record| record.source != 0) {
        if let Some(backend) = select::for_established(record.backend) {
            let always = if headers.is_syn() {
                0
            } else {
                tcp_seen::CLIENT_ACK
            };
            flows::see(record);
            let seen = seen(record.forward, headers, tcp_seen::CLIENT_FIN, always);
            if record.forward != seen {
                record.forward = seen;
            }
            follow_client(packet, record);
            let opened = look == Look::Opened;
            if opened && headers.is_syn() {
                count::time(record.backend, record.nat_port);
            }
            let kind = Kind::of(opened);
            return forward(packet, headers, record, backend, kind);
        }
        if headers.is_tcp() && !headers.is_syn() {
            if headers.flags & flag::RST != 0
                && let Some(backend) = select::backend(record.backend)
            {
                // The client gives up: let the backend know, dead or not.
                return forward(packet, headers, record, backend, Kind::Ordinary);
            }
            // From now on the backend is told, too.
            record.forward |= tcp_seen::RST;
            return Err(Verdict::ResetBackendOut);
        }
    } else if headers.is_tcp() && !headers.is_syn() {
        return Err(Verdict::ResetNoFlow);
    }
    Ok(Fate::OPEN)
}

/// Whether a SYN repeats the one that opened this flow, which is not over.
#[inline(always)]
pub fn is_repeated(record: &Flow) -> bool {
    record.forward & (tcp_seen::CLIENT_FIN | tcp_seen::RST) == 0
        && record.reply & (tcp_seen::BACKEND_FIN | tcp_seen::RST) == 0
}

/// Sends a client's packet on to the backend of its flow.
#[inline(always)]
fn forward<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    record: &Flow,
    backend: &'static Backend,
    kind: Kind,
) -> Result<Fate, Verdict> {
    let bytes = packet.len() as u64;
    let index = record.backend;
    let ends = Ends::of_request(record, backend).ok_or(Verdict::DropNoPort)?;
    decrement_ttl::<V6>(packet, headers.l3)?;
    rewrite(packet, headers, &ends)?;
    let action = send(packet, hop(backend))?;
    count::forwarded(index, bytes, kind);
    Ok(Fate::sent(index, action))
}

/// What is known of one direction after this packet. A packet after a RST shows that the RST was
/// not accepted.
#[inline(always)]
fn seen<const V6: bool>(known: u8, headers: &Headers<V6>, fin: u8, always: u8) -> u8 {
    if headers.flags & flag::RST != 0 {
        known | always | tcp_seen::RST
    } else if headers.flags & flag::FIN != 0 {
        (known | always | fin) & !tcp_seen::RST
    } else {
        (known | always) & !tcp_seen::RST
    }
}

/// Keeps the way back current when the client's packets come another way. A reply racing with this
/// may see half of each; the next one is right.
#[inline(always)]
fn follow_client(packet: &Packet, record: &mut Flow) {
    if let Some(way_back) = way_back(packet)
        && record.way_back != way_back
    {
        record.way_back = way_back;
    }
}

/// Where a packet came from.
#[inline(always)]
pub fn way_back(packet: &Packet) -> Option<Hop> {
    let eth = packet.window::<{ EthHdr::LEN }>(packet.start())?;
    Some(Hop {
        macs: reversed(macs(eth)),
        ifindex: packet.interface(),
    })
}

/// Writes addresses and ports into the packet, with incremental checksums.
#[inline(always)]
fn rewrite<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    to: &Ends,
) -> Result<(), Verdict> {
    let mut sum = 0;
    if V6 {
        let addresses = packet
            .window::<32>(headers.l3 + IPV6_ADDRESSES)
            .ok_or(Verdict::DropMalformed)?;
        for word in 0..4 {
            sum = checksum::replace32(sum, headers.flow.src.words()[word], to.src.words()[word]);
            sum = checksum::replace32(sum, headers.flow.dst.words()[word], to.dst.words()[word]);
        }
        set_ipv6_addresses(addresses, to.src, to.dst);
    } else {
        let ip = packet
            .window::<{ Ipv4Hdr::LEN }>(headers.l3)
            .ok_or(Verdict::DropMalformed)?;
        sum = checksum::replace32(sum, headers.flow.src.last_word(), to.src.last_word());
        sum = checksum::replace32(sum, headers.flow.dst.last_word(), to.dst.last_word());
        ip.set_u32::<{ offset_of!(Ipv4Hdr, src_addr) }>(to.src.last_word());
        ip.set_u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>(to.dst.last_word());
        let check = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
        ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(checksum::apply(check, sum));
    }
    sum = checksum::replace16(sum, headers.flow.sport, to.sport);
    sum = checksum::replace16(sum, headers.flow.dport, to.dport);
    if headers.is_tcp() {
        let tcp = packet
            .window::<20>(headers.l4)
            .ok_or(Verdict::DropMalformed)?;
        tcp.set_u16::<0>(to.sport);
        tcp.set_u16::<2>(to.dport);
        tcp.set_u16::<16>(checksum::apply(tcp.u16::<16>(), sum));
    } else {
        let udp = packet
            .window::<8>(headers.l4)
            .ok_or(Verdict::DropMalformed)?;
        udp.set_u16::<0>(to.sport);
        udp.set_u16::<2>(to.dport);
        let check = udp.u16::<6>();
        // Zero means "no checksum" (RFC 768), so a sum of zero is written as all ones.
        if check != 0 {
            let check = checksum::apply(check, sum);
            udp.set_u16::<6>(if check == 0 { 0xffff } else { check });
        }
    }
    Ok(())
}
