//! The system calls the laboratory needs: the only `unsafe` code of this crate.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
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

/// Loads an XDP program that passes every packet and pins it at `path`, in a BPF file system that
/// the calling thread sees.
pub fn pin_passing_xdp(path: &str) -> io::Result<()> {
    // Numbers of include/uapi/linux/bpf.h.
    const PROG_LOAD: libc::c_long = 5;
    const OBJ_PIN: libc::c_long = 6;
    const TYPE_XDP: u64 = 6;
    // `r0 = 2 (XDP_PASS)`, `exit`.
    const PROGRAM: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let path = CString::new(path)?;
    // union bpf_attr as words: type and number of instructions, their address, the licence.
    let load = [
        TYPE_XDP | (PROGRAM.len() as u64) << 32,
        PROGRAM.as_ptr() as u64,
        c"GPL".as_ptr() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the attribute and all that it points to outlive the call, its size is given, and the
    // kernel only reads.
    let program = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw const load,
            size_of_val(&load),
        )
    };
    if program < 0 {
        return Err(io::Error::last_os_error());
    }
    // The path's address, the descriptor.
    let pin = [path.as_ptr() as u64, program.cast_unsigned()];
    // SAFETY: as above.
    let pinned =
        unsafe { libc::syscall(libc::SYS_bpf, OBJ_PIN, &raw const pin, size_of_val(&pin)) };
    let result = if pinned < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    };
    // SAFETY: the descriptor is ours and not used again.
    check(unsafe { libc::close(libc::c_int::try_from(program).unwrap_or(-1)) })?;
    result
}
