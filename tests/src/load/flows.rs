//! Long-lived TCP connections that exchange a few bytes all the time and notice when they break.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::http::connect;
use super::lock;
use crate::lab::Host;

/// How long a connection may be silent before it counts as broken: TCP itself bears with minutes.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a connection is used.
const PERIOD: Duration = Duration::from_millis(50);

/// One connection.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The backend that greeted it.
    pub backend: String,
    /// Messages echoed.
    pub exchanges: u64,
    /// Why it broke, if it did.
    pub broken: Option<String>,
}

/// Connections under way, each on a thread; ended when dropped.
#[derive(Debug)]
pub struct Flows {
    stop: Arc<AtomicBool>,
    flows: Vec<Arc<Mutex<Flow>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Flows {
    /// Opens this many connections to a TCP echo and keeps them busy.
    pub fn open(host: &Host, to: SocketAddr, count: usize) -> Result<Self> {
        let mut flows = Self {
            stop: Arc::default(),
            flows: Vec::new(),
            threads: Vec::new(),
        };
        for number in 0..count {
            let (backend, stream) = host
                .namespace
                .within(|| greeted(to))?
                .with_context(|| format!("opening connection {number}"))?;
            let flow = Arc::new(Mutex::new(Flow {
                backend,
                exchanges: 0,
                broken: None,
            }));
            flows.flows.push(Arc::clone(&flow));
            let stop = Arc::clone(&flows.stop);
            flows
                .threads
                .push(std::thread::spawn(move || talk(stream, &flow, &stop)));
        }
        Ok(flows)
    }

    /// All connections as they stand.
    pub fn all(&self) -> Vec<Flow> {
        self.flows.iter().map(|flow| lock(flow).clone()).collect()
    }

    /// How many live, by backend.
    pub fn alive(&self) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for flow in self.all().into_iter().filter(|flow| flow.broken.is_none()) {
            *count.entry(flow.backend).or_default() += 1;
        }
        count
    }

    /// The broken ones, of all backends but `except`.
    pub fn broken_except(&self, except: &str) -> Vec<Flow> {
        let flows = self.all().into_iter();
        flows
            .filter(|flow| flow.broken.is_some() && flow.backend != except)
            .collect()
    }

    /// Waits until each living connection has exchanged `more` messages more, so that what
    /// happened before has met every one of them.
    pub fn exchange(&self, more: u64, limit: Duration) -> Result<()> {
        let before: Vec<u64> = self.all().iter().map(|flow| flow.exchanges).collect();
        crate::wait_for("each connection to be used", limit, || {
            let mut flows = self.all().into_iter().zip(&before);
            Ok(
                flows
                    .all(|(flow, before)| flow.broken.is_some() || flow.exchanges >= before + more),
            )
        })
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("laboratory: a connection's thread panicked");
            }
        }
    }
}

fn greeted(to: SocketAddr) -> Result<(String, BufReader<std::net::TcpStream>)> {
    let mut stream = BufReader::new(connect(to)?);
    let mut name = String::new();
    stream
        .read_line(&mut name)
        .context("waiting for the greeting")?;
    ensure!(name.ends_with('\n'), "closed before the greeting");
    name.pop();
    Ok((name, stream))
}

fn talk(mut stream: BufReader<std::net::TcpStream>, flow: &Mutex<Flow>, stop: &AtomicBool) {
    let mut number = 0_u64;
    if let Err(error) = stream.get_ref().set_read_timeout(Some(PATIENCE)) {
        lock(flow).broken = Some(error.to_string());
        return;
    }
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        match exchange(&mut stream, number) {
            Ok(()) => lock(flow).exchanges = number,
            Err(error) => {
                lock(flow).broken = Some(format!("{error:#}"));
                return;
            }
        }
        std::thread::sleep(PERIOD);
    }
}

fn exchange(stream: &mut BufReader<std::net::TcpStream>, number: u64) -> Result<()> {
    stream
        .get_mut()
        .write_all(&number.to_be_bytes())
        .context("sending")?;
    let mut echo = [0; 8];
    stream
        .read_exact(&mut echo)
        .context("waiting for the echo")?;
    ensure!(echo == number.to_be_bytes(), "a wrong echo");
    Ok(())
}
