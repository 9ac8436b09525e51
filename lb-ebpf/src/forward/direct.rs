//! Backends that own the VIP and answer the client themselves: which of them gets a packet. Only
//! flows through a slot in transition are looked up and recorded, or all flows of a service whose
//! repeated SYNs go to another backend.
//!
//! By direct server return the destination MAC becomes the backend's. By a tunnel the packet gets
//! an outer header, which is left to [`super::tunnel`].

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::service_flag::{RESET_DEAD, SYN_RESCUE};
use lb_common::abi::{Backend, Flow, FlowKey, Forwarding, LOCAL, Service, tcp_seen};
use lb_common::slot::{BackendIndex, Slot};
use lb_common::verdict::Verdict;
use network_types::eth::EthHdr;

use crate::count::{self, Kind};
use crate::fate::Fate;
use crate::forward::tunnel::{self, Put};
use crate::forward::{decrement_ttl, hop, send};
use crate::maps::opening;
use crate::packet::Packet;
use crate::parse::{Headers, flag};
use crate::{Look, flows, quic, select};

/// Sends a packet for the VIP to its backend, or says into which tunnel it goes.
#[inline(always)]
pub fn request<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
    service: &Service,
    look: Look,
) -> Result<Fate, Verdict> {
    let named = quic::backend(packet, headers, service);
    send_on(packet, headers, flow, service, look, named)
}

/// The same where `named` is the backend that the packet itself names, if it does.
#[inline(always)]
fn send_on<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
    service: &Service,
    look: Look,
    named: BackendIndex,
) -> Result<Fate, Verdict> {
    let hash = select::hash(service, flow);
    let slot = select::slot(service, hash).ok_or(Verdict::DropNoBackend)?;
    let mut known = select::backend(named).map(|backend| (named, backend, Kind::Ordinary));
    if known.is_none() && (slot.in_transition() || service.has(SYN_RESCUE)) {
        if headers.is_syn() && look == Look::First {
            return Ok(Fate::OPEN);
        }
        known = follow(headers, flow, service, slot, look)?;
    }
    let (index, backend, kind) = match known {
        Some(known) => known,
        None => settled(packet, headers, service, slot, hash)?,
    };
    let bytes = packet.len() as u64;
    let hop = hop(backend);
    let action = if hop.ifindex == LOCAL {
        // It has arrived, and needs no tunnel.
        xdp_action::XDP_PASS
    } else if service.forwarding != Forwarding::Dsr as u8 {
        match tunnel::put_in::<V6>(packet, headers.l3, backend, hop, hash)? {
            Put::Sent(action) => action,
            Put::TooLong { room } => return Ok(Fate::too_big(service.id, room)),
        }
    } else {
        decrement_ttl::<V6>(packet, headers.l3)?;
        send(packet, hop)?
    };
    count::forwarded(index, bytes, kind);
    Ok(Fate::sent(index, action))
}

/// The same for what is rare, after [`Fate::direct`]. A global function, which the verifier goes
/// through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_direct(ctx: *mut xdp_md, what: u32) -> u64 {
    let packet = &Packet::new(&XdpContext::new(ctx));
    // From front to back: what is behind implies it, and the check that the verifier wants to see
    // would be left out.
    let (Some(opening), Some(_)) = (opening(), packet.window::<{ EthHdr::LEN }>(packet.start()))
    else {
        return Fate::refused(0, Verdict::DropMalformed).bits();
    };
    let flow = &opening.key;
    let l3 = packet.start() + (what & 0x1f) as usize;
    let is_error = what & 0x200 != 0;
    let fate = if what & 0x100 != 0 {
        rarely::<true>(packet, flow, l3, is_error)
    } else {
        rarely::<false>(packet, flow, l3, is_error)
    };
    fate.bits()
}

