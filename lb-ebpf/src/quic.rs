//! QUIC connection IDs that name a server, so that a client that changes its address or port stays
//! with its backend: draft-ietf-quic-load-balancers-21, with server IDs that are not
//! encrypted.
//!
//! Only packets of services with `affinity = "quic"` come here, and of NAT's only those that open a
//! flow.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Affinity, ServerIdKey, Service};
use lb_common::slot::BackendIndex;

use crate::maps::QUIC_IDS;
use crate::packet::Packet;
use crate::parse::Headers;
use crate::select;

/// Header Form, the first bit of a packet: set in long headers (RFC 8999, section 5.1).
const LONG: u8 = 0x80;
/// QUIC version 1 (RFC 9000).
const V1: u32 = 1;
/// QUIC version 2 (RFC 9369).
const V2: u32 = 0x6b33_43cf;
/// Type of a Handshake packet, in bits 4 and 5 of its first octet: RFC 9000, section 17.2.4.
const HANDSHAKE_V1: u8 = 2;
/// RFC 9369, section 3.2.
const HANDSHAKE_V2: u8 = 3;
/// Config rotation of connection IDs that name no server, in the first three bits of their first
/// octet.
const UNROUTABLE: u8 = 7;
/// Where a packet is looked for behind the Ethernet header at the most.
const FARTHEST: usize = 0x3fff;

/// The backend that the packet's connection ID names, if the service goes by these and the backend
/// keeps the flows that it has; else 0.
#[inline(always)]
pub fn backend<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    service: &Service,
) -> BackendIndex {
    if service.affinity != Affinity::Quic as u8 {
        return 0;
    }
    let l4 = (headers.l4 - packet.start()) as u32;
    let asked = (service.id as u32) << 8 | service.server_id_length as u32;
    lb_quic_backend(packet.context(), l4, asked) as BackendIndex
}

/// Does what [`backend`] says, for the UDP header this far from the packet's start, the service's
/// number and the length of its server IDs. A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_quic_backend(ctx: *mut xdp_md, l4: u32, asked: u32) -> u32 {
    let packet = &Packet::new(&XdpContext::new(ctx));
    let (service, length) = (asked >> 8, asked & 0xff);
    let Some(octets) = server_id(packet, packet.start() + (l4 as usize & FARTHEST)) else {
        return 0;
    };
    if length == 0 || length > 8 {
        return 0;
    }
    let key = ServerIdKey {
        service: service as u64,
        id: octets >> (64 - 8 * length),
    };
    // SAFETY: one word, which is written whole.
    let Some(index) = (unsafe { QUIC_IDS.get(&key) }) else {
        return 0;
    };
    let index = *index as BackendIndex;
    match select::for_established(index) {
        Some(backend) if backend.service as u32 == service => index as u32,
        _ => 0,
    }
}

/// Eight octets of the packet whose UDP header is there, of which the first are the server ID;
/// `None` if the server has not chosen the connection ID, or has chosen one without.
///
/// An Initial or 0-RTT packet has a connection ID that the client has drawn until the server's is
/// known, and nothing tells the two apart. A packet that is shorter than what is read is none of
/// QUIC: behind a connection ID come 20 octets at the least (RFC 9001, section 5.4.2).
#[inline(always)]
fn server_id(packet: &Packet, udp: usize) -> Option<u64> {
    let first = packet.window::<9>(udp)?.u8::<8>();
    let (config, high, low) = if first & LONG == 0 {
        let short = packet.window::<18>(udp)?;
        (short.u8::<9>(), short.u32::<10>(), short.u32::<14>())
    } else {
        let long = packet.window::<23>(udp)?;
        let handshake = match u32::from_be(long.u32::<9>()) {
            V1 => HANDSHAKE_V1,
            V2 => HANDSHAKE_V2,
            _ => return None,
        };
        if first >> 4 & 3 != handshake {
            return None;
        }
        (long.u8::<14>(), long.u32::<15>(), long.u32::<19>())
    };
    if config >> 5 == UNROUTABLE {
        return None;
    }
    Some((u32::from_be(high) as u64) << 32 | u32::from_be(low) as u64)
}
