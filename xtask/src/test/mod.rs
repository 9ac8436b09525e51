//! `cargo xtask test`: every test, with one summary at the end.

mod report;

use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::setup::{self, Purpose};
use crate::{command, kernel};
pub use report::Report;

/// Runs the tests, or those whose name contains `filter`. Laboratories of network namespaces see
/// to it themselves that there is one at a time.
///
/// # Errors
/// If something is missing that cannot be installed, or cargo cannot be run. Failed tests are no
/// error but exit code 1, after the summary.
pub fn run(filter: Option<&str>) -> Result<ExitCode> {
    setup::run(&[Purpose::Build, Purpose::Lab, Purpose::Test], false)?;
    if let Err(error) = setup::run(&[Purpose::Applications], false) {
        println!("Tests with real applications will be skipped: {error:#}");
    }
    let mut report = Report::default();
    let content = cargo_test(&mut report, filter)?;
    if filter.is_none() {
        kernel::few(&mut report)?;
    }
    println!("\n{report}");
    if !content && report.failed() == 0 {
        println!("cargo failed before it ran all tests: see above");
    }
    println!("{}", report.closing_line());
    Ok(if content {
        report.exit_code()
    } else {
        ExitCode::FAILURE
    })
}

/// Runs `cargo test`; whether cargo was content.
fn cargo_test(report: &mut Report, filter: Option<&str>) -> Result<bool> {
    let programs = command::programs("debug");
    let mut cargo = command::cargo();
    cargo
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        // What a passed test prints tells whether it was skipped.
        .arg("--show-output")
        .args(filter)
        .env("CARGO_TERM_COLOR", "never")
        // Cargo builds the programs of a package for its tests, so these are as new as the tests.
        .env("LB_BIN", programs.join("lb"))
        .env("LB_LAB_BIN", programs.join("lb-lab"));
    println!("cargo test --workspace --no-fail-fast");
    // One pipe for both streams: which test program runs is said on one, what it says on the other.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    cargo
        .stdout(writer.try_clone().context("cannot copy a pipe")?)
        .stderr(writer);
    let mut child = cargo.spawn().context("cannot run cargo")?;
    // It holds the writing end, without whose end reading would not end.
    drop(cargo);
    let mut out = std::io::stdout();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("cannot read what cargo prints")?;
        let line = String::from_utf8_lossy(&line);
        if report.note(&line) {
            writeln!(out, "{line}").context("cannot write")?;
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    Ok(status.success())
}
