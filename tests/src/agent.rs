//! The real `lb`, running in the balancer's namespace.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::binaries;
use crate::config::Config;
use crate::lab::{Host, Lab};
use crate::process::Process;
use crate::status::Status;
use crate::wait::wait_for;

/// Time for anything the agent does at once; generous, since the machine may be busy.
pub const SOON: Duration = Duration::from_secs(40);

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// Its standard output, if it succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.code == Some(0),
            "exit {:?}: {}{}",
            self.code,
            self.out,
            self.err
        );
        Ok(self.out)
    }
}

/// An agent with its configuration, control socket and state; killed when dropped. It then prints
/// the end of its log, which the test harness shows if the test fails.
#[derive(Debug)]
pub struct Agent<'lab> {
    host: &'lab Host,
    folder: PathBuf,
    binary: PathBuf,
    process: Option<Process>,
    /// Whether to print the log when dropped.
    pub tell_log: bool,
}

impl<'lab> Agent<'lab> {
    /// Writes the configuration without starting anything.
    pub fn prepare(lab: &'lab Lab, config: &Config) -> Result<Self> {
        let folder = lab.folder().to_path_buf();
        let agent = Self {
            host: &lab.lb,
            folder,
            binary: binaries::lb()?,
            process: None,
            tell_log: true,
        };
        agent.configure(config)?;
        Ok(agent)
    }

    /// Starts `lb run` and waits until all backends are in use.
    pub fn start(lab: &'lab Lab, config: &Config) -> Result<Self> {
        let mut agent = Self::prepare(lab, config)?;
        agent.run(&[], &[])?;
        agent.settled()?;
        Ok(agent)
    }

    /// Path of the configuration.
    pub fn config_path(&self) -> PathBuf {
        self.folder.join("lb.toml")
    }

