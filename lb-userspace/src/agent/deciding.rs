//! What the maps should hold, by what is known of the backends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::BackendState;
use tracing::warn;

use super::core::Core;
use crate::model::BackendKey;
use crate::plan::{Contents, Duty};
use crate::routing::{self, Input, Routing};

/// After a decision, so many times as long as it took is left to the probes, which share the thread:
/// with thousands of backends a decision takes many milliseconds, and in their first round each has
/// a verdict that asks for one.
const REST: u32 = 4;
/// And no more than this, or than as long again, so that an ejection does not wait.
const WAIT: Duration = Duration::from_millis(200);

impl Core {
    /// What the maps should hold now, and a number that changes with it.
    pub fn contents(&mut self) -> (Arc<Contents>, u64) {
        let now = self.clock.now();
        let passed = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let due = self.dirty || passed(self.next_decision) || passed(self.builder.next_deadline());
        if due && now >= self.decide_after {
            self.dirty = false;
            self.decide(now);
            let end = self.clock.now();
            let took = end.saturating_sub(now);
            self.decide_after = end + (took * REST).min(took.max(WAIT));
        }
        (self.built.clone(), self.generation)
    }

    fn decide(&mut self, now: Duration) {
        let engine = &self.engine;
        let decided = routing::decide(
            &Input {
                services: self.services(),
                health: &|key| engine.get(key),
                passive: self.passive.doubts(),
                admin: &self.admin,
                removed: &BTreeMap::new(),
                orders: &self.orders,
            },
            &self.routing,
            now,
        );
        let before = std::mem::replace(&mut self.routing, decided.state);
        self.next_decision = decided.next_deadline;
        self.orders.promote.clear();
        let duties = self.duties();
        match self
            .builder
            .build(&self.model, &duties, &self.ways.paths, now)
        {
            Ok(contents) if !Arc::ptr_eq(contents, &self.built) && *contents != self.built => {
                for (id, service) in &contents.services {
                    let old = self.built.services.get(id);
                    if old.is_none_or(|old| !Arc::ptr_eq(&old.slots, &service.slots)) {
                        *self.generations.entry(*id).or_default() += 1;
                    }
                }
                self.built = contents.clone();
                self.generation += 1;
                self.note_handovers();
            }
            Ok(_) => self.note_handovers(),
            Err(error) => {
                warn!("{error}; the maps stay as they are");
                self.datapath_error = Some(error.to_string());
            }
        }
        self.gap.built(self.generation, self.applied);
        self.note_primaries();
        self.announced.dirty = true;
        for event in decided.events {
            self.pend(event, &before);
        }
        self.tell_pending();
    }

    fn duties(&self) -> BTreeMap<BackendKey, Duty> {
        let backends = self.services().iter().flat_map(|service| {
            let backends = service.backends.iter();
            let alone = service.mode.active_passive().is_some();
            backends.map(move |backend| (service.key(backend), backend.weight, alone))
        });
        let duty = |(key, weight, alone)| {
            let decision = self.routing.get(&key);
            let routing = decision.map_or(Routing::Out, |decision| decision.routing);
            let (state, share) = if routing.takes_new_flows() {
                (
                    BackendState::Active,
                    decision.map_or(0, |decision| decision.share),
                )
            } else if alone && routing == Routing::Standby {
                // What it has left of flows belongs to the active one now.
                (BackendState::Out, 0)
            } else if routing.serves_established() {
                (BackendState::Draining, 0)
            } else {
                (BackendState::Out, 0)
            };
            (
                key,
                Duty {
                    state,
                    weight,
                    share,
                },
            )
        };
        backends.map(duty).collect()
    }
}
