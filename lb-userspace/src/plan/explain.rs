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
use lb_common::hash;
use lb_common::slot::{BackendIndex, Slot};
use lb_common::verdict::Verdict;
use thiserror::Error;

use super::{Contents, Service, ServiceId};
use crate::model::{Endpoint, Protocol};

/// A flow as the client names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub protocol: Protocol,
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
            Ok(Self { src, dst, protocol })
        } else {
            Err(MixedFamilies { src, dst })
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
    /// The slot has no owner.
    NoOwner,
    /// The slot's owner does not take the packet.
    OwnerRefuses,
    /// The backend's next hop is not resolved.
    Unresolved,
    /// It is no request, but a backend's reply to a NAT flow.
    Reply,
}

impl Reason {
    /// One phrase for the operator.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Entry => "the flow table has it",
            Self::EntryOut => "its backend by the flow table is out",
            Self::NoEntry => "the flow table does not have it",
            Self::Owner => "owns the slot",
            Self::Previous => {
                "owned the slot before the transition, and the flow table does not have the flow"
            }
            Self::Fallback => {
                "owns the slot; whoever had the flow before does not serve it any more"
            }
            Self::NoOwner => "nobody owns the slot",
            Self::OwnerRefuses => "the slot's owner does not take it in its state",
            Self::Unresolved => "the MAC address of the backend's next hop is not known",
            Self::Reply => "it is a backend's reply to a NAT flow",
        }
    }
}

/// What is asked of the flow table.
pub trait Flows {
    /// The record of a flow, by its client's packets.
    fn find(&self, key: &FlowKey) -> Option<Flow>;
    /// Whether such packets are replies to a NAT flow.
    fn is_reply(&self, key: &FlowKey) -> bool;
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
        owner: owner.unwrap_or_default(),
        tcp: tuple.protocol == Protocol::Tcp,
        entry: None,
    };
    // A service that has changed its forwarding heeds no entries of the other kind.
    let heeded = |flow: &Flow| (service.forwarding == Forwarding::Nat) == (flow.source != 0);
    if let Some(flow) = flows.find(&key).filter(heeded) {
        path.entry = Some(entry(contents, service, &flow, flows));
    }
    let [new, established] = if may_be_reply(contents, &key) && flows.is_reply(&key) {
        [Decision::not(Verdict::NatReply, Reason::Reply); 2]
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
        // A settled slot is not looked up.
        entry: path
            .entry
            .filter(|_| service.forwarding == Forwarding::Nat || path.owner.in_transition()),
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
    owner: Slot,
    tcp: bool,
    /// Of the kind that the service heeds.
    entry: Option<Entry>,
}

impl PacketPath<'_> {
    fn nat(&self, syn: bool) -> Decision {
        match self.entry {
            Some(entry) if self.keeps(entry.backend) => {
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
        self.current(Reason::Owner)
    }

    fn direct(&self, syn: bool) -> Decision {
        let current = self.owner.current();
        if !self.owner.in_transition() {
            return if current == 0 {
                Decision::not(Verdict::DropNoBackend, Reason::NoOwner)
            } else if self.takes(current) || (!syn && self.keeps(current)) {
                self.send(current, Reason::Owner)
            } else {
                Decision::not(Verdict::DropBackendOut, Reason::OwnerRefuses)
            };
        }
        if syn {
            return self.current(Reason::Owner);
        }
        let (index, reason) = match self.entry {
            Some(entry) => (entry.backend, Reason::Entry),
            None => (self.owner.previous(), Reason::Previous),
        };
        if self.keeps(index) {
            self.send(index, reason)
        } else {
            self.current(Reason::Fallback)
        }
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
