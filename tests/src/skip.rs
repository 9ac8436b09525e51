//! Whether this host can run the laboratory at all; a test that cannot says why.

use std::path::Path;

use crate::sys;

/// Why the laboratory cannot run here, if it cannot.
pub fn reason() -> Option<String> {
    if sys::effective_user() != 0 {
        return Some("needs root for network namespaces and XDP".into());
    }
    if let Err(error) = sys::try_namespaces() {
        return Some(format!("cannot make namespaces here, though root: {error}"));
    }
    let missing = ["ip", "ethtool"]
        .into_iter()
        .find(|tool| !installed(tool))?;
    Some(format!(
        "`{missing}` is not installed (Debian: apt-get install iproute2 ethtool)"
    ))
}

/// Whether a program is where programs are.
pub fn installed(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let places = path.split(':').chain(["/usr/sbin", "/sbin"]);
    places
        .into_iter()
        .any(|folder| Path::new(folder).join(tool).is_file())
}

/// True if the test `name` must be skipped; says so on standard output, where `cargo xtask test`
/// looks for it.
pub fn skipped(name: &str) -> bool {
    let Some(reason) = reason() else { return false };
    println!("SKIPPED {name}: {reason}");
    true
}
