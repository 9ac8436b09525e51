//! Direct server return: the destination MAC becomes the backend's, which owns the VIP and answers
//! the client itself. Only flows through a slot in transition are looked up and recorded.

use lb_common::abi::{Backend, Flow, FlowKey, Service, tcp_seen};
use lb_common::slot::{BackendIndex, Slot};
use lb_common::verdict::Verdict;

use crate::count::{self, Kind};
use crate::forward::{OPEN, decrement_ttl, hop, send};
use crate::maps::PARAMS;
use crate::packet::Packet;
use crate::parse::{Headers, flag};
use crate::{flows, select};

/// Sends a packet for the VIP to its backend.
#[inline(always)]
pub fn request<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
    service: &Service,
    opened: bool,
) -> Result<u32, Verdict> {
    let slot = select::slot(service, flow).ok_or(Verdict::DropNoBackend)?;
    let (index, backend, kind) = if slot.in_transition() {
        if headers.is_syn() && !opened {
            return Ok(OPEN);
        }
        let (index, backend, kind) = in_transition(headers, flow, slot)?;
        (index, backend, if opened { Kind::Opens } else { kind })
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
    forward(packet, headers, index, backend, kind)
}

/// Sends a packet for the VIP to this backend.
#[inline(always)]
fn forward<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    index: BackendIndex,
    backend: &Backend,
    kind: Kind,
) -> Result<u32, Verdict> {
    let bytes = packet.len() as u64;
    decrement_ttl(packet, headers)?;
    let action = send(packet, hop(backend))?;
    count::forwarded(index, bytes, kind);
    Ok(action)
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
