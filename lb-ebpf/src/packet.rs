//! The only raw access to packet bytes.
//!
//! Places are kept as pointers, not as offsets: the verifier forgets what it knows of a place that is
//! computed anew. A [`Window`] is a run of bytes that was checked once against the end of the packet; its reads
//! and writes are at constant offsets that are checked when this compiles. Words are accessed as
//! words: a byte-wise copy would make LLVM emit memcpy calls, which lose the verifier's bounds.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_xdp_adjust_tail;
use aya_ebpf::programs::XdpContext;

use crate::maps::OFFSET;

/// Passes an offset through memory, so that the verifier no longer knows which way the parser came
/// to it, and goes through what follows once, instead of once for each combination of VLAN tags and
/// extension headers. `MASK` is all it knows then, and all it needs.
#[inline(always)]
pub fn unknown<const MASK: usize>(offset: usize) -> Option<usize> {
    let memory = OFFSET.get_ptr_mut(0)?;
    // SAFETY: per-CPU, and programs do not preempt each other on a CPU.
    unsafe {
        memory.write_volatile(offset as u32);
        Some(memory.read_volatile() as usize & MASK)
    }
}

/// A packet as XDP sees it.
pub struct Packet {
    ctx: *mut xdp_md,
    start: usize,
    end: usize,
}

/// `N` bytes that are known to lie inside the packet.
#[derive(Clone, Copy)]
pub struct Window<const N: usize>(usize);

impl Packet {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self {
            ctx: ctx.ctx,
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// Length in bytes from the Ethernet header on.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Interface that the packet came in by.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: the context outlives the program's run.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    /// For helpers.
    #[inline(always)]
    pub fn ctx(&self) -> *mut xdp_md {
        self.ctx
    }

    /// The place of the Ethernet header.
    #[inline(always)]
    pub fn start(&self) -> usize {
        self.start
    }

    /// `N` bytes from the place `at` on; `None` where the packet ends before.
    #[inline(always)]
    pub fn window<const N: usize>(&self, at: usize) -> Option<Window<N>> {
        if at + N > self.end {
            None
        } else {
            Some(Window(at))
        }
    }

    /// Ends the packet at the place `end` and looks at it anew; every place and window from before
    /// is void.
    #[inline(always)]
    pub fn cut(&self, end: usize) -> Option<Self> {
        let delta = end as i64 - self.end as i64;
        // SAFETY: the helper checks the new length itself.
        if unsafe { bpf_xdp_adjust_tail(self.ctx, delta as i32) } != 0 {
            return None;
        }
        Some(Self::new(&XdpContext::new(self.ctx)))
    }
}

impl<const N: usize> Window<N> {
    #[inline(always)]
    fn at<T, const OFFSET: usize>(self) -> *mut T {
        const { assert!(OFFSET + size_of::<T>() <= N) };
        (self.0 + OFFSET) as *mut T
    }

    #[inline(always)]
    pub fn u8<const OFFSET: usize>(self) -> u8 {
        // SAFETY: inside the window, so inside the packet.
        unsafe { *self.at::<u8, OFFSET>() }
    }

    /// In network order.
    #[inline(always)]
    pub fn u16<const OFFSET: usize>(self) -> u16 {
        // SAFETY: as above; BPF has no alignment trap for packet data.
        unsafe { *self.at::<u16, OFFSET>() }
    }

    /// In network order.
    #[inline(always)]
    pub fn u32<const OFFSET: usize>(self) -> u32 {
        // SAFETY: as above.
        unsafe { *self.at::<u32, OFFSET>() }
    }

    #[inline(always)]
    pub fn set_u8<const OFFSET: usize>(self, value: u8) {
        // SAFETY: as above.
        unsafe { *self.at::<u8, OFFSET>() = value }
    }

    #[inline(always)]
    pub fn set_u16<const OFFSET: usize>(self, value: u16) {
        // SAFETY: as above.
        unsafe { *self.at::<u16, OFFSET>() = value }
    }

    #[inline(always)]
    pub fn set_u32<const OFFSET: usize>(self, value: u32) {
        // SAFETY: as above.
        unsafe { *self.at::<u32, OFFSET>() = value }
    }
}
