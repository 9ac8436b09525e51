//! Numbers for services and backends. A number means the same address for as long as it is in use,
//! because slots, flows and counters refer to it; it is kept over restarts by reading the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use lb_common::abi::{MAX_BACKENDS, MAX_SERVICES};
use lb_common::slot::BackendIndex;
use thiserror::Error;

use super::{Contents, ServiceId};
use crate::model::{Endpoint, Protocol};

/// No number is left.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Full {
    #[error("more than {} services, those still draining included", MAX_SERVICES - 1)]
    Services,
    #[error("more than {} backends, those still draining included", MAX_BACKENDS - 1)]
    Backends,
}

/// Which numbers are taken, and by whom.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    services: BTreeMap<(Endpoint, Protocol), ServiceId>,
    backends: BTreeMap<(ServiceId, SocketAddr), BackendIndex>,
    /// The values of `backends`.
    taken: BTreeSet<BackendIndex>,
}

impl Ids {
    /// The numbers that the maps' contents use.
    pub fn of(contents: &Contents) -> Self {
        let services = contents.services.iter();
        let backends = contents.backends.iter();
        Self {
            services: services
                .map(|(id, s)| ((s.address, s.protocol), *id))
                .collect(),
            backends: backends
                .map(|(id, b)| ((b.service, b.address), *id))
                .collect(),
            taken: contents.backends.keys().copied().collect(),
        }
    }

    /// The number of a service, a new one if it has none yet.
    pub fn service(&mut self, at: Endpoint, protocol: Protocol) -> Result<ServiceId, Full> {
        if let Some(id) = self.services.get(&(at, protocol)) {
            return Ok(*id);
        }
        // A number is free only when no backend refers to it either.
        let in_use = |id| {
            self.services.values().any(|other| *other == id)
                || self.backends.keys().any(|(service, _)| *service == id)
        };
        let id = (1..MAX_SERVICES as u16)
            .find(|id| !in_use(*id))
            .ok_or(Full::Services)?;
        self.services.insert((at, protocol), id);
        Ok(id)
    }

    /// The number of a backend, a new one if it has none yet.
    pub fn backend(&mut self, service: ServiceId, at: SocketAddr) -> Result<BackendIndex, Full> {
        if let Some(id) = self.backends.get(&(service, at)) {
            return Ok(*id);
        }
        let mut numbers = 1..MAX_BACKENDS as u16;
        let id = numbers.find(|id| !self.taken.contains(id));
        let id = id.ok_or(Full::Backends)?;
        self.taken.insert(id);
        self.backends.insert((service, at), id);
        Ok(id)
    }

    /// The number of a service that has one.
    pub fn known_service(&self, at: Endpoint, protocol: Protocol) -> Option<ServiceId> {
        self.services.get(&(at, protocol)).copied()
    }

    /// The number of a backend that has one.
    pub fn known_backend(&self, service: ServiceId, at: SocketAddr) -> Option<BackendIndex> {
        self.backends.get(&(service, at)).copied()
    }

    /// Frees a service's number.
    pub fn release_service(&mut self, id: ServiceId) {
        self.services.retain(|_, taken| *taken != id);
    }

    /// Frees a backend's number; nothing may refer to it any more.
    pub fn release_backend(&mut self, id: BackendIndex) {
        self.backends.retain(|_, taken| *taken != id);
        self.taken.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn numbers_start_at_one_and_stay() {
        let mut ids = Ids::default();
        let web = ids
            .service(at("203.0.113.1:80").into(), Protocol::Tcp)
            .unwrap();
        let dns = ids
            .service(at("203.0.113.1:80").into(), Protocol::Udp)
            .unwrap();
        assert_eq!((web, dns), (1, 2));
        assert_eq!(
            ids.service(at("203.0.113.1:80").into(), Protocol::Tcp),
            Ok(1)
        );
        assert_eq!(ids.backend(web, at("10.0.0.1:80")), Ok(1));
        assert_eq!(ids.backend(dns, at("10.0.0.1:80")), Ok(2));
        assert_eq!(ids.backend(web, at("10.0.0.1:80")), Ok(1));
        ids.release_backend(1);
        assert_eq!(ids.backend(dns, at("10.0.0.2:80")), Ok(1));
    }

    #[test]
    fn a_service_number_is_not_reused_while_backends_refer_to_it() {
        let mut ids = Ids::default();
        let first = ids
            .service(at("203.0.113.1:80").into(), Protocol::Tcp)
            .unwrap();
        let backend = ids.backend(first, at("10.0.0.1:80")).unwrap();
        ids.release_service(first);
        assert_eq!(
            ids.service(at("203.0.113.2:80").into(), Protocol::Tcp),
            Ok(2)
        );
        ids.release_backend(backend);
        assert_eq!(
            ids.service(at("203.0.113.3:80").into(), Protocol::Tcp),
            Ok(1)
        );
    }

    #[test]
    fn says_when_it_is_full() {
        let mut ids = Ids::default();
        for port in 1..MAX_SERVICES as u16 {
            let at = SocketAddr::new([203, 0, 113, 1].into(), port);
            assert!(ids.service(at.into(), Protocol::Tcp).is_ok());
        }
        assert_eq!(
            ids.service(at("203.0.113.2:1").into(), Protocol::Tcp),
            Err(Full::Services)
        );
    }
}
