//! Embeds the BPF object: a prebuilt one from `LB_EBPF_OBJECT`, or one built from `lb-ebpf`.

use std::env;
use std::path::{Path, PathBuf};

#[path = "../lb-ebpf/toolchain.rs"]
mod toolchain;

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-env-changed={}", toolchain::OBJECT_VARIABLE);
    let variable = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
    let out = PathBuf::from(variable("OUT_DIR")?);
    let object = match env::var_os(toolchain::OBJECT_VARIABLE) {
        Some(prebuilt) => {
            let prebuilt = PathBuf::from(prebuilt);
            println!("cargo:rerun-if-changed={}", prebuilt.display());
            prebuilt
        }
        None => {
            let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
            for path in [
                "lb-ebpf/src",
                "lb-ebpf/Cargo.toml",
                "lb-ebpf/toolchain.rs",
                "lb-common/src",
            ] {
                println!("cargo:rerun-if-changed={}", root.join(path).display());
            }
            toolchain::build(&root.join("lb-ebpf"), &out.join("ebpf"), "lb", &[])?
        }
    };
    copy(&object, &out.join("lb.bpf.o"))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("cannot read the BPF object {}: {error}", from.display()))
}
