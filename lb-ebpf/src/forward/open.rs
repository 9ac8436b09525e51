//! Flows that are recorded when they open: all of NAT, and in the other modes those whose slot is in
//! transition. The packet path comes here when it finds no record, and is gone through once more when
//! there is one: new flows are rarer than packets.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{Flow, FlowKey, Forwarding, Service, service_flag, tcp_seen};
use lb_common::flow::{self as policy, MOST_RESCUES};
use lb_common::verdict::Verdict;

use crate::count::Sign;
use crate::fate::Fate;
use crate::forward::nat;
use crate::maps::{PARAMS, opening};
use crate::packet::Packet;
use crate::parse::{Headers, Ours};
use crate::{clock, count, flows, quic, select};

/// Records the flow of this packet; [`Fate::OPEN`] once that is done, [`Fate::KEEP`] if it is to
/// stay as it is recorded.
#[inline(always)]
pub fn open(ctx: *mut xdp_md, ours: Ours) -> Fate {
    let prepared = prepare(ctx, ours);
    if !prepared.opens() {
        return prepared;
    }
    match flows::insert() {
        Ok(()) => {
            if let Some(opening) = opening()
                && policy::rescues(opening.forward) != 0
            {
                count::verdict(opening.service, Verdict::Rescued);
            }
            Fate::OPEN
        }
        Err(verdict) => Fate::refused(opening().map_or(0, |opening| opening.service), verdict),
    }
}

/// Puts together what the flow is recorded with.
#[inline(never)]
fn prepare(ctx: *mut xdp_md, ours: Ours) -> Fate {
    let packet = &Packet::new(&XdpContext::new(ctx));
    crate::read(packet, ours, Prepare)
}

struct Prepare;

impl crate::Then for Prepare {
    #[inline(always)]
    fn then<const V6: bool>(self, packet: &Packet, headers: &Headers<V6>) -> Fate {
        let flow = &headers.flow;
        let Some(service) = &select::service(flow) else {
            return Fate::refused(0, Verdict::PassNoService);
        };
        match choose(packet, headers, flow, service) {
            Ok(fate) => fate,
            Err(verdict) => Fate::refused(service.id, verdict),
        }
    }
}

#[inline(always)]
fn choose<const V6: bool>(
    packet: &Packet,
    headers: &Headers<V6>,
    flow: &FlowKey,
    service: &Service,
) -> Result<Fate, Verdict> {
    let hash = select::hash(service, flow);
    let owner = select::slot(service, hash)
        .ok_or(Verdict::DropNoBackend)?
        .current();
    let named = quic::backend(packet, headers, service);
    let is_nat = service.forwarding == Forwarding::Nat as u8;
    let found = flows::find(flow);
    let known = found.is_some();
    let (index, forward) = match found.filter(|record| serves(record, is_nat)) {
        _ if named != 0 => (named, 0),
        Some(record)
            if service.has(service_flag::SYN_RESCUE)
                && policy::is_unanswered(record.forward, record.reply) =>
        {
            count::sign(record.backend, Sign::Repeated);
            let times = policy::rescues(record.forward);
            let index = select::another(service, hash, times, record.backend, owner);
            // Each SYN looks elsewhere, also if this one finds nobody.
            let forward = policy::rescued(times + 1);
            if index == 0 {
                record.forward = forward;
                return Ok(Fate::KEEP);
            }
            (index, forward)
        }
        Some(record) if is_nat && nat::is_repeated(record) => {
            if record.reply & tcp_seen::REPLY == 0 {
                count::sign(record.backend, Sign::Repeated);
            }
            return Ok(Fate::KEEP);
        }
        _ => (owner, 0),
    };
    let backend = if named == 0 {
        select::for_new(index)
    } else {
        select::for_established(index)
    }
    .ok_or(Verdict::DropNoBackend)?;
    if is_nat && backend.source_index == 0 {
        return Err(Verdict::DropNoNeighbor);
    }
    let opening = opening().ok_or(Verdict::DropFlowTable)?;
    opening.way_back = nat::way_back(packet).ok_or(Verdict::DropMalformed)?;
    opening.key = *flow;
    opening.tick = now()?;
    opening.backend = index;
    opening.forward = forward;
    opening.known = known as u8;
    if is_nat && service.has(service_flag::SYN_RESCUE) && policy::rescues(forward) < MOST_RESCUES {
        opening.forward |= tcp_seen::HOLDS_REFUSAL;
    }
    opening.service = service.id;
    opening.is_nat = is_nat as u16;
    Ok(Fate::OPEN)
}

/// Whether the flow goes on to the backend of this record. One that does not serve any more says
/// nothing: the slot's owner gets the flow.
#[inline(always)]
fn serves(record: &Flow, is_nat: bool) -> bool {
    (record.source != 0) == is_nat && select::for_established(record.backend).is_some()
}

/// The coarse clock, which is set for the other packets too: only the opening of flows needs time
/// to pass when no agent runs.
#[inline(always)]
fn now() -> Result<u32, Verdict> {
    let params = PARAMS.get_ptr_mut(0).ok_or(Verdict::DropFlowTable)?;
    // SAFETY: the parameter array has one entry; the agent and this write whole words.
    let params = unsafe { &mut *params };
    let tick = clock::seconds();
    if params.tick != tick {
        params.tick = tick;
    }
    Ok(tick)
}
