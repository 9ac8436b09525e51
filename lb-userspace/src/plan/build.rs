//! From the model, the routing and the paths to the contents that the maps should have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{BackendState, Forwarding};
use lb_common::slot::{BackendIndex, Slot};

use super::{Backend, Contents, Full, Ids, Path, Service, ServiceId, SnatPorts};
use crate::model::{self, BackendKey, Model, OnDeath, PassiveHttp, Protocol};
use crate::table::{self, Base, Member};

/// What the data plane is to do with a backend, as routing and the operator have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duty {
    pub state: BackendState,
    /// In force; the operator's, if there is one.
    pub weight: u32,
    /// Percent of its slots that it takes new flows in; 0 unless it is active, less than 100 while
    /// it starts slowly.
    pub share: u8,
}

/// How long a flow without a record may be silent in a transition.
const TCP_LASTS: Duration = Duration::from_secs(lb_common::flow::TCP_IDLE as u64);
/// How long a transition of a UDP service lasts.
const UDP_LASTS: Duration = Duration::from_secs(lb_common::flow::UDP_IDLE as u64);

/// Builds one contents after another, each from the one before: numbers, tables and transitions
/// carry on.
pub struct Builder {
    ids: Ids,
    tables: BTreeMap<ServiceId, Table>,
    leaving: BTreeMap<BackendIndex, Leaving>,
    contents: Arc<Contents>,
}

/// What a service's slots were made of.
struct Table {
    members: Vec<Member>,
    base: Base,
    shares: BTreeMap<BackendIndex, u8>,
    built: Duration,
}

/// A backend that the configuration no longer has: it keeps its flows until the deadline.
struct Leaving {
    until: Duration,
    /// Its flows were given up and are being removed.
    gone: bool,
}

impl Builder {
    /// Starts from what the maps hold.
    pub fn new(contents: impl Into<Arc<Contents>>) -> Self {
        let contents = contents.into();
        Self {
            ids: Ids::of(&contents),
            tables: BTreeMap::new(),
            leaving: BTreeMap::new(),
            contents,
        }
    }

    /// What was built last.
    pub const fn contents(&self) -> &Arc<Contents> {
        &self.contents
    }

    /// The number of a backend of the model, once it has been built.
    pub fn index(
        &self,
        service: &model::Service,
        backend: &model::Backend,
    ) -> Option<BackendIndex> {
        self.ids
            .known_backend(self.service(service)?, backend.address)
    }

    /// The number of a service of the model, once it has been built.
    pub fn service(&self, service: &model::Service) -> Option<ServiceId> {
        self.ids.known_service(service.address, service.protocol)
    }

    /// Builds the contents for the present state of things.
    pub fn build(
        &mut self,
        model: &Model,
        duties: &BTreeMap<BackendKey, Duty>,
        paths: &BTreeMap<IpAddr, Path>,
        now: Duration,
    ) -> Result<&Arc<Contents>, Full> {
        let range = &model.node.snat_ports;
        let ports = SnatPorts {
            first: *range.start(),
            count: range.end() - range.start() + 1,
        };
        let mut next = Contents {
            // Flows that are open know the ports they began with.
            ports: self.contents.ports.or(Some(ports)),
            answer_ping: model.node.answer_ping,
            reset_rate: model.node.reset_rate,
            sources: self.contents.sources.clone(),
            ..Contents::default()
        };
        let mut pools = Vec::new();
        for service in &model.services {
            let id = self.ids.service(service.address, service.protocol)?;
            if service.mode.active_passive().is_some() {
                next.exclusive.insert(id);
            }
            let mut members = Vec::new();
            let mut shares = BTreeMap::new();
            for backend in &service.backends {
                let index = self.ids.backend(id, backend.address)?;
                let duty = duties.get(&service.key(backend)).copied();
                let duty = duty.unwrap_or(Duty {
                    state: BackendState::Out,
                    weight: 0,
                    share: 0,
                });
                let path = paths
                    .get(&backend.address.ip())
                    .copied()
                    .or_else(|| self.path(index))
                    .and_then(|path| path.through(service.forwarding, &model.node));
                // Packets that nobody knows the way for are better sent to the others.
                shares.insert(index, if path.is_some() { duty.share } else { 0 });
                members.push(Member {
                    index,
                    identity: backend.address.to_string(),
                    weight: duty.weight,
                });
                self.leaving.remove(&index);
                let address = backend.address;
                next.backends.insert(
                    index,
                    Backend {
                        service: id,
                        address,
                        server_id: backend.server_id,
                        watches_http: service.passive.http != PassiveHttp::Off,
                        state: duty.state,
                        path,
                    },
                );
                if service.forwarding == Forwarding::Nat {
                    next.sources.extend(path.map(|path| path.source));
                }
            }
            pools.push((service, id, members, shares));
        }
        self.keep_leaving(model, &mut next, now);
        for (service, id, members, shares) in pools {
            let slots = self.slots(service, id, members, shares, &next.backends, now);
            let entry = Service {
                address: service.address,
                protocol: service.protocol,
                forwarding: service.forwarding,
                affinity: service.affinity,
                on_death: service.on_death,
                syn_rescue: service.syn_rescue && may_be_rescued(service),
                server_id_length: service.server_id_length,
                slots,
            };
            next.services.insert(id, entry);
        }
        for id in self
            .contents
            .services
            .keys()
            .filter(|id| !next.services.contains_key(id))
        {
            self.ids.release_service(*id);
            self.tables.remove(id);
        }
        // Whoever has what was built before then has the same.
        if *self.contents != next {
            self.contents = Arc::new(next);
        }
        Ok(&self.contents)
    }

