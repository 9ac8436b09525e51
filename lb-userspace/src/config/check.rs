//! Everything `lb check` has to say about a file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::budget::Budget;
use super::diagnostic::Diagnostic;
use super::{ConfigError, lint, parse_with_places, read};
use crate::health::Engine;
use crate::model::{Model, ProbeKind, Service};

pub use super::lint::LINTS;

/// The findings on a valid file.
#[derive(Clone, Debug)]
pub struct Report {
    pub model: Model,
    /// In the order of the file.
    pub services: Vec<ServiceReport>,
    /// In the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// Probes per second of all services together, while all backends are healthy. Less than their
    /// sum where services share probes.
    pub probes_per_second: f64,
}

/// The findings on one service, as in `lb check --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceReport {
    pub name: String,
    pub address: String,
    pub protocol: &'static str,
    pub forwarding: &'static str,
    pub backends: usize,
    /// `tcp`, `http`, `https`, `grpc`, …, `none`; of several: `http + tcp`.
    pub probe: String,
    /// `None` if it is not probed.
    pub budget: Option<BudgetReport>,
    /// From the death of the active backend until another is active, at worst and without the
    /// fence; `None` where all share the traffic, or nothing is probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promote_worst_ms: Option<u64>,
    /// How long the fence may take, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fence_timeout_ms: Option<u64>,
}

/// [`Budget`] in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BudgetReport {
    pub eject_worst_ms: u64,
    pub eject_expected_ms: u64,
    pub readmit_worst_ms: u64,
    pub readmit_expected_ms: u64,
    pub jitter_ms: u64,
    pub probes_per_second: f64,
    /// The first hold-down, by which a return may be later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_down_ms: Option<u64>,
    /// The longest one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_down_max_ms: Option<u64>,
}

/// Checks the file at `path`.
///
/// # Errors
/// [`ConfigError`] as [`super::load`].
pub fn check_file(path: &Path) -> Result<Report, ConfigError> {
    let name = path.display().to_string();
    check(&read(path, &name)?, &name)
}

/// Checks configuration text; `name` stands for the file in errors.
///
/// # Errors
/// [`ConfigError`] as [`super::parse`].
pub fn check(text: &str, name: &str) -> Result<Report, ConfigError> {
    let (model, places) = parse_with_places(text, name)?;
    let shown = with_templates(&model);
    let services: Vec<ServiceReport> = shown.services.iter().map(ServiceReport::new).collect();
    let probes_per_second = load(&shown);
    Ok(Report {
        warnings: lint::warnings(&shown, &places, probes_per_second, text),
        probes_per_second,
        services,
        model,
    })
}

/// Probes per second of all services; those that several ask for are made once.
fn load(model: &Model) -> f64 {
    let mut engine = Engine::new(0);
    engine.configure(&model.services, &BTreeMap::new(), Duration::ZERO);
    engine.probes_per_second()
}

/// The model with one backend for each host name: how many there will be, nobody knows yet.
fn with_templates(model: &Model) -> Model {
    let mut shown = model.clone();
    for named in &model.names {
        let mut services = shown.services.iter_mut();
        if let Some(service) = services.find(|service| service.name == named.service) {
            service.backends.push(named.template.clone());
        }
    }
    shown
}

impl ServiceReport {
    fn new(service: &Service) -> Self {
        let probes = service.backends.iter().map(|b| &b.probes).next();
        let kinds: Vec<&str> = (probes.into_iter().flatten())
            .map(|probe| ProbeKind::name(&probe.kind))
            .collect();
        let rules = service.mode.active_passive();
        let promote = |budget: Budget| Some(budget.eject_worst + rules?.promote_after);
        Self {
            name: service.name.to_string(),
            address: service.address.to_string(),
            protocol: service.protocol.name(),
            forwarding: service.forwarding.name(),
            backends: service.backends.len(),
            probe: match kinds.is_empty() {
                true => "none".to_owned(),
                false => kinds.join(" + "),
            },
            budget: Budget::of(service).map(BudgetReport::new),
            promote_worst_ms: Budget::of(service).and_then(promote).map(milliseconds),
            fence_timeout_ms: rules
                .and_then(|rules| rules.fence.as_ref())
                .map(|fence| milliseconds(fence.timeout)),
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl BudgetReport {
    fn new(budget: Budget) -> Self {
        Self {
            eject_worst_ms: milliseconds(budget.eject_worst),
            eject_expected_ms: milliseconds(budget.eject_expected),
            readmit_worst_ms: milliseconds(budget.readmit_worst),
            readmit_expected_ms: milliseconds(budget.readmit_expected),
            jitter_ms: milliseconds(budget.jitter),
            probes_per_second: budget.probes_per_second,
            hold_down_ms: budget.hold_down.map(|rule| milliseconds(rule.base)),
            hold_down_max_ms: budget.hold_down.map(|rule| milliseconds(rule.most)),
        }
    }
}
