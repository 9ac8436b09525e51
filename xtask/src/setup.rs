//! `cargo xtask setup`: names what is missing on this machine, then installs it.
//!
//! Looks at files and versions, not at the package manager's records, so that it is quick where
//! nothing is missing and content with a tool that came another way.

mod applications;
mod daemons;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{self, cargo, find, is_root, output};

#[path = "../../lb-ebpf/toolchain.rs"]
#[expect(dead_code, reason = "build scripts do the building")]
mod toolchain;

use toolchain::Toolchain;

/// LLVM of Debian's rustc, and so of its bpf-linker.
const DEBIAN_LLVM: u32 = 22;
const BPF_LINKER: &str = "0.13.0";
const CARGO_DENY: &str = "0.20.2";

/// What the tools are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The BPF toolchain.
    Build,
    /// Network namespaces.
    Lab,
    /// What tests read captures with, and the daemons that they talk to.
    Test,
    /// A virtual machine with another kernel.
    Kernel,
    /// What `lb` is compared with, and the load generator.
    Bench,
    /// The real applications of the tests and of `soak`.
    Applications,
    /// The checks of `.ci/run`, with the servers that probes are tested against.
    Ci,
}

/// What is missing, by the way in which it is installed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Missing {
    /// Debian packages.
    packages: Vec<&'static str>,
    /// A nightly compiler with its library source, where there is no apt.
    nightly: bool,
    /// bpf-linker for this major version of LLVM.
    linker: Option<u32>,
    cargo_deny: bool,
    /// Packages from PyPI.
    python: bool,
    /// Packages from npm.
    node: bool,
}

impl Missing {
    /// The commands that mend it, in their order.
    fn commands(&self) -> Vec<Command> {
        let mut commands = Vec::new();
        if !self.packages.is_empty() {
            let mut apt = Command::new("apt-get");
            apt.args(["install", "-y", "--no-install-recommends"])
                .args(&self.packages)
                .env("DEBIAN_FRONTEND", "noninteractive");
            commands.push(apt);
        }
        if self.nightly {
            let mut rustup = Command::new("rustup");
            rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
            rustup.args(["--component", "rust-src"]);
            commands.push(rustup);
        }
        if let Some(llvm) = self.linker {
            let prefix = format!("/usr/lib/llvm-{llvm}");
            let mut install = install("bpf-linker", BPF_LINKER);
            // Overwrites one that was built for another LLVM.
            install.args(["--force", "--no-default-features", "--features"]);
            install.arg(format!("llvm-{llvm}"));
            if Path::new(&prefix).is_dir() || llvm == DEBIAN_LLVM && !self.nightly {
                install.env("LLVM_PREFIX", &prefix);
                install.env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
            }
            commands.push(install);
        }
        if self.cargo_deny {
            let mut install = install("cargo-deny", CARGO_DENY);
            // Checks a tree in a second however it is compiled; unoptimised compiles much sooner.
            install
                .args(["--locked", "--no-default-features"])
                .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
            commands.push(install);
        }
        if self.python {
            commands.extend(applications::python_commands());
        }
        if self.node {
            commands.extend(applications::node_commands());
        }
        commands
    }
}

fn install(name: &str, version: &str) -> Command {
    let mut command = cargo();
    command.args(["install", name, "--version", version]);
    // What an outer cargo sets for this workspace does not concern a tool.
    command.env_remove("CARGO_TARGET_DIR");
    command
}

