//! Keys and values of the BPF maps. `repr(C)`, no padding the compiler could leave undefined,
//! addresses and ports in network byte order, all-zero meaning "unset".

/// Changes whenever a map's key, value, size class or meaning changes. An agent refuses to adopt
/// pinned maps of another layout.
pub const LAYOUT_VERSION: u32 = 2;

/// Capacity of the service table, service number 0 included (it means "none").
pub const MAX_SERVICES: u32 = 1024;
/// Capacity of the backend table, backend number 0 included (it means "none").
pub const MAX_BACKENDS: u32 = 16_384;
/// Flow entries unless the configuration says otherwise.
pub const DEFAULT_FLOW_ENTRIES: u32 = 262_144;

/// An IPv6 address, or an IPv4 address in its mapped form `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), as
/// four words whose bytes in memory are in network order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// Third word of a mapped IPv4 address.
    pub const V4_MARK: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

    /// From an IPv4 address as it stands in a packet.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, Self::V4_MARK, word])
    }
}

#[cfg(feature = "std")]
impl From<std::net::IpAddr> for Addr {
    fn from(ip: std::net::IpAddr) -> Self {
        let octets = match ip {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self(words)
    }
}

#[cfg(feature = "std")]
impl From<Addr> for std::net::IpAddr {
    fn from(addr: Addr) -> Self {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(addr.0) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        std::net::Ipv6Addr::from(octets).to_canonical()
    }
}

/// Key of the service map. Port in network order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct ServiceKey {
    pub addr: Addr,
    pub port: u16,
    /// IANA protocol number: 6 TCP, 17 UDP.
    pub protocol: u8,
    pub pad: u8,
}

/// How packets reach a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Forwarding {
    /// Both ends rewritten; replies come back through the balancer.
    Nat = 1,
    /// Destination MAC rewritten; the backend owns the VIP and answers the client itself.
    Dsr = 2,
}

impl Forwarding {
    /// Name in configuration and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dsr => "dsr",
        }
    }
}

/// What the flow hash covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Affinity {
    /// The 5-tuple.
    Flow = 0,
    /// The client's address.
    Client = 1,
}

impl Affinity {
    /// Name in configuration and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Client => "client",
        }
    }
}

/// Value of the service map.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Service {
    /// Number of the service; index of its table and of its drop counters.
    pub id: u16,
    /// A [`Forwarding`].
    pub forwarding: u8,
    /// An [`Affinity`].
    pub affinity: u8,
    /// Index into [`crate::slot::TABLE_SIZES`].
    pub table_class: u8,
    pub pad: [u8; 3],
}

/// What the data plane lets a backend do. A word of its own, so that a change acts on the next
/// packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BackendState {
    /// Entry not in use.
    Unset = 0,
    /// New and established flows.
    Active = 1,
    /// Established flows only.
    Draining = 2,
    /// Nothing: the flows that are left are reset.
    Out = 3,
}

/// Where a frame goes on the wire.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Hop {
    pub dst_mac: [u16; 3],
    pub src_mac: [u16; 3],
    /// Output interface; 0 while the neighbour is not resolved.
    pub ifindex: u32,
}

/// Value of the backend array. The first 64 bytes are what the packet path reads.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
pub struct Backend {
    /// A [`BackendState`].
    pub state: u8,
    /// Which of `hops` is in force: the other one is written first, then this flips.
    pub hop: u8,
    /// 4 or 6.
    pub family: u8,
    pub pad: u8,
    /// Port in network order.
    pub port: u16,
    /// Number of its service.
    pub service: u16,
    pub hops: [Hop; 2],
    pub pad2: [u64; 3],
    pub addr: Addr,
    /// Source address for NAT: the balancer's own, on the way to this backend.
    pub source: Addr,
    pub pad3: [u64; 4],
}

/// Key of the flow map: a packet's addresses and ports as they arrive, in network order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct FlowKey {
    pub src: Addr,
    pub dst: Addr,
    pub sport: u16,
    pub dport: u16,
    pub protocol: u32,
}

/// What a flow entry is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FlowKind {
    /// Flow opened during a transition: remembers its backend.
    Tracked = 1,
    /// NAT, client to backend.
    Forward = 2,
    /// NAT, backend to client.
    Reply = 3,
}

/// Bits of [`Flow::tcp`].
pub mod tcp_seen {
    /// FIN from the client.
    pub const CLIENT_FIN: u8 = 1;
    /// FIN from the backend.
    pub const BACKEND_FIN: u8 = 2;
    /// RST from either end.
    pub const RST: u8 = 4;
    /// The backend has answered.
    pub const REPLY: u8 = 8;
    /// The client has sent something other than a SYN.
    pub const CLIENT_ACK: u8 = 16;
}

/// Value of the flow map.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Flow {
    /// A [`FlowKind`].
    pub kind: u8,
    /// [`tcp_seen`] bits.
    pub tcp: u8,
    pub backend: u16,
    pub service: u16,
    /// NAT: rewritten source port, network order.
    pub sport: u16,
    /// NAT: rewritten destination port, network order.
    pub dport: u16,
    pub pad: u16,
    /// [`Params::tick`] when the flow was last seen.
    pub last_seen: u32,
    /// NAT: rewritten addresses.
    pub src: Addr,
    pub dst: Addr,
    /// NAT: the way back to the client, as its last packet came.
    pub client: Hop,
}

/// The one value of the parameter array.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
pub struct Params {
    /// [`LAYOUT_VERSION`]; 0 until the agent has filled the maps.
    pub version: u32,
    /// Coarse clock of the agent in seconds, so that the packet path needs none.
    pub tick: u32,
    /// First NAT source port, host order.
    pub snat_first: u16,
    /// Number of NAT source ports.
    pub snat_count: u16,
    /// Spreads the choice of NAT source ports.
    pub snat_seed: u32,
    /// What is captured: 0 nothing, else see [`crate::capture::word`]. One word, so that it changes
    /// at once.
    pub capture: u32,
    pub pad: u32,
    /// CLOCK_MONOTONIC in nanoseconds after which the program itself ends the capture: that of an
    /// agent that no longer lives.
    pub capture_until: u64,
}

/// Words of the destination filter: one bit for each of 65,536 address hashes.
pub const FILTER_WORDS: usize = 1024;

/// The one value of the filter array; see [`crate::hash::filter_bit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Filter(pub [u64; FILTER_WORDS]);

/// Per-CPU counters of a backend.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Traffic {
    /// Packets towards the backend.
    pub packets: u64,
    /// Bytes of those packets as received, from the Ethernet header on.
    pub bytes: u64,
    /// Packets that went to the previous owner of a slot because no record named another: while it
    /// moves, a transition must stay open.
    pub by_previous: u64,
    /// Flows opened.
    pub flows: u64,
}

const _: () = {
    assert!(size_of::<Addr>() == 16);
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<Service>() == 8);
    assert!(size_of::<Hop>() == 16);
    assert!(size_of::<Backend>() == 128);
    assert!(core::mem::offset_of!(Backend, addr) == 64);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Flow>() == 64);
    assert!(size_of::<Params>() == 32);
};

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["10.0.0.1", "255.255.255.255", "::1", "2001:db8::5"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        }
        let v4 = Addr::from("10.1.2.3".parse::<IpAddr>().unwrap());
        assert_eq!(v4, Addr::v4(u32::from_ne_bytes([10, 1, 2, 3])));
    }
}
