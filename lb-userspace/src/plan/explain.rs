//! What the packet path does with a flow's next packet, and why: the decisions of
//! `lb-ebpf/src/{select,forward/nat,forward/direct}.rs` once more, over the contents of the maps.
//! `tests/program/explain.rs` holds the two against each other.
//!
//! Two packets are explained: one that opens a connection (a SYN), and one of an established
//! connection (an ACK). UDP knows no such difference: there both are the next datagram. Left out is
//! what depends on the packet itself or on chance: TTL, malformed headers, length, and running out of NAT
//! ports.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{Affinity, BackendState, Flow, FlowKey, Forwarding, tcp_seen};
use lb_common::flow::{is_unanswered, rescues};
use lb_common::hash;
use lb_common::rescue::another;
use lb_common::slot::{BackendIndex, Slot};
use lb_common::verdict::Verdict;
use thiserror::Error;

use super::{Contents, Service, ServiceId};
use crate::model::{ConnectionId, Endpoint, OnDeath, Protocol};

/// A flow as the client names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub protocol: Protocol,
    /// QUIC: what a packet with a short header, or a Handshake packet, carries.
    pub connection_id: Option<ConnectionId>,
}

impl Tuple {
    /// Addresses in their plain form: `::ffff:10.0.0.1` is 10.0.0.1, and scopes are left out.
    ///
    /// # Errors
    /// One address is IPv4 and the other IPv6.
    pub fn new(
        src: SocketAddr,
        dst: SocketAddr,
        protocol: Protocol,
    ) -> Result<Self, MixedFamilies> {
        let plain = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let (src, dst) = (plain(src), plain(dst));
        if src.is_ipv4() == dst.is_ipv4() {
            Ok(Self {
                src,
                dst,
                protocol,
                connection_id: None,
            })
        } else {
            Err(MixedFamilies { src, dst })
        }
    }

    /// The same flow where its packets carry this connection ID.
    pub fn carrying(self, connection_id: Option<ConnectionId>) -> Self {
        Self {
            connection_id,
            ..self
        }
    }
}

/// No packet goes between these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{src} and {dst} are of different families; give both in IPv4 or both in IPv6")]
pub struct MixedFamilies {
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

/// Where a flow goes, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub service: ServiceId,
    pub forwarding: Forwarding,
    pub affinity: Affinity,
    pub hash: u32,
    /// Index of the flow's slot.
    pub slot: u32,
    /// Slots in the table.
    pub slots: u32,
    /// What the slot says.
    pub owner: Slot,
    /// The backend that the connection ID names, if the service heeds it.
    pub named: Option<BackendIndex>,
    /// What the flow table says, if this service heeds it.
    pub entry: Option<Entry>,
    pub new: Decision,
    pub established: Decision,
}

/// A flow's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub backend: BackendIndex,
    /// NAT: the addresses that its packets leave with.
    pub rewritten: Option<(SocketAddr, SocketAddr)>,
    /// Whether an end has closed it, so that a SYN opens its successor.
    pub closing: bool,
    /// How often the flow was given to another backend, if the one that it has has not answered.
    pub unanswered: Option<u32>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    To(BackendIndex),
    Not(Verdict),
}

/// What becomes of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub fate: Fate,
    pub reason: Reason,
}

/// Which rule of the packet path decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The flow's entry or record names the backend.
    Entry,
    /// The connection ID names the backend.
    Named,
    /// The entry names a backend that is out, and the packet cannot open a flow.
    EntryOut,
    /// No entry, and the packet cannot open a flow.
    NoEntry,
    /// No entry that holds: the slot's owner.
    Owner,
    /// The slot changes hands, and the flow is older than the change.
    Previous,
    /// The slot changes hands, and whoever had the flow does not serve it any more.
    Fallback,
    /// The flow's backend has not answered its SYN, which comes again: another.
    Rescued,
    /// The entry, or the slot's last owner, is a backend that is out, and its flows are reset.
    Dead,
    /// The slot has no owner.
    NoOwner,
    /// The slot's owner does not take the packet.
    OwnerRefuses,
    /// The backend's next hop is not resolved.
    Unresolved,
    /// It is no request, but a backend's reply to a NAT flow.
    Reply,
    /// It is a backend's packet of a NAT flow that was reset because the backend is out.
    ReplyOut,
}

