//! The only raw access to packet bytes.
//!
//! A [`Window`] is a run of bytes that was checked once against the end of the packet; its reads
//! and writes are at constant offsets that are checked when this compiles. Words are accessed as
//! words: a byte-wise copy would make LLVM emit memcpy calls, which lose the verifier's bounds.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_xdp_adjust_tail;
use aya_ebpf::programs::XdpContext;

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

    /// The context, for a function of its own that looks at the packet anew.
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

    /// `N` bytes from `offset` on; `None` where the packet is shorter.
    #[inline(always)]
    pub fn window<const N: usize>(&self, offset: usize) -> Option<Window<N>> {
        let at = self.start + offset;
        if at + N > self.end {
            None
        } else {
            Some(Window(at))
        }
    }

    /// Cuts or extends the packet to `len` bytes and looks at it anew; every window from before
    /// is void.
    #[inline(always)]
    pub fn resize(&self, len: usize) -> Option<Self> {
        let delta = len as i64 - self.len() as i64;
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