    fn path(&self, index: BackendIndex) -> Option<Path> {
        self.contents.backends.get(&index)?.path
    }

    /// Backends that left the configuration drain; those of a service that left, or that has one
    /// active backend at a time, are out at once.
    fn keep_leaving(&mut self, model: &Model, next: &mut Contents, now: Duration) {
        for (index, backend) in &self.contents.backends {
            if next.backends.contains_key(index) {
                continue;
            }
            let at = self.contents.services.get(&backend.service);
            let service = at.and_then(|at| {
                model.services.iter().find(|service| {
                    (service.address, service.protocol) == (at.address, at.protocol)
                })
            });
            let leaving = self.leaving.entry(*index).or_insert_with(|| Leaving {
                until: service.map_or(now, |service| now + service.drain_deadline),
                // What was out has no flows to keep.
                gone: !serves(backend.state),
            });
            if service.is_none_or(|service| service.mode.active_passive().is_some())
                || now >= leaving.until
            {
                leaving.gone = true;
            }
            let state = if leaving.gone {
                BackendState::Out
            } else {
                BackendState::Draining
            };
            next.backends.insert(
                *index,
                Backend {
                    state,
                    ..backend.clone()
                },
            );
        }
    }

    fn slots(
        &mut self,
        service: &model::Service,
        id: ServiceId,
        members: Vec<Member>,
        shares: BTreeMap<BackendIndex, u8>,
        backends: &BTreeMap<BackendIndex, Backend>,
        now: Duration,
    ) -> Arc<Vec<Slot>> {
        // With flows that are to be reset, the slot must say whose they were.
        let may_hold_flows = |index: BackendIndex| {
            backends
                .get(&index)
                .is_some_and(|backend| serves(backend.state) || service.on_death == OnDeath::Reset)
        };
        let old = self
            .contents
            .services
            .get(&id)
            .map(|service| service.slots.clone());
        let known = self
            .tables
            .get(&id)
            .filter(|table| table.members == members);
        if let (Some(old), Some(table)) = (&old, known)
            && table.shares == shares
        {
            return old.clone();
        }
        let wanted = table::size_for(members.iter().map(|member| member.weight));
        // Never back to a smaller table: slots and flows would be matched anew.
        let size = old
            .as_ref()
            .map_or(wanted, |old| wanted.max(old.len() as u32));
        let base = match known {
            Some(table) => table.base.clone(),
            None => Base::new(&members, size),
        };
        let wanted = base.overlay_shares(|index| shares.get(&index).copied().unwrap_or(0));
        let slots = match service.forwarding {
            Forwarding::Nat => wanted.into_iter().map(Slot::settled).collect(),
            Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => {
                let old: &[Slot] = old.as_ref().map_or(&[], |old| old);
                table::advance(old, &wanted, may_hold_flows)
            }
        };
        self.tables.insert(
            id,
            Table {
                members,
                base,
                shares,
                built: now,
            },
        );
        match old {
            Some(old) if *old == slots => old,
            _ => Arc::new(slots),
        }
    }

