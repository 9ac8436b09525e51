//! Other people's programs: two instructions, loaded and pinned as theirs would be.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// `BPF_PROG_TYPE_SOCKET_FILTER` and `BPF_PROG_TYPE_XDP` (linux/bpf.h).
pub const SOCKET_FILTER: u32 = 1;
pub const XDP: u32 = 6;
/// `BPF_F_XDP_HAS_FRAGS`.
pub const HAS_FRAGS: u32 = 1 << 5;

/// A pinned program; the pin goes when this is dropped.
pub struct Program(PathBuf);

impl Program {
    /// A program of this type that returns `result`.
    pub fn pinned(kind: u32, flags: u32, result: u32) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        const BPF_PROG_LOAD: u32 = 5;
        const BPF_OBJ_PIN: u32 = 6;
        const BPF_XDP: u32 = 37;
        #[repr(C)]
        struct Load {
            kind: u32,
            length: u32,
            instructions: u64,
            license: u64,
            log: [u32; 4],
            kernel: u32,
            flags: u32,
            name: [u8; 16],
            interface: u32,
            attach_type: u32,
        }
        #[repr(C)]
        struct Pin {
            path: u64,
            fd: u32,
            flags: u32,
        }
        // `r0 = result`, `exit`: opcode, registers, offset, immediate value.
        let instructions = [0xb7 | u64::from(result) << 32, 0x95];
        let mut load = Load {
            kind,
            length: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 4],
            kernel: 0,
            flags,
            name: *b"foreign\0\0\0\0\0\0\0\0\0",
            interface: 0,
            // What libbpf and others say of every XDP program; the kernel compares it (6.18).
            attach_type: if kind == XDP { BPF_XDP } else { 0 },
        };
        let fd = bpf(BPF_PROG_LOAD, &mut load);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = format!("/sys/fs/bpf/lbt-{}-{number}", std::process::id());
        let text = CString::new(path.as_str()).unwrap();
        let mut pin = Pin {
            path: text.as_ptr() as u64,
            fd: fd as u32,
            flags: 0,
        };
        bpf(BPF_OBJ_PIN, &mut pin);
        // SAFETY: the descriptor that was just made; the pin holds the program from here on.
        unsafe { libc::close(fd) };
        Self(path.into())
    }

    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn bpf<T>(command: u32, attr: &mut T) -> i32 {
    // SAFETY: `attr` is laid out as the kernel's header has it, and what it points to lives.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    assert!(
        result >= 0,
        "bpf({command}): {}",
        std::io::Error::last_os_error()
    );
    result as i32
}
