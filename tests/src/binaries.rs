//! Where the programs that the laboratory runs are, built if need be.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// Names a ready-made `lb`, which is then not built.
const LB_VARIABLE: &str = "LB_BIN";
/// Names a ready-made `lb-lab`, which is then not built.
const HELPER_VARIABLE: &str = "LB_LAB_BIN";

/// The folder this program was built into, such as `target/debug`.
fn folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    // Test programs and examples are one deeper.
    let folder = if folder.ends_with("deps") || folder.ends_with("examples") {
        folder.parent()
    } else {
        Some(folder)
    };
    Ok(folder.unwrap_or(Path::new("/")).to_path_buf())
}

/// Path of `lb`; the first call builds it, as cargo would for `cargo build --package
/// lb-userspace`, in the profile of this program.
pub fn lb() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, LB_VARIABLE, "lb-userspace", "lb")
}

/// Path of this crate's helper program.
pub fn helper() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, HELPER_VARIABLE, "lb-tests", "lb-lab")
}

fn once(
    built: &OnceLock<Result<PathBuf, String>>,
    variable: &str,
    package: &str,
    binary: &str,
) -> Result<PathBuf> {
    let find = || match std::env::var_os(variable) {
        Some(path) => Ok(PathBuf::from(path)),
        None => build(package, binary).map_err(|error| format!("{error:#}")),
    };
    built
        .get_or_init(find)
        .clone()
        .map_err(|error| anyhow!(error))
}

fn build(package: &str, binary: &str) -> Result<PathBuf> {
    let folder = folder()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--package", package, "--bin", binary])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo build --package {package} --bin {binary}` failed ({status})");
    }
    let path = folder.join(binary);
    if !path.is_file() {
        bail!("cargo built {binary}, but not as {}", path.display());
    }
    Ok(path)
}
