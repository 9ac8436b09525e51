//! Packages with a daemon in them are installed for their programs: no daemon may start on this
//! machine because of it, now or at the next boot.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{self, find};

/// Asked by Debian's packages before they start anything (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Packages with a daemon, and its unit.
const DAEMONS: [(&str, &str); 4] = [
    ("nginx-light", "nginx"),
    ("haproxy", "haproxy"),
    ("iperf3", "iperf3"),
    ("bird2", "bird"),
];

/// Runs `install`, which installs `packages`, without a daemon of theirs being started.
///
/// # Errors
/// If `install` fails, or one runs all the same.
pub fn without(packages: &[&str], install: impl FnOnce() -> Result<()>) -> Result<()> {
    let of_ours = DAEMONS.iter().filter(|(name, _)| packages.contains(name));
    let units: Vec<&str> = of_ours.map(|(_, unit)| *unit).collect();
    if units.is_empty() {
        return install();
    }
    let before = running(&units)?;
    let policy = Policy::forbid()?;
    install()?;
    drop(policy);
    if find("systemctl").is_some() {
        for unit in &units {
            // iperf3's is not there unless it was asked for, and then there is nothing to disable.
            let disable = ["disable", "--quiet", &format!("{unit}.service")];
            if command::run(Command::new("systemctl").args(disable)).is_err() {
                println!("    {unit} has no unit that could be disabled");
            }
        }
    }
    let after = running(&units)?;
    if let Some(started) = after.difference(&before).next() {
        bail!(
            "the installation started {started}, though {POLICY} forbids it: stop it, it is not \
             needed as a daemon"
        );
    }
    Ok(())
}

/// Forbids starting daemons until dropped. A policy that is there already is the administrator's
/// and is left as it is.
struct Policy {
    ours: bool,
}

impl Policy {
    fn forbid() -> Result<Self> {
        // Ctrl-C ends apt, and then must not leave the policy behind.
        lb_tests::interrupt::watch().context("cannot watch for Ctrl-C")?;
        let mut file = match File::create_new(POLICY) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Ok(Self { ours: false });
            }
            Err(error) => return Err(error).with_context(|| format!("cannot make {POLICY}")),
        };
        let policy = Self { ours: true };
        // 101: the action is not allowed.
        file.write_all(b"#!/bin/sh\nexit 101\n")
            .and_then(|()| file.set_permissions(PermissionsExt::from_mode(0o755)))
            .with_context(|| format!("cannot write {POLICY}"))?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = std::fs::remove_file(POLICY)
        {
            eprintln!("cannot remove {POLICY}, which keeps daemons from starting: {error}");
        }
    }
}

/// Processes with one of these names, as `name (id)`.
fn running(names: &[&str]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in Path::new("/proc").read_dir().context("cannot read /proc")? {
        let path = entry.context("cannot read /proc")?.path();
        // A process may end while it is looked at; most entries are no processes.
        let Ok(name) = std::fs::read_to_string(path.join("comm")) else {
            continue;
        };
        if names.contains(&name.trim_end()) {
            let id = path.file_name().unwrap_or_default().to_string_lossy();
            found.insert(format!("{} ({id})", name.trim_end()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_its_name() -> Result<()> {
        let name = std::fs::read_to_string("/proc/self/comm")?;
        let found = running(&[name.trim_end()])?;
        let own = format!("{} ({})", name.trim_end(), std::process::id());
        assert!(found.contains(&own), "{found:?} has no {own}");
        assert!(running(&["no such name"])?.is_empty());
        Ok(())
    }
}
