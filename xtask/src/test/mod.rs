//! `cargo xtask test`: every test, with one summary at the end.

mod report;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::command;
use crate::setup::{self, Purpose};
use report::{Report, Source};

/// Runs the tests, or those whose name contains `filter`. Tests that share nothing run side by
/// side; those of the package `lb-tests` build laboratories of network namespaces and run one at a
/// time.
///
/// # Errors
/// If something is missing that cannot be installed, or cargo cannot be run. Failed tests are no
/// error but exit code 1, after the summary.
pub fn run(filter: Option<&str>) -> Result<ExitCode> {
    setup::run(&[Purpose::Build, Purpose::Test], false)?;
    let mut report = Report::default();
    let side_by_side = ["--workspace", "--exclude", "lb-tests"];
    let clean = pass(&mut report, Source::Workspace, &side_by_side, filter, &[])?;
    let alone = ["--package", "lb-tests"];
    let clean = pass(
        &mut report,
        Source::Laboratory,
        &alone,
        filter,
        &["--test-threads=1"],
    )? && clean;
    println!("\n{report}");
    if !clean && report.failed() == 0 {
        println!("cargo failed before it ran all tests: see above");
    }
    println!("{}", report.closing_line());
    Ok(if clean && report.failed() == 0 && report.ran() > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One run of `cargo test`; whether cargo was content.
fn pass(
    report: &mut Report,
    source: Source,
    packages: &[&str],
    filter: Option<&str>,
    options: &[&str],
) -> Result<bool> {
    let mut cargo = command::cargo();
    cargo
        .args(["test", "--no-fail-fast"])
        .args(packages)
        .arg("--")
        // What a passed test prints tells whether it was skipped.
        .arg("--show-output")
        .args(options)
        .args(filter)
        .env("CARGO_TERM_COLOR", "never");
    println!("{}", command::line(&cargo));
    report.start(source);
    // One pipe for both streams: which test program runs is said on one, what it says on the other.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    cargo
        .stdout(writer.try_clone().context("cannot copy a pipe")?)
        .stderr(writer);
    let mut child = cargo.spawn().context("cannot run cargo")?;
    // The command holds the writing end, without whose end reading would not end.
    drop(std::mem::replace(&mut cargo, Command::new("true")));
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
