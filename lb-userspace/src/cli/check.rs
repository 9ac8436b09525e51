//! `lb check FILE`: says whether a configuration is valid, what its health checks cost and promise,
//! and which known mistakes are in it.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::output;
use crate::config::check::{Report, ServiceReport, check_file};
use crate::config::{ConfigError, duration};

/// The file is valid; with `--strict`, also free of warnings.
const VALID: u8 = 0;
/// It is valid and has warnings, and `--strict` was asked for.
const WARNED: u8 = 1;
/// It is not valid, or could not be read.
const INVALID: u8 = 2;

/// Checks `file` and prints the findings. Gives the exit code: 0 valid, 1 valid with warnings
/// under `strict`, or the output could not be written; 2 invalid.
pub fn run(file: &Path, strict: bool, json: bool) -> u8 {
    let name = file.display().to_string();
    let result = check_file(file);
    let code = match &result {
        Err(_) => INVALID,
        Ok(report) if strict && !report.warnings.is_empty() => WARNED,
        Ok(_) => VALID,
    };
    match print(&name, &result, json) {
        Ok(()) => code,
        // The reader (`| head`) has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(error) => {
            output::complain(&format!("writing the output: {error}"));
            1
        }
    }
}

fn print(name: &str, result: &Result<Report, ConfigError>, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut err = io::stderr().lock();
    if json {
        return writeln!(out, "{:#}", document(name, result));
    }
    match result {
        Ok(report) => people(name, report, &mut out, &mut err),
        Err(error) => {
            writeln!(err, "{}", error.to_string().trim_end())?;
            writeln!(err, "\n{}", invalid(name, error))
        }
    }
}

fn invalid(name: &str, error: &ConfigError) -> String {
    match error {
        ConfigError::Invalid { errors, more, .. } => {
            format!("{name}: invalid, {}", count(errors.len() + more, "error"))
        }
        ConfigError::Read { .. } | ConfigError::Directory { .. } => {
            format!("{name}: could not be read")
        }
    }
}

fn people(
    name: &str,
    report: &Report,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<()> {
    writeln!(out, "{name}: valid")?;
    for line in table(&report.services) {
        writeln!(out, "  {line}")?;
    }
    let jitter = (report.services.iter())
        .filter_map(|service| service.budget)
        .map(|budget| budget.jitter_ms)
        .max()
        .unwrap_or(0);
    if report
        .services
        .iter()
        .any(|service| service.budget.is_some())
    {
        writeln!(
            out,
            "\nProbe load while all is well: {:.1} probes/s. Times are worst / expected; jitter may add up to {}.",
            report.probes_per_second,
            seconds(jitter)
        )?;
    }
    for service in &report.services {
        let Some(promote) = service.promote_worst_ms else {
            continue;
        };
        let fence = service.fence_timeout_ms.map_or_else(String::new, |fence| {
            format!(", and the fence, which may take {}", seconds(fence))
        });
        writeln!(
            out,
            "{}: another backend is active {} after the active one has died at worst{fence}.",
            service.name,
            seconds(promote)
        )?;
    }
    out.flush()?;
    for warning in &report.warnings {
        write!(err, "\n{}", warning.render(name))?;
    }
    if !report.warnings.is_empty() {
        writeln!(err, "\n{name}: {}", count(report.warnings.len(), "warning"))?;
    }
    Ok(())
}

/// Rows of equal columns, the first one the header.
fn table(services: &[ServiceReport]) -> Vec<String> {
    if services.is_empty() {
        return Vec::new();
    }
    let head = [
        "SERVICE", "ADDRESS", "BACKENDS", "PROBE", "EJECT", "READMIT", "PROBES/S",
    ];
    let mut rows = vec![head.map(String::from)];
    rows.extend(services.iter().map(row));
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            cells.join("  ").trim_end().to_string()
        })
        .collect()
}

fn row(service: &ServiceReport) -> [String; 7] {
    let [eject, readmit, load] = match service.budget {
        None => ["never", "-", "0"].map(String::from),
        Some(budget) => [
            pair(budget.eject_worst_ms, budget.eject_expected_ms),
            pair(budget.readmit_worst_ms, budget.readmit_expected_ms)
                + &held(budget.hold_down_ms, budget.hold_down_max_ms),
            format!("{:.1}", budget.probes_per_second),
        ],
    };
    [
        service.name.clone(),
        format!(
            "{} {} {}",
            service.protocol, service.address, service.forwarding
        ),
        service.backends.to_string(),
        service.probe.clone(),
        eject,
        readmit,
        load,
    ]
}

fn pair(worst_ms: u64, expected_ms: u64) -> String {
    format!("{} / {}", seconds(worst_ms), seconds(expected_ms))
}

/// By how much a return may be later.
fn held(first: Option<u64>, longest: Option<u64>) -> String {
    match (first, longest) {
        (Some(first), Some(longest)) => {
            format!(" + {} to {}", seconds(first), seconds(longest))
        }
        _ => String::new(),
    }
}

/// Short for people: `14.5s`, `800ms`, `1m30s`.
fn seconds(milliseconds: u64) -> String {
    if (1000..60_000).contains(&milliseconds) {
        format!("{}s", milliseconds as f64 / 1000.0)
    } else {
        duration::format(Duration::from_millis(milliseconds))
    }
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// The document of `--json`, described in docs/config.md.
fn document(name: &str, result: &Result<Report, ConfigError>) -> serde_json::Value {
    match result {
        Ok(report) => json!({
            "file": name,
            "valid": true,
            "errors": [],
            "warnings": report.warnings,
            "services": report.services,
            "probes_per_second": report.probes_per_second,
        }),
        Err(error) => json!({
            "file": name,
            "valid": false,
            "errors": error.to_json(),
            "warnings": [],
            "services": [],
            "probes_per_second": 0.0,
        }),
    }
}
