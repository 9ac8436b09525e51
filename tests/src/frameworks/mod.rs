//! Applications made with frameworks, from `tests/applications`, behind health probes.

use std::path::{Path, PathBuf};

/// The folder of Python's environment, for [`folder`].
pub const PYTHON: &str = "python";
/// The folder of Express, for [`folder`].
pub const EXPRESS: &str = "express";

/// Where `cargo xtask setup --ci` installs the packages of one kind.
pub fn folder(kind: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.parent().unwrap_or(own);
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root.join(target).join("applications").join(kind)
}
