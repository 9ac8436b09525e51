//! The maps, all pinned by the agent. Layouts are in `lb_common::abi`.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf,
};
use aya_ebpf::macros::btf_map;
use lb_common::abi::{
    Addr, Backend, DEFAULT_FLOW_ENTRIES, FRAGMENT_ENTRIES, FRAGMENT_IDS as ID_COUNTERS, Filter,
    FlowKey, Fragment, FragmentKey, Hop, MAX_BACKENDS, MAX_DECAP_ADDRESSES, MAX_SERVICES,
    MAX_SOURCES, Params, RangeKey, Ranges, SERVICE_PLACES, ServerIdKey, ServiceEntry, Traffic,
};
use lb_common::capture::{Captured, MAX_KEPT, RING_BYTES};
use lb_common::flow_table::{Bucket, Replies, buckets_for, reply_lines};
use lb_common::slot::{BackendIndex, TABLE_SIZES};
use lb_common::verdict::VERDICT_STRIDE;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const BUCKETS: u32 = buckets_for(DEFAULT_FLOW_ENTRIES);
const SERVICE_COUNT: usize = MAX_SERVICES as usize;

#[btf_map]
pub static PARAMS: Array<Params, 1, MMAPABLE> = Array::new();

/// One bit for each destination address hash that some VIP or NAT source address has: what misses
/// it is not ours.
#[btf_map]
pub static FILTER: Array<Filter, 1, MMAPABLE> = Array::new();

/// Addresses of services, to tell a packet that cannot be served from one that is for the host.
#[btf_map]
pub static VIPS: HashMap<Addr, u32, SERVICE_COUNT> = HashMap::new();

#[btf_map]
pub static SERVICES: Array<ServiceEntry, { SERVICE_PLACES as usize }, MMAPABLE> = Array::new();

/// Ranges of ports by VIP and protocol; asked when no service has the very port.
#[btf_map]
pub static RANGES: HashMap<RangeKey, Ranges, SERVICE_COUNT> = HashMap::new();

/// Backends by the server ID in QUIC connection IDs.
#[btf_map]
pub static QUIC_IDS: HashMap<ServerIdKey, u32, { MAX_BACKENDS as usize }> = HashMap::new();

#[btf_map]
pub static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }, MMAPABLE> = Array::new();

/// Slots of each service, by the three table sizes; the agent swaps the inner map.
#[btf_map]
pub static TABLES_S: ArrayOfMaps<Array<u32, { TABLE_SIZES[0] as usize }, MMAPABLE>, SERVICE_COUNT> =
    ArrayOfMaps::new();
#[btf_map]
pub static TABLES_M: ArrayOfMaps<Array<u32, { TABLE_SIZES[1] as usize }, MMAPABLE>, SERVICE_COUNT> =
    ArrayOfMaps::new();
#[btf_map]
pub static TABLES_L: ArrayOfMaps<Array<u32, { TABLE_SIZES[2] as usize }, MMAPABLE>, SERVICE_COUNT> =
    ArrayOfMaps::new();

/// Addresses of this host on the ways to backends, by number.
#[btf_map]
pub static SOURCES: Array<Addr, { MAX_SOURCES as usize }, MMAPABLE> = Array::new();

/// The agent makes it and [`REPLIES`] as large as its configuration says.
#[btf_map]
pub static FLOWS: Array<Bucket, { BUCKETS as usize }, MMAPABLE> = Array::new();

/// References to NAT flows by what their replies carry.
#[btf_map]
pub static REPLIES: Array<Replies, { reply_lines(BUCKETS) as usize }, MMAPABLE> = Array::new();

/// Ports of datagrams whose fragments are under way.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { FRAGMENT_ENTRIES as usize }> =
    LruHashMap::new();

/// A fragment that is being looked at: too large for the stack.
#[repr(C)]
pub struct Piece {
    pub key: FragmentKey,
    pub flow: FlowKey,
    pub note: Fragment,
    pub pad: u32,
}

#[btf_map]
pub static PIECE: PerCpuArray<Piece, 1> = PerCpuArray::new();

