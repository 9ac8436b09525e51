//! Who is the active backend of services that have one at a time: kept over restarts, and over a
//! reload that names the service otherwise.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use lb_common::abi::BackendState;
use serde::{Deserialize, Serialize};

use super::core::Core;
use crate::api::status::{PrimaryState, PrimaryStatus};
use crate::model::{BackendKey, Model, Service};
use crate::plan::Contents;
use crate::routing::Routing;
use crate::routing::active_passive::{Known, Phase};

/// The active backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPrimary {
    pub service: String,
    pub backend: String,
    pub address: SocketAddr,
    /// Since when it is the active one.
    pub since: Timestamp,
    /// Why it is.
    pub reason: String,
}

/// Who is active, for a start or a reload: whom the data plane sends packets to, else whom the state
/// file names. Between the two the data plane is ahead: it outlives the agent, and is written first.
pub fn known(
    model: &Model,
    contents: &Contents,
    saved: &BTreeMap<Arc<str>, SavedPrimary>,
) -> BTreeMap<Arc<str>, Known> {
    let services = model.services.iter();
    let known = services.filter_map(|service| {
        service.mode.active_passive()?;
        let saved = saved.get(&service.name);
        let serving = serving(service, contents).map(|(backend, address)| Known {
            backend,
            address,
            reason: "as the data plane had it".to_owned(),
        });
        let said = saved.map(|saved| Known {
            backend: saved.backend.as_str().into(),
            address: saved.address,
            reason: saved.reason.clone(),
        });
        let known = match (serving, said) {
            (Some(serving), Some(said)) if serving.address == said.address => said,
            (Some(serving), _) => serving,
            (None, said) => said?,
        };
        Some((service.name.clone(), known))
    });
    known.collect()
}

/// The only backend of a service that gets new flows, else the only one that gets any.
fn serving(service: &Service, contents: &Contents) -> Option<(Arc<str>, SocketAddr)> {
    let (id, _) = contents.services.iter().find(|(_, known)| {
        (known.address, known.protocol) == (service.address, service.protocol)
    })?;
    let only = |state| {
        let mut of = contents
            .backends
            .values()
            .filter(|backend| backend.service == *id && backend.state == state);
        match (of.next(), of.next()) {
            (Some(one), None) => Some(one.address),
            _ => None,
        }
    };
    let address = only(BackendState::Active).or_else(|| only(BackendState::Draining))?;
    let named = service.backends.iter().find(|b| b.address == address);
    let name = named.map_or_else(
        || address.to_string().into(),
        |backend| backend.name.clone(),
    );
    Some((name, address))
}

impl Core {
    /// Notes who is active now; a change is written down at once.
    pub(super) fn note_primaries(&mut self) {
        let mut primaries = BTreeMap::new();
        for (name, service) in &self.routing.services {
            let Some(primary) = &service.primary else {
                continue;
            };
            let old = self.primaries.get(name);
            let since = old
                .filter(|old| old.address == primary.address)
                .map_or_else(crate::api::now, |old| old.since);
            let new = SavedPrimary {
                service: name.to_string(),
                backend: primary.backend.to_string(),
                address: primary.address,
                since,
                reason: primary.reason.clone(),
            };
            primaries.insert(name.clone(), new);
        }
        if primaries != self.primaries {
            self.primaries = primaries;
            self.save(None);
        }
    }
}

