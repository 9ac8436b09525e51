//! What the maps should hold, and the steps from what they hold to that.
//!
//! Pure: the datapath carries the steps out and notes each one that is done, so that after a
//! failure, or in the next agent, the plan starts from what really stands.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_common::abi::{Affinity, BackendState, Forwarding, Hop, LOCAL};
use lb_common::slot::{BackendIndex, Slot};

use crate::model::{Endpoint, Node, OnDeath, Protocol};

mod build;
pub mod explain;
mod ids;
mod steps;

pub use build::{Builder, Duty};
pub use ids::{Full, Ids};
pub use steps::{Op, plan};

/// Number of a service in the maps.
pub type ServiceId = u16;

/// The contents of the maps, except for flows and counters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    pub ports: Option<SnatPorts>,
    /// Whether echo requests to a VIP are answered.
    pub answer_ping: bool,
    /// RSTs that each CPU may send in a second.
    pub reset_rate: u32,
    pub services: BTreeMap<ServiceId, Service>,
    pub backends: BTreeMap<BackendIndex, Backend>,
    /// Services of which one backend at a time may get packets: whoever may do less does so before
    /// another may do more. Not in the maps, which always are in such a state.
    pub exclusive: BTreeSet<ServiceId>,
    /// Addresses of this host that NAT sends from, old ones included: their replies still come.
    pub sources: BTreeSet<IpAddr>,
}

/// Source ports of NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatPorts {
    pub first: u16,
    pub count: u16,
}

/// A service and its table.
#[derive(Clone, PartialEq)]
pub struct Service {
    pub address: Endpoint,
    pub protocol: Protocol,
    pub forwarding: Forwarding,
    pub affinity: Affinity,
    pub on_death: OnDeath,
    /// Whether a repeated SYN goes to another backend.
    pub syn_rescue: bool,
    /// Octets of the server ID in QUIC connection IDs; 0 where none is looked for.
    pub server_id_length: u8,
    /// One of the lengths of [`lb_common::slot::TABLE_SIZES`].
    pub slots: Arc<Vec<Slot>>,
}

impl fmt::Debug for Service {
    /// Without the slots, which nobody reads by the thousand.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("address", &self.address)
            .field("protocol", &self.protocol)
            .field("forwarding", &self.forwarding)
            .field("affinity", &self.affinity)
            .field("on_death", &self.on_death)
            .field("syn_rescue", &self.syn_rescue)
            .field("slots", &self.slots.len())
            .field("first", &self.slots.first())
            .finish()
    }
}

/// A backend's entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub service: ServiceId,
    /// Port 0: packets keep the port that the client sends to.
    pub address: SocketAddr,
    /// The octets of its server ID in QUIC connection IDs as a number.
    pub server_id: Option<u64>,
    /// Whether the statuses of its HTTP answers are counted.
    pub watches_http: bool,
    pub state: BackendState,
    pub path: Option<Path>,
}

/// The way to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    pub hop: Hop,
    /// Address of this host on that way, or one of the prefix that outer sources vary in.
    pub source: IpAddr,
    /// Longest packet that fits, in bytes from the IP header on.
    pub mtu: u32,
    pub tunnel: Tunnel,
}

/// What the outer headers of a tunnel are made with. The default for ways without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// UDP port of GUE; 0 for IP-in-IP.
    pub gue_port: u16,
    /// Bits in the last word of the outer source address that the flow hash sets, as they stand in
    /// a packet.
    pub source_bits: u32,
}

impl Path {
    /// To an address of this host.
    pub fn local(address: IpAddr) -> Self {
        Self {
            hop: Hop {
                ifindex: LOCAL,
                ..Hop::default()
            },
            source: address,
            mtu: u32::from(u16::MAX),
            tunnel: Tunnel::default(),
        }
    }

    /// Whether it leads to this host itself.
    pub const fn is_local(&self) -> bool {
        self.hop.ifindex == LOCAL
    }

    /// The same way for a service that is forwarded so; none where it does not lead there: what NAT
    /// sends to this host would come from this host, which the kernel does not take.
    pub fn through(self, forwarding: Forwarding, node: &Node) -> Option<Self> {
        match (self.is_local(), forwarding) {
            (true, Forwarding::Nat) => None,
            (true, _) => Some(self),
            (false, _) => Some(self.out(forwarding, node)),
        }
    }

    fn out(self, forwarding: Forwarding, node: &Node) -> Self {
        let prefix = match self.source {
            IpAddr::V4(_) => node.tunnel_source4,
            IpAddr::V6(_) => node.tunnel_source6,
        };
        match (forwarding, prefix) {
            (Forwarding::Nat | Forwarding::Dsr, _) => Self {
                tunnel: Tunnel::default(),
                ..self
            },
            (Forwarding::Ipip, None) => Self {
                tunnel: Tunnel::default(),
                ..self
            },
            (Forwarding::Ipip, Some(prefix)) => Self {
                source: prefix.address(),
                tunnel: Tunnel {
                    gue_port: 0,
                    source_bits: prefix.host_bits(),
                },
                ..self
            },
            (Forwarding::Gue, _) => Self {
                tunnel: Tunnel {
                    gue_port: node.gue_port,
                    source_bits: 0,
                },
                ..self
            },
        }
    }
}

impl Contents {
    /// Addresses that backends are reached from whose service is NAT, or is not.
    pub fn sources_of(&self, wanted: impl Fn(bool) -> bool) -> impl Iterator<Item = IpAddr> {
        let backends = self.backends.values().filter(move |backend| {
            let service = self.services.get(&backend.service);
            service.is_some_and(|service| wanted(service.forwarding == Forwarding::Nat))
        });
        backends.filter_map(|backend| Some(backend.path?.source))
    }

    /// Addresses of this host that tunnels begin at: errors about their outer headers come there. Not
    /// those of a prefix that outer sources vary in.
    fn tunnel_ends(&self) -> impl Iterator<Item = IpAddr> {
        self.backends.values().filter_map(|backend| {
            let (service, path) = (self.services.get(&backend.service)?, backend.path?);
            let in_tunnel = matches!(service.forwarding, Forwarding::Ipip | Forwarding::Gue);
            let own = !path.is_local() && path.tunnel.source_bits == 0;
            (in_tunnel && own).then_some(path.source)
        })
    }

    /// Addresses whose packets the program must look at, and whether each is a service's.
    pub fn addresses(&self) -> BTreeMap<IpAddr, bool> {
        let own = self.sources.iter().copied().chain(self.tunnel_ends());
        let sources = own.map(|source| (source, false));
        let vips = self
            .services
            .values()
            .map(|service| (service.address.ip(), true));
        sources.chain(vips).collect()
    }
}
