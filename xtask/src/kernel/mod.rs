//! `cargo xtask kernel`: tests under the oldest Linux that `lb` supports, in a virtual machine.
//!
//! What that kernel's verifier refuses, a newer one may take; and it has devices that others are
//! built without. The processor is emulated, so it goes anywhere, slowly.

mod image;
mod machine;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{self, cargo, is_root};
use crate::setup::{self, Purpose};
use crate::test::Report;
use image::Kernel;
use machine::Job;

/// A test program that runs there.
struct Program {
    package: &'static str,
    /// As it is called, in the folder `tests` of its package.
    name: &'static str,
    /// Folder of its package.
    folder: &'static str,
    /// Parts of the names of tests that `cargo xtask test` runs there too: each kind of map, helper
    /// and device once.
    few: &'static [&'static str],
    /// The same of those that have something to do there at all; empty for all of them.
    all: &'static [&'static str],
    /// Whether laboratories have network interfaces of the machine.
    over_nics: bool,
}

const DEVICES: &[&str] = &["with_kernel_devices"];

const PROGRAMS: [Program; 3] = [
    Program {
        package: "lb-userspace",
        name: "program",
        folder: "lb-userspace",
        few: &[
            "capture::packets_are_cut",
            "katran::",
            "maps::",
            "migrate::",
        ],
        all: &[],
        over_nics: false,
    },
    Program {
        package: "lb-tests",
        name: "tunnel",
        folder: "tests",
        few: DEVICES,
        all: DEVICES,
        over_nics: false,
    },
    // In native mode on a driver of network cards.
    Program {
        package: "lb-tests",
        name: "forwarding",
        folder: "tests",
        few: &["a_client_keeps"],
        all: &[
            "a_client_keeps",
            "datagrams",
            "generic_mode",
            "not_for_a_vip",
        ],
        over_nics: true,
    },
];

/// The oldest version that `lb` supports.
pub const OLDEST: &str = "6.1";

/// Runs all tests that have something to do there, or those whose names contain `filter`, under
/// Debian's newest kernel of a `version` such as `6.1`.
///
/// # Errors
/// If something is missing that cannot be installed, or the machine does not start. Failed tests are
/// no error but exit code 1.
pub fn run(version: &str, filter: Option<&str>) -> Result<ExitCode> {
    setup::run(&[Purpose::Build, Purpose::Lab, Purpose::Test], false)?;
    let kernel = prepare(version)?;
    let mut report = Report::default();
    tests(&kernel, &mut report, |program| match filter {
        Some(filter) => vec![filter.to_owned()],
        None => program.all.iter().map(ToString::to_string).collect(),
    })?;
    println!("\n{report}");
    println!("{}", report.closing_line());
    Ok(report.exit_code())
}

/// Runs a part of the tests under the oldest kernel, for `cargo xtask test`; notes why not where that
/// kernel cannot be had.
///
/// # Errors
/// If the machine does not start, or cargo fails; and if the kernel cannot be had although everything
/// must be (`LB_REQUIRE_SERVERS`).
pub fn few(report: &mut Report) -> Result<()> {
    let kernel = match prepare(OLDEST) {
        Ok(kernel) => kernel,
        Err(error) if std::env::var_os("LB_REQUIRE_SERVERS").is_none() => {
            report.leave_out(format!("under Linux {OLDEST}: {error:#}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    tests(&kernel, report, |program| {
        program.few.iter().map(ToString::to_string).collect()
    })
}

fn prepare(version: &str) -> Result<Kernel> {
    if cfg!(not(target_arch = "x86_64")) {
        bail!("what is built here does not run under Debian's kernel for x86-64");
    }
    if !is_root() {
        bail!("root is needed to install what starts it, and for the tests themselves");
    }
    setup::run(&[Purpose::Kernel], false)?;
    image::kernel(version)
}

fn tests(
    kernel: &Kernel,
    report: &mut Report,
    names: impl Fn(&Program) -> Vec<String>,
) -> Result<()> {
    let programs = PROGRAMS.iter().zip(build()?);
    let jobs: Vec<Job> = programs
        .map(|(program, binary)| Job {
            title: format!("tests/{} under Linux {}", program.name, kernel.version),
            folder: command::root().join(program.folder),
            binary,
            arguments: names(program),
            over_nics: program.over_nics,
        })
        .collect();
    image::initramfs(kernel, &machine::init(&kernel.modules, &jobs))?;
    println!("\nIn a virtual machine:");
    let ended = machine::run(kernel, &mut |line| {
        if report.note(line) {
            println!("{line}");
        }
    })?;
    if ended < jobs.len() {
        report.fail(format!(
            "the machine with Linux {} ended before its tests did",
            kernel.version
        ));
    }
    Ok(())
}

/// Builds the test programs, and gives their paths.
fn build() -> Result<Vec<PathBuf>> {
    let mut cargo = cargo();
    cargo.args(["test", "--no-run", "--message-format", "json"]);
    for program in &PROGRAMS {
        cargo.args(["--package", program.package, "--test", program.name]);
    }
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("`{}` failed ({})", command::line(&cargo), output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let find = |program: &Program| {
        messages
            .lines()
            .find_map(|line| executable(line, program.name))
            .with_context(|| format!("cargo built no test program {}", program.name))
    };
    PROGRAMS.iter().map(find).collect()
}

/// The path of a test program, from one of cargo's messages.
fn executable(line: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let target = message.get("target")?;
    if target.get("name")? != name || target.get("kind")?.get(0)? != "test" {
        return None;
    }
    Some(message.get("executable")?.as_str()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_told_from_what_else_cargo_builds() {
        let test = r#"{"target":{"kind":["test"],"name":"tunnel"},"executable":"/t/tunnel-1"}"#;
        assert_eq!(executable(test, "tunnel"), Some("/t/tunnel-1".into()));
        assert_eq!(executable(test, "program"), None);
        let library = r#"{"target":{"kind":["lib"],"name":"tunnel"},"executable":null}"#;
        assert_eq!(executable(library, "tunnel"), None);
        assert_eq!(executable("   Compiling tunnel", "tunnel"), None);
    }
}
