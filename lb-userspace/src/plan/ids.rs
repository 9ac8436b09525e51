//! Numbers for services and backends. A number means the same address for as long as it is in use,
//! because slots, flows and counters refer to it; it is kept over restarts by reading the maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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
    services: Numbers<(Endpoint, Protocol)>,
    backends: Numbers<(ServiceId, SocketAddr)>,
}

impl Ids {
    /// The numbers that the maps' contents use.
    pub fn of(contents: &Contents) -> Self {
        let services = contents.services.iter();
        let backends = contents.backends.iter();
        Self {
            services: Numbers::of(services.map(|(id, s)| (*id, (s.address, s.protocol)))),
            backends: Numbers::of(backends.map(|(id, b)| (*id, (b.service, b.address)))),
        }
    }

    /// The number of a service, a new one if it has none yet.
    pub fn service(&mut self, at: Endpoint, protocol: Protocol) -> Result<ServiceId, Full> {
        // A number is free only when no backend refers to it either.
        let backends = &self.backends.by_key;
        let is_referred_to = |id| {
            backends
                .range((id, LEAST)..(id + 1, LEAST))
                .next()
                .is_some()
        };
        let most = MAX_SERVICES as u16;
        let id = self.services.take((at, protocol), most, is_referred_to);
        id.ok_or(Full::Services)
    }

    /// The number of a backend, a new one if it has none yet.
    pub fn backend(&mut self, service: ServiceId, at: SocketAddr) -> Result<BackendIndex, Full> {
        let most = MAX_BACKENDS as u16;
        let id = self.backends.take((service, at), most, |_| false);
        id.ok_or(Full::Backends)
    }

    /// The number of a service that has one.
    pub fn known_service(&self, at: Endpoint, protocol: Protocol) -> Option<ServiceId> {
        self.services.by_key.get(&(at, protocol)).copied()
    }

    /// The number of a backend that has one.
    pub fn known_backend(&self, service: ServiceId, at: SocketAddr) -> Option<BackendIndex> {
        self.backends.by_key.get(&(service, at)).copied()
    }

    /// Frees a service's number.
    pub fn release_service(&mut self, id: ServiceId) {
        self.services.release(id);
    }

    /// Frees a backend's number; nothing may refer to it any more.
    pub fn release_backend(&mut self, id: BackendIndex) {
        if let Some((service, _)) = self.backends.release(id) {
            self.services.may_be_free(service);
        }
    }
}

/// The first of all addresses, in their order.
const LEAST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Numbers from 1 on, each for one key: always the lowest that is free.
#[derive(Clone, Debug)]
struct Numbers<K> {
    by_key: BTreeMap<K, u16>,
    by_number: BTreeMap<u16, K>,
    /// None below is free.
    first: u16,
}

impl<K> Default for Numbers<K> {
    fn default() -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_number: BTreeMap::new(),
            first: 1,
        }
    }
}

impl<K: Ord + Copy> Numbers<K> {
    fn of(taken: impl Iterator<Item = (u16, K)>) -> Self {
        let by_number: BTreeMap<u16, K> = taken.collect();
        Self {
            by_key: by_number.iter().map(|(id, key)| (*key, *id)).collect(),
            by_number,
            first: 1,
        }
    }

    /// The number of a key, or one for it below `end` that nothing else keeps `busy`.
    fn take(&mut self, key: K, end: u16, busy: impl Fn(u16) -> bool) -> Option<u16> {
        if let Some(id) = self.by_key.get(&key) {
            return Some(*id);
        }
        let mut rest = self.first..end;
        let id = rest.find(|id| !self.by_number.contains_key(id) && !busy(*id));
        self.first = id.map_or(end, |id| id + 1);
        let id = id?;
        self.by_key.insert(key, id);
        self.by_number.insert(id, key);
        Some(id)
    }

    /// Frees a number; whose it was.
    fn release(&mut self, id: u16) -> Option<K> {
        let key = self.by_number.remove(&id)?;
        self.by_key.remove(&key);
        self.may_be_free(id);
        Some(key)
    }

    fn may_be_free(&mut self, id: u16) {
        self.first = self.first.min(id);
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

    /// Whatever was released, and in whatever order.
    #[test]
    fn the_lowest_free_number_is_taken() {
        let mut ids = Ids::default();
        for port in 1..=9 {
            let at = SocketAddr::new([10, 0, 0, 1].into(), port);
            assert_eq!(ids.backend(1, at), Ok(port));
        }
        for id in [7, 3, 5] {
            ids.release_backend(id);
            ids.release_backend(id);
        }
        let mut next = |port| ids.backend(2, SocketAddr::new([10, 0, 0, 2].into(), port));
        assert_eq!([1, 2, 3, 4].map(&mut next), [Ok(3), Ok(5), Ok(7), Ok(10)]);
        assert_eq!(next(2), Ok(5));
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
