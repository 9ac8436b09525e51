//! What the process may do. Capabilities belong to threads: each gives up its own.

use std::io;

/// `CAP_NET_ADMIN`, `CAP_PERFMON` and `CAP_BPF` (linux/capability.h): what a running agent needs.
/// `CAP_SYS_ADMIN`, at its start, opens what is pinned by number and mounts or joins bpffs.
pub const KEPT: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// Gives up all capabilities of the calling thread, and of threads it starts from here on, but
/// [`KEPT`].
///
/// # Errors
/// The kernel's; giving up what one has is always allowed.
pub fn give_up() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 of the structures, with room for both halves of the answer.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    for (half, kept) in data.iter_mut().zip([KEPT as u32, (KEPT >> 32) as u32]) {
        half.permitted &= kept;
        half.effective = half.permitted;
        half.inheritable = 0;
    }
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Keeps the calling thread, and those it starts from here on, from gaining privileges by running
/// a program.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: prctl of plain numbers; the unused ones must be zero.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives up what a thread beside the main one does not need; a thread that cannot says so.
pub fn give_up_in_thread() {
    if let Err(error) = give_up() {
        tracing::error!("giving up capabilities: {error}");
    }
}
