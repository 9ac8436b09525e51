//! NAT of ICMP errors (RFC 5508, sections 4.1 and 4.2): the outer packet goes to the other end of the
//! flow, and the packet it quotes becomes again what that end has sent.

use core::mem::offset_of;

use lb_common::abi::{Addr, Backend, Flow, FlowKey, Hop};
use lb_common::checksum::{apply, replace16, replace32};
use lb_common::verdict::Verdict;
use network_types::ip::Ipv4Hdr;

use crate::count::{self, Kind, Sign};
use crate::fate::Fate;
use crate::forward::nat::{self, Ends};
use crate::forward::{IPV6_ADDRESSES, decrement_ttl, hop, send, set_ipv6_addresses};
use crate::icmp::Quote;
use crate::maps::PARAMS;
use crate::packet::{Packet, Window};
use crate::parse::Headers;
use crate::{flows, select};

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;

/// What is known of a NAT flow.
pub struct Known {
    record: &'static Flow,
    backend: &'static Backend,
    ends: Ends,
    to_client: bool,
}

impl Known {
    #[inline(always)]
    pub fn service(&self) -> u16 {
        self.backend.service
    }

    /// Whether it is the backend that sends such packets.
    #[inline(always)]
    pub fn to_client(&self) -> bool {
        self.to_client
    }

    /// Where its packets leave from and go to.
    #[inline(always)]
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// The way there.
    #[inline(always)]
    pub fn hop(&self) -> Result<&'static Hop, Verdict> {
        if self.to_client {
            return Ok(&self.record.way_back);
        }
        let backend = select::for_established(self.record.backend);
        backend.map(hop).ok_or(Verdict::DropBackendOut)
    }

    /// Counts a packet of so many bytes that was sent.
    #[inline(always)]
    pub fn sent(&self, bytes: u64, action: u32) -> Fate {
        let index = self.record.backend;
        if self.to_client {
            return Fate::replied(index, action);
        }
        count::forwarded(index, bytes, Kind::Ordinary);
        Fate::sent(index, action)
    }

    /// Notes that the other end of the flow cannot be reached, if it is the backend.
    #[inline(always)]
    pub fn unreachable(&self) {
        if self.to_client {
            count::sign(self.record.backend, Sign::Unreachable);
        }
    }
}

/// What is known of the NAT flow that these packets belong to, in either direction.
#[inline(always)]
pub fn known(flow: &FlowKey) -> Option<Known> {
    if PARAMS
        .get(0)
        .is_some_and(|params| nat::may_be_reply(flow, params))
        && let Some(record) = flows::find_reply(flow)
    {
        let record: &'static Flow = record;
        return Some(Known {
            record,
            backend: select::backend(record.backend)?,
            ends: Ends::of_reply(record),
            to_client: true,
        });
    }
    let record: &'static Flow = flows::find(flow).filter(|record| record.source != 0)?;
    let backend = select::backend(record.backend)?;
    Some(Known {
        record,
        backend,
        ends: Ends::of_request(record, backend)?,
        to_client: false,
    })
}

/// Sends an error on: to the backend about a packet to the client, or to the client about one to
/// the backend. `headers.l4` is the place of the ICMP header.
///
/// The flow is not kept alive by it: anybody on the way can send errors (RFC 5508, REQ-6).
#[inline(always)]
pub fn error<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    quote: &Quote,
    known: &Known,
) -> Result<Fate, Verdict> {
    let bytes = packet.len() as u64;
    let hop = known.hop()?;
    decrement_ttl::<V6>(packet, headers.l3)?;
    translate(packet, headers, quote, &known.ends, known.to_client)
        .ok_or(Verdict::DropMalformed)?;
    Ok(known.sent(bytes, send(packet, hop)?))
}

