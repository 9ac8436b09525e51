//! Builds the BPF objects. Included by `lb-userspace/build.rs` and by `xtask`, so std only.
//!
//! `core` for the BPF target must be built from source, so a compiler is needed that has its own
//! library source beside it: Debian's `rustc-web` with `rust-web-src`, or rustup's nightly with
//! `rust-src`. A finished object can be given in `LB_EBPF_OBJECT` instead.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Environment variable that names a prebuilt object.
pub const OBJECT_VARIABLE: &str = "LB_EBPF_OBJECT";

/// A compiler that can build for the BPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// A stable compiler with its library source, used with `RUSTC_BOOTSTRAP`.
    Rustc(PathBuf),
    /// `rustup run nightly`.
    Nightly,
}

/// Finds a toolchain; the error says what to do about it.
pub fn find() -> Result<Toolchain, String> {
    let debian = PathBuf::from("/usr/bin/rustc");
    if has_source(Command::new(&debian)) {
        return Ok(Toolchain::Rustc(debian));
    }
    let mut nightly = Command::new("rustup");
    nightly.args(["run", "nightly", "rustc"]);
    if has_source(nightly) {
        return Ok(Toolchain::Nightly);
    }
    Err(
        "no compiler for the BPF target: it needs rustc together with its library source. \
         Run `cargo xtask setup` (installs Debian's rustc-web and rust-web-src), or \
         `rustup toolchain install nightly --component rust-src`, or name a prebuilt object in \
         LB_EBPF_OBJECT"
            .to_owned(),
    )
}

fn has_source(mut rustc: Command) -> bool {
    let Ok(output) = rustc.args(["--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success()
        && Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
}

/// Builds the binary `bin` of the crate in `ebpf_dir` into `target_dir`; gives the object's path.
pub fn build(
    ebpf_dir: &Path,
    target_dir: &Path,
    bin: &str,
    features: &[&str],
) -> Result<PathBuf, String> {
    let mut cargo = match find()? {
        Toolchain::Rustc(rustc) => {
            let mut cargo = Command::new("cargo");
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
        Toolchain::Nightly => {
            let mut cargo = Command::new("rustup");
            cargo.args(["run", "nightly", "cargo"]).env_remove("RUSTC");
            cargo
        }
    };
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or(std::env::consts::ARCH.to_owned());
    let endian = if cfg!(target_endian = "big") {
        "bpfeb"
    } else {
        "bpfel"
    };
    let target = format!("{endian}-unknown-none");
    // What an outer cargo sets for its own compiler must not reach this one.
    for variable in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_RUSTFLAGS",
        "RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "RUSTUP_TOOLCHAIN",
    ] {
        cargo.env_remove(variable);
    }
    cargo
        .current_dir(ebpf_dir)
        .args([
            "build",
            "--release",
            "--quiet",
            "--locked",
            "-Z",
            "build-std=core",
        ])
        .args(["--target", &target, "--bin", bin])
        .arg("--target-dir")
        .arg(target_dir)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                &format!("--cfg=bpf_target_arch=\"{arch}\""),
                // 32-bit registers and compare-and-swap: all that Linux 6.1 runs.
                "-Ctarget-cpu=v3",
                "-Cdebuginfo=2",
                "-Clink-arg=--btf",
            ]
            .join("\u{1f}"),
        );
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
    }
    let status = cargo
        .status()
        .map_err(|error| format!("cannot run {cargo:?}: {error}"))?;
    if !status.success() {
        return Err(format!(
            "building the BPF program failed ({status}). If bpf-linker is missing or was built \
             for another LLVM, run `cargo xtask setup`"
        ));
    }
    Ok(target_dir.join(target).join("release").join(bin))
}
