//! What is looked at on this host. Files are read below a root, so that tests can make up a host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::links::{self, Link};
use super::probing::Probing;
use crate::datapath::{self, PinDirectory};
use crate::neighbor::{self, Problem};
use crate::privileges;

/// Where bpffs belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The host as seen once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// `6.1.0-13-amd64`.
    pub kernel: String,
    /// Bits of the effective capabilities.
    pub capabilities: u64,
    /// Whether the mounts are others than process 1's.
    pub own_mounts: bool,
    /// Whether an agent with this control socket has left something pinned.
    pub pinned: bool,
    /// The layout of what is pinned, if it is another version's.
    pub other_layout: Option<u32>,
    /// What came of loading the program; absent if this process may not.
    pub program: Option<Result<(), String>>,
    /// `net.ipv4.ip_unprivileged_port_start`.
    pub unprivileged_port: u16,
    /// `net.core.bpf_jit_enable`; absent where the kernel always compiles.
    pub jit: Option<u32>,
    pub bpffs: bool,
    /// It is this process's own, and the host's cannot be joined.
    pub own_bpffs: bool,
    /// Soft limit of locked memory in bytes; absent: unlimited.
    pub memlock: Option<u64>,
    /// `net.ipv4.ip_local_port_range`.
    pub local_ports: (u16, u16),
    /// `net.ipv4.ip_local_reserved_ports`, as ranges.
    pub reserved_ports: Vec<(u16, u16)>,
    pub cpus: usize,
    /// Interfaces wanted by name that do not exist.
    pub missing: Vec<String>,
    /// Those to check, in the wanted order.
    pub links: Vec<Link>,
    /// All interfaces, for the other ends of veths.
    pub all: Vec<Link>,
    /// Backends that cannot be reached as configured.
    pub unreachable: BTreeMap<IpAddr, Problem>,
    /// What there is of what probes need.
    pub probing: Probing,
    /// Whether an agent holds the control socket: then programs on interfaces are its own.
    pub agent: bool,
}

/// Looks at the host. `wanted`: the configured interfaces; absent: all that are up. `socket`: where
/// an agent would listen.
pub fn gather(root: &Path, wanted: Option<&[String]>, socket: &Path) -> anyhow::Result<Facts> {
    let mut facts = files(root)?;
    facts.all = links::all(root)?;
    match wanted {
        None => {
            let up = facts.all.iter().filter(|link| link.up && !link.loopback);
            facts.links = up.cloned().collect();
        }
        Some(wanted) => {
            for name in wanted {
                match facts.all.iter().find(|link| link.name == *name) {
                    Some(link) => facts.links.push(link.clone()),
                    None => facts.missing.push(name.clone()),
                }
            }
        }
    }
    facts.pinned = PinDirectory::of(socket).exists();
    if facts.capabilities & privileges::KEPT == privileges::KEPT {
        facts.other_layout = datapath::other_layout(&PinDirectory::of(socket))?;
        facts.program = Some(datapath::try_program().map_err(|error| error.to_string()));
    }
    facts.agent = std::os::unix::net::UnixStream::connect(socket).is_ok();
    Ok(facts)
}

/// The ways to the backends, by the kernel's routes.
pub fn unreachable(backends: &BTreeSet<IpAddr>) -> anyhow::Result<BTreeMap<IpAddr, Problem>> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(neighbor::survey(backends))
        .context("asking for the ways to the backends over netlink")
}