#[inline(always)]
fn rarely<const V6: bool>(packet: &Packet, flow: &FlowKey, l3: usize, is_error: bool) -> Fate {
    let Some(service) = &select::service(flow) else {
        return Fate::refused(0, Verdict::PassNoService);
    };
    let headers = &Headers::<V6> {
        l3,
        l4: l3,
        flow: *flow,
        flags: 0,
    };
    // Recorded flows are looked for, but none is opened; and what follows the IP header is no QUIC
    // packet.
    match send_on(packet, headers, flow, service, Look::First, 0) {
        Ok(fate) => {
            if is_error {
                count::verdict(service.id, Verdict::IcmpError);
            }
            fate
        }
        // Neither an ICMP error nor a fragment is answered with a RST.
        Err(Verdict::ResetBackendOut) => Fate::refused(service.id, Verdict::DropBackendOut),
        Err(verdict) => Fate::refused(service.id, verdict),
    }
}

#[inline(always)]
fn settled<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    service: &Service,
    slot: Slot,
    hash: u32,
) -> Result<(BackendIndex, &'static Backend, Kind), Verdict> {
    let index = slot.current();
    let backend = select::backend(index).ok_or(Verdict::DropNoBackend)?;
    if !takes(backend, headers.is_syn()) {
        return Err(if is_reset(headers, service) {
            Verdict::ResetBackendOut
        } else {
            Verdict::DropBackendOut
        });
    }
    if headers.is_syn()
        && let Some(tcp) = packet.window::<8>(headers.l4)
    {
        count::syn(index, hash, tcp.u32::<4>());
    }
    Ok((index, backend, Kind::of(headers.is_syn())))
}

/// Whether the packet of a flow whose backend is out is answered with a RST.
#[inline(always)]
fn is_reset<const V6: bool>(headers: &Headers<V6>, service: &Service) -> bool {
    service.has(RESET_DEAD) && headers.is_tcp() && !headers.is_syn()
}

#[inline(always)]
fn takes(backend: &Backend, opens: bool) -> bool {
    use lb_common::abi::BackendState::{Active, Draining};
    backend.state == Active as u8 || (!opens && backend.state == Draining as u8)
}

/// A SYN was recorded before it comes here. Any other packet follows its record; without one, in a
/// slot in transition, it is older than the change and belongs to the previous owner. Whoever may
/// not serve it any more gives it up: the client gets a RST, or the current owner the packet
/// (`None`), as if the slot were settled.
///
/// UDP has no SYN, so its flows are never recorded: all of a slot stay with the previous owner for
/// as long as that may serve them, and move together when the transition ends.
#[inline(always)]
fn follow<const V6: bool>(
    headers: &Headers<V6>,
    flow: &FlowKey,
    service: &Service,
    slot: Slot,
    look: Look,
) -> Result<Option<(BackendIndex, &'static Backend, Kind)>, Verdict> {
    let record = flows::find(flow).filter(|record| record.source == 0);
    let (index, kind) = match record {
        Some(record) => {
            see(record, headers);
            (record.backend, Kind::of(look == Look::Opened))
        }
        None => (slot.previous(), Kind::ByPrevious),
    };
    if let Some(backend) = select::for_established(index) {
        return Ok(Some((index, backend, kind)));
    }
    if index != 0 && is_reset(headers, service) {
        return Err(Verdict::ResetBackendOut);
    }
    Ok(None)
}

/// Keeps a record alive, and notes that the client closes.
#[inline(always)]
fn see<const V6: bool>(record: &mut Flow, headers: &Headers<V6>) {
    flows::see(record);
    let closes = headers.is_tcp() && headers.flags & (flag::FIN | flag::RST) != 0;
    let fin = if closes { tcp_seen::CLIENT_FIN } else { 0 };
    let ack = if headers.is_syn() {
        0
    } else {
        tcp_seen::CLIENT_ACK
    };
    let seen = record.forward | ack | fin;
    if record.forward != seen {
        record.forward = seen;
    }
}
