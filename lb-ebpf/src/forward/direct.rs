//! Backends that own the VIP and answer the client themselves: which of them gets a packet. Only
//! flows through a slot in transition are looked up and recorded.
//!
//! By direct server return the destination MAC becomes the backend's. By a tunnel the packet gets
//! an outer header, which is left to [`super::tunnel`].

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Backend, Flow, FlowKey, Forwarding, Service, tcp_seen};
use lb_common::slot::{BackendIndex, Slot};
use lb_common::verdict::Verdict;
use network_types::eth::EthHdr;

use crate::count::{self, Kind};
use crate::fate::Fate;
use crate::forward::tunnel::Order;
use crate::forward::{decrement_ttl, hop, send};
use crate::maps::{OPENING, PARAMS};
use crate::packet::Packet;
use crate::parse::{Headers, flag};
use crate::{flows, quic, select};

/// Sends a packet for the VIP to its backend, or says into which tunnel it goes.
#[inline(always)]
pub fn request<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
    service: &Service,
    opened: bool,
) -> Result<Fate, Verdict> {
    let hash = select::hash(service, flow);
    let slot = select::slot(service, hash).ok_or(Verdict::DropNoBackend)?;
    let named = quic::backend(packet, headers, service);
    let (index, backend, kind) = if let Some(backend) = select::backend(named) {
        (named, backend, Kind::Ordinary)
    } else if slot.in_transition() {
        if headers.is_syn() && !opened {
            return Ok(Fate::OPEN);
        }
        let (index, backend, kind) = in_transition(headers, flow, slot)?;
        (index, backend, if opened { Kind::Opens } else { kind })
    } else {
        settled(headers, slot)?
    };
    if service.forwarding != Forwarding::Dsr as u8 {
        let l3 = headers.l3 - packet.start();
        return Ok(Fate::encapsulate(Order::new::<V6>(index, hash, l3, kind)));
    }
    let bytes = packet.len() as u64;
    decrement_ttl::<V6>(packet, headers.l3)?;
    let action = send(packet, hop(backend))?;
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
    let (Some(opening), Some(_)) = (
        OPENING.get_ptr(0),
        packet.window::<{ EthHdr::LEN }>(packet.start()),
    ) else {
        return Fate::refused(0, Verdict::DropMalformed).bits();
    };
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    let flow = unsafe { &(*opening).key };
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
        src: flow.src,
        dst: flow.dst,
        sport: flow.sport,
        dport: flow.dport,
        protocol: flow.protocol as u8,
        flags: 0,
    };
    // Recorded flows are looked for, but none is opened.
    match request(packet, headers, flow, service, false) {
        Ok(fate) => {
            if is_error {
                count::verdict(service.id, Verdict::IcmpError);
            }
            fate
        }
        Err(verdict) => Fate::refused(service.id, verdict),
    }
}

#[inline(always)]
fn settled<const V6: bool>(
    headers: &Headers<V6>,
    slot: Slot,
) -> Result<(BackendIndex, &'static Backend, Kind), Verdict> {
    let index = slot.current();
    let backend = select::backend(index).ok_or(Verdict::DropNoBackend)?;
    if !takes(backend, headers.is_syn()) {
        return Err(Verdict::DropBackendOut);
    }
    let kind = if headers.is_syn() {
        Kind::Opens
    } else {
        Kind::Ordinary
    };
    Ok((index, backend, kind))
}

#[inline(always)]
fn takes(backend: &Backend, opens: bool) -> bool {
    use lb_common::abi::BackendState::{Active, Draining};
    backend.state == Active as u8 || (!opens && backend.state == Draining as u8)
}

/// A SYN goes to the current owner and is recorded. Any other packet follows its record; without
/// one it is older than the change and belongs to the previous owner, if that may still serve it.
///
/// UDP has no SYN, so its flows are never recorded: all of a slot stay with the previous owner for
/// as long as that may serve them, and move together when the transition ends.
#[inline(always)]
fn in_transition<const V6: bool>(
    headers: &Headers<V6>,
    flow: &FlowKey,
    slot: Slot,
) -> Result<(BackendIndex, &'static Backend, Kind), Verdict> {
    let recorded = flows::find(flow)
        .filter(|record| record.source == 0)
        .map(|record| {
            see(record, headers);
            record.backend
        });
    if let Some(index) = recorded
        && let Some(backend) = select::for_established(index)
    {
        return Ok((index, backend, Kind::Ordinary));
    }
    let index = slot.previous();
    if recorded.is_none()
        && let Some(backend) = select::for_established(index)
    {
        return Ok((index, backend, Kind::ByPrevious));
    }
    let index = slot.current();
    let backend = select::for_new(index).ok_or(Verdict::DropNoBackend)?;
    Ok((index, backend, Kind::Ordinary))
}

/// Keeps a record alive, and notes that the client closes. Writes only what changed.
#[inline(always)]
fn see<const V6: bool>(record: &mut Flow, headers: &Headers<V6>) {
    let tick = PARAMS.get(0).map_or(0, |params| params.tick);
    if record.last_seen != tick {
        record.last_seen = tick;
    }
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
