//! The flow table as the agent sees it: who has flows, which are over, and which slots may not be
//! settled yet.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use aya::maps::MapError;
use lb_common::abi::{Affinity, BackendState, Flow, FlowKey, FlowKind};
use lb_common::flow::{TCP_CLOSED, idle_limit, is_closed, tracked_limit};
use lb_common::hash;
use lb_common::slot::{BackendIndex, Slot};

use super::maps::{AccessError, Maps};
use super::sys::{Batch, Raw};
use crate::plan::explain::{hash_of, opposite};
use crate::plan::{Contents, ServiceId};

/// Entries fetched by one system call; far more than any bucket of the hash table holds.
const BATCH: usize = 4096;

/// What one pass over the flow table found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Flows by backend that are not known to be closed. But for `nat` only those that were opened
    /// in a transition are known at all.
    pub active: BTreeMap<BackendIndex, u64>,
    /// Entries found: two for a NAT flow.
    pub entries: u64,
    /// Entries removed because their flow was over.
    pub removed: u64,
    /// The backends that have no flows any more because they left.
    pub gone: BTreeSet<BackendIndex>,
    /// Slots with a recorded flow whose backend is not the slot's current owner.
    pub held: BTreeMap<ServiceId, BTreeSet<u32>>,
}

impl Maps {
    /// The entry of one flow.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<Flow>, AccessError> {
        match self.flows.get(&Raw(*key), 0) {
            Ok(Raw(flow)) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(AccessError::Map {
                name: "FLOWS",
                source,
            }),
        }
    }

    /// Goes over all flows once: counts them, and removes those that are over or whose backend is
    /// one of `gone`.
    pub fn sweep(
        &mut self,
        contents: &Contents,
        gone: &BTreeSet<BackendIndex>,
    ) -> Result<Sweep, AccessError> {
        let system = |source| AccessError::System {
            name: "FLOWS",
            source,
        };
        let tick = self.tick();
        let mut sweep = Sweep {
            gone: gone.clone(),
            ..Sweep::default()
        };
        let mut over = Vec::new();
        let mut batch = Batch::<FlowKey, Flow>::new(BATCH);
        loop {
            let (count, more) = batch.next(self.flow_fd.as_fd()).map_err(system)?;
            for (key, flow) in batch.keys.iter().zip(&batch.values).take(count) {
                sweep.entries += 1;
                if gone.contains(&flow.backend)
                    || is_given_up(contents, flow)
                    || self.is_over(key, flow, tick)?
                {
                    over.push(*key);
                } else {
                    sweep.note(contents, key, flow);
                }
            }
            if !more {
                break;
            }
        }
        for key in over {
            match self.flows.remove(&Raw(key)) {
                Ok(()) => sweep.removed += 1,
                // The packet path was faster.
                Err(MapError::KeyNotFound) => {}
                Err(source) => {
                    return Err(AccessError::Map {
                        name: "FLOWS",
                        source,
                    });
                }
            }
        }
        Ok(sweep)
    }

    /// Whether a flow is over, by both its directions.
    fn is_over(&self, key: &FlowKey, flow: &Flow, tick: u32) -> Result<bool, AccessError> {
        let idle = self.idle(flow, tick);
        if flow.kind == FlowKind::Tracked as u8 {
            return Ok(idle > tracked_limit(flow.tcp));
        }
        // The shortest of all limits: most entries need no second look-up.
        if idle <= TCP_CLOSED {
            return Ok(false);
        }
        let Some(other) = self.flow(&opposite(flow, key.protocol))? else {
            // Half a flow serves nobody.
            return Ok(true);
        };
        let (forward, reply) = if flow.kind == FlowKind::Forward as u8 {
            (flow, &other)
        } else {
            (&other, flow)
        };
        let idle = idle.min(self.idle(&other, tick));
        Ok(idle > idle_limit(key.protocol == 6, forward.tcp, reply.tcp))
    }

    /// Seconds since the flow was seen, as far as this agent knows.
    fn idle(&self, flow: &Flow, tick: u32) -> u32 {
        // A packet may have advanced the clock since it was read.
        tick.saturating_sub(flow.last_seen.max(self.opened))
    }
}

/// Whether it is a record of a backend that is out. Its flows were given up; when it is back the
/// record would name it for a flow that another has by then.
fn is_given_up(contents: &Contents, flow: &Flow) -> bool {
    let backend = contents.backends.get(&flow.backend);
    flow.kind == FlowKind::Tracked as u8
        && backend.is_none_or(|backend| backend.state == BackendState::Out)
}

impl Sweep {
    fn note(&mut self, contents: &Contents, key: &FlowKey, flow: &Flow) {
        if flow.kind == FlowKind::Reply as u8 || is_closed(flow.tcp, 0) {
            return;
        }
        *self.active.entry(flow.backend).or_default() += 1;
        if flow.kind == FlowKind::Tracked as u8
            && let Some(service) = contents.services.get(&flow.service)
        {
            let index = slot_of(key, service.affinity, service.slots.len() as u32);
            let slot = service
                .slots
                .get(index as usize)
                .copied()
                .unwrap_or(Slot::settled(0));
            if slot.current() != flow.backend {
                self.held.entry(flow.service).or_default().insert(index);
            }
        }
    }
}

/// The slot that a flow falls into.
fn slot_of(key: &FlowKey, affinity: Affinity, size: u32) -> u32 {
    hash::slot(hash_of(key, affinity), size)
}
