//! A virtual machine that sees the files of this one, runs test programs on them and leaves them as
//! they are: what it writes goes to its own memory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::image::Kernel;
use crate::command::{self, programs};

/// How long all jobs may take.
const MINUTES: u64 = 60;
const MEMORY_MIB: u32 = 4096;
/// Begins what the machine says of itself on the line that its tests print to.
const MARK: &str = "@lb ";

/// A test program.
pub struct Job {
    /// What its output is headed with.
    pub title: String,
    /// Where it runs.
    pub folder: PathBuf,
    pub binary: PathBuf,
    pub arguments: Vec<String>,
    /// Whether laboratories have the machine's network interfaces in the place of a veth.
    pub over_nics: bool,
}

/// MAC addresses of the machine's two interfaces, which are wired together.
const NICS: [&str; 2] = ["52:54:00:00:77:01", "52:54:00:00:77:02"];

/// What the machine runs first: it makes the files of its host its own, and runs the jobs there.
pub fn init(modules: &Path, jobs: &[Job]) -> String {
    let mut script = format!(
        "#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
stty -F /dev/ttyS1 raw
while read module; do insmod /modules/$module; done < /modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /lower
mount -t tmpfs upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work all /new
mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm /new/lib/modules
mount -t devpts pts /new/dev/pts
for folder in dev/shm tmp run; do mount -t tmpfs new /new/$folder; done
mount -t cgroup2 cgroup /new/sys/fs/cgroup
mount -t bpf bpf /new/sys/fs/bpf
mount --bind /new{} /new/lib/modules
cat > /new/run/jobs <<'END'
exec > /dev/ttyS1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
ip link set lo up
modprobe virtio_net
",
        quoted(&modules.display().to_string())
    );
    for job in jobs {
        let nics = if job.over_nics {
            format!("LB_LAB_NICS={}", NICS.join(","))
        } else {
            String::new()
        };
        let arguments: Vec<String> = job.arguments.iter().map(|text| quoted(text)).collect();
        script.push_str(&format!(
            "echo \"{MARK}\"{}\ncd {} && {nics} LB_BIN={} LB_LAB_BIN={} {} --color never --show-output {}\n",
            quoted(&job.title),
            quoted(&job.folder.display().to_string()),
            quoted(&programs("debug").join("lb").display().to_string()),
            quoted(&programs("debug").join("lb-lab").display().to_string()),
            quoted(&job.binary.display().to_string()),
            arguments.join(" "),
        ));
    }
    // The first process itself changes its root: then the kernel finds modprobe there.
    script.push_str("busybox poweroff -f\nEND\nexec switch_root /new /bin/sh /run/jobs\n");
    script
}

/// For the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Starts the machine and hands on what its jobs print, line by line; how many of them came to an end.
///
/// # Errors
/// If the machine does not start.
pub fn run(kernel: &Kernel, each: &mut dyn FnMut(&str)) -> Result<usize> {
    let console = programs("kernel").join("console.log");
    let mut qemu = Command::new("timeout");
    qemu.arg(format!("{MINUTES}m"))
        .args(["qemu-system-x86_64", "-accel", "tcg,thread=multi"])
        .args(["-cpu", "max", "-smp", "2", "-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&kernel.initramfs)
        .args(["-append", "console=ttyS0 panic=-1"])
        .args([
            "-virtfs",
            "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    for (number, address) in NICS.iter().enumerate() {
        qemu.args([
            "-netdev",
            &format!("hubport,id=net{number},hubid=0"),
            "-device",
        ])
        .arg(format!(
            "virtio-net-pci,netdev=net{number},mac={address},romfile="
        ));
    }
    let mut child = qemu
        .spawn()
        .with_context(|| format!("cannot run {}", command::line(&qemu)))?;
    let stdout = child.stdout.take().context("a pipe was asked for")?;
    let mut begun = 0;
    let mut ended = 0;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what the machine prints")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        match line.strip_prefix(MARK) {
            Some(title) => {
                begun += 1;
                each(&format!("     Running {title}"));
            }
            None => {
                ended += usize::from(line.starts_with("test result: "));
                each(line);
            }
        }
    }
    let status = child.wait().context("cannot wait for the machine")?;
    if begun == 0 {
        bail!(
            "the machine with Linux {} did not come up ({status}); its console is in {}",
            kernel.version,
            console.display()
        );
    }
    Ok(ended)
}
