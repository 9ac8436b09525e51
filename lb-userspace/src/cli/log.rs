//! The log on stderr, written by a thread of its own.
//!
//! Whoever reads stderr may be slow, stopped or gone (a paused terminal, a full disk, a log daemon
//! that hangs). None of that may hold up the agent's loop, let alone end it: lines wait in a queue,
//! those that find it full are counted and left out, and what cannot be written is lost.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::Failure;
use crate::privileges;

/// Lines on their way.
const QUEUE: usize = 4096;
/// How long the end of the program waits for the last lines to be taken.
const LAST_LINES: Duration = Duration::from_secs(1);

enum Job {
    Line(Vec<u8>),
    /// All lines before it have been written.
    Flush(SyncSender<()>),
}

/// The way to the thread.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Job>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread that writes to `out`.
    fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Self {
            queue,
            lost: lost.clone(),
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                privileges::give_up_in_thread();
                if let Err(error) = privileges::no_new_privileges() {
                    tracing::error!("setting no_new_privs: {error}");
                }
                write_all(out, &jobs, &lost);
            })?;
        Ok(lines)
    }
}

/// Nobody can be told about a line that cannot be written: this is where all else is told.
fn write_all(mut out: impl Write, jobs: &Receiver<Job>, lost: &AtomicU64) {
    for job in jobs {
        match job {
            Job::Line(line) => {
                let missing = lost.swap(0, Ordering::Relaxed);
                if missing > 0 {
                    let _ = writeln!(out, "{missing} lines are missing here: stderr was not read");
                }
                let _ = out.write_all(&line);
            }
            Job::Flush(done) => {
                // Who asked has waited long enough and gone.
                let _ = done.try_send(());
            }
        }
    }
}

/// One line of the log; tracing writes each in one piece.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Job::Line(line.to_vec())) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The log. Dropped, it waits for the last lines, but not for a reader that takes none.
#[must_use = "the last lines are waited for when it is dropped"]
pub struct Log(Lines);

impl Drop for Log {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        // Full: nobody reads, so there is nothing to wait for.
        if self.0.queue.try_send(Job::Flush(done)).is_ok() {
            let _ = written.recv_timeout(LAST_LINES);
        }
    }
}

/// Logs to stderr what LB_LOG asks for, or `default`.
pub fn to_stderr(default: &str) -> Result<Log, Failure> {
    let filter = match std::env::var("LB_LOG") {
        Ok(text) if text.is_empty() => EnvFilter::new(default),
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|error| Failure::Usage(format!("LB_LOG={text:?}: {error}")))?,
        Err(std::env::VarError::NotPresent) => EnvFilter::new(default),
        Err(error) => return Err(Failure::Usage(format!("LB_LOG: {error}"))),
    };
    let lines = Lines::start(io::stderr()).context("starting the thread for the log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines.clone())
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        // It would tell stderr, by a macro that panics if stderr cannot be written.
        .log_internal_errors(false)
        .init();
    Ok(Log(lines))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    /// Takes nothing before it is told to.
    struct Slow(Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Whether it is told or the test is over.
            let _ = self.0.recv();
            self.1.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed() {
        let (go, wait) = channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut lines = Lines::start(Slow(wait, seen.clone())).unwrap();
        for _ in 0..QUEUE + 100 {
            lines.write_all(b"line\n").unwrap();
        }
        assert!(lines.lost.load(Ordering::Relaxed) >= 99);
        drop(go);
        let (done, written) = sync_channel(1);
        lines.queue.send(Job::Flush(done)).unwrap();
        written.recv().unwrap();
        let seen = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        assert!(seen.contains(" lines are missing here"), "{}", seen.len());
        assert!(seen.ends_with("line\n"));
    }

    #[test]
    fn what_cannot_be_written_is_lost_and_nothing_else() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut lines = Lines::start(Broken).unwrap();
        lines.write_all(b"line\n").unwrap();
        let (done, written) = sync_channel(1);
        lines.queue.send(Job::Flush(done)).unwrap();
        written.recv().unwrap();
    }
}
