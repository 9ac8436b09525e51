//! `lb decap` on a backend.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::SOON;
use crate::binaries;
use crate::lab::Host;
use crate::process::Process;

/// A running `lb decap`; killed when dropped.
#[derive(Debug)]
pub struct Decap {
    process: Process,
    lines: BufReader<ChildStdout>,
    name: String,
}

impl Decap {
    /// Starts it on a host's `eth0`, in `native` or `generic` mode, and waits until it has begun.
    pub fn start(host: &Host, mode: &str) -> Result<Self> {
        let mut command = host.namespace.command(binaries::lb()?);
        command
            .args(["decap", "--interface", "eth0", "--json", "--xdp-mode", mode])
            .stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command, &format!("lb decap on {}", host.name))?;
        let out = process
            .child()
            .stdout
            .take()
            .context("no standard output")?;
        let mut decap = Self {
            process,
            lines: BufReader::new(out),
            name: host.name.clone(),
        };
        let begun = decap.line()?;
        ensure!(
            begun["state"] == "attached" && begun["mode"] == mode,
            "{begun}"
        );
        let listed = |address: &str| {
            let addresses = begun["addresses"].as_array().into_iter().flatten();
            addresses.filter(|listed| *listed == address).count() == 1
        };
        ensure!(
            listed(&host.v4.to_string()) && listed(&host.v6.to_string()),
            "{begun}"
        );
        Ok(decap)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines
            .read_line(&mut line)
            .with_context(|| format!("no word of lb decap on {}", self.name))?;
        serde_json::from_str(&line).with_context(|| format!("{}: {line:?}", self.name))
    }

    /// SIGTERM; gives the counters.
    pub fn end(mut self) -> Result<Value> {
        self.process.signal(libc::SIGTERM)?;
        let ended = self.line()?;
        let status = self.process.wait(SOON)?;
        ensure!(status.success(), "lb decap on {}: {status}", self.name);
        Ok(ended)
    }
}
