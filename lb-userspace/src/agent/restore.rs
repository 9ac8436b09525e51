//! The verdicts that an agent starts from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use lb_common::abi::BackendState;

use crate::health::{Health, Past, Restored, RestoredChecks};
use crate::model::{BackendKey, Model, Service};
use crate::plan::Contents;

/// The verdicts to start from: those saved, and where there is none, what the data plane does with
/// the backend, so that a restart empties no table.
pub fn restore(
    model: &Model,
    contents: &Contents,
    mut saved: BTreeMap<BackendKey, Restored>,
) -> BTreeMap<BackendKey, Restored> {
    // Nothing was known, which says less than what the data plane does.
    saved.retain(|_, restored| restored.health != Health::Unknown);
    for (key, address, state) in states(model, contents) {
        saved.entry(key).or_insert_with(|| Restored {
            health: match state {
                BackendState::Active => Health::Healthy,
                BackendState::Draining | BackendState::Out | BackendState::Unset => {
                    Health::Unhealthy
                }
            },
            gone: state == BackendState::Out,
            reason: "as the data plane had it".to_owned(),
            address,
            past: Past::default(),
            checks: RestoredChecks::default(),
        });
    }
    saved
}

/// The backends that get new flows by what the data plane has.
pub fn served(model: &Model, contents: &Contents) -> BTreeSet<BackendKey> {
    let states = states(model, contents).into_iter();
    let active = states.filter(|(_, _, state)| *state == BackendState::Active);
    active.map(|(key, ..)| key).collect()
}

/// What the data plane does with the backends of a model, of those that it knows.
fn states(model: &Model, contents: &Contents) -> Vec<(BackendKey, SocketAddr, BackendState)> {
    let states: HashMap<_, _> = (contents.backends.values())
        .map(|known| ((known.service, known.address), known.state))
        .collect();
    let known = |service: &Service| {
        let mut services = contents.services.iter();
        let place = (service.address, service.protocol);
        let (id, _) = services.find(|(_, known)| (known.address, known.protocol) == place)?;
        Some(*id)
    };
    let mut found = Vec::new();
    for service in &model.services {
        let Some(id) = known(service) else { continue };
        for backend in &service.backends {
            if let Some(state) = states.get(&(id, backend.address)) {
                found.push((service.key(backend), backend.address, *state));
            }
        }
    }
    found
}