    /// Closes the transitions that no flow needs any more; whether there were any. `silent` says of
    /// a backend that all its flows without a record are over, `held` which slots have a record of
    /// another backend than their owner, in the very contents that were built last.
    ///
    /// What records a closed slot leaves all name its owner, so they do no harm when it is in
    /// transition again: what is opened meanwhile goes to that owner too.
    ///
    /// UDP flows are never recorded, so those that begin in a transition look like those from
    /// before it: theirs is closed when it has lasted as long as a UDP flow may be silent.
    pub fn settle(
        &mut self,
        silent: impl Fn(BackendIndex) -> bool,
        held: &BTreeMap<ServiceId, BTreeSet<u32>>,
        now: Duration,
    ) -> bool {
        let backends = &self.contents.backends;
        let serves = |index: BackendIndex| {
            backends
                .get(&index)
                .is_some_and(|backend| serves(backend.state))
        };
        let mut settled = Vec::new();
        for (id, service) in &self.contents.services {
            let built = self.tables.get(id).map_or(now, |table| table.built);
            let age = now.saturating_sub(built);
            let aged = service.protocol == Protocol::Udp && age > UDP_LASTS;
            // Silence before the change says nothing about the flows that it concerns.
            let silent = |index| age >= TCP_LASTS && silent(index);
            let is_over = |number: u32, slot: Slot| {
                let previous = slot.previous();
                let over = aged
                    || previous == 0
                    || previous == slot.current()
                    || (!serves(previous) && service.on_death == OnDeath::Rehash)
                    || silent(previous);
                over && !held.get(id).is_some_and(|held| held.contains(&number))
            };
            let slots = table::settle(&service.slots, is_over);
            settled.extend(slots.map(|settled| (*id, Arc::new(settled.slots))));
        }
        if settled.is_empty() {
            return false;
        }
        let contents = Arc::make_mut(&mut self.contents);
        for (id, slots) in settled {
            if let Some(service) = contents.services.get_mut(&id) {
                service.slots = slots;
            }
        }
        true
    }

    /// Backends whose flows are to be removed.
    pub fn gone(&self) -> BTreeSet<BackendIndex> {
        let gone = self.leaving.iter().filter(|(_, leaving)| leaving.gone);
        gone.map(|(index, _)| *index).collect()
    }

    /// Forgets backends that left and have no flows any more. Call it when a sweep that knew of
    /// them in [`Self::gone`] is done; whether there were any.
    pub fn release(&mut self, swept: &BTreeSet<BackendIndex>) -> bool {
        let mut done: BTreeSet<BackendIndex> = self.gone().intersection(swept).copied().collect();
        if done.is_empty() {
            return false;
        }
        // A slot in transition may still name one as the previous owner.
        for service in self.contents.services.values() {
            done = &done - &table::referenced(&service.slots);
        }
        for index in &done {
            self.leaving.remove(index);
            Arc::make_mut(&mut self.contents).backends.remove(index);
            self.ids.release_backend(*index);
        }
        !done.is_empty()
    }

    /// When the contents change by time alone.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.leaving
            .values()
            .filter(|leaving| !leaving.gone)
            .map(|leaving| leaving.until)
            .min()
    }
}

/// Whether established flows go on.
const fn serves(state: BackendState) -> bool {
    match state {
        BackendState::Active | BackendState::Draining => true,
        BackendState::Out | BackendState::Unset => false,
    }
}

/// Whether there may be another backend for a flow that its own refuses or does not answer. Of NAT
/// only, which keeps refusals from clients for it; elsewhere the records of flows hang on the word.
fn may_be_rescued(service: &model::Service) -> bool {
    service.forwarding != Forwarding::Nat
        || service.backends.len() > 1 && service.mode.active_passive().is_none()
}

#[cfg(test)]
mod tests;
