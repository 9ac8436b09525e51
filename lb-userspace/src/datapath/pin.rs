//! Where the data plane is pinned, so that it outlives the agent.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tracing::info;

use super::sys;

/// Where bpffs is mounted on every distribution.
const BPFFS: &str = "/sys/fs/bpf";
const DEFAULT_SOCKET: &str = "/run/lb/lb.sock";
/// How the names of pinned links begin.
const LINK: &str = "link-";

/// Why there is no place to pin.
#[derive(Debug, Error)]
pub enum PinError {
    #[error("cannot mount a BPF file system on {BPFFS}: {0}; as root: mount -t bpf bpf {BPFFS}")]
    Mount(#[source] io::Error),
    #[error("cannot use {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("{0} holds a nul byte")]
    Path(PathBuf),
}

/// The directory on bpffs that belongs to one agent.
#[derive(Clone, Debug)]
pub struct PinDirectory(PathBuf);

impl PinDirectory {
    /// The directory of the agent with this control socket: one for the default socket, and one of
    /// its own for every other, so that several agents can run beside each other.
    pub fn of(control_socket: &Path) -> Self {
        let socket = control_socket.as_os_str().as_bytes();
        let name = if control_socket == Path::new(DEFAULT_SOCKET) {
            "lb".to_owned()
        } else {
            format!("lb-{:016x}", lb_common::hash::name(0, socket))
        };
        Self(Path::new(BPFFS).join(name))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn program(&self) -> PathBuf {
        self.0.join("program")
    }

    pub fn link(&self, interface: &str) -> PathBuf {
        self.0.join(format!("{LINK}{}", escape(interface)))
    }

    /// Interfaces that have a pinned link.
    pub fn links(&self) -> Result<Vec<String>, PinError> {
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(error)),
        };
        let mut links = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| self.failed(error))?.file_name();
            if let Some(interface) = name.to_str().and_then(|name| name.strip_prefix(LINK)) {
                links.push(unescape(interface));
            }
        }
        links.sort();
        Ok(links)
    }

    pub fn exists(&self) -> bool {
        self.0.is_dir()
    }

    /// Where pins are made that are to take the place of these.
    pub(super) fn next(&self) -> Self {
        self.beside("-next")
    }

    /// Where these go when others take their place, until they are removed.
    pub(super) fn last(&self) -> Self {
        self.beside("-last")
    }

    fn beside(&self, suffix: &str) -> Self {
        let mut path = self.0.clone().into_os_string();
        path.push(suffix);
        Self(path.into())
    }

    /// Makes the directory.
    pub fn create(&self) -> Result<(), PinError> {
        std::fs::create_dir_all(&self.0).map_err(|error| self.failed(error))
    }

    /// Removes the directory and every pin in it; links end with theirs.
    pub fn remove(&self) -> Result<(), PinError> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, source: io::Error) -> PinError {
        PinError::directory(&self.0, source)
    }
}

impl PinError {
    pub(super) fn directory(path: &Path, source: io::Error) -> Self {
        Self::Directory {
            path: path.to_owned(),
            source,
        }
    }
}

/// bpffs refuses names with a dot, which interfaces may have (`eth0.10`) and slashes they may not.
fn escape(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2E")
}

fn unescape(name: &str) -> String {
    name.replace("%2E", ".").replace("%25", "%")
}

/// Gives this thread a view in which bpffs is mounted where the host has it, and mounts it if the
/// host has not. `ip netns exec` and some service managers give a process mounts of its own; what
/// is pinned there would vanish with it, so the host's are joined where that is allowed.
pub fn enter_bpffs() -> Result<(), PinError> {
    let own = std::fs::read_link("/proc/self/ns/mnt").ok();
    let host = std::fs::read_link("/proc/1/ns/mnt").ok();
    if host.is_some() && own != host {
        match sys::join_host_mounts() {
            Ok(()) => info!("pinning in the mount namespace of process 1, not in this process's"),
            Err(error) => info!("pinning in this process's own mount namespace: {error}"),
        }
    }
    let target = c_path(Path::new(BPFFS))?;
    if sys::is_bpffs(&target).map_err(PinError::Mount)? {
        return Ok(());
    }
    info!("mounting a BPF file system on {BPFFS}");
    sys::mount_bpffs(&target).map_err(PinError::Mount)
}

/// `path` as system calls take it.
pub fn c_path(path: &Path) -> Result<CString, PinError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| PinError::Path(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_socket_has_a_directory_of_its_own() {
        let of = |socket: &str| PinDirectory::of(Path::new(socket)).0;
        assert_eq!(of("/run/lb/lb.sock"), Path::new("/sys/fs/bpf/lb"));
        assert_ne!(of("/run/a.sock"), of("/run/b.sock"));
        assert_eq!(of("/run/a.sock"), of("/run/a.sock"));
    }

    #[test]
    fn names_of_interfaces_survive() {
        for name in ["eth0", "eth0.10", "a%2Eb", "%", "..%"] {
            let escaped = escape(name);
            assert!(!escaped.contains('.'));
            assert_eq!(unescape(&escaped), name);
        }
    }
}
