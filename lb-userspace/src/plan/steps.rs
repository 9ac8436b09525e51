//! The steps between two contents of the maps, in an order in which a packet never sees less than
//! the old contents or the new: what is added comes first, what is removed comes last, a service
//! gets its table before it is found, a backend may do more before it gets slots, and its slots go
//! to others before it may do less.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::BackendState;
use lb_common::slot::{BackendIndex, Slot};

use super::{Backend, Contents, Path, Service, ServiceId, SnatPorts};
use crate::model::{Endpoint, Protocol};

/// One step, atomic for the packet path.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Which destination addresses are looked at, and whether each is a service's.
    Filter(BTreeMap<IpAddr, bool>),
    /// RSTs that each CPU may send in a second.
    ResetRate(u32),
    /// The NAT port range, and that the maps are in use.
    Ports(SnatPorts),
    /// Whether echo requests to a VIP are answered.
    AnswerPing(bool),
    /// A new backend's entry.
    AddBackend(BackendIndex, Backend),
    /// A known backend's next hop and source address.
    Path(BackendIndex, Option<Path>),
    /// A known backend's server ID in QUIC connection IDs.
    ServerId(BackendIndex, Option<u64>),
    /// Whether the statuses of a known backend's HTTP answers are counted.
    WatchHttp(BackendIndex, bool),
    /// A service's table, swapped in whole.
    Table(ServiceId, Arc<Vec<Slot>>),
    /// How a service is found and forwarded; its table of this size stands.
    Service(ServiceId, Service),
    /// A known backend's state.
    State(BackendIndex, BackendState),
    RemoveService(ServiceId, Endpoint, Protocol),
    /// A table that no service uses any more, by its size.
    RemoveTable(ServiceId, usize),
    RemoveBackend(BackendIndex),
    /// Addresses that NAT sends from; others that no backend has are forgotten.
    Sources(BTreeSet<IpAddr>),
}