impl Reason {
    /// One phrase for the operator.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Entry => "the flow table has it",
            Self::Named => "the connection ID names it",
            Self::EntryOut => "its backend by the flow table is out",
            Self::NoEntry => "the flow table does not have it",
            Self::Owner => "owns the slot",
            Self::Previous => {
                "owned the slot before the transition, and the flow table does not have the flow"
            }
            Self::Fallback => {
                "owns the slot; whoever had the flow before does not serve it any more"
            }
            Self::Rescued => "another backend has not answered the flow's SYN",
            Self::Dead => "the backend that had the flow is out, and on_death = \"reset\"",
            Self::NoOwner => "nobody owns the slot",
            Self::OwnerRefuses => "the slot's owner does not take it in its state",
            Self::Unresolved => "the MAC address of the backend's next hop is not known",
            Self::Reply => "it is a backend's reply to a NAT flow",
            Self::ReplyOut => "its backend is out, and its client has been told",
        }
    }
}

/// What is asked of the flow table.
pub trait Flows {
    /// The record of a flow, by its client's packets.
    fn find(&self, key: &FlowKey) -> Option<Flow>;
    /// The record of a NAT flow, by its backend's packets.
    fn find_reply(&self, key: &FlowKey) -> Option<Flow>;
    /// The address that a NAT flow's requests leave with.
    fn source(&self, flow: &Flow) -> IpAddr;
}

/// Explains a flow; `None` if there is no such service.
pub fn explain(contents: &Contents, tuple: Tuple, flows: &impl Flows) -> Option<Explanation> {
    let services = contents.services.iter();
    let candidates = services.filter(|(_, service)| service.protocol == tuple.protocol);
    let (id, service) = Endpoint::of(tuple.dst, candidates, |(_, service)| service.address)?;
    let key = key(tuple);
    let hash = hash_of(&key, service.affinity);
    let slots = service.slots.len() as u32;
    let slot = hash::slot(hash, slots);
    let owner = service.slots.get(slot as usize).copied();
    let mut path = PacketPath {
        contents,
        service,
        hash,
        owner: owner.unwrap_or_default(),
        tcp: tuple.protocol == Protocol::Tcp,
        entry: None,
        named: None,
    };
    path.named = tuple
        .connection_id
        .and_then(|connection_id| path.named_by(*id, connection_id));
    // A service that has changed its forwarding heeds no entries of the other kind.
    let heeded = |flow: &Flow| (service.forwarding == Forwarding::Nat) == (flow.source != 0);
    if let Some(flow) = flows.find(&key).filter(heeded) {
        path.entry = Some(entry(contents, service, &flow, flows));
    }
    let replied = may_be_reply(contents, &key)
        .then(|| flows.find_reply(&key))
        .flatten();
    let [new, established] = if let Some(flow) = replied {
        let told = flow.forward & tcp_seen::RST != 0;
        [if path.tcp && told && !path.keeps(flow.backend) {
            Decision::not(Verdict::ResetToBackend, Reason::ReplyOut)
        } else {
            Decision::not(Verdict::NatReply, Reason::Reply)
        }; 2]
    } else {
        // UDP has no SYN.
        [path.tcp, false].map(|syn| match service.forwarding {
            Forwarding::Nat => path.nat(syn),
            Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => path.direct(syn),
        })
    };
    Some(Explanation {
        service: *id,
        forwarding: service.forwarding,
        affinity: service.affinity,
        hash,
        slot,
        slots,
        owner: path.owner,
        named: path.named,
        entry: path
            .entry
            .filter(|_| service.forwarding == Forwarding::Nat || path.looks_up()),
        new,
        established,
    })
}