/// Installs what is missing for `purposes`. Names it first, with the commands; on a terminal, and
/// unless `yes`, asks.
///
/// # Errors
/// If root is needed and this is not root (then it says what to run), or a command failed.
pub fn run(purposes: &[Purpose], yes: bool) -> Result<()> {
    let missing = look(purposes)?;
    let commands = missing.commands();
    if commands.is_empty() {
        return Ok(());
    }
    let as_root = !missing.packages.is_empty() && !is_root();
    println!("Missing on this machine, and installed by:");
    for command in &commands {
        let sudo = if as_root && command.get_program() == "apt-get" {
            "sudo "
        } else {
            ""
        };
        println!("    {sudo}{}", command::line(command));
    }
    if as_root {
        bail!("Debian packages are missing and this is not root: run the commands above");
    }
    if !yes && std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        print!("Install? [Y/n] ");
        std::io::stdout().flush().context("cannot write")?;
        let mut answer = String::new();
        std::io::stdin()
            .read_line(&mut answer)
            .context("cannot read the answer")?;
        if !matches!(answer.trim(), "" | "y" | "Y" | "yes") {
            bail!("nothing was installed");
        }
    }
    if missing.packages.contains(&"postgresql") {
        no_postgres_cluster()?;
    }
    for mut command in commands {
        if command.get_program() == "apt-get" {
            daemons::without(&missing.packages, || install_packages(&mut command))?;
        } else {
            command::run(&mut command)?;
        }
    }
    let left = look(purposes)?;
    if left != Missing::default() {
        bail!("installed, but still not found: {left:?}");
    }
    Ok(())
}

/// Package lists may be absent or out of date: then they are brought up to date, once.
fn install_packages(apt: &mut Command) -> Result<()> {
    if command::run(apt).is_ok() {
        return Ok(());
    }
    println!("    apt-get update");
    command::run(Command::new("apt-get").arg("update"))?;
    command::run(apt)
}

fn look(purposes: &[Purpose]) -> Result<Missing> {
    let mut missing = Missing::default();
    for purpose in purposes {
        match purpose {
            Purpose::Build => look_for_toolchain(&mut missing)?,
            // Without root the tests that need these are skipped, and say so.
            Purpose::Lab | Purpose::Test | Purpose::Applications | Purpose::Kernel
                if !is_root() => {}
            Purpose::Lab => tools(&mut missing, &[("ip", "iproute2"), ("ethtool", "ethtool")]),
            Purpose::Test => tools(
                &mut missing,
                &[
                    ("tshark", "tshark"),
                    ("dnsmasq", "dnsmasq-base"),
                    ("bird", "bird2"),
                ],
            ),
            Purpose::Kernel => tools(
                &mut missing,
                &[
                    ("qemu-system-x86_64", "qemu-system-x86"),
                    ("busybox", "busybox-static"),
                    ("cpio", "cpio"),
                    ("depmod", "kmod"),
                ],
            ),
            Purpose::Applications => {
                tools(&mut missing, &applications::TOOLS);
                missing.python = applications::python_is_missing();
                missing.node = applications::node_is_missing();
                if missing.python && applications::venv_is_missing() {
                    missing.packages.push("python3-venv");
                }
            }
            Purpose::Bench => tools(
                &mut missing,
                &[
                    ("haproxy", "haproxy"),
                    ("nginx", "nginx-light"),
                    ("wrk", "wrk"),
                    ("nft", "nftables"),
                ],
            ),
            Purpose::Ci => {
                missing.cargo_deny = find("cargo-deny").is_none();
                servers(&mut missing);
            }
        }
    }
    Ok(missing)
}

/// Real servers for the probes' tests, which start their own instances. The packages are those that
/// start no daemon: redis-tools has the server under the name of its checker; PostgreSQL's starts
/// one for a cluster only, see [`no_postgres_cluster`].
fn servers(missing: &mut Missing) {
    tools(
        missing,
        &[
            ("redis-check-rdb", "redis-tools"),
            ("dnsmasq", "dnsmasq-base"),
            ("slapd", "slapd"),
        ],
    );
    let mut versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    if !versions.any(|version| version.is_ok_and(|v| v.path().join("bin/postgres").exists())) {
        missing.packages.push("postgresql");
    }
}

