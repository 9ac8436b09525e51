//! Another configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_common::abi::Forwarding;
use tracing::{error, info};

use super::core::Core;
use super::primaries::known;
use super::restore::{restore, served};
use crate::api::event::{Change, Kind, Origin};
use crate::model::{BackendKey, Model, Service};

impl Core {
    /// Takes over another model; says what is new. `why` is said of each backend that is new, and
    /// of each that is gone.
    pub(super) fn configure(
        &mut self,
        model: Arc<Model>,
        origin: Origin,
        [why_new, why_gone]: [&str; 2],
    ) -> String {
        let keys = |model: &Model| -> BTreeSet<BackendKey> {
            let services = model.services.iter();
            services
                .flat_map(|s| s.backends.iter().map(|backend| s.key(backend)))
                .collect()
        };
        let (old, new) = (keys(&self.model), keys(&model));
        let rehashed = rehashed(&self.model, &model);
        self.rename_words(&model);
        self.pause_probes();
        self.model = model;
        // What has another name but the same address is known by what the data plane does with it.
        let contents = self.builder.contents();
        self.orders.known = known(&self.model, contents, &self.primaries);
        self.orders.served = served(&self.model, contents);
        let known = restore(&self.model, contents, BTreeMap::new());
        self.engine
            .configure(&self.model.services, &known, self.clock.now());
        self.passive.configure(&self.model.services);
        self.doubts_changed(self.clock.now());
        self.overload.forget();
        self.forget_words();
        self.dirty = true;
        let (added, removed): (Vec<_>, Vec<_>) = (
            new.difference(&old).collect(),
            old.difference(&new).collect(),
        );
        for (kind, keys, what) in [
            (Kind::Added, &added, why_new),
            (Kind::Removed, &removed, why_gone),
        ] {
            for key in keys {
                self.record(Change::backend(kind, key, origin.clone(), what));
            }
        }
        self.save_soon();
        let mut what = format!(
            "{} services, {} backends ({} added, {} removed)",
            self.model.services.len(),
            new.len(),
            added.len(),
            removed.len()
        );
        if !rehashed.is_empty() {
            what.push_str(&format!(
                "; WARNING: another affinity spreads established flows anew: {}",
                rehashed.join(", ")
            ));
        }
        what
    }

    /// A reload was done.
    pub fn reloaded(&mut self, origin: Origin, what: &str) {
        info!("configuration loaded: {what}");
        self.reload_error = None;
        self.record(Change::node(Kind::Reload, origin, what));
    }

    /// A reload was refused.
    pub fn reload_refused(&mut self, origin: Origin, why: &str) {
        error!("reload refused, the old configuration stays:\n{why}");
        self.reload_error = Some(why.to_owned());
        self.record(Change::node(Kind::ReloadRefused, origin, why));
    }
}

/// Services whose established flows may go to other backends, because they are found by a hash that
/// is now of something else. NAT flows have entries, which know their backends.
fn rehashed(old: &Model, new: &Model) -> Vec<String> {
    let changed = |service: &&Service| {
        service.forwarding != Forwarding::Nat
            && old.services.iter().any(|before| {
                (before.address, before.protocol) == (service.address, service.protocol)
                    && before.affinity != service.affinity
            })
    };
    let services = new.services.iter().filter(changed);
    services.map(|service| service.name.to_string()).collect()
}
