//! Threads that keep a connection busy, open another when it ends, and say whether it should have.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::excuse::Excuses;
use super::talk::Open;
use crate::lab::Host;

/// How one application is used.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// What the report calls it.
    pub name: &'static str,
    /// Opens a connection.
    pub open: Open,
    /// Whether a connection is over once it is open.
    pub once: bool,
    /// Rest between exchanges, or between connections.
    pub pause: Duration,
}

/// What one thread has seen.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Connections opened.
    pub connections: u64,
    /// Exchanges, and connections for one request.
    pub exchanges: u64,
    /// Bytes received and compared.
    pub bytes: u64,
    /// Connections that broke with their backend, and those that met a dead one.
    pub expected: u64,
    /// What should not have happened, in words.
    pub wrong: Vec<String>,
    /// Longest time between two exchanges of a connection, or to open one.
    pub stall: Duration,
}

impl Record {
    /// Notes that data came, after a wait of this long.
    pub(super) fn progress(&mut self, bytes: u64, wait: Duration) {
        self.exchanges += 1;
        self.bytes += bytes;
        self.stall = self.stall.max(wait);
    }

    /// Notes an end that was to be expected, or not.
    pub(super) fn end(&mut self, expected: bool, tell: impl FnOnce() -> String) {
        if expected {
            self.expected += 1;
        } else {
            self.wrong.push(tell());
        }
    }
}

/// One thread with its connection; ended when dropped.
#[derive(Debug)]
pub struct Session {
    /// The application, as the report calls it.
    pub name: String,
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Session {
    /// Starts a thread on `host`. Its first connection is to be served by `first`, if given: so
    /// that every backend has one, tries are thrown away until one is.
    pub fn start(
        host: &Host,
        name: String,
        to: SocketAddr,
        how: Use,
        first: Option<String>,
        excuses: &Excuses,
    ) -> Result<Self> {
        let excuses = excuses.clone();
        Self::spawn(host, name, move |record, stop| {
            talk(to, how, first, &excuses, record, stop);
        })
    }

    /// Starts any work that keeps a record and ends when told to.
    pub(super) fn spawn(
        host: &Host,
        name: String,
        work: impl FnOnce(&Mutex<Record>, &AtomicBool) + Send + 'static,
    ) -> Result<Self> {
        let (record, stop) = (Arc::default(), Arc::default());
        let (shared, stopped) = (Arc::clone(&record), Arc::clone(&stop));
        let thread = host
            .namespace
            .spawn(move || work(&shared, &stopped))?
            .into();
        Ok(Self {
            name,
            record,
            stop,
            thread,
        })
    }

    /// What it has seen until now.
    pub fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Tells it to end, without waiting.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            eprintln!("laboratory: the thread of {} panicked", self.name);
        }
    }
}

pub(super) fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tries to get the first connection from the wanted backend.
const TRIES: u32 = 300;

fn talk(
    to: SocketAddr,
    how: Use,
    mut first: Option<String>,
    excuses: &Excuses,
    record: &Mutex<Record>,
    stop: &AtomicBool,
) {
    let mut tries = 0;
    while !stop.load(Ordering::SeqCst) {
        let started = Instant::now();
        let (backend, mut conversation) = match (how.open)(to) {
            Ok(open) => open,
            Err(error) => {
                let expected = excuses.failed(started, Instant::now());
                lock(record).end(expected, || format!("a new connection: {error:#}"));
                std::thread::sleep(how.pause.max(Duration::from_millis(50)));
                continue;
            }
        };
        let opened = Instant::now();
        if tries < TRIES && first.as_ref().is_some_and(|wanted| *wanted != backend) {
            tries += 1;
            continue;
        }
        first = None;
        {
            let mut record = lock(record);
            record.connections += 1;
            record.stall = record.stall.max(opened - started);
            record.exchanges += u64::from(how.once);
        }
        let mut last = opened;
        while !how.once && !stop.load(Ordering::SeqCst) {
            let result = conversation.exchange();
            let now = Instant::now();
            match result {
                Ok(bytes) => lock(record).progress(bytes, now - last),
                Err(error) => {
                    let expected = excuses.broke(&backend, opened, now);
                    lock(record).end(expected, || {
                        let (age, wait) = (now - opened, now - last);
                        format!(
                            "of {backend}, {age:.1?} old, after a wait of {wait:.1?}: {error:#}"
                        )
                    });
                    break;
                }
            }
            std::thread::sleep(how.pause);
            last = Instant::now();
        }
        if how.once {
            std::thread::sleep(how.pause);
        }
    }
}
