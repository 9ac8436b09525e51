//! Where in the file things stand, for warnings that come after reading.

use std::collections::BTreeMap;
use std::ops::Range;

use super::service::Draft;

/// Places of all services, in their order.
#[derive(Clone, Debug)]
pub struct Places {
    services: Vec<ServicePlaces>,
}

/// Places of one service.
#[derive(Clone, Debug, Default)]
pub struct ServicePlaces {
    /// Its name, else its `[[service]]`.
    pub header: Range<usize>,
    /// Values by key; those of its health checks as `health.path`.
    pub keys: BTreeMap<String, Range<usize>>,
    /// The `service` key of its own health table, which is not inherited.
    pub grpc_service: Option<Range<usize>>,
    /// Addresses of its backends.
    pub backends: Vec<Range<usize>>,
}

impl Places {
    pub fn new(drafts: &[Draft]) -> Self {
        Self {
            services: drafts.iter().map(|draft| draft.places.clone()).collect(),
        }
    }

    /// Where `key` of service number `service` stands; if it is not written, where the service
    /// starts.
    pub fn key(&self, service: usize, key: &str) -> Range<usize> {
        self.services.get(service).map_or(0..0, |places| {
            places.keys.get(key).unwrap_or(&places.header).clone()
        })
    }

    /// Where the service's own health table names a gRPC service.
    pub fn grpc_service(&self, service: usize) -> Option<Range<usize>> {
        self.services.get(service)?.grpc_service.clone()
    }

    /// Where the address of a backend stands.
    pub fn backend(&self, service: usize, backend: usize) -> Range<usize> {
        self.services
            .get(service)
            .and_then(|places| places.backends.get(backend).cloned())
            .unwrap_or(0..0)
    }
}
