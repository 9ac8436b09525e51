//! The system calls the laboratory needs: the only `unsafe` code of this crate.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Number of the capability in include/uapi/linux/capability.h.
const CAP_SYS_CHROOT: libc::c_ulong = 18;

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Moves the calling thread into the network namespace behind `fd`.
pub fn enter_net(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes a descriptor, which outlives the call, and touches no memory of ours.
    check(unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Moves the calling thread into the mount namespace behind `fd`.
pub fn enter_mounts(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: unshare and setns take flags and a descriptor that outlives the call, and touch no
    // memory of ours. A thread must have its own root and working folder to change its mounts.
    check(unsafe { libc::unshare(libc::CLONE_FS) })?;
    // SAFETY: as above.
    check(unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNS) })
}

/// Gives the calling thread a mount namespace of its own, from which no mount goes out while
/// unmounts outside still come in.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: unshare touches no memory of ours.
    check(unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) })?;
    mount("none", "/", None, libc::MS_SLAVE | libc::MS_REC)
}

/// Tries to make a network and a mount namespace, on a thread that ends with them.
pub fn try_namespaces() -> io::Result<()> {
    let attempt = std::thread::spawn(|| {
        // SAFETY: unshare touches no memory of ours.
        check(unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS | libc::CLONE_NEWNET) })
    });
    attempt
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Mounts a file system of type `kind` (none: changes flags only) on `target`.
pub fn mount(
    source: &str,
    target: &str,
    kind: Option<&str>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let source = CString::new(source)?;
    let target = CString::new(target)?;
    let kind = kind.map(CString::new).transpose()?;
    let kind = kind.as_ref().map_or(std::ptr::null(), |kind| kind.as_ptr());
    // SAFETY: the strings are NUL-terminated and outlive the call; no data is passed.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind,
            flags,
            std::ptr::null(),
        )
    })
}

/// Makes `command` start in these namespaces, as leader of its own process group, and die with the
/// thread that spawned it. In a mount namespace of its own it gets no CAP_SYS_CHROOT, without which
/// nobody can go back to the host's mounts, as `lb` would to pin where its successor looks.
pub fn place(command: &mut Command, net: RawFd, mounts: Option<RawFd>) {
    let parent = std::process::id();
    let enter = move || {
        // SAFETY: all of these are plain system calls on descriptors that the owner of the namespaces
        // keeps open until spawn has returned; async-signal-safe, no memory is touched.
        unsafe {
            check(libc::setpgid(0, 0))?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // The parent may have died before the line above took effect.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            check(libc::setns(net, libc::CLONE_NEWNET))?;
            if let Some(mounts) = mounts {
                check(libc::setns(mounts, libc::CLONE_NEWNS))?;
                check(libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_CHROOT))?;
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes async-signal-safe calls and allocates nothing.
    unsafe {
        command.pre_exec(enter);
    }
}

/// Sends `signal` to every process of the group `group`.
pub fn signal_group(group: u32, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: killpg touches no memory of ours.
    check(unsafe { libc::killpg(group.cast_signed(), signal) })
}

/// Sends `signal` to one process.
pub fn signal_process(id: u32, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill touches no memory of ours.
    check(unsafe { libc::kill(id.cast_signed(), signal) })
}

/// Effective user id of this process.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid cannot fail and touches no memory.
    unsafe { libc::geteuid() }
}

/// Calls `handler` on SIGINT, SIGTERM and SIGHUP. It must be async-signal-safe.
pub fn on_interrupt(handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler = handler as *const () as libc::sighandler_t;
        // SAFETY: the handler is a valid function for the life of the process.
        if unsafe { libc::signal(signal, handler) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A socket for ICMP echo (IPv4 or IPv6), whose type the standard library lacks; it is used as a
/// UDP socket from then on.
pub fn ping_socket(v6: bool) -> io::Result<std::net::UdpSocket> {
    use std::os::fd::FromRawFd;
    let (family, protocol) = if v6 {
        (libc::AF_INET6, libc::IPPROTO_ICMPV6)
    } else {
        (libc::AF_INET, libc::IPPROTO_ICMP)
    };
    // SAFETY: socket touches no memory of ours.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
    check(fd)?;
    // SAFETY: the descriptor is new, open and owned by nobody else.
    Ok(unsafe { std::net::UdpSocket::from_raw_fd(fd) })
}

/// A socket that gets every packet of the namespace's interfaces, from its IP header on, and wakes
/// up now and then when there is none.
pub fn packet_socket() -> io::Result<std::fs::File> {
    let every = libc::c_int::from((libc::ETH_P_ALL as u16).to_be());
    // SAFETY: socket touches no memory of ours.
    let fd = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            every,
        )
    };
    check(fd)?;
    // SAFETY: the descriptor is new, open and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let wait = libc::timeval {
        tv_sec: 0,
        tv_usec: 50_000,
    };
    // SAFETY: the value lives across the call and has the size that is told.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const wait).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    })?;
    Ok(fd.into())
}

