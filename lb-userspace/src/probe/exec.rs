//! The exec probe: a command of this host, judged by its exit status. [`run_command`] runs others in
//! the same way.
//!
//! No shell. The command leads a process group of its own, which is killed as a whole when the
//! probe ends, whatever way it ends; a process that has left the group (setsid) is not found.

use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures::future::{Either, select};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::failure::Failure;
use super::outcome::Class;
use super::trace::Trace;
use super::{Answer, Success, text};
use crate::model::ExecProbe;

/// So much of the output is kept for people; the rest is read and dropped, so that the command does
/// not wait for a reader.
const MAX_OUTPUT: usize = 1024;

/// How long the rest of the output is waited for after the command has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// `PATH` of the command.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the command to its end.
pub async fn ask(target: SocketAddr, probe: &ExecProbe, trace: &mut Trace) -> Answer {
    run(&probe.command, environment(target, probe), trace).await
}

/// Runs a command of this host that is no probe; gives its exit status and its first line.
///
/// # Errors
/// In one line for people: it could not be started, ended with another exit status than 0, or was
/// still running after `limit`, and then killed with its process group.
pub async fn run_command(
    command: &[String],
    environment: impl IntoIterator<Item = (&'static str, String)>,
    limit: Duration,
) -> Result<String, String> {
    let mut trace = Trace::start(false);
    let path = [("PATH", PATH.to_owned())];
    let environment = path.into_iter().chain(environment);
    match timeout(limit, run(command, environment, &mut trace)).await {
        Ok(Ok(Success(detail))) => Ok(detail),
        Ok(Err(failure)) => Err(failure.detail),
        Err(_) => Err(format!(
            "still running after {} and killed",
            text::duration(limit)
        )),
    }
}

async fn run(
    command: &[String],
    environment: impl IntoIterator<Item = (&'static str, String)>,
    trace: &mut Trace,
) -> Answer {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| Failure::internal("the command is empty"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command
        .spawn()
        .map_err(|error| not_started(program, &error))?;
    let mut group = Group::new(child);
    trace.step(
        "start",
        match group.child.id() {
            Some(id) => format!("{program}, process {id}"),
            None => program.clone(),
        },
    );
    trace.waiting("the command was still running and is killed");
    let (stdout, stderr) = (group.child.stdout.take(), group.child.stderr.take());
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let status = {
        let reading =
            async { tokio::join!(keep(stdout, &mut said), keep(stderr, &mut complained)) };
        let mut reading = pin!(reading);
        let mut wait = pin!(group.child.wait());
        let status = match select(wait.as_mut(), reading.as_mut()).await {
            Either::Left((status, _)) => {
                // A child of it may keep the pipes open for as long as it likes.
                let _ = timeout(LAST_WORDS, reading).await;
                status
            }
            Either::Right(_) => wait.await,
        };
        status
            .map_err(|error| Failure::internal(format!("cannot wait for the command: {error}")))?
    };
    let output = first_line(&said).or_else(|| first_line(&complained));
    judge(program, status, output, trace)
}

fn judge(program: &str, status: ExitStatus, output: Option<String>, trace: &mut Trace) -> Answer {
    let said = output.map_or_else(String::new, |line| format!(": \"{line}\""));
    if let Some(signal) = status.signal() {
        // Not the probe's own signal, which ends it without coming here: a crash, or the kernel
        // short of memory.
        return Err(Failure::internal(format!(
            "the command {program} was killed by signal {signal}{said}"
        )));
    }
    let code = status.code().unwrap_or(-1);
    let detail = format!("exit status {code}{said}");
    trace.step("exit", detail.clone());
    if code == 0 {
        Ok(Success(detail))
    } else {
        Err(Failure::new(Class::Application, detail))
    }
}

/// What the command is told: names of its own, and those of HAProxy's external checks, so that
/// commands written for these can be used.
fn environment(target: SocketAddr, probe: &ExecProbe) -> [(&'static str, String); 9] {
    let (address, port) = (target.ip().to_string(), target.port().to_string());
    [
        ("PATH", PATH.to_owned()),
        ("LB_SERVICE", probe.service.to_string()),
        ("LB_BACKEND", probe.backend.to_string()),
        ("LB_ADDRESS", address.clone()),
        ("LB_PORT", port.clone()),
        ("HAPROXY_PROXY_NAME", probe.service.to_string()),
        ("HAPROXY_SERVER_NAME", probe.backend.to_string()),
        ("HAPROXY_SERVER_ADDR", address),
        ("HAPROXY_SERVER_PORT", port),
    ]
}

/// Everything that keeps a command from starting is on this host.
fn not_started(program: &str, error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Failure::internal(format!(
            "there is no command {program} (or no interpreter for it)"
        )),
        Some(libc::EACCES) => Failure::internal(format!(
            "the command {program} is not executable for the agent; see chmod +x"
        )),
        Some(libc::ENOEXEC) => Failure::internal(format!(
            "{program} is no program: a script needs a first line such as #!/bin/sh"
        )),
        Some(libc::EAGAIN) => Failure::shortage(
            "no process can be started: the limit of processes is reached (ulimit -u, TasksMax)",
        ),
        Some(libc::EMFILE | libc::ENFILE) => Failure::shortage(
            "no file descriptor left for the command's pipes; raise LimitNOFILE (ulimit -n)",
        ),
        Some(libc::ENOMEM) => Failure::shortage(format!("no memory left to start {program}")),
        _ => Failure::internal(format!("cannot start {program}: {error}")),
    }
}

/// Reads to the end and keeps the first [`MAX_OUTPUT`] bytes.
async fn keep(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 1024];
    // The output is for people only: an error of the pipe ends it as its end does.
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_OUTPUT - kept.len();
        kept.extend_from_slice(&buffer[..length.min(room)]);
    }
}

fn first_line(output: &[u8]) -> Option<String> {
    let line = output
        .split(|byte| *byte == b'\n')
        .find(|line| !line.trim_ascii().is_empty())?;
    Some(text::excerpt(line.trim_ascii()))
}

/// A command and its process group, which does not outlive it.
struct Group {
    child: Child,
    /// The group has the number of its leader.
    id: Option<libc::pid_t>,
}

impl Group {
    fn new(child: Child) -> Self {
        let id = child.id().and_then(|id| libc::pid_t::try_from(id).ok());
        Self { child, id }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        // SAFETY: kill has no memory effects. The number cannot have gone to another group: while
        // the leader is not waited for it keeps it, and afterwards a group that still has members
        // does; without members there may be another only if the kernel has given out all other
        // numbers in between.
        if unsafe { libc::kill(-id, libc::SIGKILL) } != 0 {
            // ESRCH: all have ended.
            tracing::debug!(error = %io::Error::last_os_error(), "no process group to kill");
        }
    }
}
