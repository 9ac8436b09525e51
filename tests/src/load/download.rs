//! One long download whose every byte is compared.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};

use super::TIMEOUT;
use super::http::Client;
use crate::lab::Host;
use crate::pattern;

/// A download under way on a thread of its own.
#[derive(Debug)]
pub struct Download {
    /// The backend that serves it.
    pub backend: String,
    received: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Download {
    /// Starts to fetch this many bytes, at `rate` bytes a second if given, and waits for the head
    /// of the answer.
    pub fn start(host: &Host, from: SocketAddr, bytes: u64, rate: Option<u64>) -> Result<Self> {
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
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
        match backend_name(&name) {
            Some(backend) => Ok(Self {
                backend,
                received,
                thread,
            }),
            None => match join(thread) {
                Err(error) => Err(error.context("the download did not start")),
                Ok(()) => Err(anyhow!("the download ended without a start")),
            },
        }
    }

    /// Bytes received and found right.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::SeqCst)
    }

    /// Whether it has ended, well or not.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the end; an error if it broke or a byte was wrong.
    pub fn finish(self) -> Result<()> {
        join(self.thread)
    }
}

fn backend_name(name: &Receiver<String>) -> Option<String> {
    name.recv_timeout(2 * TIMEOUT).ok()
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
