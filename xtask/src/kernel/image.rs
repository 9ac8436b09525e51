//! Debian's kernel, taken out of its package and not installed, and what it starts with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{self, output, programs};

/// Modules by which the machine comes to its files, and what they need.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// A kernel that can be started.
pub struct Kernel {
    /// As `uname -r` has it.
    pub version: String,
    /// Where its package is unpacked.
    root: PathBuf,
    pub image: PathBuf,
    /// Folder with its modules, by version.
    pub modules: PathBuf,
    /// The file system that it starts with, a compressed archive.
    pub initramfs: PathBuf,
}

/// Downloads and unpacks Debian's newest kernel of a version such as `6.1`, unless that was done
/// before.
///
/// # Errors
/// If the package cannot be had, or something is missing in it.
pub fn kernel(version: &str) -> Result<Kernel> {
    let folder = programs("kernel");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let package = package(version)?;
    let version = package.trim_start_matches(PREFIX).to_owned();
    let root = folder.join(&version);
    let kernel = Kernel {
        image: root.join("boot").join(format!("vmlinuz-{version}")),
        modules: root.join("lib/modules"),
        initramfs: folder.join(format!("{version}.initramfs")),
        root,
        version,
    };
    if !kernel.modules.join("unpacked").exists() {
        download(&folder, &package, &kernel.root)?;
        fs::write(kernel.modules.join("unpacked"), "").context("cannot write")?;
    }
    Ok(kernel)
}

const PREFIX: &str = "linux-image-";

/// Name of the newest package with a kernel of this version for ordinary machines.
fn package(version: &str) -> Result<String> {
    let search = || {
        let names = output(Command::new("apt-cache").args(["pkgnames", PREFIX]))?;
        newest(&names, version)
    };
    if let Some(found) = search() {
        return Ok(found);
    }
    command::run(Command::new("apt-get").args(["update", "--quiet"]))?;
    search().with_context(|| {
        format!(
            "Debian has no package {PREFIX}{version}…-amd64 here; see `apt-cache pkgnames {PREFIX}`"
        )
    })
}

fn newest(names: &str, version: &str) -> Option<String> {
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let rest = name.strip_prefix(PREFIX)?.strip_suffix("-amd64")?;
        // `+deb12` says for which release it was built; any other word, for what machines.
        let (rest, release) = rest.split_once("+deb").unwrap_or((rest, "0"));
        release.parse::<u32>().ok()?;
        rest.split(['.', '-']).map(|n| n.parse().ok()).collect()
    };
    let wanted: Vec<u32> = version.split('.').map_while(|n| n.parse().ok()).collect();
    let fitting = names.lines().filter(|name| {
        numbers(name).is_some_and(|n| n.len() > wanted.len() && n.starts_with(&wanted))
    });
    fitting.max_by_key(|name| numbers(name)).map(str::to_owned)
}

fn download(folder: &Path, package: &str, root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let downloads = folder.join("download");
    fs::create_dir_all(&downloads).context("cannot make a folder")?;
    command::run(
        Command::new("apt-get")
            .args(["download", "--quiet", package])
            .current_dir(&downloads),
    )?;
    let files = fs::read_dir(&downloads).context("cannot list the download")?;
    let mut files = files.filter_map(|entry| Some(entry.ok()?.path()));
    let prefix = format!("{package}_");
    let Some(file) = files.find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    }) else {
        bail!("apt-get downloaded no {package}");
    };
    command::run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .args([&file, root]),
    )?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    let version = package.trim_start_matches(PREFIX);
    command::run(
        Command::new("depmod")
            .arg("--basedir")
            .args([root, Path::new(version)]),
    )
}

/// Makes [`Kernel::initramfs`]: a shell, modules, and the script that is run first.
///
/// # Errors
/// If a file cannot be written, or a module is missing.
pub fn initramfs(kernel: &Kernel, init: &str) -> Result<()> {
    let folder = kernel.root.join("initramfs");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot remove an old initramfs")?;
    }
    for name in ["bin", "modules", "proc", "dev", "lower", "upper", "new"] {
        fs::create_dir_all(folder.join(name)).context("cannot make a folder")?;
    }
    let busybox = command::find("busybox").context("no busybox")?;
    fs::copy(busybox, folder.join("bin/busybox")).context("cannot copy busybox")?;
    let mut order = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["--show-depends", "--set-version", &kernel.version]);
        modprobe
            .arg("--dirname")
            .args([&kernel.root, Path::new(module)]);
        let needed = output(&mut modprobe)
            .with_context(|| format!("`{}` failed", command::line(&modprobe)))?;
        for path in needed
            .lines()
            .filter_map(|line| line.strip_prefix("insmod "))
        {
            let path = Path::new(path.trim());
            let name = path.file_name().context("a module has a name")?;
            let name = name.to_string_lossy().into_owned();
            if !order.contains(&name) {
                fs::copy(path, folder.join("modules").join(&name))
                    .with_context(|| format!("cannot copy {}", path.display()))?;
                order.push(name);
            }
        }
    }
    fs::write(folder.join("modules/order"), order.join("\n") + "\n").context("cannot write")?;
    let script = folder.join("init");
    fs::write(&script, init).context("cannot write")?;
    command::run(Command::new("chmod").arg("+x").arg(&script))?;
    command::run(
        Command::new("sh")
            .args(["-c", "find . | cpio --quiet -o -H newc | gzip -1 > \"$0\""])
            .arg(&kernel.initramfs)
            .current_dir(&folder),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_ordinary_kernel_of_a_version_is_taken() {
        let names = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-57-amd64\n\
                     linux-image-6.1.0-58-rt-amd64\nlinux-image-6.1.0-58-cloud-amd64\n\
                     linux-image-6.1.0-58-amd64-dbg\nlinux-image-6.12.101+deb12-amd64\n\
                     linux-image-6.12.117+deb12-cloud-amd64\n\
                     linux-image-6.12-amd64\nlinux-image-amd64\nlinux-image-6.1.0-60-amd64-unsigned\n";
        let newest = |version| newest(names, version);
        assert_eq!(newest("6.1").as_deref(), Some("linux-image-6.1.0-57-amd64"));
        assert_eq!(
            newest("6.12").as_deref(),
            Some("linux-image-6.12.101+deb12-amd64")
        );
        assert_eq!(newest("5.10"), None);
    }
}
