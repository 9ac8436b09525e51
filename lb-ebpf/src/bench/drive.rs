//! What the bench's driver and its user space share. Included by both, so `core` and `lb-common` only.

/// Bytes that the driver restores before each run: an IPv6 header and a TCP header fit.
pub const FRAME_LEN: usize = 80;
/// Flows that a [`Tuple`] table has room for.
pub const MAX_TUPLES: usize = 1 << 20;

/// Which program a run ends in: an index of the program array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Target {
    /// Passes each packet: the cost of the driver.
    Pass = 0,
    /// The least that any balancer does which rewrites MAC addresses.
    FloorDsr = 1,
    /// The product.
    Lb = 2,
    /// The least that any balancer does which puts packets into IPv4.
    FloorIpip = 3,
    /// The same into IPv4 and UDP.
    FloorGue = 4,
}

/// How the driver makes a run's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    /// A flow below `flows`, at random.
    Random = 0,
    /// A flow that was never there before: `next` counts on.
    Fresh = 1,
    /// As `Random`, with addresses and ports from the tuple table.
    Table = 2,
}

/// One scenario. The all-zero value passes the zero frame.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Drive {
    /// Number of the next run.
    pub next: u64,
    /// A [`Target`].
    pub target: u32,
    /// An [`Order`].
    pub order: u32,
    pub flows: u32,
    /// Not 0: an IPv6 frame.
    pub v6: u32,
    /// Not 0: the program makes the frame longer at its front, which the driver takes back.
    pub grows: u32,
    pub pad: u32,
    /// The frame in words as they stand in memory.
    pub frame: [u32; FRAME_LEN / 4],
}

/// Key of the floor's services, in network order.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FloorKey {
    pub addr: lb_common::abi::Addr,
    pub port: u16,
    pub protocol: u16,
    pub pad: u32,
}

/// A flow's last address words and ports, in network order, as they go into the frame.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Tuple {
    pub src: u32,
    pub dst: u32,
    pub ports: u32,
    pub pad: u32,
}

/// Last word of a computed flow's source address, host order, and its source port: 16,384 flows
/// for each address.
#[inline(always)]
pub const fn client(first: u32, flow: u32) -> (u32, u16) {
    (
        first.wrapping_add(flow >> 14),
        1024 + (flow & 0x3fff) as u16,
    )
}
