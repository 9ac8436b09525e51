//! The system calls that aya does not wrap. `unsafe` stands here, in [`crate::privileges`] and in
//! `probe::via::sys`, and nowhere else in this crate.

use std::ffi::{CStr, c_long};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_TEST_RUN: u32 = 10;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_GET_FD_BY_ID: u32 = 30;
const BPF_LINK_GET_NEXT_ID: u32 = 31;
const BPF_LINK_DETACH: u32 = 34;

/// Calls bpf(2) with one command's part of `union bpf_attr`, which must be of a type laid out as
/// the kernel's header has it; the kernel takes what is missing at the end as zero.
fn bpf<T>(command: u32, attr: &mut T) -> io::Result<c_long> {
    // SAFETY: `attr` is valid for its size; every pointer in it was made by the caller from a
    // slice that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

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

/// Makes a nameless mmapable array of 32-bit words: the form of every table.
pub fn create_table(entries: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    const BPF_F_MMAPABLE: u32 = 1 << 10;
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    let mut attr = Attr {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: entries,
        map_flags: BPF_F_MMAPABLE,
    };
    let fd = bpf(BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: a descriptor that the kernel has just made for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// One entry of a map with 32-bit keys, as bpf(2) takes it.
#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElemAttr {
    /// `key` and `value` must outlive the call.
    fn new(map: BorrowedFd<'_>, key: *const u32, value: *const u32) -> Self {
        Self {
            map_fd: map.as_raw_fd() as u32,
            pad: 0,
            key: key as u64,
            value: value as u64,
            flags: 0,
        }
    }
}

/// `struct { … } batch` of `union bpf_attr`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads the entries of an array map from `first` on, as many as there are keys, each of as many
/// bytes as the kernel gives for it: of a per-CPU map one value for each possible CPU (Linux 5.13).
pub fn lookup_many<T: Plain>(
    map: BorrowedFd<'_>,
    first: u32,
    keys: &mut [u32],
    values: &mut [T],
) -> io::Result<()> {
    // The kernel begins after the key that it is given.
    let before = first.checked_sub(1);
    let mut last = 0u32;
    let mut attr = BatchAttr {
        in_batch: before.as_ref().map_or(0, |key| &raw const *key as u64),
        out_batch: &raw mut last as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
        // The last entry was among them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// Removes an entry; also the way to empty a place of an array of maps, which aya lacks.
pub fn map_delete(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    let mut attr = ElemAttr::new(map, &raw const key, std::ptr::null());
    bpf(BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// Puts a program into a place of an array of programs.
pub fn set_program(map: BorrowedFd<'_>, key: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = program.as_raw_fd() as u32;
    let mut attr = ElemAttr::new(map, &raw const key, &raw const value);
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// The number of the program in a place of an array of programs; `None` if it is empty.
pub fn program_in(map: BorrowedFd<'_>, key: u32) -> io::Result<Option<u32>> {
    let mut value = 0u32;
    let mut attr = ElemAttr::new(map, &raw const key, &raw mut value);
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The program of this number.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0])?;
    // SAFETY: a descriptor that the kernel has just made for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens what is pinned at `path`, whatever it is.
pub fn open_pin(path: &CStr) -> io::Result<OwnedFd> {
    let mut attr = ObjAttr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: a descriptor that the kernel has just made for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The start of `struct bpf_prog_info` (linux/bpf.h).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ProgramInfo {
    /// `enum bpf_prog_type`; see [`XDP`].
    pub kind: u32,
    pub id: u32,
}

/// `BPF_PROG_TYPE_XDP`.
pub const XDP: u32 = 6;

/// What the kernel says of a program. The descriptor must be a program's: of anything else the
/// answer means something else.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut info = ProgramInfo::default();
    info_of(program, &mut info)?;
    Ok(info)
}

/// The start of the kernel's description of what `fd` is.
fn info_of<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut attr = Attr {
        fd: fd.as_raw_fd() as u32,
        length: size_of::<T>() as u32,
        info: &raw mut *info as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// An XDP link: what holds a program on an interface. Dropped, it ends, unless it is pinned.
#[derive(Debug)]
pub struct XdpLink(OwnedFd);

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LinkInfo {
    kind: u32,
    pub id: u32,
    pub program: u32,
    pad: u32,
    /// 0 once the interface is gone.
    pub ifindex: u32,
    pad2: [u32; 3],
}

impl XdpLink {
    /// Attaches a program to an interface (Linux 5.9), in the driver or in the generic path.
    pub fn create(program: BorrowedFd<'_>, ifindex: u32, native: bool) -> io::Result<Self> {
        const BPF_XDP: u32 = 37;
        const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
        const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
        let flags = if native {
            XDP_FLAGS_DRV_MODE
        } else {
            XDP_FLAGS_SKB_MODE
        };
        let mut attr = [program.as_raw_fd() as u32, ifindex, BPF_XDP, flags];
        Self::made(bpf(BPF_LINK_CREATE, &mut attr)?)
    }

    /// Opens the link pinned at `path`.
    pub fn open(path: &CStr) -> io::Result<Self> {
        open_pin(path).map(Self)
    }

    /// The link of this number.
    pub fn by_id(id: u32) -> io::Result<Self> {
        Self::made(bpf(BPF_LINK_GET_FD_BY_ID, &mut [id, 0, 0])?)
    }

    fn made(fd: c_long) -> io::Result<Self> {
        // SAFETY: a descriptor that the kernel has just made for this process.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Pins it at `path`, which must be on a BPF file system and not exist.
    pub fn pin(&self, path: &CStr) -> io::Result<()> {
        let fd = self.0.as_raw_fd() as u32;
        bpf(
            BPF_OBJ_PIN,
            &mut ObjAttr {
                path: path.as_ptr() as u64,
                fd,
                flags: 0,
            },
        )
        .map(drop)
    }

    /// Puts another program in the place of the present one, between two packets.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = [self.0.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
        bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
    }

    /// Takes it off its interface, whoever else holds it (Linux 5.9).
    pub fn detach(&self) -> io::Result<()> {
        bpf(BPF_LINK_DETACH, &mut [self.0.as_raw_fd() as u32]).map(drop)
    }

    /// What the kernel says of it; `None` where it is not an XDP link.
    pub fn info(&self) -> io::Result<Option<LinkInfo>> {
        const BPF_LINK_TYPE_XDP: u32 = 6;
        let mut info = LinkInfo::default();
        info_of(self.0.as_fd(), &mut info)?;
        Ok((info.kind == BPF_LINK_TYPE_XDP).then_some(info))
    }
}

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The number of the first link after `id`; `None` after the last.
pub fn next_link(id: u32) -> io::Result<Option<u32>> {
    let mut attr = [id, 0, 0];
    match bpf(BPF_LINK_GET_NEXT_ID, &mut attr) {
        Ok(_) => Ok(Some(attr[1])),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Result of one [`test_run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// The XDP action.
    pub action: u32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// Mean time of a run, nanoseconds.
    pub duration: u32,
}

/// Runs an XDP program `repeat` times on a frame, in the kernel but without an interface.
/// The same frame is used again each time, as the program left it.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<TestRun> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        pad: u32,
    }
    let mut out = vec![0; frame.len() + 256];
    let mut attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        retval: 0,
        data_size_in: frame.len() as u32,
        data_size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        duration: 0,
        ctx_size_in: 0,
        ctx_size_out: 0,
        ctx_in: 0,
        ctx_out: 0,
        flags: 0,
        cpu: 0,
        batch_size: 0,
        pad: 0,
    };
    bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    out.truncate(attr.data_size_out as usize);
    Ok(TestRun {
        action: attr.retval,
        frame: out,
        duration: attr.duration,
    })
}

/// A descriptor that tasks can wait for.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel's, for example where `fd` is of a kind that cannot be polled.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an owned descriptor is open, and neither replaced nor taken out of here.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self(fd.map_err(|error| error.into_parts().1)?))
    }

    /// Waits until there is something to read, or may be. Cancel safe.
    pub async fn ready(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }
}

/// Joins the mount namespace of process 1, for this thread only.
///
/// # Errors
/// The kernel's, when the caller lacks CAP_SYS_ADMIN there.
pub fn join_host_mounts() -> io::Result<()> {
    let namespace = std::fs::File::open("/proc/1/ns/mnt")?;
    // SAFETY: plain system calls; the thread no longer shares its root and working directory.
    let result = unsafe {
        if libc::unshare(libc::CLONE_FS) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Mounts a BPF file system on `target`.
pub fn mount_bpffs(target: &CStr) -> io::Result<()> {
    // SAFETY: nul-terminated strings; bpffs takes no data.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether `path` is on a BPF file system.
pub fn is_bpffs(path: &CStr) -> io::Result<bool> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: a nul-terminated string, and room for the answer.
    let stat = unsafe {
        if libc::statfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init()
    };
    Ok(stat.f_type == libc::BPF_FS_MAGIC)
}

/// Raises this process's soft limit of descriptors to its hard limit; returns that. The soft one is
/// usually 1024, for the sake of programs that call select(2).
pub fn raise_descriptors() -> io::Result<usize> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: room for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == -1 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: a whole structure, only read.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(limit.rlim_max).unwrap_or(usize::MAX))
}

/// CLOCK_MONOTONIC: time since boot, without time asleep. Its whole seconds are what
/// `bpf_ktime_get_coarse_ns` counts in the packet path.
pub fn monotonic() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: room for the answer; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
