//! ICMP errors about outer headers: a router, or the backend's host, refuses a packet of a tunnel.
//! The host gets them like any other. Here they are a sign of how the backend does: the packet inside,
//! as far as it is quoted, tells whose it was, just as it did when it was sent.
//!
//! Anybody can make such an error up who can send to this host. All that it leads to are probes.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Addr, FlowKey};
use lb_common::slot::BackendIndex;
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use crate::count::{self, Sign};
use crate::icmp::{HEADER, message};
use crate::packet::{Packet, unknown};
use crate::parse::{TCP, UDP};
use crate::{flows, select};

/// Source and destination port.
const PORTS: usize = 4;
const UDP_HEADER: usize = 8;

/// Counts an error that was left to the host, if it says that a backend cannot be reached. A function
/// of its own, and one for each family: the kernel adds up the stacks of what is nested.
#[inline(never)]
pub fn note<const V6: bool>(ctx: *mut xdp_md, l3: u32) {
    let packet = &Packet::new(&XdpContext::new(ctx));
    if let Some(backend) = backend::<V6>(packet, l3) {
        count::sign(backend, Sign::Unreachable);
    }
}

/// What is read of the header of an IP packet.
struct Ip {
    src: Addr,
    dst: Addr,
    protocol: u8,
    length: usize,
}

/// The backend that the packet which is quoted was sent to.
#[inline(always)]
fn backend<const V6: bool>(packet: &Packet, l3: u32) -> Option<BackendIndex> {
    let message = message::<V6>(packet, l3)?;
    if !message.is_unreachable() {
        return None;
    }
    let start = message.l4 + HEADER;
    let outer = if V6 {
        ipv6(packet, start)
    } else {
        ipv4(packet, start)
    }?;
    // The quoted packet must come from where the error was sent to.
    if outer.src.difference(&message.dst) != 0 {
        return None;
    }
    let (udp, gue_port) = match outer.protocol {
        UDP => {
            let udp = packet.window::<UDP_HEADER>(start + outer.length)?;
            (UDP_HEADER, udp.u16::<2>())
        }
        protocol if protocol == IpProto::Ipv4 as u8 || protocol == IpProto::Ipv6 as u8 => (0, 0),
        _ => return None,
    };
    let start = start + unknown::<0x7f>(outer.length + udp)?;
    let inner = match packet.window::<1>(start)?.u8::<0>() >> 4 {
        4 => ipv4(packet, start),
        6 => ipv6(packet, start),
        _ => None,
    }?;
    if inner.protocol != TCP && inner.protocol != UDP {
        return None;
    }
    let start = start + unknown::<0x7f>(inner.length)?;
    let ports = packet.window::<PORTS>(start)?;
    if HEADER + outer.length + udp + inner.length + PORTS > message.length {
        return None;
    }
    let flow = FlowKey {
        src: inner.src,
        dst: inner.dst,
        sport: ports.u16::<0>(),
        dport: ports.u16::<2>(),
        protocol: inner.protocol as u32,
    };
    sent_to(&flow, &outer.dst, gue_port)
}

/// Only the first fragment has the ports.
#[inline(always)]
fn ipv4(packet: &Packet, l3: usize) -> Option<Ip> {
    let ip = packet.window::<{ Ipv4Hdr::LEN }>(l3)?;
    let version_and_length = ip.u8::<{ offset_of!(Ipv4Hdr, vihl) }>();
    let length = (version_and_length & 0x0f) as usize * 4;
    let offset = ip.u16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x1fffu16.to_be();
    if version_and_length >> 4 != 4 || length < Ipv4Hdr::LEN || offset != 0 {
        return None;
    }
    Some(Ip {
        src: Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, src_addr) }>()),
        dst: Addr::v4(ip.u32::<{ offset_of!(Ipv4Hdr, dst_addr) }>()),
        protocol: ip.u8::<{ offset_of!(Ipv4Hdr, proto) }>(),
        length,
    })
}

/// Without extension headers.
#[inline(always)]
fn ipv6(packet: &Packet, l3: usize) -> Option<Ip> {
    let ip = packet.window::<{ Ipv6Hdr::LEN }>(l3)?;
    if ip.u8::<0>() >> 4 != 6 {
        return None;
    }
    Some(Ip {
        src: ip.addr::<{ offset_of!(Ipv6Hdr, src_addr) }>(),
        dst: ip.addr::<{ offset_of!(Ipv6Hdr, dst_addr) }>(),
        protocol: ip.u8::<{ offset_of!(Ipv6Hdr, next_hdr) }>(),
        length: Ipv6Hdr::LEN,
    })
}

/// The backend of a client's packet, if it is at this address, behind this port of GUE (0: IP-in-IP).
#[inline(always)]
fn sent_to(flow: &FlowKey, addr: &Addr, gue_port: u16) -> Option<BackendIndex> {
    let service = &select::service(flow)?;
    let slot = select::slot(service, select::hash(service, flow))?;
    let recorded = flows::find(flow).map_or(0, |record| record.backend);
    let is_at = |index: BackendIndex| {
        select::backend(index).is_some_and(|backend| {
            backend.addr.difference(addr) == 0 && backend.gue_port == gue_port
        })
    };
    [recorded, slot.current(), slot.previous()]
        .into_iter()
        .find(|index| is_at(*index))
}
