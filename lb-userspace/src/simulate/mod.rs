//! Recorded outcomes replayed through the engine and the routing, under simulated time.
//!
//! The same [`Engine`] and the same [`routing::decide`] as in the agent, put together as the agent
//! does it: a decision after each outcome that changes a verdict, and whenever time alone changes
//! the result (a drain ends, panic ends, a probe round is over without a verdict). Only the clock,
//! the prober and the datapath are missing, so the same trace always gives the same changes.
//!
//! The simulated agent starts at time 0, new: every probed backend is unknown, and the operator has
//! said nothing. When probes are due does not matter, since the trace says when they ended.

mod trace;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

pub use trace::{LineError, Observation, TraceError, parse, read};

use crate::health::{Engine, Health};
use crate::model::{BackendKey, Model};
use crate::routing::active_passive::{Fenced, Phase};
use crate::routing::{self, Input, Orders, Routing, RoutingState};

/// Another health or routing of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangeLine {
    /// Milliseconds since the simulated agent's start.
    pub at_ms: u64,
    /// `service/backend`.
    pub backend: String,
    /// [`Health::name`].
    pub health: &'static str,
    /// [`Routing::name`].
    pub routing: &'static str,
    /// Why it is routed like this, for people.
    pub reason: String,
}

/// What follows from the outcomes, in the order in which it happens; what happens at the same time
/// in the order of the backends' names. Goes on after the last outcome until time alone changes
/// nothing more.
///
/// The observations must be those of [`parse`]: in the order of their times, of probed backends of
/// this model. A decision that time brings comes before an outcome of the same moment.
pub fn replay(model: &Model, trace: &[Observation]) -> Vec<ChangeLine> {
    let mut replay = Replay::new(model);
    for observation in trace {
        replay.pass_until(observation.at);
        let Observation {
            at,
            key,
            check,
            outcome,
        } = observation;
        if replay.engine.observe(key, *check, outcome, *at).is_some() {
            replay.decide(*at);
        }
    }
    replay.pass_until(Duration::MAX);
    replay.lines
}

struct Replay<'m> {
    model: &'m Model,
    engine: Engine,
    routing: RoutingState,
    next_decision: Option<Duration>,
    /// How fences ended, of handovers under way.
    orders: Orders,
    /// What was last told of each backend.
    told: BTreeMap<BackendKey, (Health, Routing)>,
    lines: Vec<ChangeLine>,
}

impl<'m> Replay<'m> {
    fn new(model: &'m Model) -> Self {
        // Which agent it is only moves its probes in time.
        let mut engine = Engine::new(0);
        engine.configure(&model.services, &BTreeMap::new(), Duration::ZERO);
        let mut replay = Self {
            model,
            engine,
            routing: RoutingState::default(),
            next_decision: None,
            orders: Orders::default(),
            told: BTreeMap::new(),
            lines: Vec::new(),
        };
        replay.decide(Duration::ZERO);
        replay
    }

    /// Decides at every deadline up to `end`, `end` included.
    fn pass_until(&mut self, end: Duration) {
        while let Some(at) = self.next_decision.filter(|at| *at <= end) {
            self.decide(at);
            debug_assert!(self.next_decision.is_none_or(|next| next > at));
        }
    }

    /// Nothing stands in the way of a handover: the simulated data plane follows at once, and every
    /// fence succeeds.
    fn decide(&mut self, now: Duration) {
        loop {
            self.decide_once(now);
            let fencing =
                self.routing.services.iter().filter_map(|(name, service)| {
                    match service.primary.as_ref()?.phase {
                        Phase::Fencing { turn, .. } => Some((name.clone(), turn)),
                        Phase::Serving
                        | Phase::Failing { .. }
                        | Phase::FenceFailed { .. }
                        | Phase::Fenced { .. } => None,
                    }
                });
            let fenced = fencing.map(|(name, turn)| {
                let result = Ok(());
                (name, Fenced { turn, result })
            });
            self.orders.fenced = fenced.collect();
            if self.orders.fenced.is_empty() {
                break;
            }
        }
    }

    fn decide_once(&mut self, now: Duration) {
        let engine = &self.engine;
        let decided = routing::decide(
            &Input {
                services: &self.model.services,
                health: &|key| engine.get(key),
                passive: &BTreeMap::new(),
                admin: &BTreeMap::new(),
                removed: &BTreeMap::new(),
                orders: &self.orders,
            },
            &self.routing,
            now,
        );
        self.routing = decided.state;
        self.next_decision = decided.next_deadline;
        for service in self.routing.services.values() {
            for (key, decision) in &service.backends {
                let view = engine.get(key);
                let health = view.map_or(Health::Unknown, |view| view.health);
                let told = self.told.insert(key.clone(), (health, decision.routing));
                // What it starts as is no change.
                let Some((old_health, old_routing)) = told else {
                    continue;
                };
                if old_health == health && old_routing.same_kind(decision.routing) {
                    continue;
                }
                self.lines.push(ChangeLine {
                    at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
                    backend: key.to_string(),
                    health: health.name(),
                    routing: decision.routing.name(),
                    reason: decision.reason.clone(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
