//! Whether this host can run the laboratory at all; a test that cannot says why.

use std::io::Write;
use std::path::Path;

use crate::sys;

/// File to which skipped tests append a line, for the summary of `cargo xtask test`.
const SKIPS_VARIABLE: &str = "LB_TEST_SKIPS";

/// Why the laboratory cannot run here, if it cannot.
pub fn reason() -> Option<String> {
    if sys::effective_user() != 0 {
        return Some("needs root for network namespaces and XDP".into());
    }
    ["ip", "ethtool"]
        .into_iter()
        .find(|tool| !installed(tool))
        .map(|tool| format!("`{tool}` is not installed (Debian: apt-get install iproute2 ethtool)"))
}

fn installed(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let places = path.split(':').chain(["/usr/sbin", "/sbin"]);
    places
        .into_iter()
        .any(|folder| Path::new(folder).join(tool).is_file())
}

/// True if the test `name` must be skipped; says so on standard output and, if set, in the file
/// that `LB_TEST_SKIPS` names.
pub fn skipped(name: &str) -> bool {
    let Some(reason) = reason() else { return false };
    let line = format!("SKIPPED {name}: {reason}");
    println!("{line}");
    if let Some(file) = std::env::var_os(SKIPS_VARIABLE) {
        let written = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .and_then(|mut file| writeln!(file, "{line}"));
        if let Err(error) = written {
            println!("cannot write {}: {error}", Path::new(&file).display());
        }
    }
    true
}