/// How many identifications were drawn for fragments, by [`lb_common::hash::fragment_counter`].
#[btf_map]
pub static FRAGMENT_IDS: Array<u32, { ID_COUNTERS as usize }> = Array::new();

#[btf_map]
pub static TRAFFIC: PerCpuArray<Traffic, { MAX_BACKENDS as usize }> = PerCpuArray::new();

/// A power of two.
pub const SYN_PLACES: u32 = 4096;

/// SYNs of flows that are not recorded, the latest of each place; see [`crate::count::syn`].
#[btf_map]
pub static SYNS: PerCpuArray<u32, { SYN_PLACES as usize }> = PerCpuArray::new();

/// Verdicts by service: index is service × stride + verdict.
#[btf_map]
pub static VERDICTS: PerCpuArray<u64, { (MAX_SERVICES * VERDICT_STRIDE) as usize }> =
    PerCpuArray::new();

/// A flow being opened: too large for the stack, and what the verifier need not follow.
#[repr(C)]
pub struct Opening {
    pub key: FlowKey,
    /// The way back to its client.
    pub way_back: Hop,
    /// The clock in seconds.
    pub tick: u32,
    pub backend: BackendIndex,
    pub service: u16,
    /// Whether it is a NAT flow, which gets a port.
    pub is_nat: u16,
    /// [`Flow::forward`](lb_common::abi::Flow::forward) to begin with.
    pub forward: u8,
    /// Whether the flow has a record, which the new one replaces.
    pub known: u8,
    /// From here on `flows::insert`'s own. A flow that can do without its port, which is this one.
    pub victim_port: u16,
    /// Number of the address of this host that its packets leave from; 0 if there is none.
    pub source: u16,
    pub victim: u32,
    /// The flow's replies as they will arrive.
    pub reply: FlowKey,
    /// State of the generator that ports are drawn from.
    pub random: u64,
    /// Bucket and way of its record.
    pub bucket: u32,
    pub way: u32,
    /// Whether a port was found.
    pub reserved: u32,
    /// Line of [`REPLIES`] that the reference of these replies goes to.
    pub line: u32,
}

#[btf_map]
pub static OPENING: PerCpuArray<Opening, 1> = PerCpuArray::new();

/// The one of this CPU.
#[inline(always)]
pub fn opening() -> Option<&'static mut Opening> {
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    OPENING
        .get_ptr_mut(0)
        .map(|opening| unsafe { &mut *opening })
}

/// When the RSTs that a CPU has sent would be due at the rate that is allowed, in nanoseconds of
/// the coarse clock.
#[btf_map]
pub static RESETS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The program that gets what is left to the host, if there is one.
#[btf_map]
pub static CHAIN: ProgramArray<1> = ProgramArray::new();

/// An offset on its way through memory; see [`crate::packet::unknown`].
#[btf_map]
pub static OFFSET: PerCpuArray<u32, 1> = PerCpuArray::new();

/// `lb decap`: this host's addresses, each with the UDP port of GUE in network order (0: none).
#[btf_map]
pub static DECAP: HashMap<Addr, u32, { MAX_DECAP_ADDRESSES as usize }> = HashMap::new();

/// `lb decap`: packets and bytes, by [`lb_common::abi::Stripped`].
#[btf_map]
pub static STRIPPED: PerCpuArray<[u64; 2], 4> = PerCpuArray::new();

/// Records of captured packets.
#[btf_map]
pub static CAPTURE: RingBuf<u8, { RING_BYTES as usize }> = RingBuf::new();

/// A packet being captured: its record.
#[repr(C)]
pub struct Held {
    /// `kept` is 0 if none is held.
    pub head: Captured,
    pub bytes: [u64; MAX_KEPT as usize / 8],
    /// Whether it stays held, whatever else is asked to be: 1 or 0.
    pub fixed: u64,
}

#[btf_map]
pub static HELD: PerCpuArray<Held, 1> = PerCpuArray::new();

/// Records that found no room.
#[btf_map]
pub static CAPTURE_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();
