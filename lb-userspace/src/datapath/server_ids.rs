//! The map from the server IDs in QUIC connection IDs to backends.

use aya::maps::{HashMap, MapData, MapError};
use lb_common::abi::ServerIdKey;
use lb_common::slot::BackendIndex;

use super::maps::{AccessError, map_error};
use super::sys::Raw;
use crate::plan::ServiceId;

/// Backends by service and server ID.
pub struct ServerIds(HashMap<MapData, Raw<ServerIdKey>, Raw<u32>>);

impl ServerIds {
    pub const fn new(map: HashMap<MapData, Raw<ServerIdKey>, Raw<u32>>) -> Self {
        Self(map)
    }

    /// Packets of this service with this server ID go to this backend.
    pub fn set(
        &mut self,
        service: ServiceId,
        id: u64,
        backend: BackendIndex,
    ) -> Result<(), AccessError> {
        let service = service.into();
        self.0
            .insert(Raw(ServerIdKey { service, id }), Raw(backend.into()), 0)
            .map_err(map_error("QUIC_IDS"))
    }

    /// Forgets a server ID, unless another backend has it by now.
    pub fn remove(
        &mut self,
        service: ServiceId,
        id: u64,
        backend: BackendIndex,
    ) -> Result<(), AccessError> {
        let service = service.into();
        let key = Raw(ServerIdKey { service, id });
        match self.0.get(&key, 0) {
            Ok(Raw(known)) if known == u32::from(backend) => {
                self.0.remove(&key).map_err(map_error("QUIC_IDS"))
            }
            Ok(_) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(map_error("QUIC_IDS")(error)),
        }
    }
}
