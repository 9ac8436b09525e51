//! The operator's words about backends: kept over restarts, and over a change of name.

use std::collections::BTreeMap;

use tracing::info;

use super::core::Core;
use super::saved::{self, Word};
use crate::health::SetHealth;
use crate::model::{BackendKey, Model, Service};
use crate::routing::Admin;

impl Core {
    /// Sets the operator's word.
    pub fn set_word(&mut self, key: &BackendKey, word: Word) {
        self.admin.insert(key.clone(), self.admin_of(&word));
        self.words.insert(key.clone(), word);
        self.weigh();
        self.pause_probes();
        self.dirty = true;
        self.save_soon();
    }

    /// The services with the weights in force.
    pub(super) fn services(&self) -> &[Service] {
        self.weighed.as_deref().unwrap_or(&self.model.services)
    }

    /// Whether the operator's words leave no backend of the service that could get new flows.
    pub fn nobody_is_left(&self, service: &str) -> bool {
        let mut services = self.services().iter();
        let service = services.find(|known| &*known.name == service);
        service.is_some_and(|service| nobody_is_left(service, &self.admin))
    }

    fn weigh(&mut self) {
        self.weighed = None;
        if self.words.values().all(|word| word.weight.is_none()) {
            return;
        }
        let mut services = self.model.services.clone();
        for service in &mut services {
            for backend in &mut service.backends {
                let key = BackendKey::new(service.name.clone(), backend.name.clone());
                let word = self.words.get(&key);
                backend.weight = word.and_then(|word| word.weight).unwrap_or(backend.weight);
            }
        }
        self.weighed = Some(services);
    }

    pub(super) fn admin_of(&self, word: &Word) -> Admin {
        match word.admin {
            saved::Admin::Enabled => Admin::Enabled,
            saved::Admin::Drain { until, .. } => Admin::Drain {
                until: self.clock.monotonic(until),
            },
            saved::Admin::Disabled { .. } => Admin::Disabled,
        }
    }

    /// Forgets words about backends that are not configured.
    pub(super) fn forget_words(&mut self) {
        let model = self.model.clone();
        self.words.retain(|key, _| model.backend(key).is_some());
        self.admin = self
            .words
            .iter()
            .map(|(key, word)| (key.clone(), self.admin_of(word)))
            .collect();
        self.weigh();
        self.pause_probes();
    }

    /// Tells the engine whose probes are paused.
    pub(super) fn pause_probes(&mut self) {
        let paused = self.words.iter().filter(|(_, word)| word.paused.is_some());
        let paused = paused.map(|(key, _)| key.clone()).collect();
        self.engine.pause(paused, self.clock.now());
    }

    /// Sets what the probes say of a backend, until they say otherwise. Tells whether that is news;
    /// `None` if nobody probes it.
    pub fn set_health(&mut self, key: &BackendKey, health: SetHealth) -> Option<bool> {
        let now = self.clock.now();
        let change = self.engine.set(key, health, now)?;
        if let Some(change) = &change {
            info!(backend = %key, from = change.from.name(), to = change.to.name(), "{}", change.reason);
            self.dirty = true;
            self.gap.turned(now);
            self.save_soon();
        }
        Some(change.is_some())
    }

    /// Words about a backend go with its address when its name changes.
    pub(super) fn rename_words(&mut self, model: &Model) {
        for service in &model.services {
            let identity = |service: &Service| (service.address, service.protocol);
            let known = self
                .model
                .services
                .iter()
                .find(|old| identity(old) == identity(service));
            let Some(known) = known else { continue };
            for backend in &service.backends {
                let same = known
                    .backends
                    .iter()
                    .find(|old| old.address == backend.address);
                let Some(old) = same.map(|old| known.key(old)) else {
                    continue;
                };
                let new = service.key(backend);
                if old != new
                    && model.backend(&old).is_none()
                    && let Some(word) = self.words.remove(&old)
                {
                    self.words.insert(new, word);
                }
            }
        }
    }
}

fn nobody_is_left(service: &Service, admin: &BTreeMap<BackendKey, Admin>) -> bool {
    let mut backends = service.backends.iter();
    !backends.any(|backend| {
        let admin = admin.get(&service.key(backend));
        backend.weight > 0 && admin.is_none_or(|admin| *admin == Admin::Enabled)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_service_without_anybody_enabled_and_of_weight_is_noticed() {
        let text = r#"
            [node]
            interfaces = ["eth0"]
            [[service]]
            name = "web"
            address = "203.0.113.10:80"
            [[service.backend]]
            name = "web-1"
            address = "10.0.0.11:80"
            [[service.backend]]
            name = "web-2"
            address = "10.0.0.12:80"
        "#;
        let model = config::parse(text, "lb.toml").unwrap();
        let mut service = model.services[0].clone();
        let mut admin = BTreeMap::new();
        assert!(!nobody_is_left(&service, &admin));
        admin.insert(BackendKey::new("web", "web-1"), Admin::Disabled);
        assert!(!nobody_is_left(&service, &admin));
        service.backends[1].weight = 0;
        assert!(nobody_is_left(&service, &admin));
        admin.insert(BackendKey::new("web", "web-1"), Admin::Enabled);
        assert!(!nobody_is_left(&service, &admin));
    }
}
