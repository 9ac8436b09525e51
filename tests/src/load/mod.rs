//! Load from the client: threads in its namespace that send requests and count what came back.

pub mod arrivals;
pub mod download;
pub mod flows;
pub mod grpc;
pub mod http;
pub mod idle;
pub mod udp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::lab::Host;

/// How long a request may take before it counts as failed.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests answered well, by the backend that answered.
    pub answered: BTreeMap<String, u64>,
    /// Requests that failed.
    pub failed: u64,
    /// The first few failures, in words.
    pub failures: Vec<String>,
    /// When the last failure was noticed.
    pub last_failure: Option<Instant>,
}

impl Tally {
    /// All requests.
    pub fn requests(&self) -> u64 {
        self.answered.values().sum::<u64>() + self.failed
    }

    /// Requests answered by one backend.
    pub fn of(&self, backend: &str) -> u64 {
        self.answered.get(backend).copied().unwrap_or(0)
    }

    /// What came after an `earlier` state of the same tally.
    pub fn since(&self, earlier: &Self) -> Self {
        let answered = self
            .answered
            .iter()
            .map(|(name, count)| (name.clone(), count - earlier.of(name)));
        Self {
            answered: answered.filter(|(_, count)| *count > 0).collect(),
            failed: self.failed - earlier.failed,
            failures: self
                .failures
                .get(earlier.failures.len()..)
                .unwrap_or_default()
                .to_vec(),
            last_failure: self.last_failure.filter(|_| self.failed > earlier.failed),
        }
    }

    /// An error that lists the failures, if there are any.
    pub fn must_not_fail(&self) -> Result<()> {
        if self.failed > 0 {
            bail!(
                "{} of {} requests failed: {:?}",
                self.failed,
                self.requests(),
                self.failures
            );
        }
        Ok(())
    }

    fn count(&mut self, result: Result<String>) {
        match result {
            Ok(backend) => *self.answered.entry(backend).or_default() += 1,
            Err(error) => {
                self.failed += 1;
                self.last_failure = Some(Instant::now());
                if self.failures.len() < 10 {
                    self.failures.push(format!("{error:#}"));
                }
            }
        }
    }
}

/// How much load.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Threads, each with one request at a time.
    pub workers: usize,
    /// Rest of a thread between requests.
    pub pause: Duration,
    /// Requests of each thread; none: until stopped.
    pub each: Option<u64>,
}

impl Amount {
    /// A gentle, endless load.
    pub fn steady() -> Self {
        Self {
            workers: 4,
            pause: Duration::from_millis(5),
            each: None,
        }
    }

    /// This many requests in all, as fast as they go.
    pub fn requests(all: u64) -> Self {
        Self {
            workers: 4,
            pause: Duration::ZERO,
            each: Some(all / 4),
        }
    }
}

/// Sends one request and gives the name of the backend that answered.
pub trait Requester: Send + 'static {
    /// Opens what the request needs, sends it, reads the answer.
    fn request(&mut self) -> Result<String>;
}

/// Running load; stopped when dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts workers on `host`, each with a requester of its own.
    pub fn start<R: Requester>(host: &Host, amount: Amount, new: impl Fn() -> R) -> Result<Self> {
        let mut load = Self {
            stop: Arc::default(),
            tally: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..amount.workers {
            let (stop, tally, mut requester) = (load.stop.clone(), load.tally.clone(), new());
            let work = move || {
                let mut left = amount.each;
                while !stop.load(Ordering::SeqCst) && left != Some(0) {
                    left = left.map(|left| left - 1);
                    let result = requester.request();
                    let failed = result.is_err();
                    lock(&tally).count(result);
                    // A refused connection must not turn into a busy loop.
                    let pause = if failed {
                        Duration::from_millis(10)
                    } else {
                        Duration::ZERO
                    };
                    std::thread::sleep(amount.pause.max(pause));
                }
            };
            load.threads.push(host.namespace.spawn(work)?);
        }
        Ok(load)
    }

    /// HTTP `GET /` over connections that are kept or not.
    pub fn http(host: &Host, to: SocketAddr, keep: bool, amount: Amount) -> Result<Self> {
        Self::start(host, amount, || http::Client::new(to, keep))
    }

    /// What was counted until now.
    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Waits until every worker has sent its requests.
    pub fn finish(mut self) -> Tally {
        self.join();
        self.tally()
    }

    /// Lets requests under way end, and gives the final count.
    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::SeqCst);
        self.join();
        self.tally()
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("laboratory: a load thread panicked");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
