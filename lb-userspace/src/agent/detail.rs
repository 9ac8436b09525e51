//! The status of one service: what each axis says of its backends, and their last probes.

use super::core::Core;
use super::saved::Admin;
use crate::api::detail::{Axis, AxisStatus};
use crate::api::status::{CheckStatus, ServiceStatus, Status};
use crate::health::{CheckView, Health, TargetView};
use crate::model::{BackendKey, Service};
use crate::probe::Class;
use crate::routing::{Decision, Routing};

impl Core {
    /// A status with all that is known of this service.
    pub fn detailed(&self, status: &Status, name: &str) -> Status {
        let mut status = status.clone();
        let Some(service) = self.model.service(name) else {
            return status;
        };
        // What is asked for is one service.
        status.services.retain(|known| known.name == name);
        for known in &mut status.services {
            self.detail(known, service);
        }
        status
    }

    fn detail(&self, status: &mut ServiceStatus, service: &Service) {
        for backend in &mut status.backends {
            let key = BackendKey::new(service.name.clone(), backend.name.clone());
            let view = self.engine.get(&key);
            backend.checks = view
                .into_iter()
                .flat_map(|view| &view.checks)
                .map(|check| self.check_with_history(check))
                .collect();
            let routing = self.routing.get(&key);
            backend.axes = [
                Some(self.operator(&key)),
                view.filter(|view| !view.checks.is_empty())
                    .map(|_| self.probing(&key)),
                view.map(|view| self.probes(view)),
                Some(self.packets(&key)),
                routing.map(|decision| self.routed(decision)),
            ]
            .into_iter()
            .flatten()
            .collect();
        }
    }

    fn check_with_history(&self, check: &CheckView) -> CheckStatus {
        let history = check.history.iter().rev();
        CheckStatus {
            history: history.map(|record| self.last_probe(record)).collect(),
            ..self.check(check)
        }
    }

    fn operator(&self, key: &BackendKey) -> AxisStatus {
        let admin = self.words.get(key).map(|word| word.admin);
        let (state, since, until) = match admin.unwrap_or_default() {
            Admin::Enabled => ("enabled", None, None),
            Admin::Drain { since, until } => ("drain", Some(since), Some(until)),
            Admin::Disabled { since } => ("disabled", Some(since), None),
        };
        AxisStatus {
            axis: Axis::Operator,
            state: state.to_owned(),
            since,
            code: String::new(),
            reason: String::new(),
            until,
        }
    }

    fn probing(&self, key: &BackendKey) -> AxisStatus {
        let since = self.words.get(key).and_then(|word| word.paused);
        AxisStatus {
            axis: Axis::Probing,
            state: since.map_or("running", |_| "paused").to_owned(),
            since,
            code: String::new(),
            reason: String::new(),
            until: None,
        }
    }

    fn probes(&self, view: &TargetView) -> AxisStatus {
        let now = self.clock.now();
        let held = view.held_until.filter(|until| *until > now);
        AxisStatus {
            axis: Axis::Probes,
            state: view.health.name().to_owned(),
            since: Some(self.clock.wall(view.since)),
            code: view.class.map_or("", Class::name).to_owned(),
            reason: view.reason.clone(),
            until: held
                .filter(|_| view.health == Health::Unhealthy)
                .map(|until| self.clock.wall(until)),
        }
    }

    fn packets(&self, key: &BackendKey) -> AxisStatus {
        let said = |state: &str, code: &str, reason: &str| AxisStatus {
            axis: Axis::Packets,
            state: state.to_owned(),
            since: None,
            code: code.to_owned(),
            reason: reason.to_owned(),
            until: None,
        };
        if let Some(doubt) = self.passive.doubts().get(key) {
            return AxisStatus {
                since: Some(self.clock.wall(doubt.since)),
                until: Some(self.clock.wall(doubt.until)),
                ..said("ejected", doubt.kind.name(), &doubt.reason)
            };
        }
        match self.passive.disagreement(key, self.clock.now()) {
            Some(what) => said("suspected", "disagreement", what),
            None => said("trusted", "", ""),
        }
    }

    fn routed(&self, decision: &Decision) -> AxisStatus {
        AxisStatus {
            axis: Axis::Routing,
            state: decision.routing.name().to_owned(),
            since: Some(self.clock.wall(decision.since)),
            code: decision.cause.name().to_owned(),
            reason: decision.reason.clone(),
            until: match decision.routing {
                Routing::Draining { until } => Some(self.clock.wall(until)),
                Routing::Active | Routing::Out | Routing::Standby | Routing::Panic => None,
            },
        }
    }
}