/// The hash that picks a flow's slot.
pub fn hash_of(key: &FlowKey, affinity: Affinity) -> u32 {
    match affinity {
        Affinity::Client => hash::client(&key.src),
        Affinity::Flow | Affinity::Quic => {
            hash::flow(&key.src, &key.dst, key.sport, key.dport, key.protocol as u8)
        }
    }
}

/// As its packets arrive.
fn key(tuple: Tuple) -> FlowKey {
    FlowKey {
        src: tuple.src.ip().into(),
        dst: tuple.dst.ip().into(),
        sport: tuple.src.port().to_be(),
        dport: tuple.dst.port().to_be(),
        protocol: tuple.protocol.number().into(),
    }
}

fn entry(contents: &Contents, service: &Service, flow: &Flow, flows: &impl Flows) -> Entry {
    let nat = || {
        let source = SocketAddr::new(flows.source(flow), u16::from_be(flow.nat_port));
        let backend = contents.backends.get(&flow.backend)?;
        let port = match backend.address.port() {
            0 => u16::from_be(flow.vip_port),
            port => port,
        };
        Some((source, SocketAddr::new(backend.address.ip(), port)))
    };
    let closing = flow.forward & (tcp_seen::CLIENT_FIN | tcp_seen::RST)
        | flow.reply & (tcp_seen::BACKEND_FIN | tcp_seen::RST);
    Entry {
        backend: flow.backend,
        rewritten: match service.forwarding {
            Forwarding::Nat => nat(),
            Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => None,
        },
        closing: closing != 0,
        unanswered: is_unanswered(flow.forward, flow.reply).then(|| rescues(flow.forward)),
    }
}

fn may_be_reply(contents: &Contents, key: &FlowKey) -> bool {
    contents
        .ports
        .is_some_and(|ports| u16::from_be(key.dport).wrapping_sub(ports.first) < ports.count)
}

impl Decision {
    const fn not(verdict: Verdict, reason: Reason) -> Self {
        Self {
            fate: Fate::Not(verdict),
            reason,
        }
    }
}

/// What the program knows of a packet when it decides.
struct PacketPath<'a> {
    contents: &'a Contents,
    service: &'a Service,
    hash: u32,
    owner: Slot,
    tcp: bool,
    /// Of the kind that the service heeds.
    entry: Option<Entry>,
    /// By the packet's connection ID.
    named: Option<BackendIndex>,
}