impl Op {
    /// Name for logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Filter(_) => "filter",
            Self::ResetRate(_) => "reset-rate",
            Self::Ports(_) => "ports",
            Self::AnswerPing(_) => "answer-ping",
            Self::AddBackend(..) => "add-backend",
            Self::Path(..) => "path",
            Self::ServerId(..) => "server-id",
            Self::WatchHttp(..) => "watch-http",
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
            Self::ResetRate(rate) => contents.reset_rate = *rate,
            Self::Ports(ports) => contents.ports = Some(*ports),
            Self::AnswerPing(answer) => contents.answer_ping = *answer,
            Self::AddBackend(id, backend) => {
                contents.backends.insert(*id, backend.clone());
            }
            Self::Path(id, path) => {
                if let Some(backend) = contents.backends.get_mut(id) {
                    backend.path = *path;
                }
            }
            Self::ServerId(id, server_id) => {
                if let Some(backend) = contents.backends.get_mut(id) {
                    backend.server_id = *server_id;
                }
            }
            Self::WatchHttp(id, watches) => {
                if let Some(backend) = contents.backends.get_mut(id) {
                    backend.watches_http = *watches;
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
    if now.reset_rate != wanted.reset_rate {
        ops.push(Op::ResetRate(wanted.reset_rate));
    }
    if let Some(ports) = wanted.ports
        && now.ports != Some(ports)
    {
        ops.push(Op::Ports(ports));
    }
    if now.answer_ping != wanted.answer_ping {
        ops.push(Op::AnswerPing(wanted.answer_ping));
    }
    // A number that has come to mean another address: nothing refers to the old one any more.
    let same = |id: &BackendIndex| {
        let (known, wanted) = (now.backends.get(id)?, wanted.backends.get(id)?);
        ((known.service, known.address) == (wanted.service, wanted.address)).then_some(known)
    };
    let changes = wanted.backends.iter().filter_map(|(id, backend)| {
        let known = same(id)?.state;
        (known != backend.state).then_some((known, *id, backend))
    });
    let (wider, narrower): (Vec<_>, Vec<_>) =
        changes.partition(|(from, _, to)| widens(*from, to.state));
    let (first, narrower): (Vec<_>, Vec<_>) = narrower
        .into_iter()
        .partition(|(_, _, to)| wanted.exclusive.contains(&to.service));
    let state = |(_, id, to): (BackendState, BackendIndex, &Backend)| Op::State(id, to.state);
    ops.extend(first.into_iter().map(state));
    let mut both = old.clone();
    for (address, is_vip) in &new {
        *both.entry(*address).or_default() |= is_vip;
    }
    if both != old {
        ops.push(Op::Filter(both.clone()));
    }
    for (id, backend) in &wanted.backends {
        match same(id) {
            None => {
                if now.backends.contains_key(id) {
                    ops.push(Op::RemoveBackend(*id));
                }
                ops.push(Op::AddBackend(*id, backend.clone()));
            }
            Some(known) => {
                if known.path != backend.path {
                    ops.push(Op::Path(*id, backend.path));
                }
                if known.server_id != backend.server_id {
                    ops.push(Op::ServerId(*id, backend.server_id));
                }
                if known.watches_http != backend.watches_http {
                    ops.push(Op::WatchHttp(*id, backend.watches_http));
                }
            }
        }
    }
    ops.extend(wider.into_iter().map(state));
    let mut orphans = Vec::new();
    for (id, service) in &wanted.services {
        let known = now.services.get(id);
        if let Some(other) = known
            && (other.address, other.protocol) != (service.address, service.protocol)
        {
            ops.push(Op::RemoveService(*id, other.address, other.protocol));
        }
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
    ops.extend(narrower.into_iter().map(state));
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
    if now.sources != wanted.sources {
        ops.push(Op::Sources(wanted.sources.clone()));
    }
    if both != new {
        ops.push(Op::Filter(new));
    }
    ops
}

/// Whether the change lets a backend do more.
const fn widens(from: BackendState, to: BackendState) -> bool {
    match from {
        BackendState::Unset | BackendState::Out => true,
        BackendState::Draining => matches!(to, BackendState::Active),
        BackendState::Active => false,
    }
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
        a.on_death,
        a.syn_rescue,
        a.server_id_length,
        a.slots.len(),
    ) != (
        b.address,
        b.protocol,
        b.forwarding,
        b.affinity,
        b.on_death,
        b.syn_rescue,
        b.server_id_length,
        b.slots.len(),
    )
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Affinity, Forwarding, Hop};
    use lb_common::slot::TABLE_SIZES;
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::model::OnDeath;

    fn service() -> impl Strategy<Value = Service> {
        (0..4u8, any::<bool>(), any::<bool>(), 0..2usize, 0..4u16).prop_map(
            |(vip, udp, dsr, class, owner)| Service {
                address: SocketAddr::new([203, 0, 113, vip].into(), 80).into(),
                protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                forwarding: if dsr {
                    Forwarding::Dsr
                } else {
                    Forwarding::Nat
                },
                affinity: Affinity::Flow,
                on_death: if dsr { OnDeath::Rehash } else { OnDeath::Reset },
                syn_rescue: class == 1,
                server_id_length: 0,
                slots: Arc::new(vec![Slot::settled(owner); TABLE_SIZES[class] as usize]),
            },
        )
    }

    fn backend() -> impl Strategy<Value = Backend> {
        let states = [
            BackendState::Active,
            BackendState::Draining,
            BackendState::Out,
        ];
        let path = proptest::option::of((1..3u32, 0..3u8).prop_map(|(ifindex, last)| Path {
            hop: Hop {
                ifindex,
                ..Hop::default()
            },
            source: [10, 0, 0, last].into(),
            mtu: 1500 - u32::from(last),
            tunnel: crate::plan::Tunnel {
                gue_port: last.into(),
                source_bits: 0,
            },
        }));
        let server_id = proptest::option::of(0..3u64);
        let state = proptest::sample::select(states.to_vec());
        (state, path, server_id, any::<bool>()).prop_map(|(state, path, server_id, http)| Backend {
            watches_http: http,
            service: 1,
            address: SocketAddr::new([10, 0, 0, 9].into(), 80),
            server_id,
            state,
            path,
        })
    }

    fn contents() -> impl Strategy<Value = Contents> {
        let services = proptest::collection::btree_map(1..4u16, service(), 0..4);
        let backends = proptest::collection::btree_map(1..6u16, backend(), 0..6);
        let sources = proptest::collection::btree_set(0..3u8, 0..3);
        let all = (services, backends, sources, proptest::bool::ANY, 0..3u32);
        all.prop_map(
            |(services, backends, sources, answer_ping, reset_rate)| Contents {
                reset_rate,
                ports: Some(SnatPorts {
                    first: 20_000,
                    count: 100,
                }),
                answer_ping,
                services,
                backends,
                exclusive: BTreeSet::new(),
                sources: sources
                    .into_iter()
                    .map(|last| [10, 0, 0, last].into())
                    .collect(),
            },
        )
    }

    /// What the maps hold, kept the way the kernel keeps it: tables and services apart.
    #[derive(Default)]
    struct Maps {
        filter: BTreeMap<IpAddr, bool>,
        tables: std::collections::BTreeMap<(ServiceId, usize), Arc<Vec<Slot>>>,
        services: std::collections::BTreeMap<ServiceId, Service>,
        backends: std::collections::BTreeMap<BackendIndex, Backend>,
    }

    impl Maps {
        fn apply(&mut self, op: &Op) {
            match op.clone() {
                Op::Filter(addresses) => self.filter = addresses,
                Op::AddBackend(id, backend) => {
                    self.backends.insert(id, backend);
                }
                Op::Path(id, path) => self.backends.get_mut(&id).unwrap().path = path,
                Op::WatchHttp(id, watches) => {
                    self.backends.get_mut(&id).unwrap().watches_http = watches;
                }
                Op::ServerId(id, server_id) => {
                    self.backends.get_mut(&id).unwrap().server_id = server_id;
                }
                Op::State(id, state) => self.backends.get_mut(&id).unwrap().state = state,
                Op::RemoveBackend(id) => {
                    self.backends.remove(&id).unwrap();
                }
                Op::Table(id, slots) => {
                    self.tables.insert((id, slots.len()), slots);
                }
                Op::RemoveTable(id, size) => {
                    self.tables.remove(&(id, size)).unwrap();
                }
                Op::Service(id, service) => {
                    self.services.insert(id, service);
                }
                Op::RemoveService(id, ..) => {
                    self.services.remove(&id).unwrap();
                }
                Op::Ports(_) | Op::AnswerPing(_) | Op::ResetRate(_) | Op::Sources(_) => {}
            }
        }

        /// The slots that a packet for the service sees.
        fn slots(&self, id: ServiceId) -> Option<&Arc<Vec<Slot>>> {
            let service = self.services.get(&id)?;
            assert!(
                self.filter.get(&service.address.ip()) == Some(&true),
                "filtered away"
            );
            let table = self.tables.get(&(id, service.slots.len()));
            Some(table.expect("a service that is found has a table"))
        }
    }

    /// Whether both have this service, rather than another by the same number.
    fn is_same(old: &Contents, new: &Contents, id: &ServiceId) -> bool {
        match (old.services.get(id), new.services.get(id)) {
            (Some(a), Some(b)) => (a.address, a.protocol) == (b.address, b.protocol),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Of two contents that are right, in each of which one backend of a service may get
        /// packets, no step shows two.
        #[test]
        fn of_an_exclusive_service_no_step_lets_packets_to_two_backends(
            old in proptest::collection::btree_map(1..6u16, backend(), 0..6),
            mut new in proptest::collection::btree_map(1..6u16, backend(), 0..6),
            serving in (1..7u16, 1..7u16),
            of in service(),
        ) {
            let contents = |mut backends: BTreeMap<BackendIndex, Backend>, serving, owner| {
                for (id, backend) in &mut backends {
                    if *id != serving {
                        backend.state = BackendState::Out;
                    }
                }
                let slots = Arc::new(vec![Slot::settled(owner); TABLE_SIZES[0] as usize]);
                Contents {
                    services: BTreeMap::from([(1, Service { slots, ..of.clone() })]),
                    backends,
                    exclusive: BTreeSet::from([1]),
                    ..Contents::default()
                }
            };
            // Whatever leaves the configuration is out before it is removed.
            for (id, backend) in &old {
                new.entry(*id).or_insert_with(|| backend.clone());
            }
            let (old, new) = (contents(old, serving.0, serving.0), contents(new, serving.1, serving.1));
            let mut noted = old.clone();
            for op in plan(&old, &new) {
                op.note(&mut noted);
                let serves = |backend: &&Backend| {
                    matches!(backend.state, BackendState::Active | BackendState::Draining)
                };
                prop_assert!(noted.backends.values().filter(serves).count() <= 1, "after {op:?}");
            }
            prop_assert_eq!(noted, new);
        }

        #[test]
        fn every_step_shows_the_old_contents_or_the_new(old in contents(), new in contents()) {
            let mut maps = Maps::default();
            let mut noted = Contents::default();
            for op in plan(&Contents::default(), &old) {
                maps.apply(&op);
                op.note(&mut noted);
            }
            prop_assert_eq!(&noted, &old);
            for op in plan(&old, &new) {
                maps.apply(&op);
                op.note(&mut noted);
                for id in old.services.keys().filter(|id| is_same(&old, &new, id)) {
                    let seen = maps.slots(*id);
                    let both = [&old.services[id].slots, &new.services[id].slots];
                    prop_assert!(seen.is_some_and(|seen| both.contains(&seen)), "after {op:?}");
                    if both[0] == both[1] {
                        continue;
                    }
                    // A table that sends new flows to a backend is only seen while it takes them.
                    let contents = if seen == Some(both[0]) { &old } else { &new };
                    let owner = contents.services[id].slots[0].current();
                    let state = |backends: &BTreeMap<BackendIndex, Backend>| {
                        backends.get(&owner).map(|backend| backend.state)
                    };
                    if state(&contents.backends) == Some(BackendState::Active) {
                        prop_assert_eq!(state(&maps.backends), Some(BackendState::Active));
                    }
                }
                for id in old.backends.keys().filter(|id| new.backends.contains_key(id)) {
                    let state = maps.backends[id].state;
                    let both = [old.backends[id].state, new.backends[id].state];
                    prop_assert!(both.contains(&state));
                }
            }
            prop_assert_eq!(&noted, &new);
            prop_assert_eq!(plan(&noted, &new), vec![]);
            prop_assert_eq!(maps.filter, new.addresses());
            prop_assert_eq!(maps.backends, new.backends);
            let tables: BTreeSet<_> = maps.tables.keys().copied().collect();
            let wanted: BTreeSet<_> =
                new.services.iter().map(|(id, service)| (*id, service.slots.len())).collect();
            prop_assert_eq!(tables, wanted);
        }
    }
}
