//! A control group that takes CPU away from a process; version 2, or version 1 where its `cpu`
//! controller is still bound to that.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::wait::wait_for;

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Microseconds of the kernel's shortest quota.
const LEAST: &str = "1000";

/// A group of processes with a bound on their CPU time; removed when dropped, which its processes
/// must not outlive.
#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
    v2: bool,
}

impl Cgroup {
    /// Makes a group. The inner error says why this host has none for us: that is a reason to skip a
    /// test, not to fail it.
    pub fn new() -> Result<Result<Self, String>> {
        let root = Path::new(ROOT);
        let name = format!("lbt-{}", std::process::id());
        let controllers = std::fs::read_to_string(root.join("cgroup.controllers"));
        let (folder, v2) = match controllers {
            Ok(names) if names.split_whitespace().any(|name| name == "cpu") => {
                // Only what the parent hands on is there in its children.
                if let Err(error) = std::fs::write(root.join("cgroup.subtree_control"), "+cpu") {
                    return Ok(Err(format!("cgroups are not ours to use: {error}")));
                }
                (root.join(name), true)
            }
            Ok(_) => return Ok(Err("the kernel has no cpu controller for us".to_owned())),
            Err(_) => (root.join("cpu").join(name), false),
        };
        match std::fs::create_dir(&folder) {
            Ok(()) => Ok(Ok(Self { folder, v2 })),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("{}", folder.display()))
            }
            Err(error) => Ok(Err(format!("cannot make {}: {error}", folder.display()))),
        }
    }

    /// Moves a process with all its threads into the group, and leaves it 1 % of a CPU.
    pub fn starve(&self, process: u32) -> Result<()> {
        match self.v2 {
            true => self.write("cpu.max", &format!("{LEAST} 100000"))?,
            false => {
                self.write("cpu.cfs_period_us", "100000")?;
                self.write("cpu.cfs_quota_us", LEAST)?;
            }
        }
        self.write("cgroup.procs", &process.to_string())
    }

    /// Ends the bound.
    pub fn release(&self) -> Result<()> {
        match self.v2 {
            true => self.write("cpu.max", "max"),
            false => self.write("cpu.cfs_quota_us", "-1"),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)
            .with_context(|| format!("cannot write {text:?} to {}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel takes a moment to let go of processes that have ended.
        let gone = wait_for("the cgroup to be empty", crate::agent::SOON, || {
            Ok(std::fs::remove_dir(&self.folder).is_ok())
        });
        if let Err(error) = gone {
            eprintln!("laboratory: {}: {error:#}", self.folder.display());
        }
    }
}
