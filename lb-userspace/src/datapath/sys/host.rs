//! Mounts, limits and clock of the host.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

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

/// Has the allocator keep less of what is freed.
///
/// Left alone, glibc learns from each large piece that is freed to take the next ones from its heaps,
/// where they leave gaps, and gives each thread a heap of its own. With any other C library nothing
/// is done.
pub fn save_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets parameters of the allocator, under its own lock.
    unsafe {
        // The value that it starts with; set, it stays.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that is free, wherever it lies in the heap, back to the kernel. Takes milliseconds if
/// much was allocated, in which other threads wait that allocate.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches nothing that is allocated.
    unsafe {
        libc::malloc_trim(0);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of this process that are in memory and its own.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        let mut fields = text.split_whitespace().skip(1);
        let mut next = || fields.next().unwrap().parse::<usize>().unwrap();
        next() - next()
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn gaps_in_the_heap_go_back_to_the_kernel() {
        // 64 MiB in pieces, of which some stay.
        let all: Vec<_> = (0..65_536).map(|n| vec![n as u8 | 1; 1024]).collect();
        let few: Vec<_> = all.into_iter().step_by(512).collect();
        let before = resident();
        give_back_memory();
        let given = before.saturating_sub(resident());
        // The other tests of this process allocate, too, but nothing like that.
        assert!(given > 4096, "{given} pages");
        assert!(few.iter().all(|piece| piece.len() == 1024));
    }
}
