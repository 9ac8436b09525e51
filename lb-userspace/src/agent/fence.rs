//! Handovers of services with one active backend: the fence is run once the data plane has confirmed
//! that the old one is cut off.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::info;

use super::core::Core;
use crate::model::Fence;
use crate::probe;
use crate::routing::active_passive::{Fenced, Phase, Why};

/// A fence to run.
#[derive(Debug)]
pub struct Start {
    pub service: Arc<str>,
    turn: u32,
    fence: Fence,
    backend: Arc<str>,
    address: SocketAddr,
    why: Why,
}

/// A fence's end.
#[derive(Debug)]
pub struct Ended {
    service: Arc<str>,
    fenced: Fenced,
}

/// A handover under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handover {
    turn: u32,
    /// The contents in which the old backend is cut off.
    generation: u64,
    started: bool,
}

/// Runs fences, each in a task of its own, and reports their ends.
#[derive(Debug)]
pub struct Fences(mpsc::UnboundedSender<Ended>);

impl Fences {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Ended>) {
        let (report, ended) = mpsc::unbounded_channel();
        (Self(report), ended)
    }

    pub fn start(&self, start: Start) {
        let report = self.0.clone();
        tokio::spawn(async move {
            let environment = start.environment();
            let Fence { command, timeout } = &start.fence;
            let result = probe::run_command(command, environment, *timeout).await;
            match &result {
                Ok(said) => info!(service = %start.service, "fenced {}: {said}", start.backend),
                Err(why) => info!(service = %start.service, "{} not fenced: {why}", start.backend),
            }
            let ended = Ended {
                service: start.service,
                fenced: Fenced {
                    turn: start.turn,
                    result: result.map(drop),
                },
            };
            if report.send(ended).is_err() {
                tracing::debug!("a fence ended after the agent");
            }
        });
    }
}

impl Start {
    /// What the command is told, in the names of the exec probe.
    fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("LB_SERVICE", self.service.to_string()),
            ("LB_BACKEND", self.backend.to_string()),
            ("LB_ADDRESS", self.address.ip().to_string()),
            ("LB_PORT", self.address.port().to_string()),
            ("LB_REASON", self.why.name().to_owned()),
        ]
    }
}

impl Core {
    /// Notes which handovers are under way: the contents just built cut their backends off.
    pub(super) fn note_handovers(&mut self) {
        let mut under_way = BTreeMap::new();
        for (name, service) in &self.routing.services {
            let phase = service.primary.as_ref().map(|primary| &primary.phase);
            let Some(&Phase::Fencing { turn, .. }) = phase else {
                continue;
            };
            let new = Handover {
                turn,
                generation: self.generation,
                started: false,
            };
            let known = self.handovers.get(name).filter(|known| known.turn == turn);
            under_way.insert(name.clone(), known.copied().unwrap_or(new));
        }
        self.handovers = under_way;
        let handovers = &self.handovers;
        self.orders.fenced.retain(|name, fenced| {
            handovers
                .get(name)
                .is_some_and(|handover| handover.turn == fenced.turn)
        });
    }

    /// The fences to run now. Where there is no command, the handover goes on.
    pub fn fences_due(&mut self) -> Vec<Start> {
        let mut starts = Vec::new();
        for (name, handover) in &mut self.handovers {
            if handover.started || handover.generation > self.applied {
                continue;
            }
            let service = self.model.service(name);
            let rules = service.and_then(|service| service.mode.active_passive());
            let routing = self.routing.services.get(name);
            let primary = routing.and_then(|routing| routing.primary.as_ref());
            let (Some(rules), Some(primary)) = (rules, primary) else {
                continue;
            };
            let Some(why) = primary.phase.handover().map(|handover| handover.why) else {
                continue;
            };
            handover.started = true;
            match &rules.fence {
                Some(fence) => starts.push(Start {
                    service: name.clone(),
                    turn: handover.turn,
                    fence: fence.clone(),
                    backend: primary.backend.clone(),
                    address: primary.address,
                    why,
                }),
                None => {
                    let fenced = Fenced {
                        turn: handover.turn,
                        result: Ok(()),
                    };
                    self.orders.fenced.insert(name.clone(), fenced);
                    self.dirty = true;
                }
            }
        }
        starts
    }

    /// A fence has ended.
    pub fn fenced(&mut self, ended: Ended) {
        self.orders.fenced.insert(ended.service, ended.fenced);
        self.dirty = true;
    }
}