    /// Path of the control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("lb.sock")
    }

    /// Path of the program.
    pub fn binary(&self) -> &std::path::Path {
        &self.binary
    }

    /// Has the next agents run this program.
    pub fn set_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Where this agent's data plane is pinned, in the balancer's BPF file system.
    pub fn pins(&self) -> Result<String> {
        let find = ["/sys/fs/bpf", "-mindepth", "1", "-name", "program"];
        let program = self.host.namespace.run("find", &find)?;
        let folder = program.trim().strip_suffix("/program");
        Ok(folder.context("nothing is pinned")?.to_owned())
    }

    /// `lb status --json` with all it says, contract or not.
    pub fn raw_status(&self) -> Result<serde_json::Value> {
        let text = self.lb(&["status", "--json"])?.ok()?;
        serde_json::from_str(&text).context("the status is no JSON")
    }

    /// How many packets of a service met with this verdict.
    pub fn counted(&self, service: &str, verdict: &str) -> Result<u64> {
        let status = self.status()?;
        let verdicts = &status.service(service)?.verdicts;
        Ok(verdicts.get(verdict).copied().unwrap_or(0))
    }

    /// Waits until an event of this kind has this in its reason.
    pub fn wait_event(&self, kind: &str, reason: &str) -> Result<()> {
        wait_for(&format!("the event {kind}: {reason}"), SOON, || {
            let events = self.events()?;
            Ok(events.iter().any(|event| {
                event["kind"] == kind
                    && event["reason"]
                        .as_str()
                        .is_some_and(|text| text.contains(reason))
            }))
        })
    }

    /// Writes another configuration; the agent reads it when told to.
    pub fn configure(&self, config: &Config) -> Result<()> {
        self.configure_text(&config.toml(&self.folder))
    }

    /// Writes any text as the configuration.
    pub fn configure_text(&self, text: &str) -> Result<()> {
        let path = self.config_path();
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Starts `lb run` without waiting for it.
    pub fn run(&mut self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        let log = self.log_file()?;
        let mut command = self.host.namespace.command(&self.binary);
        command
            .args(["run", "--config"])
            .arg(self.config_path())
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.process = Some(Process::spawn(&mut command, "lb run")?);
        Ok(())
    }

    fn log_file(&self) -> Result<File> {
        let path = self.folder.join("lb.log");
        let log = OpenOptions::new().create(true).append(true).open(&path);
        log.with_context(|| format!("cannot write {}", path.display()))
    }

    /// What all agents of this laboratory logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("lb.log")).unwrap_or_default()
    }

    /// Waits until the agent answers and every backend is `active`.
    pub fn settled(&mut self) -> Result<()> {
        self.wait_status("every backend to be active", |status| {
            let mut backends = status.services.iter().flat_map(|service| &service.backends);
            Ok(backends.all(|backend| backend.routing == "active"))
        })
    }

    /// Waits until `condition` holds of the status and the data plane has caught up with it.
    pub fn wait_status(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&Status) -> Result<bool>,
    ) -> Result<()> {
        let mut last = String::from("no status");
        let result = wait_for(what, SOON, || {
            self.must_run()?;
            let output = self.lb(&["status", "--json"])?;
            // An agent that starts does not answer before the kernel has verified its program,
            // which takes seconds on a busy machine.
            if output.code != Some(0) {
                last = output.err;
                return Ok(false);
            }
            last = output.out;
            let status = parse(&last)?;
            Ok(condition(&status)? && status.node.verdict_age_seconds == 0.0)
        });
        result.with_context(|| format!("last status: {last}"))
    }

    /// Waits until a backend (`service/backend`) has this routing.
    pub fn wait_routing(&mut self, backend: &str, routing: &str) -> Result<()> {
        let what = format!("{backend} to be {routing}");
        self.wait_status(&what, |status| {
            Ok(status.backend(backend)?.routing == routing)
        })
    }

    fn must_run(&mut self) -> Result<()> {
        match &mut self.process {
            None => Ok(()),
            Some(process) => match process.ended()? {
                None => Ok(()),
                Some(status) => bail!("lb run ended ({status}); its log:\n{}", self.log()),
            },
        }
    }

    /// The status now.
    pub fn status(&self) -> Result<Status> {
        parse(&self.lb(&["status", "--json"])?.ok()?)
    }

    /// The events so far, one JSON value each.
    pub fn events(&self) -> Result<Vec<serde_json::Value>> {
        let text = self.lb(&["events", "--json"])?.ok()?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// A command line `lb --socket … ARGUMENTS` in the balancer's namespaces, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.namespace.command(&self.binary);
        command.arg("--socket").arg(self.socket()).args(arguments);
        command
    }

    /// Runs `lb ARGUMENTS` to its end.
    pub fn lb(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.command(arguments).output().context("cannot run lb")?;
        Ok(Output {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// What of `lb` is on the balancer: XDP programs on its interfaces, pinned files.
    pub fn traces(&self) -> Result<Vec<String>> {
        let links = self
            .host
            .namespace
            .run("ip", &["-oneline", "link", "show"])?;
        let attached = links.lines().filter(|line| line.contains("xdp"));
        // The kernel itself makes the files named `.debug`.
        let find = ["/sys/fs/bpf", "-mindepth", "1", "!", "-name", "*.debug"];
        let pins = self.host.namespace.run("find", &find)?;
        Ok(attached.chain(pins.lines()).map(str::to_owned).collect())
    }

    /// SIGKILL, as a crash or the out-of-memory killer would.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Stops the agent without ending it, as a host that is starved.
    pub fn freeze(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    /// Ends [`Agent::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    fn signal(&self, signal: libc::c_int) -> Result<()> {
        let process = self.process.as_ref().context("the agent does not run")?;
        process.signal(signal)
    }

    /// SIGTERM, which an agent with a grace does not end by.
    pub fn begin_to_end(&self) -> Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut process = self.process.take().context("the agent does not run")?;
        process.signal(libc::SIGTERM)?;
        process.wait(SOON)
    }

    /// Waits until the agent has ended by itself.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut process = self.process.take().context("the agent does not run")?;
        process.wait(limit)
    }

    /// Whether `lb run` has not ended.
    pub fn runs(&mut self) -> Result<bool> {
        match &mut self.process {
            Some(process) => Ok(process.ended()?.is_none()),
            None => Ok(false),
        }
    }

    /// Process id of `lb run`, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if self.tell_log {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            println!("--- the end of the log of lb run ---\n{}", tail.join("\n"));
        }
    }
}

fn parse(text: &str) -> Result<Status> {
    serde_json::from_str(text)
        .with_context(|| format!("`lb status --json` is not to contract: {text}"))
}
