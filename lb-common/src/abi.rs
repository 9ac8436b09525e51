//! Keys and values of the BPF maps. `repr(C)`, no padding the compiler could leave undefined,
//! addresses and ports in network byte order, all-zero meaning "unset".

/// Changes whenever a map's key, value, size class or meaning changes. An agent refuses to adopt
/// pinned maps of another layout.
pub const LAYOUT_VERSION: u32 = 6;

/// Capacity of the service table, service number 0 included (it means "none").
pub const MAX_SERVICES: u32 = 1024;
/// Capacity of the backend table, backend number 0 included (it means "none").
pub const MAX_BACKENDS: u32 = 16_384;
/// Flows that the flow table has room for unless the configuration says otherwise.
pub const DEFAULT_FLOW_ENTRIES: u32 = 262_144;
/// Datagrams whose fragments can be under way at the same time.
pub const FRAGMENT_ENTRIES: u32 = 16_384;
/// Counters that identifications for the fragments of NAT are drawn from, a power of two.
pub const FRAGMENT_IDS: u32 = 16_384;
/// Seconds that the ports of a datagram's first fragment are believed: the least time that a
/// receiver waits for the rest (RFC 791, section 3.2), after which its id may be used again.
pub const FRAGMENT_LIFETIME: u32 = 15;

/// An IPv6 address, or an IPv4 address in its mapped form `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), as
/// two double words whose bytes in memory are in network order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct Addr(pub [u64; 2]);

impl Addr {
    /// From an IPv4 address as it stands in a packet.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        let mark = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        Self([0, double(mark, word)])
    }

    /// From words as they stand in a packet.
    #[inline(always)]
    pub const fn from_words([a, b, c, d]: [u32; 4]) -> Self {
        Self([double(a, b), double(c, d)])
    }

    /// The words as they stand in a packet.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let ([a, b], [c, d]) = (halves(self.0[0]), halves(self.0[1]));
        [a, b, c, d]
    }

    /// The last word, which of a mapped IPv4 address is that address.
    #[inline(always)]
    pub const fn last_word(&self) -> u32 {
        halves(self.0[1])[1]
    }

    /// 0 if the two are the same. Several such differences are put together without a branch for
    /// each, which both the processor and the verifier prefer.
    #[inline(always)]
    pub const fn difference(&self, other: &Self) -> u64 {
        (self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1])
    }
}

/// The double word that two words are in memory, one behind the other.
#[inline(always)]
const fn double(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        (second as u64) << 32 | first as u64
    } else {
        (first as u64) << 32 | second as u64
    }
}

/// What [`double`] has put together.
#[inline(always)]
const fn halves(double: u64) -> [u32; 2] {
    let (high, low) = ((double >> 32) as u32, double as u32);
    if cfg!(target_endian = "little") {
        [low, high]
    } else {
        [high, low]
    }
}

#[cfg(feature = "std")]
impl From<std::net::IpAddr> for Addr {
    fn from(ip: std::net::IpAddr) -> Self {
        let octets = match ip {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(v6) => v6.octets(),
        };
        let words = u128::from_be_bytes(octets);
        Self([((words >> 64) as u64).to_be(), (words as u64).to_be()])
    }
}

#[cfg(feature = "std")]
impl From<Addr> for std::net::IpAddr {
    fn from(addr: Addr) -> Self {
        let [high, low] = addr.0.map(u64::from_be);
        std::net::Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).to_canonical()
    }
}

/// What a service is found by.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct ServiceKey {
    pub addr: Addr,
    /// In network order.
    pub port: u16,
    /// IANA protocol number: 6 TCP, 17 UDP.
    pub protocol: u8,
}

impl ServiceKey {
    /// Bit of [`Self::word`] that tells a service with a range of ports, which `port` is the first
    /// of, from one with a single port.
    pub const RANGE: u32 = 1 << 8;

    /// The key's second part in one word, which is never 0.
    #[inline(always)]
    pub const fn word(&self) -> u32 {
        Self::word_of(self.port, self.protocol)
    }

    /// The same of a port in network order and a protocol.
    #[inline(always)]
    pub const fn word_of(port: u16, protocol: u8) -> u32 {
        (port as u32) << 16 | protocol as u32
    }
}

/// Ranges of ports that one address and protocol may have, twice as many as the configuration
/// allows: while a change is carried out both old and new ones stand.
pub const MAX_RANGES: usize = 32;

