//! `cargo xtask build`.

use anyhow::Result;

use crate::command::{self, root};
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
    let folder =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let profile = if release { "release" } else { "debug" };
    println!("{}", folder.join(profile).join("lb").display());
    Ok(())
}
