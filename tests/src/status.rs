//! `lb status --json`, as far as the tests look at it. A key of the contract that is missing or
//! of another type fails the parsing, hence the test.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The answer of `lb status --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The agent and its host.
    pub node: Node,
    /// All services.
    pub services: Vec<Service>,
}

/// The agent and its host.
#[derive(Clone, Debug, Deserialize)]
#[expect(
    missing_docs,
    reason = "the contract's names, whose meaning docs/cli.md gives"
)]
pub struct Node {
    pub version: String,
    pub interfaces: Vec<Interface>,
    pub uptime_seconds: f64,
    pub draining: bool,
    /// Not in the contract: 0 while the maps hold what the verdicts want.
    #[serde(default)]
    pub verdict_age_seconds: f64,
    /// Not in the contract: packets by verdict, of those for no service.
    #[serde(default)]
    pub verdicts: BTreeMap<String, u64>,
    /// Not in the contract: whether the data plane captures packets.
    #[serde(default)]
    pub capturing: bool,
}

/// An interface the program is attached to.
#[derive(Clone, Debug, Deserialize)]
#[expect(
    missing_docs,
    reason = "the contract's names, whose meaning docs/cli.md gives"
)]
pub struct Interface {
    pub name: String,
    pub mode: String,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
#[expect(
    missing_docs,
    reason = "the contract's names, whose meaning docs/cli.md gives"
)]
pub struct Service {
    pub name: String,
    pub address: String,
    pub protocol: String,
    pub forwarding: String,
    pub panic: bool,
    pub generation: u64,
    pub healthy_percent: f64,
    pub backends: Vec<Backend>,
    /// Not in the contract: its packets by verdict.
    #[serde(default)]
    pub verdicts: BTreeMap<String, u64>,
}

/// A backend.
#[derive(Clone, Debug, Deserialize)]
#[expect(
    missing_docs,
    reason = "the contract's names, whose meaning docs/cli.md gives"
)]
pub struct Backend {
    pub name: String,
    pub address: String,
    pub weight: u32,
    pub tier: u32,
    pub health: String,
    pub admin: String,
    pub routing: String,
    pub slots: u64,
    pub active_flows: u64,
    pub packets: u64,
    pub bytes: u64,
    pub since: String,
    pub reason: String,
    pub last_probe: Option<LastProbe>,
}

/// A backend's last probe.
#[derive(Clone, Debug, Deserialize)]
#[expect(
    missing_docs,
    reason = "the contract's names, whose meaning docs/cli.md gives"
)]
pub struct LastProbe {
    pub outcome: String,
    pub detail: String,
    pub latency_ms: f64,
    pub at: String,
}

impl Status {
    /// The service of this name.
    pub fn service(&self, name: &str) -> Result<&Service> {
        let found = self.services.iter().find(|service| service.name == name);
        found.with_context(|| format!("`lb status` has no service {name}"))
    }

    /// How the data plane treats a backend, named `service/backend`.
    pub fn backend(&self, path: &str) -> Result<&Backend> {
        let (service, name) = path.split_once('/').context("not SERVICE/BACKEND")?;
        let backends = &self.service(service)?.backends;
        let found = backends.iter().find(|backend| backend.name == name);
        found.with_context(|| format!("`lb status` has no backend {path}"))
    }
}
