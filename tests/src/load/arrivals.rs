//! New connections at a fixed rate, whatever becomes of those before: what a crowd of clients does
//! to a backend that is dying.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::Host;

/// How long a client waits for the whole exchange.
const PATIENCE: Duration = Duration::from_secs(3);

/// Clients that come and go; stopped when dropped.
#[derive(Debug)]
pub struct Arrivals {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    served: AtomicU64,
    failed: AtomicU64,
}

impl Arrivals {
    /// Clients on `host` that each open a connection, send one HTTP request and read until the end.
    pub fn start(host: &Host, to: SocketAddr, per_second: u32) -> Result<Self> {
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());
        let (stopped, counted) = (stop.clone(), counts.clone());
        let thread = host.namespace.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(come(to, per_second, stopped, counted)),
                Err(error) => eprintln!("load: {error}"),
            }
        })?;
        Ok(Self {
            stop,
            counts,
            thread: Some(thread),
        })
    }

    /// How many were served with any answer.
    pub fn served(&self) -> u64 {
        self.counts.served.load(Ordering::SeqCst)
    }

    /// How many were not.
    pub fn failed(&self) -> u64 {
        self.counts.failed.load(Ordering::SeqCst)
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("laboratory: the thread of new connections panicked");
        }
    }
}

async fn come(to: SocketAddr, per_second: u32, stop: Arc<AtomicBool>, counts: Arc<Counts>) {
    let mut next = tokio::time::interval(Duration::from_secs(1) / per_second);
    while !stop.load(Ordering::SeqCst) {
        next.tick().await;
        let counts = counts.clone();
        tokio::spawn(async move {
            let served = tokio::time::timeout(PATIENCE, visit(to)).await;
            let count = match served {
                Ok(Ok(())) => &counts.served,
                Ok(Err(_)) | Err(_) => &counts.failed,
            };
            count.fetch_add(1, Ordering::SeqCst);
        });
    }
}

async fn visit(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    let request = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
