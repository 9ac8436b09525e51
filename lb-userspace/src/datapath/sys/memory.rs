//! Maps of plain bytes in this process's memory.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Types that are plain bytes: any bit pattern is a value, and no byte is padding.
///
/// # Safety
/// Both must hold.
pub unsafe trait Plain: Copy + 'static {
    /// The value at the front of `bytes`; `None` if they are too few.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: enough bytes, and any of them are a value; no alignment is asked for.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

// SAFETY: integers of one size.
unsafe impl Plain for [u64; 2] {}

// SAFETY: `repr(C)` structs of integers with explicit padding, sizes asserted in `lb_common::abi`.
unsafe impl Plain for lb_common::abi::Backend {}
// SAFETY: as above, in `lb_common::capture`.
unsafe impl Plain for lb_common::capture::Captured {}
// SAFETY: as above.
unsafe impl Plain for lb_common::abi::Filter {}
// SAFETY: as above.
unsafe impl Plain for lb_common::abi::Flow {}
// SAFETY: as above.
unsafe impl Plain for lb_common::flow_table::Bucket {}
// SAFETY: as above.
unsafe impl Plain for lb_common::abi::Params {}
// SAFETY: as above.
unsafe impl Plain for lb_common::abi::Service {}
// SAFETY: as above.
unsafe impl Plain for lb_common::abi::ServiceEntry {}
// SAFETY: as above.
unsafe impl Plain for lb_common::abi::RangeKey {}
// SAFETY: as above.
unsafe impl Plain for lb_common::abi::Ranges {}
// SAFETY: as above.
unsafe impl Plain for lb_common::abi::ServerIdKey {}
// SAFETY: as above.
unsafe impl Plain for lb_common::flow_table::Replies {}
// SAFETY: as above.
unsafe impl Plain for lb_common::abi::Traffic {}
// SAFETY: an integer.
unsafe impl Plain for u8 {}
// SAFETY: an integer.
unsafe impl Plain for u16 {}
// SAFETY: six aligned halves and a word, without padding.
unsafe impl Plain for lb_common::abi::Hop {}
// SAFETY: four words.
unsafe impl Plain for lb_common::abi::Addr {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: plain words, one behind the other.
unsafe impl<const N: usize> Plain for [u32; N] {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}

/// A [`Plain`] value in the form that aya's typed maps take.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: `Plain` demands what `Pod` does.
unsafe impl<T: Plain> aya::Pod for Raw<T> {}

/// An array map of `BPF_F_MMAPABLE` in this process's memory: reads and writes without a system
/// call, seen by the packet path at once.
pub struct Mapped<T> {
    base: NonNull<u8>,
    entries: usize,
    value: PhantomData<T>,
}

// SAFETY: the mapping belongs to the process, and accesses are volatile reads and writes of plain
// bytes; the kernel side runs beside them in any case.
unsafe impl<T: Plain> Send for Mapped<T> {}

impl<T: Plain> Mapped<T> {
    /// Array maps round the value's size up to 8 bytes (kernel/bpf/arraymap.c, `elem_size`).
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps `entries` entries of the array map `fd`.
    ///
    /// # Errors
    /// The kernel's, for example where the map is not mmapable or has fewer entries.
    pub fn new(fd: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        let entries = entries as usize;
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                entries * Self::STRIDE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            base,
            entries,
            value: PhantomData,
        })
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.entries
    }

    fn at(&self, index: usize) -> *mut T {
        assert!(index < self.entries, "entry {index} of {}", self.entries);
        // SAFETY: inside the mapping.
        unsafe { self.base.as_ptr().add(index * Self::STRIDE).cast() }
    }

    /// Copies an entry out. One that the packet path writes meanwhile may be half old.
    ///
    /// # Panics
    /// If `index` is not below the number of entries; likewise the others.
    pub fn get(&self, index: usize) -> T {
        // SAFETY: in bounds and aligned to 8; `T` is plain bytes.
        unsafe { self.at(index).read_volatile() }
    }

    /// Copies one field of an entry out.
    ///
    /// # Panics
    /// If it is outside of the entry, or not aligned; likewise the others.
    pub fn get_field<F: Plain>(&self, index: usize, offset: usize) -> F {
        // SAFETY: inside the entry, aligned, and plain bytes.
        unsafe { self.field::<F>(index, offset).read_volatile() }
    }

    fn field<F: Plain>(&self, index: usize, offset: usize) -> *mut F {
        assert!(
            offset + size_of::<F>() <= size_of::<T>() && offset.is_multiple_of(align_of::<F>())
        );
        // SAFETY: inside the entry.
        unsafe { self.at(index).cast::<u8>().add(offset).cast() }
    }

    /// Puts `new` in the place of `old` in one field, unless another CPU was quicker; whether it is
    /// there. Orders all accesses before and after.
    pub fn swap_field(&mut self, index: usize, offset: usize, old: u32, new: u32) -> bool {
        use std::sync::atomic::{AtomicU32, Ordering};
        // SAFETY: inside the entry and aligned; the packet path uses it by single words too.
        let field = unsafe { AtomicU32::from_ptr(self.field::<u32>(index, offset)) };
        field
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Writes a whole entry. Not atomic: only for entries that no packet uses.
    pub fn set(&mut self, index: usize, value: T) {
        // SAFETY: as above.
        unsafe { self.at(index).write_volatile(value) }
    }

    /// Writes one field of an entry with a single store, seen by other CPUs after all that was
    /// written before it.
    pub fn set_field<F: Plain>(&mut self, index: usize, offset: usize, value: F) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        // SAFETY: inside the entry, aligned, and plain bytes.
        unsafe { self.field::<F>(index, offset).write_volatile(value) }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        let length = self.entries * size_of::<T>().next_multiple_of(8);
        // SAFETY: the mapping that `new` made, which nothing refers to any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), length) };
    }
}
