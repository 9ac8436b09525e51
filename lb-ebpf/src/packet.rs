//! The only raw access to packet bytes.
//!
//! Places are kept as pointers, not as offsets: the verifier forgets what it knows of a place that
//! is computed anew. A [`Window`] is a run of bytes that was checked once against the end of the
//! packet; its reads and writes are at constant offsets that are checked when this compiles. Words
//! are accessed as words: a byte-wise copy would make LLVM emit memcpy calls, which lose the
//! verifier's bounds.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::Addr;

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
    /// Volatile, or LLVM would let a caller read the two and hand them over in place of the context,
    /// as 32-bit numbers.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        let ctx = ctx.ctx;
        // SAFETY: the context outlives the program's run.
        let (start, end) = unsafe {
            (
                (&raw const (*ctx).data).read_volatile(),
                (&raw const (*ctx).data_end).read_volatile(),
            )
        };
        Self {
            ctx,
            start: start as usize,
            end: end as usize,
        }
    }

    /// What the kernel knows it by; for functions that look at it anew.
    #[inline(always)]
    pub fn context(&self) -> *mut xdp_md {
        self.ctx
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

    /// Makes room for `bytes` in front of the packet, or takes that many away where it is less than
    /// 0, and looks at it anew; every place and window from before is void. `None` where the driver
    /// leaves no room, or no Ethernet header would be left.
    #[inline(always)]
    pub fn grow(&self, bytes: i32) -> Option<Self> {
        // SAFETY: the helper checks the new start itself.
        if unsafe { bpf_xdp_adjust_head(self.ctx, -bytes) } != 0 {
            return None;
        }
        Some(Self::new(&XdpContext::new(self.ctx)))
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

    /// Sum of its 32-bit words, for checksums.
    #[inline(always)]
    pub fn sum(self) -> u64 {
        const { assert!(N.is_multiple_of(4)) };
        let mut sum = 0;
        for word in 0..N / 4 {
            // SAFETY: inside the window, so inside the packet; see `u16` for the alignment.
            sum += unsafe { *((self.0 + 4 * word) as *const u32) } as u64;
        }
        sum
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

    /// An IPv6 address.
    #[inline(always)]
    pub fn addr<const OFFSET: usize>(self) -> Addr {
        const { assert!(OFFSET + size_of::<Addr>() <= N) };
        // SAFETY: as above.
        Addr([0, 1].map(|word| unsafe { *self.at::<u64, OFFSET>().add(word) }))
    }

    /// Writes an IPv6 address.
    #[inline(always)]
    pub fn set_addr<const OFFSET: usize>(self, addr: &Addr) {
        const { assert!(OFFSET + size_of::<Addr>() <= N) };
        for word in 0..2 {
            // SAFETY: as above.
            unsafe { *self.at::<u64, OFFSET>().add(word) = addr.0[word] }
        }
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