// Numbers of include/uapi/linux/bpf.h.
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;

/// Calls bpf(2) with `union bpf_attr` as words.
fn bpf(command: libc::c_long, words: &[u64]) -> io::Result<libc::c_long> {
    // SAFETY: the attribute and all that it points to outlive the call, and its size is given.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(descriptor: libc::c_long) -> OwnedFd {
    // SAFETY: a descriptor that the kernel has just made for this process.
    unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(descriptor).unwrap_or(-1)) }
}

fn word(descriptor: &OwnedFd) -> u64 {
    u64::from(descriptor.as_raw_fd().cast_unsigned())
}

fn load_xdp(program: &[u64]) -> io::Result<OwnedFd> {
    const TYPE_XDP: u64 = 6;
    // `BPF_XDP`, which libbpf gives to every XDP program.
    const ATTACH_TYPE: u64 = 37 << 32;
    // Type and number of instructions, their address, the licence; log, flags, name; attach type.
    let load = [
        TYPE_XDP | (program.len() as u64) << 32,
        program.as_ptr() as u64,
        c"GPL".as_ptr() as u64,
        0,
        0,
        0,
        0,
        0,
        ATTACH_TYPE,
    ];
    bpf(PROG_LOAD, &load).map(owned)
}

fn pin(object: &OwnedFd, path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    bpf(OBJ_PIN, &[path.as_ptr() as u64, word(object)]).map(drop)
}

/// Loads an XDP program that passes every packet and pins it at `path`, in a BPF file system that
/// the calling thread sees.
pub fn pin_passing_xdp(path: &str) -> io::Result<()> {
    // `r0 = 2 (XDP_PASS)`, `exit`.
    pin(&load_xdp(&[0x0000_0002_0000_00b7, 0x95])?, path)
}

/// The same, of a program that also counts the packets; gives the counter.
pub fn pin_counting_xdp(path: &str) -> io::Result<PacketCounter> {
    const TYPE_ARRAY: u64 = 2;
    // Type and key size, value size and entries.
    let map = owned(bpf(MAP_CREATE, &[TYPE_ARRAY | 4 << 32, 8 | 1 << 32, 0])?);
    // Operation, registers (source, destination), offset, immediate value.
    let code = |op: u64, registers: u64, offset: i16, value: u64| {
        op | registers << 8 | u64::from(offset.cast_unsigned()) << 16 | value << 32
    };
    let below = u64::from((-4_i32).cast_unsigned());
    let program = [
        code(0x18, 0x11, 0, word(&map)), // r1 = map
        0,
        code(0x62, 0x0a, -4, 0),    // key = 0
        code(0xbf, 0xa2, 0, 0),     // r2 = r10
        code(0x07, 0x02, 0, below), // r2 -= 4
        code(0x85, 0, 0, 1),        // r0 = bpf_map_lookup_elem(r1, r2)
        code(0x15, 0, 2, 0),        // if r0 != 0 {
        code(0xb7, 0x01, 0, 1),     //     r1 = 1
        code(0xdb, 0x10, 0, 0),     //     *r0 += r1 }
        code(0xb7, 0, 0, 2),        // r0 = XDP_PASS
        0x95,
    ];
    pin(&load_xdp(&program)?, path)?;
    Ok(PacketCounter(map))
}

/// What a program of [`pin_counting_xdp`] counts.
#[derive(Debug)]
pub struct PacketCounter(OwnedFd);

impl PacketCounter {
    /// Packets until now.
    pub fn packets(&self) -> io::Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        element(
            MAP_LOOKUP_ELEM,
            &self.0,
            &raw const key,
            (&raw mut value).cast(),
        )?;
        Ok(value)
    }
}

fn element(
    command: libc::c_long,
    map: &OwnedFd,
    key: *const u32,
    value: *mut u8,
) -> io::Result<()> {
    bpf(command, &[word(map), key as u64, value as u64, 0]).map(drop)
}

/// Changes the first word of the first value of the array pinned at `path`.
pub fn change_pinned_word(path: &str, new: u32) -> io::Result<()> {
    let path = CString::new(path)?;
    let map = owned(bpf(OBJ_GET, &[path.as_ptr() as u64, 0])?);
    // More than any array's value that this is used on.
    let mut value = [0_u8; 4096];
    let key = 0_u32;
    element(MAP_LOOKUP_ELEM, &map, &raw const key, value.as_mut_ptr())?;
    value[..4].copy_from_slice(&new.to_ne_bytes());
    element(MAP_UPDATE_ELEM, &map, &raw const key, value.as_mut_ptr())
}
