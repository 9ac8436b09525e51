//! `cargo xtask bench`: installs what is missing, then builds and runs the package `lb-bench`.

use std::process::Command;

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
    setup::run(&[Purpose::Build, Purpose::Lab, Purpose::Bench], false)?;
    if packets || !network {
        flood(quick)?;
    }
    // All in one command: cargo would compile what they share anew for each.
    let mut cargo = command::cargo();
    cargo.args(["build", "--release", "--bins"]);
    for package in ["lb-bench", "lb-userspace", "lb-tests"] {
        cargo.args(["--package", package]);
    }
    command::run(&mut cargo)?;
    let programs = command::programs("release");
    let mut bench = Command::new(programs.join("lb-bench"));
    bench
        .env("LB_BIN", programs.join("lb"))
        .env("LB_LAB_BIN", programs.join("lb-lab"));
    for (flag, given) in [
        ("--quick", quick),
        ("--packets", packets),
        ("--network", network),
    ] {
        if given {
            bench.arg(flag);
        }
    }
    command::run(&mut bench)
}

/// Floods the program with spoofed SYNs, ten million or, in a hurry, one, while connections that
/// stand are looked at: an ordinary test, which would take the others' time.
fn flood(quick: bool) -> Result<()> {
    let number = if quick { "a" } else { "ten" };
    let name = format!("flood::{number}_million_spoofed_syns_disturb_no_connection");
    let mut cargo = command::cargo();
    cargo.args([
        "test",
        "--package",
        "lb-userspace",
        "--test",
        "program",
        "--",
    ]);
    cargo.args(["--exact", &name, "--include-ignored", "--nocapture"]);
    command::run(&mut cargo)
}