impl Core {
    /// Has a backend take over; `false` if it is the active one already.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn promote(&mut self, key: &BackendKey) -> Result<bool, String> {
        let service = self.model.service(&key.service);
        let rules = service.and_then(|service| service.mode.active_passive());
        let routing = self.routing.services.get(&key.service);
        let primary = routing.and_then(|routing| routing.primary.as_ref());
        let (Some(rules), Some(primary)) = (rules, primary) else {
            return Err(format!(
                "{} has mode = \"balance\": all of its backends that can serve are active",
                key.service
            ));
        };
        if primary.backend == key.backend {
            return Ok(false);
        }
        match &primary.phase {
            Phase::Serving | Phase::Failing { .. } | Phase::FenceFailed { .. } => {}
            Phase::Fencing { .. } | Phase::Fenced { .. } => {
                return Err(format!(
                    "{} is about to get another active backend; wait for `lb status` to tell which",
                    key.service
                ));
            }
        }
        if rules.failback {
            return Err(format!(
                "with failback = true {} would go back by itself; drain or disable {} instead",
                key.service, primary.backend
            ));
        }
        let decision = self.routing.get(key);
        if decision.is_none_or(|decision| decision.routing != Routing::Standby) {
            let why = decision.map_or("", |decision| decision.reason.as_str());
            return Err(format!("{key} cannot take over: {why}"));
        }
        let (service, backend) = (key.service.clone(), key.backend.clone());
        self.orders.promote.insert(service, backend);
        self.dirty = true;
        Ok(true)
    }

    /// What `lb status` shows of a service's active backend.
    pub(super) fn primary_status(&self, service: &str) -> Option<PrimaryStatus> {
        let primary = self.routing.services.get(service)?.primary.as_ref()?;
        let saved = self.primaries.get(service)?;
        let wall = |at| Some(self.clock.wall(at));
        let handover = primary.phase.handover().map(|h| h.reason.clone());
        let (state, trouble, until, attempt, fence_error) = match &primary.phase {
            Phase::Serving => (PrimaryState::Serving, None, None, None, None),
            Phase::Failing { until, reason } => {
                let reason = Some(reason.clone());
                (PrimaryState::Failing, reason, wall(*until), None, None)
            }
            Phase::Fencing { attempt, .. } => {
                (PrimaryState::Fencing, handover, None, Some(*attempt), None)
            }
            Phase::FenceFailed {
                attempt,
                again,
                error,
                ..
            } => (
                PrimaryState::FenceFailed,
                handover,
                wall(*again),
                Some(*attempt),
                Some(error.clone()),
            ),
            Phase::Fenced { .. } => (PrimaryState::Fenced, handover, None, None, None),
        };
        Some(PrimaryStatus {
            backend: saved.backend.clone(),
            state,
            since: saved.since,
            reason: saved.reason.clone(),
            trouble,
            until,
            attempt,
            fence_error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const CONFIG: &str = r#"
        [node]
        interfaces = ["eth0"]
        [[service]]
        name = "db"
        address = "203.0.113.10:5432"
        mode = "active_passive"
        [[service.backend]]
        name = "db-1"
        address = "10.0.0.11:5432"
        [[service.backend]]
        name = "db-2"
        address = "10.0.0.12:5432"
    "#;

    fn contents(model: &Model, states: &[BackendState]) -> Contents {
        let service = &model.services[0];
        let mut contents = Contents::default();
        contents.services.insert(
            1,
            crate::plan::Service {
                address: service.address,
                protocol: service.protocol,
                forwarding: service.forwarding,
                affinity: service.affinity,
                on_death: service.on_death,
                syn_rescue: false,
                server_id_length: 0,
                slots: Arc::new(Vec::new()),
            },
        );
        for (number, (backend, state)) in service.backends.iter().zip(states).enumerate() {
            contents.backends.insert(
                number as u16 + 1,
                crate::plan::Backend {
                    service: 1,
                    address: backend.address,
                    server_id: None,
                    watches_http: false,
                    state: *state,
                    path: None,
                },
            );
        }
        contents
    }

    #[test]
    fn the_data_plane_is_believed_before_the_file_and_the_file_when_it_says_nothing() {
        use BackendState::{Active, Draining, Out};
        let model = config::parse(CONFIG, "lb.toml").unwrap();
        let saved = SavedPrimary {
            service: "db".to_owned(),
            backend: "db-2".to_owned(),
            address: "10.0.0.12:5432".parse().unwrap(),
            since: "2026-01-01T00:00:00Z".parse().unwrap(),
            reason: "db-1 is unhealthy".to_owned(),
        };
        let saved = BTreeMap::from([(Arc::from("db"), saved)]);
        let of = |states: &[BackendState], saved| {
            let known = known(&model, &contents(&model, states), saved);
            known.get("db").map(|known| known.backend.to_string())
        };
        let nothing = BTreeMap::new();
        assert_eq!(of(&[Active, Out], &saved).as_deref(), Some("db-1"));
        assert_eq!(of(&[Out, Active], &saved).as_deref(), Some("db-2"));
        assert_eq!(of(&[Draining, Out], &saved).as_deref(), Some("db-1"));
        assert_eq!(of(&[Active, Draining], &nothing).as_deref(), Some("db-1"));
        // Cut off, and nobody promoted yet; or the service shared its traffic until now.
        assert_eq!(of(&[Out, Out], &saved).as_deref(), Some("db-2"));
        assert_eq!(of(&[Active, Active], &saved).as_deref(), Some("db-2"));
        assert_eq!(of(&[Active, Active], &nothing), None);
        assert_eq!(of(&[], &nothing), None);
        let known = known(&model, &contents(&model, &[Out, Active]), &saved);
        assert_eq!(known["db"].reason, "db-1 is unhealthy");
    }
}
