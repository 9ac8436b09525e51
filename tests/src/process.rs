//! A child process that does not outlive its owner.

use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::sys;
use crate::wait::wait_for;

/// A running process and its descendants (its process group); killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `command`, which must make its child the leader of a process group.
    pub fn spawn(command: &mut Command, name: &str) -> Result<Self> {
        let child = command.spawn().with_context(|| {
            format!(
                "cannot start {name} ({})",
                command.get_program().to_string_lossy()
            )
        })?;
        Ok(Self {
            child,
            name: name.into(),
        })
    }

    /// The process itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: libc::c_int) -> Result<()> {
        sys::signal_group(self.child.id(), signal)
            .with_context(|| format!("cannot send signal {signal} to {}", self.name))
    }

    /// SIGTERM to the process alone, which is to tell its descendants itself.
    pub fn terminate(&self) -> Result<()> {
        sys::signal_process(self.child.id(), libc::SIGTERM)
            .with_context(|| format!("cannot send SIGTERM to {}", self.name))
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let mut status = None;
        wait_for(&what, limit, || {
            status = self.ended()?;
            Ok(status.is_some())
        })?;
        status.context(what)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.signal(libc::SIGKILL)?;
            self.child
                .wait()
                .with_context(|| format!("cannot wait for {}", self.name))?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("laboratory: {error:#}");
        }
    }
}
