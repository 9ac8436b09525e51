//! The flow table as the agent sees it: who has flows, which are over, and which slots may not be
//! settled yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{Affinity, BackendState, Flow, FlowKey};
use lb_common::flow::{idle_limit, is_closed, tracked_limit};
use lb_common::hash;
use lb_common::slot::{BackendIndex, Slot};

use super::flow_table::Inconsistency;
use super::maps::Maps;
use crate::model::{OnDeath, Protocol};
use crate::plan::explain::{Flows, hash_of};
use crate::plan::{Contents, ServiceId};

/// What one pass over the flow table found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Flows by backend that are not known to be closed. Outside of `nat` only those that were
    /// opened in a transition are known at all.
    pub active: BTreeMap<BackendIndex, u64>,
    /// Flows found.
    pub entries: u64,
    /// Flows removed because they were over.
    pub removed: u64,
    /// The backends that have no flows any more because they left.
    pub gone: BTreeSet<BackendIndex>,
    /// Slots with a recorded flow whose backend is not the slot's current owner.
    pub held: BTreeMap<ServiceId, BTreeSet<u32>>,
}

impl Maps {
    /// Goes over all flows once: counts them, and removes those that are over or whose backend is
    /// one of `gone`.
    pub fn sweep(&mut self, contents: &Contents, gone: &BTreeSet<BackendIndex>) -> Sweep {
        let tick = self.tick();
        let mut sweep = Sweep {
            gone: gone.clone(),
            ..Sweep::default()
        };
        let (mut over, mut held) = (Vec::new(), BTreeSet::new());
        for (way, flow) in self.flows.iter() {
            let Some(flow) = flow else {
                held.insert(way);
                continue;
            };
            sweep.entries += 1;
            if gone.contains(&flow.backend)
                || is_given_up(contents, &flow)
                || is_over(&flow, self.flows.idle(&flow, tick))
            {
                over.push((way, flow));
            } else {
                sweep.note(contents, &flow);
            }
        }
        self.flows.repair(held);
        let (backends, sources) = (&self.backends, &self.sources);
        sweep.removed = self.flows.remove(
            &over,
            |index| backends.get(index.into()),
            |index| sources.get(index.into()),
        );
        sweep
    }

    /// What is wrong with the flow table.
    pub fn check_flows(&self) -> Vec<Inconsistency> {
        let (backends, sources) = (&self.backends, &self.sources);
        self.flows.check(
            |index| backends.get(index.into()),
            |index| sources.get(index.into()),
        )
    }
}

impl Flows for Maps {
    fn find(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.find(key)
    }

    fn find_reply(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.answered_by(key).find(|flow| {
            let backend = self.backends.get(flow.backend.into());
            let source = self.sources.get(flow.source.into());
            flow.reply_key(backend.addr, backend.port, source) == *key
        })
    }

    fn source(&self, flow: &Flow) -> IpAddr {
        self.sources.get(flow.source.into()).into()
    }
}

/// Whether a flow is over that was idle for so many seconds.
fn is_over(flow: &Flow, idle: u32) -> bool {
    if flow.source == 0 {
        idle > tracked_limit(flow.forward)
    } else {
        let is_tcp = flow.protocol == Protocol::Tcp.number();
        idle > idle_limit(is_tcp, flow.forward, flow.reply)
    }
}

/// Whether it is a record of a backend that is out and whose flows went to others: when it is back
/// the record would name it for a flow that another has by then. Where such flows are reset, the
/// record is what tells them.
fn is_given_up(contents: &Contents, flow: &Flow) -> bool {
    let Some(backend) = contents.backends.get(&flow.backend) else {
        return flow.source == 0;
    };
    let service = contents.services.get(&backend.service);
    let resets = service.is_some_and(|service| service.on_death == OnDeath::Reset);
    flow.source == 0 && backend.state == BackendState::Out && !resets
}

impl Sweep {
    fn note(&mut self, contents: &Contents, flow: &Flow) {
        if is_closed(flow.forward, flow.reply) {
            return;
        }
        *self.active.entry(flow.backend).or_default() += 1;
        let service = contents
            .backends
            .get(&flow.backend)
            .map(|backend| backend.service);
        if flow.source == 0
            && let Some(id) = service
            && let Some(service) = contents.services.get(&id)
        {
            let index = slot_of(&flow.key(), service.affinity, service.slots.len() as u32);
            let slot = service
                .slots
                .get(index as usize)
                .copied()
                .unwrap_or(Slot::settled(0));
            if slot.current() != flow.backend {
                self.held.entry(id).or_default().insert(index);
            }
        }
    }
}

/// The slot that a flow falls into.
fn slot_of(key: &FlowKey, affinity: Affinity, size: u32) -> u32 {
    hash::slot(hash_of(key, affinity), size)
}