/// What the ranges of ports of a VIP are found by.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct RangeKey {
    pub addr: Addr,
    /// IANA protocol number.
    pub protocol: u32,
    pub pad: u32,
}

/// Ports that a service has, and where its entry is.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Range {
    /// In host order, as `last`; the range of a free place is port 0, which no service has.
    pub first: u16,
    pub last: u16,
    /// Place in the service table. The entry there is this service's only if it says the same.
    pub place: u32,
}

/// The ranges of ports of a VIP; of those that a port is in, the first counts.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Ranges(pub [Range; MAX_RANGES]);

/// What a QUIC connection ID's server ID is looked up by.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ServerIdKey {
    /// Number of the service.
    pub service: u64,
    /// The server ID's octets as a number.
    pub id: u64,
}

/// Length of an IPv4 header without options (RFC 791, section 3.1).
pub const IPV4_LEN: u16 = 20;
/// Length of an IPv6 header (RFC 8200, section 3).
pub const IPV6_LEN: u16 = 40;
/// Length of a UDP header (RFC 768).
pub const UDP_LEN: u16 = 8;
/// The port that IANA has assigned to GUE ("gue").
pub const GUE_PORT: u16 = 6080;

/// How packets reach a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Forwarding {
    /// Both ends rewritten; replies come back through the balancer.
    Nat = 1,
    /// Destination MAC rewritten; the backend owns the VIP and answers the client itself.
    Dsr = 2,
    /// As `Dsr`, but the packet goes to the backend's address inside another IP header (RFC 2003,
    /// RFC 2473, RFC 4213), so that routers may be in between.
    Ipip = 3,
    /// As `Ipip` with a UDP header in between, so that routers and NICs spread the flows: variant 1
    /// of Generic UDP Encapsulation (draft-ietf-intarea-gue-09, section 4).
    Gue = 4,
}

impl Forwarding {
    /// Every way, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Nat, Self::Dsr, Self::Ipip, Self::Gue];

    /// Name in configuration and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        }
    }

    /// Bytes that the outer headers add to a packet; 0 where there are none.
    pub const fn overhead(self, outer_v4: bool) -> u16 {
        let ip = if outer_v4 { IPV4_LEN } else { IPV6_LEN };
        match self {
            Self::Nat | Self::Dsr => 0,
            Self::Ipip => ip,
            Self::Gue => ip + UDP_LEN,
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
    /// The 5-tuple; but a QUIC packet whose connection ID names a server goes to that one.
    Quic = 2,
}

impl Affinity {
    /// Every affinity, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Flow, Self::Client, Self::Quic];

    /// Name in configuration and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Client => "client",
            Self::Quic => "quic",
        }
    }
}

/// How packets of a service are forwarded. Read and written as one word.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
pub struct Service {
    /// Number of the service; index of its table and of its drop counters.
    pub id: u16,
    /// A [`Forwarding`].
    pub forwarding: u8,
    /// An [`Affinity`].
    pub affinity: u8,
    /// Index into [`crate::slot::TABLE_SIZES`].
    pub table_class: u8,
    /// Bits of [`service_flag`].
    pub flags: u8,
    /// Octets of the server ID in QUIC connection IDs; 0 unless the affinity is [`Affinity::Quic`].
    pub server_id_length: u8,
    pub pad: u8,
}

