//! What holds a program on an interface.

use std::ffi::{CStr, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{ObjAttr, bpf, info_of, open_pin};

const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_GET_FD_BY_ID: u32 = 30;
const BPF_LINK_GET_NEXT_ID: u32 = 31;
const BPF_LINK_DETACH: u32 = 34;
const BPF_OBJ_PIN: u32 = 6;

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

/// The number of the first link after `id`; `None` after the last.
pub fn next_link(id: u32) -> io::Result<Option<u32>> {
    let mut attr = [id, 0, 0];
    match bpf(BPF_LINK_GET_NEXT_ID, &mut attr) {
        Ok(_) => Ok(Some(attr[1])),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
