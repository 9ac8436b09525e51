//! `cargo xtask bench`: installs what is missing, then builds and runs the package `lb-bench`.

use anyhow::{Result, bail};

use crate::command;
use crate::setup::{self, Purpose};

/// Runs the measurements; without `packets` or `network`, both.
pub fn run(quick: bool, packets: bool, network: bool) -> Result<()> {
    if !command::is_root() {
        bail!(
            "the bench needs root: it loads BPF programs and makes network namespaces. \
             Run `cargo xtask bench` as root"
        );
    }
    setup::run(&[Purpose::Build, Purpose::Test, Purpose::Bench], false)?;
    let mut cargo = command::cargo();
    cargo.args(["run", "--release", "--quiet", "--package", "lb-bench", "--"]);
    for (flag, given) in [
        ("--quick", quick),
        ("--packets", packets),
        ("--network", network),
    ] {
        if given {
            cargo.arg(flag);
        }
    }
    command::run(&mut cargo)
}
