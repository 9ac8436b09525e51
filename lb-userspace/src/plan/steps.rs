//! The steps between two contents of the maps, in an order in which a packet never sees less than
//! the old contents or the new: what is added comes first, what is removed comes last, a service
//! gets its table before it is found, and a backend's slots go to others before its state says so.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::abi::BackendState;
use lb_common::slot::{BackendIndex, Slot};

use super::{Backend, Contents, Path, Service, ServiceId, SnatPorts};
use crate::model::Protocol;

/// One step, atomic for the packet path.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Which destination addresses are looked at.
    Filter(BTreeSet<IpAddr>),
    /// The NAT port range, and that the maps are in use.
    Ports(SnatPorts),
    /// A new backend's entry.
    AddBackend(BackendIndex, Backend),
    /// A known backend's next hop and source address.
    Path(BackendIndex, Option<Path>),
    /// A service's table, swapped in whole.
    Table(ServiceId, Arc<Vec<Slot>>),
    /// How a service is found and forwarded; its table of this size stands.
    Service(ServiceId, Service),
    /// A known backend's state.
    State(BackendIndex, BackendState),
    RemoveService(ServiceId, SocketAddr, Protocol),
    /// A table that no service uses any more, by its size.
    RemoveTable(ServiceId, usize),
    RemoveBackend(BackendIndex),
    /// Addresses that NAT sends from. Only kept in mind.
    Sources(BTreeSet<IpAddr>),
}

impl Op {
    /// Name for logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Filter(_) => "filter",
            Self::Ports(_) => "ports",
            Self::AddBackend(..) => "add-backend",
            Self::Path(..) => "path",
            Self::Table(..) => "table",
            Self::Service(..) => "service",
            Self::State(..) => "state",
            Self::RemoveService(..) => "remove-service",
            Self::RemoveTable(..) => "remove-table",
            Self::RemoveBackend(_) => "remove-backend",
            Self::Sources(_) => "sources",
        }
    }

    /// Notes in `contents` that the step is done.
    pub fn note(&self, contents: &mut Contents) {
        match self {
            Self::Filter(_) => {}
            Self::Ports(ports) => contents.ports = Some(*ports),
            Self::AddBackend(id, backend) => {
                contents.backends.insert(*id, backend.clone());
            }
            Self::Path(id, path) => {
                if let Some(backend) = contents.backends.get_mut(id) {
                    backend.path = *path;
                }
            }
            Self::Table(id, slots) => {
                if let Some(service) = contents.services.get_mut(id)
                    && service.slots.len() == slots.len()
                {
                    service.slots = slots.clone();
                }
            }
            Self::Service(id, service) => {
                contents.services.insert(*id, service.clone());
            }
            Self::State(id, state) => {
                if let Some(backend) = contents.backends.get_mut(id) {
                    backend.state = *state;
                }
            }
            Self::RemoveService(id, ..) => {
                contents.services.remove(id);
            }
            Self::RemoveTable(..) => {}
            Self::RemoveBackend(id) => {
                contents.backends.remove(id);
            }
            Self::Sources(sources) => contents.sources = sources.clone(),
        }
    }
}

/// The steps from `now` to `wanted`.
pub fn plan(now: &Contents, wanted: &Contents) -> Vec<Op> {
    let mut ops = Vec::new();
    let (old, new) = (now.addresses(), wanted.addresses());
    if let Some(ports) = wanted.ports
        && now.ports != Some(ports)
    {
        ops.push(Op::Ports(ports));
    }
    if !new.is_subset(&old) {
        ops.push(Op::Filter(old.union(&new).copied().collect()));
    }
    if now.sources != wanted.sources {
        ops.push(Op::Sources(wanted.sources.clone()));
    }
    for (id, backend) in &wanted.backends {
        match now.backends.get(id) {
            None => ops.push(Op::AddBackend(*id, backend.clone())),
            Some(known) if known.path != backend.path => ops.push(Op::Path(*id, backend.path)),
            Some(_) => {}
        }
    }
    let mut orphans = Vec::new();
    for (id, service) in &wanted.services {
        let known = now.services.get(id);
        if known.is_none_or(|known| !same_slots(&known.slots, &service.slots)) {
            ops.push(Op::Table(*id, service.slots.clone()));
        }
        if known.is_none_or(|known| entry_differs(known, service)) {
            ops.push(Op::Service(*id, service.clone()));
        }
        if let Some(known) = known
            && known.slots.len() != service.slots.len()
        {
            orphans.push(Op::RemoveTable(*id, known.slots.len()));
        }
    }
    for (id, backend) in &wanted.backends {
        if now
            .backends
            .get(id)
            .is_some_and(|known| known.state != backend.state)
        {
            ops.push(Op::State(*id, backend.state));
        }
    }
    for (id, service) in &now.services {
        if !wanted.services.contains_key(id) {
            ops.push(Op::RemoveService(*id, service.address, service.protocol));
            orphans.push(Op::RemoveTable(*id, service.slots.len()));
        }
    }
    ops.append(&mut orphans);
    for id in now.backends.keys() {
        if !wanted.backends.contains_key(id) {
            ops.push(Op::RemoveBackend(*id));
        }
    }
    if !old.is_subset(&new) {
        ops.push(Op::Filter(new));
    }
    ops
}

fn same_slots(a: &Arc<Vec<Slot>>, b: &Arc<Vec<Slot>>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

fn entry_differs(a: &Service, b: &Service) -> bool {
    (
        a.address,
        a.protocol,
        a.forwarding,
        a.affinity,
        a.slots.len(),
    ) != (
        b.address,
        b.protocol,
        b.forwarding,
        b.affinity,
        b.slots.len(),
    )
}
