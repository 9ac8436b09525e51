//! From a service and a flow to a backend.

use lb_common::abi::{Affinity, Backend, BackendState, FlowKey, Service, ServiceKey};
use lb_common::hash;
use lb_common::slot::{BackendIndex, Slot, TABLE_SIZES};

use crate::maps::{BACKENDS, SERVICES, TABLES_L, TABLES_M, TABLES_S};

/// The service that a client's packet is for.
#[inline(always)]
pub fn service(flow: &FlowKey) -> Option<&'static Service> {
    let key = ServiceKey {
        addr: flow.dst,
        port: flow.dport,
        protocol: flow.protocol as u8,
        pad: 0,
    };
    // SAFETY: the agent replaces values whole and frees none while a program runs (RCU).
    unsafe { SERVICES.get(&key) }
}

/// The flow's slot; `None` while the service has no table.
#[inline(always)]
pub fn slot(service: &Service, flow: &FlowKey) -> Option<Slot> {
    let hash = if service.affinity == Affinity::Client as u8 {
        hash::client(&flow.src)
    } else {
        hash::flow(
            &flow.src,
            &flow.dst,
            flow.sport,
            flow.dport,
            flow.protocol as u8,
        )
    };
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
