//! An open load: requests begin at fixed times, whether or not earlier ones have been answered, so
//! that a backend that hangs does not slow down the asking.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_tests::Host;

/// Time between the beginnings of two requests.
const PERIOD: Duration = Duration::from_millis(5);
/// For a whole request, the connection included.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// A request that took longer is slow.
pub const SLOW: Duration = Duration::from_millis(500);
/// Threads: enough for all requests to one of three backends to hang, and those to the others.
const THREADS: usize = 280;

/// What became of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    pub requests: u32,
    /// Not answered by 200 within [`PATIENCE`].
    pub failed: u32,
    /// Answered, but not within [`SLOW`].
    pub slow: u32,
}

struct Shared {
    to: SocketAddr,
    start: Instant,
    next: AtomicU32,
    stop: AtomicBool,
    tally: Mutex<Tally>,
}

/// Requests that go on until they are stopped.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(host: &Host, to: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared {
            to,
            start: Instant::now() + Duration::from_millis(200),
            next: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            tally: Mutex::default(),
        });
        let mut load = Self {
            shared: shared.clone(),
            threads: Vec::with_capacity(THREADS),
        };
        for _ in 0..THREADS {
            let shared = shared.clone();
            load.threads
                .push(host.namespace.spawn(move || work(&shared))?);
        }
        Ok(load)
    }

    /// Lets the requests under way end.
    pub fn stop(mut self) -> Tally {
        self.end();
        *self
            .shared
            .tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

fn work(shared: &Shared) {
    loop {
        let number = shared.next.fetch_add(1, Ordering::SeqCst);
        let begin = shared.start + PERIOD * number;
        std::thread::sleep(begin.saturating_duration_since(Instant::now()));
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let result = request(shared.to, begin + PATIENCE);
        let mut tally = shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.requests += 1;
        match result {
            Ok(()) if begin.elapsed() > SLOW => tally.slow += 1,
            Ok(()) => {}
            Err(_) => tally.failed += 1,
        }
    }
}

/// `GET /` on a connection of its own.
fn request(to: SocketAddr, deadline: Instant) -> Result<()> {
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "too late");
        Ok(left)
    };
    let mut stream = TcpStream::connect_timeout(&to, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n")?;
    let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece)? {
            0 => break,
            length => answer.extend_from_slice(piece.get(..length).context("no such length")?),
        }
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "not a 200");
    ensure!(
        answer.windows(4).any(|four| four == b"\r\n\r\n"),
        "the headers ended early"
    );
    Ok(())
}
