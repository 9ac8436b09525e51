//! `cargo xtask bench`: installs what is missing, then builds and runs the package `lb-bench`.

use std::fmt;
use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::command;
use crate::setup::{self, Purpose};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// The time per packet of the XDP program
    Packets,
    /// Requests per second beside nftables and HAProxy
    Network,
    /// Processor time of probes beside HAProxy, and ten thousand backends on one core
    Probes,
    /// Time to eject and requests failed when backends fail, beside HAProxy and nginx
    Comparison,
}

impl Subject {
    /// What is measured unless something is named.
    pub const DEFAULT: [Self; 2] = [Self::Packets, Self::Network];

    /// Its name, here and for `lb-bench`.
    const fn word(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Network => "network",
            Self::Probes => "probes",
            Self::Comparison => "comparison",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Runs the measurements, or what is named `only` of them, and with `write` puts their results into
/// the pages that have a place for them.
pub fn run(what: &[Subject], quick: bool, write: bool, only: Option<&str>) -> Result<()> {
    if !command::is_root() {
        bail!(
            "the bench needs root: it loads BPF programs and makes network namespaces. \
             Run `cargo xtask bench` as root"
        );
    }
    setup::run(&[Purpose::Build, Purpose::Lab, Purpose::Bench], false)?;
    if what.contains(&Subject::Packets) && only.is_none() {
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
        .env("LB_LAB_BIN", programs.join("lb-lab"))
        .args(what.iter().map(|subject| subject.word()));
    if quick {
        bench.arg("--quick");
    }
    if let Some(name) = only {
        bench.args(["--only", name]);
    }
    if write {
        bench.arg("--write").arg(command::root().join("docs"));
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