impl Service {
    /// Whether all of these [`service_flag`] bits are set.
    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// Bits of [`Service::flags`]. Only TCP services have any.
pub mod service_flag {
    /// Packets of a flow whose backend is out are answered with a RST, rather than sent to the
    /// present owner of their slot. NAT does so with or without it.
    pub const RESET_DEAD: u8 = 1;
    /// A repeated SYN goes to another backend than the one that has not answered the first. Every
    /// flow is recorded for it.
    pub const SYN_RESCUE: u8 = 2;
}

/// Places in the service table, a power of two. With [`MAX_SERVICES`] services one in sixteen is
/// taken.
pub const SERVICE_PLACES: u32 = 16_384;
/// Places in a row, from the one its hash names, that a service may be at. All are looked at before
/// a packet is taken for nobody's, so a service can be removed without moving others. That a
/// service finds them all taken by others has a chance of one in a million.
pub const SERVICE_PROBES: u32 = 8;

/// A place in the service table, an open-addressing hash table in an array: a look-up costs no
/// helper call.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
pub struct ServiceEntry {
    pub addr: Addr,
    /// [`ServiceKey::word`]; 0 in a free place. Written last and removed first.
    pub word: u32,
    /// Last port of a range, in host order; 0 where there is none.
    pub last: u16,
    pub pad: u16,
    pub service: Service,
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
    /// Destination and source MAC address as a frame begins with them.
    pub macs: [u32; 3],
    /// Output interface; 0 while the neighbour is not resolved.
    pub ifindex: u32,
}

impl Hop {
    /// Out by this interface, to and from these MAC addresses.
    pub const fn new(dst: [u8; 6], src: [u8; 6], ifindex: u32) -> Self {
        let macs = [
            u32::from_ne_bytes([dst[0], dst[1], dst[2], dst[3]]),
            u32::from_ne_bytes([dst[4], dst[5], src[0], src[1]]),
            u32::from_ne_bytes([src[2], src[3], src[4], src[5]]),
        ];
        Self { macs, ifindex }
    }

    /// Destination MAC address.
    pub const fn dst_mac(&self) -> [u8; 6] {
        let ([a, b, c, d], [e, f, ..]) = (self.macs[0].to_ne_bytes(), self.macs[1].to_ne_bytes());
        [a, b, c, d, e, f]
    }
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
    /// Number of the balancer's own address on the way to this backend; 0 while that is unknown.
    pub source_index: SourceIndex,
    /// Port in network order; 0: packets keep the port that the client sends to.
    pub port: u16,
    /// Number of its service.
    pub service: u16,
    pub hops: [Hop; 2],
    /// Whether the program reads the statuses of its HTTP answers: 1 or 0.
    pub watches_http: u64,
    pub pad2: [u64; 2],
    pub addr: Addr,
    /// Source address of outer headers: the balancer's own, on the way to this backend, or one out
    /// of the prefix that outer sources vary in.
    pub source: Addr,
    /// Longest packet that the way to it takes, in bytes from the IP header on. Read for tunnels.
    pub mtu: u32,
    /// Bits of the last word of `source` that IP-in-IP takes from the flow hash, in network order.
    pub source_bits: u32,
    /// UDP port of GUE, in network order; 0 for IP-in-IP.
    pub gue_port: u16,
    /// Whether it has a `server_id`. Both are for the agent: the program asks its own map.
    pub has_server_id: u16,
    pub pad3: [u16; 2],
    /// The octets of its server ID in QUIC connection IDs as a number.
    pub server_id: u64,
    pub pad4: u64,
}

/// [`Hop::ifindex`] of a backend that is this host: its packets go up to the kernel.
pub const LOCAL: u32 = u32::MAX;

/// Number of an address in the source array; 0 means none.
pub type SourceIndex = u8;
/// Capacity of the source array: addresses of this host on the ways to backends, number 0 included.
pub const MAX_SOURCES: u32 = 256;

/// A packet's addresses and ports as they arrive, in network order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct FlowKey {
    pub src: Addr,
    pub dst: Addr,
    pub sport: u16,
    pub dport: u16,
    pub protocol: u32,
}

/// Bits of [`Flow::forward`] and [`Flow::reply`].
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
    /// In `forward`: how often the flow was given to another backend because the one that it had
    /// did not answer its SYN, up to 3.
    pub const RESCUES: u8 = 3 << RESCUES_SHIFT;
    /// Place of the lowest bit of [`RESCUES`].
    pub const RESCUES_SHIFT: u8 = 5;
    /// NAT, in `forward`: a RST that answers the SYN is kept from the client, whose next SYN goes to
    /// another backend. Once for each backend that the flow is given to.
    pub const HOLDS_REFUSAL: u8 = 128;
}