/// Tells Debian's PostgreSQL packages to make no cluster when they are installed: without one
/// nothing is started, now or with the machine. A file that is there is the host's own.
fn no_postgres_cluster() -> Result<()> {
    let path = Path::new("/etc/postgresql-common/createcluster.conf");
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().context("the path has a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(path, "create_main_cluster = false\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

fn tools(missing: &mut Missing, tools: &[(&str, &'static str)]) {
    let absent = tools.iter().filter(|(program, _)| find(program).is_none());
    for (_, package) in absent {
        // Two purposes may need the same one.
        if !missing.packages.contains(package) {
            missing.packages.push(package);
        }
    }
}

fn look_for_toolchain(missing: &mut Missing) -> Result<()> {
    if std::env::var_os(toolchain::OBJECT_VARIABLE).is_some() {
        return Ok(());
    }
    let apt = find("apt-get").is_some();
    let llvm = match toolchain::find() {
        Ok(Toolchain::Rustc(rustc)) => llvm_of(Command::new(rustc).arg("-vV"))?,
        Ok(Toolchain::Nightly) => {
            llvm_of(Command::new("rustup").args(["run", "nightly", "rustc", "-vV"]))?
        }
        Err(_) if apt => {
            missing.packages.extend(["rustc-web", "rust-web-src"]);
            DEBIAN_LLVM
        }
        Err(_) if find("rustup").is_some() => {
            missing.nightly = true;
            DEBIAN_LLVM
        }
        Err(error) => bail!(error),
    };
    if linker_fits(llvm) {
        return Ok(());
    }
    missing.linker = Some(llvm);
    if apt && llvm == DEBIAN_LLVM {
        let prefix = "/usr/lib/llvm-22";
        let files = [
            (format!("{prefix}/bin/llvm-config"), "llvm-22-dev"),
            (format!("{prefix}/lib/libPolly.a"), "libpolly-22-dev"),
            ("/usr/include/zstd.h".to_owned(), "libzstd-dev"),
            ("/usr/include/zlib.h".to_owned(), "zlib1g-dev"),
            ("/usr/include/libxml2".to_owned(), "libxml2-dev"),
        ];
        let absent = files.iter().filter(|(file, _)| !Path::new(file).exists());
        missing.packages.extend(absent.map(|(_, package)| *package));
    }
    Ok(())
}

/// Major version of the LLVM in a compiler, from its `-vV`.
fn llvm_of(rustc: &mut Command) -> Result<u32> {
    let text = output(rustc).with_context(|| format!("`{}` failed", command::line(rustc)))?;
    llvm_in(&text).with_context(|| format!("`{}` names no LLVM version", command::line(rustc)))
}

fn llvm_in(text: &str) -> Option<u32> {
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// Whether a bpf-linker is there that reads what a compiler with this LLVM writes. One that has
/// its LLVM linked in does not tell the version, and is taken at its word.
fn linker_fits(llvm: u32) -> bool {
    let Some(linker) = find("bpf-linker") else {
        return false;
    };
    if output(Command::new(&linker).arg("--version")).is_none() {
        return false;
    }
    let libraries = output(Command::new("ldd").arg(&linker)).unwrap_or_default();
    linked_llvm(&libraries).is_none_or(|found| found == llvm)
}

/// Major version of the libLLVM in ldd's output.
fn linked_llvm(libraries: &str) -> Option<u32> {
    let name = libraries.split_whitespace().find_map(|word| {
        word.strip_prefix("libLLVM.so.")
            .or_else(|| word.strip_prefix("libLLVM-"))
    })?;
    let digits = name.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_versions_are_read() {
        assert_eq!(llvm_in("host: x\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_in("host: x\n"), None);
        let ldd = "\tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x7f)";
        assert_eq!(linked_llvm(ldd), Some(22));
        assert_eq!(linked_llvm("libLLVM-19.so => x"), Some(19));
        assert_eq!(linked_llvm("libc.so.6 => x"), None);
    }

    #[test]
    fn packages_come_before_what_is_built_with_them() {
        let missing = Missing {
            packages: vec!["llvm-22-dev"],
            linker: Some(22),
            python: true,
            node: true,
            ..Missing::default()
        };
        let lines: Vec<_> = missing.commands().iter().map(command::line).collect();
        assert!(lines[0].contains("apt-get install -y --no-install-recommends llvm-22-dev"));
        assert!(
            lines[1].contains("LLVM_SYS_221_PREFIX=/usr/lib/llvm-22"),
            "{}",
            lines[1]
        );
        assert!(lines[1].contains("bpf-linker --version 0.13.0"));
        assert!(lines[2].contains("python3 -m venv"), "{}", lines[2]);
        assert!(lines[3].contains("pip install"), "{}", lines[3]);
        assert!(lines.iter().any(|line| line.contains("npm ci")));
        assert!(Missing::default().commands().is_empty());
    }
}
