//! From a service and a flow to a backend.

use lb_common::abi::{Affinity, Backend, BackendState, FlowKey, Service};
use lb_common::hash;
use lb_common::slot::{BackendIndex, Slot, TABLE_SIZES};

use crate::maps::{BACKENDS, TABLES_L, TABLES_M, TABLES_S};

/// The hash that picks the flow's slot.
#[inline(always)]
pub fn hash(service: &Service, flow: &FlowKey) -> u32 {
    if service.affinity == Affinity::Client as u8 {
        hash::client(&flow.src)
    } else {
        hash::flow(
            &flow.src,
            &flow.dst,
            flow.sport,
            flow.dport,
            flow.protocol as u8,
        )
    }
}

/// The slot of a [`hash`]; `None` while the service has no table.
#[inline(always)]
pub fn slot(service: &Service, hash: u32) -> Option<Slot> {
    let table = service.id as u32;
    let entry = match service.table_class {
        0 => TABLES_S.get(table)?.get(hash::slot(hash, TABLE_SIZES[0])),
        1 => TABLES_M.get(table)?.get(hash::slot(hash, TABLE_SIZES[1])),
        _ => TABLES_L.get(table)?.get(hash::slot(hash, TABLE_SIZES[2])),
    };
    entry.map(|entry| Slot(*entry))
}

/// A backend's entry; number 0 has none.
#[inline(always)]
pub fn backend(index: BackendIndex) -> Option<&'static Backend> {
    if index == 0 {
        None
    } else {
        BACKENDS.get(index as u32)
    }
}

/// A backend that takes new flows.
#[inline(always)]
pub fn for_new(index: BackendIndex) -> Option<&'static Backend> {
    backend(index).filter(|backend| backend.state == BackendState::Active as u8)
}

/// A backend that keeps the flows it has.
#[inline(always)]
pub fn for_established(index: BackendIndex) -> Option<&'static Backend> {
    backend(index).filter(|backend| {
        backend.state == BackendState::Active as u8 || backend.state == BackendState::Draining as u8
    })
}
