//! Network interfaces of this machine in the place of a veth, for machines that are made for it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::wait::wait_for;

/// Environment variable with the MAC addresses of two interfaces that are wired together, parted by a
/// comma. Laboratories then take them, and give the first to the balancer.
const VARIABLE: &str = "LB_LAB_NICS";

/// How long the kernel may take to give them back, after a namespace that had them has ended.
const GIVEN_BACK: Duration = Duration::from_secs(60);

/// Whether the balancer's interface is one of this machine.
pub fn given() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Hands the two over, the first as `eth0` and the other as `lb`.
///
/// # Errors
/// If they are not there: a laboratory before may be about to give them back.
pub fn hand_over(balancer: &str, switch: &str) -> Result<()> {
    let addresses = std::env::var(VARIABLE).with_context(|| format!("{VARIABLE} is not text"))?;
    let Some((first, second)) = addresses.split_once(',') else {
        bail!("{VARIABLE} is {addresses}, not two MAC addresses");
    };
    for (address, namespace, name) in [(first, balancer, "eth0"), (second, switch, "lb")] {
        let mut found = None;
        wait_for(&format!("an interface {address}"), GIVEN_BACK, || {
            found = interface(address);
            Ok(found.is_some())
        })?;
        let interface = found.context("it was found")?;
        let output = Command::new("ip")
            .args(["link", "set", &interface, "netns", namespace, "name", name])
            .output()
            .context("cannot run ip")?;
        ensure!(output.status.success(), "{interface}: {output:?}");
    }
    Ok(())
}

/// Name of the interface with this MAC address.
fn interface(address: &str) -> Option<String> {
    let interfaces = fs::read_dir("/sys/class/net").ok()?;
    let has = |path: &Path| {
        fs::read_to_string(path.join("address")).is_ok_and(|found| found.trim() == address)
    };
    let mut paths = interfaces.filter_map(|entry| Some(entry.ok()?.path()));
    let path = paths.find(|path| has(path))?;
    Some(path.file_name()?.to_string_lossy().into_owned())
}