impl PacketPath<'_> {
    /// The backend of this service that keeps its flows and that the connection ID names.
    fn named_by(&self, id: ServiceId, connection_id: ConnectionId) -> Option<BackendIndex> {
        if self.service.affinity != Affinity::Quic {
            return None;
        }
        let server_id = connection_id.server_id(self.service.server_id_length)?;
        let mut backends = self.contents.backends.iter();
        let (index, _) = backends.find(|(index, backend)| {
            backend.service == id && backend.server_id == Some(server_id) && self.keeps(**index)
        })?;
        Some(*index)
    }

    fn nat(&self, syn: bool) -> Decision {
        match self.entry {
            Some(entry) if self.keeps(entry.backend) => {
                if let Some(rescued) = self.rescue(syn) {
                    return rescued;
                }
                if !syn || !entry.closing {
                    return self.send(entry.backend, Reason::Entry);
                }
            }
            Some(_) if self.tcp && !syn => {
                return Decision::not(Verdict::ResetBackendOut, Reason::EntryOut);
            }
            None if self.tcp && !syn => {
                return Decision::not(Verdict::ResetNoFlow, Reason::NoEntry);
            }
            Some(_) | None => {}
        }
        match self.named {
            Some(named) => self.send(named, Reason::Named),
            None => self.current(Reason::Owner),
        }
    }

    fn direct(&self, syn: bool) -> Decision {
        if let Some(named) = self.named {
            return self.send(named, Reason::Named);
        }
        if !self.looks_up() {
            return self.settled(syn, Reason::Owner);
        }
        if syn {
            return self
                .rescue(syn)
                .unwrap_or_else(|| self.current(Reason::Owner));
        }
        let (index, reason) = match self.entry {
            Some(entry) => (entry.backend, Reason::Entry),
            None => (self.owner.previous(), Reason::Previous),
        };
        if self.keeps(index) {
            self.send(index, reason)
        } else if index != 0 && self.resets() {
            Decision::not(Verdict::ResetBackendOut, Reason::Dead)
        } else if self.owner.in_transition() {
            self.settled(syn, Reason::Fallback)
        } else {
            self.settled(syn, Reason::Owner)
        }
    }

    /// To the slot's owner, as if it did not change hands.
    fn settled(&self, syn: bool, reason: Reason) -> Decision {
        let current = self.owner.current();
        if current == 0 {
            Decision::not(Verdict::DropNoBackend, Reason::NoOwner)
        } else if self.takes(current) || (!syn && self.keeps(current)) {
            self.send(current, reason)
        } else if !syn && self.resets() {
            Decision::not(Verdict::ResetBackendOut, Reason::Dead)
        } else {
            Decision::not(Verdict::DropBackendOut, Reason::OwnerRefuses)
        }
    }

    /// Whether the flow table is asked, outside of NAT.
    fn looks_up(&self) -> bool {
        self.named.is_none() && (self.owner.in_transition() || self.service.syn_rescue)
    }

    fn resets(&self) -> bool {
        self.tcp && self.service.on_death == OnDeath::Reset
    }

    /// To another backend, if the one that the flow has serves but has not answered its SYN.
    fn rescue(&self, syn: bool) -> Option<Decision> {
        let entry = self.entry.filter(|entry| self.keeps(entry.backend))?;
        let times = entry
            .unanswered
            .filter(|_| syn && self.service.syn_rescue)?;
        let slots = &self.service.slots;
        let taker = |hash| {
            let slot = slots.get(hash::slot(hash, slots.len() as u32) as usize);
            let index = slot.map_or(0, |slot| slot.current());
            let path = self.contents.backends.get(&index).and_then(|b| b.path);
            if self.takes(index) && path.is_some() {
                index
            } else {
                0
            }
        };
        let owner = self.owner.current();
        Some(
            match another(self.hash, times, entry.backend, owner, taker) {
                0 => self.send(entry.backend, Reason::Entry),
                index => self.send(index, Reason::Rescued),
            },
        )
    }

    /// To the slot's owner, if that takes new flows.
    fn current(&self, reason: Reason) -> Decision {
        let index = self.owner.current();
        if self.takes(index) {
            self.send(index, reason)
        } else if index == 0 {
            Decision::not(Verdict::DropNoBackend, Reason::NoOwner)
        } else {
            Decision::not(Verdict::DropNoBackend, Reason::OwnerRefuses)
        }
    }

    fn send(&self, index: BackendIndex, reason: Reason) -> Decision {
        let backend = self.contents.backends.get(&index);
        if backend.is_some_and(|backend| backend.path.is_some()) {
            Decision {
                fate: Fate::To(index),
                reason,
            }
        } else {
            Decision::not(Verdict::DropNoNeighbor, Reason::Unresolved)
        }
    }

    /// Whether it takes new flows.
    fn takes(&self, index: BackendIndex) -> bool {
        self.state(index) == BackendState::Active
    }

    /// Whether it keeps the flows that it has.
    fn keeps(&self, index: BackendIndex) -> bool {
        matches!(
            self.state(index),
            BackendState::Active | BackendState::Draining
        )
    }

    fn state(&self, index: BackendIndex) -> BackendState {
        let backend = self.contents.backends.get(&index);
        backend.map_or(BackendState::Unset, |backend| backend.state)
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
