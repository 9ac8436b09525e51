//! Network namespaces: made with `ip netns`, entered with setns, removed when dropped.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::sys;

const FOLDER: &str = "/run/netns";
const PREFIX: &str = "lbt";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A network namespace of this process.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    net: File,
    /// The mount namespace its processes run in, when it is not the host's.
    mounts: Option<OwnedFd>,
}

impl Namespace {
    /// Makes an empty namespace; `role` ends its name.
    pub fn new(role: &str) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{number}-{role}", prefix());
        tool("ip", &["netns", "add", &name])?;
        let path = Path::new(FOLDER).join(&name);
        let net = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let namespace = Self {
            name,
            net,
            mounts: None,
        };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Name as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the namespace's processes a mount namespace with its own /sys (which shows the
    /// interfaces of this namespace) and its own BPF file system, so that nothing they pin is seen
    /// outside and all of it goes away with the laboratory.
    pub fn isolate_mounts(&mut self) -> Result<()> {
        let fd = self.within(|| -> Result<OwnedFd> {
            sys::unshare_mounts().context("cannot make a mount namespace")?;
            for (kind, target) in [("sysfs", "/sys"), ("bpf", "/sys/fs/bpf")] {
                sys::mount(kind, target, Some(kind), 0)
                    .with_context(|| format!("cannot mount {kind} on {target}"))?;
            }
            Ok(File::open("/proc/thread-self/ns/mnt")?.into())
        })??;
        self.mounts = Some(fd);
        Ok(())
    }

    /// The descriptor of the mount namespace, if it has its own.
    pub fn mounts(&self) -> Option<&OwnedFd> {
        self.mounts.as_ref()
    }

    /// A command that will run inside, and die with the calling thread.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        sys::place(
            &mut command,
            self.net.as_raw_fd(),
            self.mounts.as_ref().map(AsRawFd::as_raw_fd),
        );
        command
    }

    /// Runs `work` on a thread inside and waits for it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                let enter = || {
                    sys::enter_net(self.net.as_fd())?;
                    self.mounts
                        .as_ref()
                        .map_or(Ok(()), |fd| sys::enter_mounts(fd.as_fd()))
                };
                enter().with_context(|| format!("cannot enter namespace {}", self.name))?;
                Ok(work())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread inside that runs `work`.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<std::thread::JoinHandle<T>> {
        let net = self
            .net
            .try_clone()
            .context("cannot copy a namespace's descriptor")?;
        let (entered, answer) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let result = sys::enter_net(net.as_fd());
            let failed = result.is_err();
            // The receiver waits just below, so this cannot fail before it has its answer.
            let told = entered.send(result);
            assert!(!failed && told.is_ok(), "cannot enter the namespace");
            work()
        });
        answer
            .recv()
            .context("the thread ended early")?
            .with_context(|| format!("cannot enter namespace {}", self.name))?;
        Ok(thread)
    }

    /// Runs lines of `ip` commands, without the leading word `ip`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-netns", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ip")?;
        let mut input = child.stdin.take().context("ip has no input")?;
        input
            .write_all(lines.as_bytes())
            .context("cannot write to ip")?;
        drop(input);
        let output = child.wait_with_output().context("cannot wait for ip")?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("ip in {}: {}\nof:\n{lines}", self.name, error.trim());
        }
        Ok(())
    }

    /// Runs a tool inside and gives what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        finish(self.command(program).args(args))
    }

    /// Attaches an XDP program that passes all packets, and is not `lb`'s, to an interface; needs
    /// mounts of its own.
    pub fn attach_passing_xdp(&self, interface: &str) -> Result<()> {
        const PATH: &str = "/sys/fs/bpf/passing";
        self.within(|| sys::pin_passing_xdp(PATH))?
            .context("cannot load an XDP program")?;
        self.run("ip", &["link", "set", interface, "xdpdrv", "pinned", PATH])?;
        self.run("rm", &[PATH]).map(drop)
    }

    /// Pins an XDP program at `path` that passes all packets and counts them; needs mounts of its
    /// own.
    pub fn pin_counting_xdp(&self, path: &str) -> Result<sys::PacketCounter> {
        self.within(|| sys::pin_counting_xdp(path))?
            .context("cannot load an XDP program")
    }

    /// Changes the first word of the array pinned at `path`.
    pub fn change_pinned_word(&self, path: &str, new: u32) -> Result<()> {
        self.within(|| sys::change_pinned_word(path, new))?
            .with_context(|| format!("cannot write the map {path}"))
    }

    /// Sets `net.*` variables, named by their path below /proc/sys/net; one that the kernel does
    /// not have is passed over.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.within(|| {
            for (name, value) in values {
                let path = Path::new("/proc/sys/net").join(name);
                if path.exists() {
                    std::fs::write(&path, value)
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
            }
            Ok(())
        })?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = tool("ip", &["netns", "del", &self.name]) {
            eprintln!("laboratory: {error:#}");
        }
    }
}

/// Runs a tool on the host and gives what it printed.
fn tool(program: &str, args: &[&str]) -> Result<String> {
    finish(Command::new(program).args(args))
}

fn finish(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How the names of this process's things begin.
pub(crate) fn prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Removes the namespaces and folders of laboratories whose process no longer lives.
pub fn remove_leftovers() -> Result<()> {
    for name in leftovers(Path::new(FOLDER))? {
        tool("ip", &["netns", "del", &name])?;
    }
    let temporary = std::env::temp_dir();
    for name in leftovers(&temporary)? {
        let path = temporary.join(name);
        std::fs::remove_dir_all(&path)
            .with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Names in `folder` that begin as those of a process that is gone.
fn leftovers(folder: &Path) -> Result<Vec<String>> {
    let listing = || format!("cannot list {}", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(listing),
    };
    let mut names = Vec::new();
    for entry in entries {
        let Ok(name) = entry.with_context(listing)?.file_name().into_string() else {
            continue;
        };
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'));
        if let Some(Ok(process)) = process.map(|(process, _)| process.parse::<u32>())
            && !Path::new("/proc").join(process.to_string()).exists()
        {
            names.push(name);
        }
    }
    Ok(names)
}
