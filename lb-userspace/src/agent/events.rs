//! Events: kept until the data plane does what they say, so that what is told has happened.

use std::time::Duration;

use super::core::Core;
use crate::api::event::{Change, Evidence, Kind, Origin};
use crate::health::{Budget, TargetView};
use crate::model::BackendKey;
use crate::routing::{self, Admin, Cause, EventKind, RoutingState};

/// An event that waits for the datapath.
pub(super) struct Pending {
    pub(super) generation: u64,
    pub(super) change: Change,
    /// When the first probe of the run that decided began.
    pub(super) began: Option<Duration>,
}

impl Core {
    /// Keeps an event until the datapath does what it says.
    pub(super) fn pend(&mut self, event: routing::Event, before: &RoutingState) {
        let kind = match event.kind {
            EventKind::PanicEntered => Kind::PanicEntered,
            EventKind::PanicLeft => Kind::PanicLeft,
            EventKind::TierSwitched => Kind::Tier,
            EventKind::Admitted => Kind::FirstVerdict,
            EventKind::Readmitted => Kind::Readmitted,
            EventKind::Ejected => Kind::Ejected,
            EventKind::Draining => Kind::Draining,
            EventKind::Drained => Kind::Drained,
            EventKind::Panicked => Kind::Panicked,
            EventKind::EjectionRefused => Kind::EjectionRefused,
            EventKind::Fencing => Kind::Fencing,
            EventKind::FenceFailed => Kind::FenceFailed,
            EventKind::Promoted => Kind::Promoted,
        };
        let percent = self
            .routing
            .services
            .get(&event.service)
            .map(|s| s.healthy_percent);
        let Some(key) = event.backend else {
            let evidence = Evidence {
                healthy_percent: percent,
                ..Evidence::default()
            };
            let change = Change::service(kind, &event.service, Origin::Probe, event.reason);
            let change = change.on(evidence);
            self.pending.push(Pending {
                generation: self.generation,
                change,
                began: None,
            });
            return;
        };
        // A handover is the agent's doing, and no probe of this backend tells when it began.
        let hands_over = matches!(
            event.kind,
            EventKind::Fencing | EventKind::FenceFailed | EventKind::Promoted
        );
        // Also what follows from a word that was taken back.
        let told_before = before
            .get(&key)
            .is_some_and(|decision| matches!(decision.cause, Cause::Disabled | Cause::Drained));
        let set = self.engine.get(&key).is_some_and(TargetView::is_set);
        let not_by_probes = hands_over
            || told_before
            || (set && !self.passive.doubts().contains_key(&key))
            || self
                .admin
                .get(&key)
                .is_some_and(|admin| *admin != Admin::Enabled);
        let name = |state: &RoutingState| state.get(&key).map(|decision| decision.routing.name());
        let (from, to) = (name(before), name(&self.routing));
        let origin = if not_by_probes {
            Origin::Agent
        } else if self.passive.doubts().contains_key(&key) {
            Origin::Traffic
        } else {
            Origin::Probe
        };
        if event.kind == EventKind::EjectionRefused {
            self.count_refusal(&key, &origin);
        }
        let change = Change::backend(kind, &key, origin, event.reason)
            .states(from.unwrap_or("out"), to.unwrap_or("out"))
            .on(self.evidence(&key, kind, percent, not_by_probes));
        let began = if hands_over {
            None
        } else {
            self.turns.remove(&key).filter(|_| !not_by_probes)
        };
        self.pending.push(Pending {
            generation: self.generation,
            change,
            began,
        });
    }

    /// Counts an ejection that would have been one too many.
    pub(super) fn count_refusal(&mut self, key: &BackendKey, origin: &Origin) {
        let refused = self.refused.entry(key.service.clone()).or_default();
        match origin {
            Origin::Traffic => refused.packets += 1,
            Origin::Probe | Origin::Config | Origin::Agent | Origin::Operator { .. } => {
                refused.probes += 1;
            }
        }
    }

    fn evidence(
        &self,
        key: &BackendKey,
        kind: Kind,
        healthy_percent: Option<f64>,
        not_by_probes: bool,
    ) -> Evidence {
        let index = self
            .model
            .backend(key)
            .and_then(|(service, backend)| self.builder.index(service, backend));
        let flows = index.map(|index| self.sweep.active.get(&index).copied().unwrap_or(0));
        let mut evidence = Evidence {
            healthy_percent,
            flows,
            ..Evidence::default()
        };
        if not_by_probes {
            return evidence;
        }
        if let Some(last) = self.engine.get(key).and_then(TargetView::last) {
            evidence.probe_class = Some(last.class.name().to_owned());
            evidence.probe_detail = Some(last.detail.to_string());
            evidence.latency_ms = Some(last.latency().as_secs_f64() * 1e3);
        }
        let policy = self.model.service(&key.service).and_then(|service| {
            service
                .health
                .iter()
                .max_by_key(|p| Budget::of(p).worst_eject)
        });
        evidence.budget_ms = policy.map(Budget::of).and_then(|budget| match kind {
            Kind::Ejected | Kind::Draining => Some(budget.worst_eject.as_secs_f64() * 1e3),
            Kind::Readmitted => Some(budget.worst_readmit.as_secs_f64() * 1e3),
            _ => None,
        });
        evidence
    }

    /// Tells what the datapath does by now.
    pub(super) fn tell_pending(&mut self) {
        let (told, wait): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.generation <= self.applied);
        self.pending = wait;
        for Pending {
            mut change, began, ..
        } in told
        {
            let took = began.map(|began| self.applied_at.max(began) - began);
            change.evidence.took_ms = took.map(|took| took.as_secs_f64() * 1e3);
            self.record(change);
        }
    }
}
