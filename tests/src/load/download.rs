//! One long download whose every byte is compared.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::TIMEOUT;
use super::http::Client;
use crate::lab::Host;
use crate::pattern;

/// A download under way on a thread of its own; given up when dropped.
#[derive(Debug)]
pub struct Download {
    /// The backend that serves it.
    pub backend: String,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Download {
    /// Starts to fetch this many bytes, at `rate` bytes a second if given, and waits for the head
    /// of the answer.
    pub fn start(host: &Host, from: SocketAddr, bytes: u64, rate: Option<u64>) -> Result<Self> {
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let rate = rate.map(|rate| format!("&rate={rate}")).unwrap_or_default();
        let path = format!("/download?bytes={bytes}{rate}");
        let (started, name) = channel();
        let work = move || {
            let mut client = Client::new(from, true);
            let (head, body) = client.get(&path)?;
            ensure!(
                head.status == 200 && head.length == bytes,
                "unexpected answer: {head:?}"
            );
            let backend = head.backend.context("the answer names no backend")?;
            started
                .send(backend)
                .context("nobody waits for the download")?;
            let mut buffer = vec![0; 256 * 1024];
            let mut offset = 0;
            while offset < bytes {
                ensure!(
                    !stopped.load(Ordering::SeqCst),
                    "given up after {offset} bytes"
                );
                let length = body
                    .read(&mut buffer)
                    .with_context(|| format!("after {offset} bytes"))?;
                ensure!(
                    length > 0,
                    "the connection ended after {offset} of {bytes} bytes"
                );
                let right = pattern::matches(offset, &buffer[..length]);
                ensure!(right, "wrong bytes within the {length} after {offset}");
                offset += length as u64;
                counter.store(offset, Ordering::SeqCst);
            }
            Ok(())
        };
        let thread = host.namespace.spawn(work)?;
        match name.recv_timeout(2 * TIMEOUT) {
            Ok(backend) => Ok(Self {
                backend,
                received,
                stop,
                thread: Some(thread),
            }),
            Err(_) => match join(thread) {
                Err(error) => Err(error.context("the download did not start")),
                Ok(()) => Err(anyhow!("the download ended without a start")),
            },
        }
    }

    /// The same, served by a certain backend: starts anew until the flow falls to it.
    pub fn from_backend(
        host: &Host,
        from: SocketAddr,
        backend: &str,
        bytes: u64,
        rate: u64,
    ) -> Result<Self> {
        for _ in 0..200 {
            let download = Self::start(host, from, bytes, Some(rate))?;
            if download.backend == backend {
                return Ok(download);
            }
        }
        bail!("200 downloads, and {backend} served none of them")
    }

    /// Bytes received and found right.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }

    /// Whether it has ended, well or not.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end; an error if it broke or a byte was wrong.
    pub fn finish(mut self) -> Result<()> {
        self.thread.take().map_or(Ok(()), join)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Given up, so how it ends is of no interest, but a thread must not outlive its laboratory.
        if let Some(thread) = self.thread.take() {
            drop(join(thread));
        }
    }
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow!("the download's thread panicked")))
}
