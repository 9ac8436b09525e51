//! `cargo xtask build`.

use anyhow::Result;

use crate::command;
use crate::setup::{self, Purpose};

/// Installs what is missing, then builds `lb`; its build script builds the XDP program.
pub fn run(release: bool) -> Result<()> {
    setup::run(&[Purpose::Build], false)?;
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", "lb-userspace", "--bin", "lb"]);
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    let folder = command::programs(if release { "release" } else { "debug" });
    println!("{}", folder.join("lb").display());
    Ok(())
}
