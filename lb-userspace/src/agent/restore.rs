//! The verdicts that an agent starts from.

use std::collections::{BTreeMap, HashMap};

use lb_common::abi::BackendState;

use crate::health::{Health, Past, Restored, RestoredChecks};
use crate::model::{BackendKey, Model};
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
    let states: HashMap<_, _> = (contents.backends.values())
        .map(|known| ((known.service, known.address), known.state))
        .collect();
    for service in &model.services {
        let id = contents.services.iter().find(|(_, known)| {
            (known.address, known.protocol) == (service.address, service.protocol)
        });
        let Some((id, _)) = id else { continue };
        for backend in &service.backends {
            let Some(state) = states.get(&(*id, backend.address)) else {
                continue;
            };
            saved
                .entry(service.key(backend))
                .or_insert_with(|| Restored {
                    health: match state {
                        BackendState::Active => Health::Healthy,
                        BackendState::Draining | BackendState::Out | BackendState::Unset => {
                            Health::Unhealthy
                        }
                    },
                    gone: *state == BackendState::Out,
                    reason: "as the data plane had it".to_owned(),
                    address: backend.address,
                    past: Past::default(),
                    checks: RestoredChecks::default(),
                });
        }
    }
    saved
}