/// Every sum is changed by what was changed, so a wrong one stays wrong. That goes for the quoted
/// checksums, too: the receiver gets back what it has sent, as far as it is quoted.
#[inline(always)]
fn translate<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    quote: &Quote,
    entry: &Ends,
    to_client: bool,
) -> Option<()> {
    let flow = &quote.flow;
    // To the client a router keeps its name, so that a path can be traced, and a backend is the VIP.
    // Backends see nobody but this host: they need no way to anybody else.
    let src = if to_client && headers.flow.src.difference(&flow.src) != 0 {
        &headers.flow.src
    } else {
        entry.src
    };
    let mut outer = 0;
    for word in 0..4 {
        outer = replace32(outer, headers.flow.src.words()[word], src.words()[word]);
        outer = replace32(
            outer,
            headers.flow.dst.words()[word],
            entry.dst.words()[word],
        );
    }
    let mut addresses = 0;
    for word in 0..4 {
        addresses = replace32(addresses, flow.dst.words()[word], entry.dst.words()[word]);
        addresses = replace32(addresses, flow.src.words()[word], entry.src.words()[word]);
    }
    let mut icmp = addresses;
    if V6 {
        let ip = packet.window::<32>(headers.l3 + IPV6_ADDRESSES)?;
        let quoted = packet.window::<32>(quote.l3 + IPV6_ADDRESSES)?;
        set_ipv6_addresses(ip, src, entry.dst);
        set_ipv6_addresses(quoted, entry.dst, entry.src);
        // The pseudo header (RFC 4443, section 2.3).
        icmp += outer;
    } else {
        let ip = packet.window::<{ Ipv4Hdr::LEN }>(headers.l3)?;
        let quoted = packet.window::<{ Ipv4Hdr::LEN }>(quote.l3)?;
        set_ipv4(ip, src, entry.dst, outer);
        let (old, new) = set_ipv4(quoted, entry.dst, entry.src, addresses);
        icmp = replace16(icmp, old, new);
    }
    let mut ports = replace16(0, flow.dport, entry.dport);
    ports = replace16(ports, flow.sport, entry.sport);
    let l4 = packet.window::<8>(quote.l4)?;
    l4.set_u16::<0>(entry.dport);
    l4.set_u16::<2>(entry.sport);
    icmp += ports;
    let pseudo = addresses + ports;
    if headers.is_tcp() {
        // Only if the router has quoted as much of TCP (RFC 1812, section 4.3.2.3, asks for it).
        if quote.length >= TCP_CHECKSUM + 2
            && let Some(tcp) = packet.window::<{ TCP_CHECKSUM + 2 }>(quote.l4)
        {
            let old = tcp.u16::<TCP_CHECKSUM>();
            let new = apply(old, pseudo);
            tcp.set_u16::<TCP_CHECKSUM>(new);
            icmp = replace16(icmp, old, new);
        }
    } else {
        let old = l4.u16::<6>();
        // Zero means "no checksum" (RFC 768), so a sum of zero is written as all ones.
        if old != 0 {
            let new = match apply(old, pseudo) {
                0 => 0xffff,
                new => new,
            };
            l4.set_u16::<6>(new);
            icmp = replace16(icmp, old, new);
        }
    }
    let header = packet.window::<8>(headers.l4)?;
    header.set_u16::<2>(apply(header.u16::<2>(), icmp));
    Some(())
}

/// Writes the addresses of an IPv4 header, whose sum changes by `change`; gives the checksum before
/// and after.
#[inline(always)]
fn set_ipv4(ip: Window<{ Ipv4Hdr::LEN }>, src: &Addr, dst: &Addr, change: u64) -> (u16, u16) {
    let old = ip.u16::<{ offset_of!(Ipv4Hdr, check) }>();
    let new = apply(old, change);
    ip.set_u16::<{ offset_of!(Ipv4Hdr, check) }>(new);
    ip.set_u32::<{ offset_of!(Ipv4Hdr, src_addr) }>(src.last_word());
    ip.set_u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>(dst.last_word());
    (old, new)
}
