//! Where the data plane is pinned, so that it outlives the agent.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tracing::{info, warn};

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

    /// Directories of other agents whose program is on interfaces, with those.
    pub fn others(&self) -> Result<Vec<(PathBuf, Vec<String>)>, PinError> {
        let root = Path::new(BPFFS);
        let failed = |source| PinError::directory(root, source);
        let mut others = Vec::new();
        for entry in std::fs::read_dir(root).map_err(failed)? {
            let other = Self(entry.map_err(failed)?.path());
            let name = other.0.file_name().and_then(|name| name.to_str());
            let ours = name.is_some_and(|name| name == "lb" || name.starts_with("lb-"));
            if ours && other.0 != self.0 {
                let links = other.links()?;
                if !links.is_empty() {
                    others.push((other.0, links));
                }
            }
        }
        others.sort();
        Ok(others)
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
    if !sys::is_bpffs(&target).map_err(PinError::Mount)? {
        info!("mounting a BPF file system on {BPFFS}");
        sys::mount_bpffs(&target).map_err(PinError::Mount)?;
    }
    // Both can be read where /proc/1/ns cannot, as in a service with few capabilities.
    let mounts = |of: &str| std::fs::read_to_string(format!("/proc/{of}/mountinfo"));
    if let (Ok(own), Ok(host)) = (mounts("thread-self"), mounts("1"))
        && !is_the_hosts(&own, &host)
    {
        warn!(
            "{BPFFS} is this process's own and not the host's: what is pinned there, and all \
             forwarding with it, is gone when the agent is. Start lb where it sees the host's \
             {BPFFS}: in a network namespace by `nsenter --net=/run/netns/NAME` in place of \
             `ip netns exec`, in a container with {BPFFS} of the host"
        );
    }
    Ok(())
}

/// Whether the BPF file system that a process with the mounts `own` pins to is one that the `host`
/// has mounted too (proc_pid_mountinfo(5)).
pub fn is_the_hosts(own: &str, host: &str) -> bool {
    // Number, parent, device, root, place, options, more of them, "-", type.
    let device = |line: &str| -> Option<(String, bool)> {
        let mut words = line.split(' ');
        let (device, place) = (words.nth(2)?, words.nth(1)?);
        let kind = words.skip_while(|word| *word != "-").nth(1)?;
        (kind == "bpf").then(|| (device.to_owned(), place == BPFFS))
    };
    // What was mounted last on a place hides what was there before.
    let used = own.lines().filter_map(device).rfind(|(_, here)| *here);
    used.is_none_or(|(used, _)| {
        host.lines()
            .filter_map(device)
            .any(|(device, _)| device == used)
    })
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
    fn a_bpf_file_system_of_ones_own_is_noticed() {
        let root = "27 1 254:0 / / rw - ext4 /dev/vda rw\n";
        let at = |device: &str, place: &str| {
            format!("{root}90 23 {device} / {place} rw,relatime shared:7 - bpf bpf rw,mode=700\n")
        };
        let host = at("0:31", BPFFS);
        assert!(is_the_hosts(&at("0:31", BPFFS), &host));
        // Bound into a container.
        assert!(is_the_hosts(&at("0:31", BPFFS), &at("0:31", "/run/bpf")));
        assert!(!is_the_hosts(&at("0:50", BPFFS), &host));
        assert!(!is_the_hosts(&at("0:50", BPFFS), root));
        // The host's is hidden by another one.
        let hidden = format!("{host}91 90 0:50 / {BPFFS} rw - bpf bpf rw\n");
        assert!(!is_the_hosts(&hidden, &host));
        // Nothing to judge.
        assert!(is_the_hosts(root, &host));
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
