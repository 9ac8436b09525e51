//! Everything `lb check` has to say about a file.

use std::path::Path;

use serde::Serialize;

use super::budget::Budget;
use super::diagnostic::Diagnostic;
use super::{ConfigError, lint, parse_with_places, read};
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
    /// Probes per second of all services together, while all backends are healthy.
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
    /// `tcp`, `http`, `https`, `grpc` or `none`.
    pub probe: &'static str,
    /// `None` if it is not probed.
    pub budget: Option<BudgetReport>,
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
    Ok(Report {
        warnings: lint::warnings(&shown, &places, text),
        probes_per_second: services
            .iter()
            .filter_map(|service| service.budget)
            .map(|budget| budget.probes_per_second)
            .sum(),
        services,
        model,
    })
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
        let probe = service.backends.iter().find_map(|b| b.probe.as_ref());
        Self {
            name: service.name.to_string(),
            address: service.address.to_string(),
            protocol: service.protocol.name(),
            forwarding: service.forwarding.name(),
            backends: service.backends.len(),
            probe: probe.map_or("none", |probe| ProbeKind::name(&probe.kind)),
            budget: Budget::of(service).map(BudgetReport::new),
        }
    }
}

impl BudgetReport {
    fn new(budget: Budget) -> Self {
        let milliseconds =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            eject_worst_ms: milliseconds(budget.eject_worst),
            eject_expected_ms: milliseconds(budget.eject_expected),
            readmit_worst_ms: milliseconds(budget.readmit_worst),
            readmit_expected_ms: milliseconds(budget.readmit_expected),
            jitter_ms: milliseconds(budget.jitter),
            probes_per_second: budget.probes_per_second,
        }
    }
}