/// A record of the flow table, for both directions of a flow; one cache line.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
pub struct Flow {
    pub client: Addr,
    pub vip: Addr,
    /// In network order, as all ports here. From here to `backend` is one word, which is written
    /// last and cleared first.
    pub client_port: u16,
    pub vip_port: u16,
    /// IANA protocol number; 0 in a record that is not in use.
    pub protocol: u8,
    /// NAT: number of the source address that requests leave with. 0: the flow was opened in a
    /// transition, and only its backend is remembered.
    pub source: SourceIndex,
    pub backend: u16,
    /// [`Params::tick`] when the flow was last seen.
    pub last_seen: u32,
    /// NAT: source port that requests leave with.
    pub nat_port: u16,
    /// [`tcp_seen`] bits of the client's packets; its own byte, because the two directions may be
    /// handled by two CPUs at once.
    pub forward: u8,
    /// [`tcp_seen`] bits of the backend's packets.
    pub reply: u8,
    /// NAT: the way back to the client, as its last packet came.
    pub way_back: Hop,
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
    /// Drawn once for each flow table: spreads its flows and the choice of NAT ports.
    pub seed: u32,
    /// Buckets of the flow table.
    pub flow_buckets: u32,
    /// Whether echo requests to a VIP are answered: 1 or 0.
    pub answer_ping: u32,
    /// What is captured: 0 nothing, else see [`crate::capture::word`]. One word, so that it changes
    /// at once.
    pub capture: u32,
    /// RSTs that each CPU may send in a second.
    pub reset_rate: u32,
    /// CLOCK_MONOTONIC in nanoseconds after which the program itself ends the capture: that of an
    /// agent that no longer lives.
    pub capture_until: u64,
}

/// Key of the fragment map: what the fragments of one datagram have in common (RFC 791, section
/// 3.2; RFC 8200, section 4.5).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct FragmentKey {
    pub src: Addr,
    pub dst: Addr,
    /// Identification as it stands in the packet: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    pub protocol: u32,
}

/// Value of the fragment map: what only the first fragment of a datagram tells.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Fragment {
    /// In network order.
    pub sport: u16,
    /// In network order.
    pub dport: u16,
    /// Seconds of the kernel's monotonic clock when it came.
    pub seen: u32,
    /// Identification that the fragments leave with, as [`FragmentKey::id`].
    pub id: u32,
}

/// RSTs that each CPU may send in a second unless the configuration says otherwise.
pub const DEFAULT_RESET_RATE: u32 = 10_000;

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
    /// Flows opened: in NAT those that were recorded, in the other modes SYNs, repeated ones too.
    pub flows: u64,
    /// NAT: flows that the backend has answered, in whatever way.
    pub answered: u64,
    /// NAT: flows whose first answer was a RST.
    pub refused: u64,
    /// SYNs that came again, in NAT before the backend had answered.
    pub repeated: u64,
    /// ICMP errors that say that the backend, or its port, cannot be reached: NAT from its side,
    /// tunnels about their outer headers.
    pub unreachable: u64,
    /// NAT with [`Backend::watches_http`]: answers of HTTP/1 with a status below 500.
    pub http_ok: u64,
    /// The same with one of 500 and above.
    pub http_errors: u64,
    /// NAT: answers to SYNs that were timed, one at a time.
    pub timed: u64,
    /// Nanoseconds that those took, from the SYN that opened the flow to the first reply.
    pub timed_nanos: u64,
    /// The SYN that is being timed: its NAT port, 0 if there is none; [`Params::tick`] and nanoseconds
    /// of the kernel's monotonic clock when it came.
    pub timing_port: u32,
    pub timing_tick: u32,
    pub timing_since: u64,
}

/// What `lb decap` counts: an index of its counters, each of packets and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Stripped {
    /// Packets out of an IP header.
    Ipip = 0,
    /// Packets out of UDP.
    Gue = 1,
    /// Dropped: marked for congestion on the way, which the packet inside cannot carry on.
    Congested = 2,
    /// Dropped: the driver did not let the headers be taken off.
    Refused = 3,
}

/// Addresses that `lb decap` answers to, at the most.
pub const MAX_DECAP_ADDRESSES: u32 = 256;

const _: () = {
    assert!(size_of::<Addr>() == 16);
    assert!(size_of::<ServiceEntry>() == 32);
    assert!(size_of::<Service>() == 8);
    assert!(size_of::<RangeKey>() == 24);
    assert!(size_of::<Range>() == 8);
    assert!(size_of::<ServerIdKey>() == 16);
    assert!(size_of::<Hop>() == 16);
    assert!(size_of::<Backend>() == 128);
    assert!(core::mem::offset_of!(Backend, addr) == 64);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Flow>() == 64);
    assert!(core::mem::offset_of!(Flow, client_port) == 32);
    assert!(size_of::<Params>() == 40);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<Fragment>() == 12);
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
