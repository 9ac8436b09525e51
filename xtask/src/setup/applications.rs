//! What the example applications of `tests/applications` need: packages from PyPI and npm, in
//! folders of their own under `target`.

use std::path::{Path, PathBuf};
use std::process::Command;

use lb_tests::frameworks::{EXPRESS, PYTHON};

use crate::command::{self, find, root};

/// Programs, and the Debian packages they come in.
pub const TOOLS: [(&str, &str); 5] = [
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("iperf3", "iperf3"),
    ("node", "nodejs"),
    ("npm", "npm"),
];

fn source(name: &str) -> PathBuf {
    root().join("tests/applications").join(name)
}

/// Whether the file that names the packages is the one they were installed by.
fn installed(list: &Path, stamp: &Path) -> bool {
    let read = |path| std::fs::read(path).ok();
    read(list).is_some_and(|list| read(stamp).as_ref() == Some(&list))
}

/// Whether Python's packages are missing.
pub fn python_is_missing() -> bool {
    let stamp = lb_tests::frameworks::folder(PYTHON).join("requirements.txt");
    !installed(&source("requirements.txt"), &stamp)
}

/// Whether this Python cannot make environments: Debian keeps that in a package of its own.
pub fn venv_is_missing() -> bool {
    let mut python = Command::new("python3");
    python.args(["-c", "import ensurepip, venv"]);
    find("python3").is_none() || command::output(&mut python).is_none()
}

/// Whether Node's packages are missing.
pub fn node_is_missing() -> bool {
    let folder = lb_tests::frameworks::folder(EXPRESS);
    let list = source("express/package-lock.json");
    !folder.join("node_modules").is_dir() || !installed(&list, &folder.join("installed"))
}

/// The commands that install Python's.
pub fn python_commands() -> Vec<Command> {
    let folder = lb_tests::frameworks::folder(PYTHON);
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(&folder);
    let mut install = Command::new(folder.join("bin/pip"));
    install
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--requirement"])
        .arg(source("requirements.txt"));
    let mut stamp = Command::new("cp");
    stamp.arg(source("requirements.txt")).arg(&folder);
    vec![make, install, stamp]
}

/// The commands that install Node's.
pub fn node_commands() -> Vec<Command> {
    let folder = lb_tests::frameworks::folder(EXPRESS);
    let mut copy = Command::new("install");
    copy.args(["-D", "--mode", "644", "--target-directory"])
        .arg(&folder)
        .arg(source("express/package.json"))
        .arg(source("express/package-lock.json"));
    let mut install = Command::new("npm");
    install
        .args(["ci", "--no-audit", "--no-fund", "--prefix"])
        .arg(&folder);
    let mut stamp = Command::new("cp");
    stamp
        .arg(folder.join("package-lock.json"))
        .arg(folder.join("installed"));
    vec![copy, install, stamp]
}
