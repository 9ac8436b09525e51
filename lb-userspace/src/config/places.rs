//! Where in the file things stand, for warnings that come after reading.

use std::collections::BTreeMap;
use std::ops::Range;

use super::reader::Reader;
use super::schema::NODE;
use super::service::Draft;

/// Places of all services, in their order.
#[derive(Clone, Debug)]
pub struct Places {
    services: Vec<ServicePlaces>,
    /// Values of `[node]` by key.
    node: BTreeMap<&'static str, Range<usize>>,
}

/// Places of one service.
#[derive(Clone, Debug, Default)]
pub struct ServicePlaces {
    /// Its name, else its `[[service]]`.
    pub header: Range<usize>,
    /// Values by key; those of its health checks by [`health_key`].
    pub keys: BTreeMap<String, Range<usize>>,
    /// The `service` key of each of its own health tables, which is not inherited.
    pub grpc_service: Vec<Option<Range<usize>>>,
    /// Addresses of its backends.
    pub backends: Vec<Range<usize>>,
}

/// A key of the service's health table number `check`: `health.path`, `health[1].path`.
pub fn health_key(check: usize, key: &str) -> String {
    match check {
        0 => format!("health.{key}"),
        check => format!("health[{check}].{key}"),
    }
}

impl Places {
    pub fn new(node: Option<&Reader<'_>>, drafts: &[Draft]) -> Self {
        let own = NODE.keys.iter().filter_map(|key| {
            let value = node?.own(key.name)?;
            Some((key.name, value.span()))
        });
        Self {
            services: drafts.iter().map(|draft| draft.places.clone()).collect(),
            node: own.collect(),
        }
    }

    /// Where `key` of `[node]` stands, if it is written.
    pub fn node(&self, key: &str) -> Option<Range<usize>> {
        self.node.get(key).cloned()
    }

    /// Where `key` of service number `service` stands; if it is not written, where the service
    /// starts.
    pub fn key(&self, service: usize, key: &str) -> Range<usize> {
        self.services.get(service).map_or(0..0, |places| {
            places.keys.get(key).unwrap_or(&places.header).clone()
        })
    }

    /// Where a health table of the service's own names a gRPC service.
    pub fn grpc_service(&self, service: usize, check: usize) -> Option<Range<usize>> {
        self.services.get(service)?.grpc_service.get(check)?.clone()
    }

    /// Where the address of a backend stands.
    pub fn backend(&self, service: usize, backend: usize) -> Range<usize> {
        self.services
            .get(service)
            .and_then(|places| places.backends.get(backend).cloned())
            .unwrap_or(0..0)
    }
}
