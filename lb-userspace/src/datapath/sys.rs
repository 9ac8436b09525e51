//! The system calls that aya does not wrap. `unsafe` stands here and below, in [`crate::privileges`]
//! and in `probe::via::sys`, and nowhere else in this crate.

use std::ffi::{CStr, c_long};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

mod host;
mod link;
mod memory;

pub use host::{
    give_back_memory, is_bpffs, join_host_mounts, monotonic, mount_bpffs, raise_descriptors,
    save_memory,
};
pub use link::{LinkInfo, XdpLink, next_link};
pub use memory::{Mapped, Plain, Raw};

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_TEST_RUN: u32 = 10;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_BATCH: u32 = 24;

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

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
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