/// What is in files.
fn files(root: &Path) -> anyhow::Result<Facts> {
    let status = read(root, "proc/self/status")?;
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .context("/proc/self/status has no CapEff")?;
    let range = read(root, "proc/sys/net/ipv4/ip_local_port_range")?;
    let reserved = optional(root, "proc/sys/net/ipv4/ip_local_reserved_ports")?;
    let own_mounts = mounts(root, "1").is_some_and(|of_host| mounts(root, "self") != Some(of_host));
    let mount_table = |of: &str| read(root, &format!("proc/{of}/mountinfo")).ok();
    // With mounts that are known to be others than the host's, the agent joins those.
    let own_bpffs = !own_mounts
        && mount_table("self")
            .zip(mount_table("1"))
            .is_some_and(|(own, host)| !datapath::is_the_hosts_bpffs(&own, &host));
    Ok(Facts {
        kernel: read(root, "proc/sys/kernel/osrelease")?.trim().to_owned(),
        capabilities: u64::from_str_radix(capabilities.trim(), 16)
            .context("CapEff of /proc/self/status")?,
        jit: optional(root, "proc/sys/net/core/bpf_jit_enable")?
            .map(|text| text.trim().parse())
            .transpose()
            .context("net.core.bpf_jit_enable")?,
        own_mounts,
        own_bpffs,
        unprivileged_port: optional(root, "proc/sys/net/ipv4/ip_unprivileged_port_start")?
            .map_or(Ok(1024), |text| text.trim().parse())
            .context("net.ipv4.ip_unprivileged_port_start")?,
        bpffs: is_bpffs(&read(root, "proc/mounts")?),
        memlock: memlock(&read(root, "proc/self/limits")?),
        local_ports: pair(range.split_whitespace()).context("net.ipv4.ip_local_port_range")?,
        reserved_ports: ports(&reserved.unwrap_or_default())
            .context("net.ipv4.ip_local_reserved_ports")?,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        ..Facts::default()
    })
}

/// Names the mount namespace of a process, if it may be known.
fn mounts(root: &Path, process: &str) -> Option<PathBuf> {
    std::fs::read_link(root.join("proc").join(process).join("ns/mnt")).ok()
}

/// Whether what is mounted last at the place of bpffs is one.
fn is_bpffs(mounts: &str) -> bool {
    let mut kinds = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        (words.next() == Some(BPFFS)).then(|| words.next())
    });
    kinds.next_back().flatten() == Some("bpf")
}

/// The soft limit; `None` if unlimited.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `8080,9000-9100`.
fn ports(text: &str) -> Option<Vec<(u16, u16)>> {
    let parts = text.trim().split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| match part.split_once('-') {
            Some((first, last)) => pair([first, last].into_iter()),
            None => pair([part, part].into_iter()),
        })
        .collect()
}

fn pair<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<(u16, u16)> {
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn read(root: &Path, path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(root.join(path)).with_context(|| format!("reading /{path}"))
}

fn optional(root: &Path, path: &str) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(root.join(path)) {
        Ok(text) => Ok(Some(text)),
        // Without privilege the JIT's switch cannot be read, or the kernel has none.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("reading /{path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_host_is_read_from_its_files() {
        let root = host(&[
            ("proc/sys/kernel/osrelease", "6.1.0-13-amd64\n"),
            ("proc/self/status", "Name:\tlb\nCapEff:\t000000c000001000\n"),
            ("proc/sys/net/core/bpf_jit_enable", "1\n"),
            (
                "proc/mounts",
                "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,nosuid 0 0\n",
            ),
            (
                "proc/self/limits",
                "Limit  Soft Limit  Hard Limit  Units\nMax locked memory  8388608  8388608  bytes\n",
            ),
            ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
            (
                "proc/sys/net/ipv4/ip_local_reserved_ports",
                "8080,9000-9100\n",
            ),
        ]);
        let facts = files(root.path()).unwrap();
        assert_eq!(facts.kernel, "6.1.0-13-amd64");
        assert_eq!(facts.capabilities, 1 << 12 | 1 << 38 | 1 << 39);
        assert_eq!(facts.jit, Some(1));
        assert!(facts.bpffs);
        assert_eq!(facts.memlock, Some(8 << 20));
        assert_eq!(facts.local_ports, (32768, 60999));
        assert_eq!(facts.reserved_ports, [(8080, 8080), (9000, 9100)]);
    }

    #[test]
    fn what_hides_bpffs_is_seen() {
        let bpf = "bpf /sys/fs/bpf bpf rw,nosuid 0 0\n";
        let other = "none /sys/fs/bpf tmpfs rw 0 0\n";
        assert!(is_bpffs(&format!("{other}{bpf}")));
        assert!(!is_bpffs(&format!("{bpf}{other}")));
        assert!(!is_bpffs("bpf /elsewhere bpf rw 0 0\n"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let root = host(&[]);
        let error = format!("{:#}", files(root.path()).unwrap_err());
        assert!(error.contains("reading /proc/self/status"), "{error}");
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let facts = gather(
            Path::new("/"),
            Some(&["lo".into(), "nope0".into()]),
            Path::new("/nonexistent/lb.sock"),
        )
        .unwrap();
        assert!(!facts.agent);
        assert_eq!(facts.missing, ["nope0"]);
        assert_eq!(facts.links.len(), 1);
    }
}
