//! Direct server return: the destination MAC becomes the backend's, which owns the VIP and answers
//! the client itself. Only flows through a slot in transition are looked up and recorded.

use aya_ebpf::bindings::BPF_ANY;
use lb_common::abi::{Backend, Flow, FlowKey, FlowKind, Service, tcp_seen};
use lb_common::slot::{BackendIndex, Slot};
use lb_common::verdict::Verdict;

use crate::Sent;
use crate::count::{self, Kind};
use crate::forward::{decrement_ttl, hop, send};
use crate::maps::{FLOWS, OPENING, PARAMS};
use crate::packet::Packet;
use crate::parse::{Headers, flag};
use crate::select;

/// Sends a packet for the VIP to its backend.
#[inline(always)]
pub fn request<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
    service: &Service,
) -> Result<Sent, Verdict> {
    let slot = select::slot(service, flow).ok_or(Verdict::DropNoBackend)?;
    let (index, backend, kind) = if slot.in_transition() {
        in_transition(headers, flow, service, slot)?
    } else {
        let index = slot.current();
        let backend = select::backend(index).ok_or(Verdict::DropNoBackend)?;
        if !takes(backend, headers.is_syn()) {
            return Err(Verdict::DropBackendOut);
        }
        (
            index,
            backend,
            if headers.is_syn() {
                Kind::Opens
            } else {
                Kind::Ordinary
            },
        )
    };
    let bytes = packet.len() as u64;
    let hop = hop(backend);
    decrement_ttl(packet, headers)?;
    let action = send(packet, hop)?;
    count::forwarded(index, bytes, kind);
    Ok(Sent::to(index, action))
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
    service: &Service,
    slot: Slot,
) -> Result<(BackendIndex, &'static Backend, Kind), Verdict> {
    if headers.is_syn() {
        let index = slot.current();
        let backend = select::for_new(index).ok_or(Verdict::DropNoBackend)?;
        record(flow, service, index)?;
        return Ok((index, backend, Kind::Opens));
    }
    let recorded = FLOWS.get_ptr_mut(flow).and_then(|record| {
        // SAFETY: entries are preallocated; a racing eviction leaves readable memory of this type.
        let record = unsafe { &mut *record };
        if record.kind != FlowKind::Tracked as u8 {
            return None;
        }
        see(record, headers);
        Some(record.backend)
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
    if headers.is_tcp() && headers.flags & (flag::FIN | flag::RST) != 0 {
        record.tcp |= tcp_seen::CLIENT_FIN;
    }
}

#[inline(always)]
fn record(flow: &FlowKey, service: &Service, backend: BackendIndex) -> Result<(), Verdict> {
    let opening = OPENING.get_ptr_mut(0).ok_or(Verdict::DropFlowTable)?;
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    let record = unsafe { &mut (*opening).entry };
    // The rest of the entry means nothing in a record, and keeps what it held.
    record.kind = FlowKind::Tracked as u8;
    record.tcp = 0;
    record.backend = backend;
    record.service = service.id;
    record.last_seen = PARAMS.get(0).map_or(0, |params| params.tick);
    FLOWS
        .insert(flow, &*record, BPF_ANY as u64)
        .map_err(|_| Verdict::DropFlowTable)
}
