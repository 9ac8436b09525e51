//! The maps, all pinned by the agent. Layouts are in `lb_common::abi`.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use lb_common::abi::{
    Addr, Backend, DEFAULT_FLOW_ENTRIES, Filter, Flow, FlowKey, MAX_BACKENDS, MAX_SERVICES, Params,
    Service, ServiceKey, Traffic,
};
use lb_common::capture::{Captured, MAX_KEPT, RING_BYTES};
use lb_common::slot::TABLE_SIZES;
use lb_common::verdict::VERDICT_STRIDE;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
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
pub static SERVICES: HashMap<ServiceKey, Service, SERVICE_COUNT> = HashMap::new();

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

#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, Flow, { DEFAULT_FLOW_ENTRIES as usize }> = LruHashMap::new();

#[btf_map]
pub static TRAFFIC: PerCpuArray<Traffic, { MAX_BACKENDS as usize }> = PerCpuArray::new();

/// Verdicts by service: index is service × stride + verdict.
#[btf_map]
pub static VERDICTS: PerCpuArray<u64, { (MAX_SERVICES * VERDICT_STRIDE) as usize }> =
    PerCpuArray::new();

/// A flow being opened: too large for the stack, and what the verifier need not follow.
#[repr(C)]
pub struct Opening {
    pub reply: FlowKey,
    pub entry: Flow,
    /// State of the generator that ports are drawn from.
    pub random: u64,
    /// Whether a port was found.
    pub reserved: u64,
}

#[btf_map]
pub static OPENING: PerCpuArray<Opening, 1> = PerCpuArray::new();

/// An offset on its way through memory; see [`crate::packet::unknown`].
#[btf_map]
pub static OFFSET: PerCpuArray<u32, 1> = PerCpuArray::new();

/// Records of captured packets.
#[btf_map]
pub static CAPTURE: RingBuf<u8, { RING_BYTES as usize }> = RingBuf::new();

/// A packet being captured: its record, and what is on its way through memory as in [`OFFSET`].
#[repr(C)]
pub struct Held {
    pub fate: u64,
    /// `kept` is 0 if none is held.
    pub head: Captured,
    pub bytes: [u64; MAX_KEPT as usize / 8],
}

#[btf_map]
pub static HELD: PerCpuArray<Held, 1> = PerCpuArray::new();

/// Records that found no room.
#[btf_map]
pub static CAPTURE_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();
