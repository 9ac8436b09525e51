//! A UDP client that sends one datagram and waits for its echo.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Requester;
use crate::lab::Host;

/// A lost datagram is not sent again, so there is no reason to wait for long.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A client with one socket, or with a new one (hence a new flow) for each datagram.
#[derive(Debug)]
pub struct Client {
    to: SocketAddr,
    keep: bool,
    socket: Option<UdpSocket>,
    number: u64,
}

impl Client {
    /// A client that keeps its socket, or not.
    pub fn new(to: SocketAddr, keep: bool) -> Self {
        Self {
            to,
            keep,
            socket: None,
            number: 0,
        }
    }
}

impl Requester for Client {
    fn request(&mut self) -> Result<String> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open(self.to)?,
        };
        self.number += 1;
        let sent = self.number.to_string();
        socket.send(sent.as_bytes()).context("sending a datagram")?;
        let mut buffer = [0; 128];
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("no echo within {TIMEOUT:?}")
            }
            Err(error) => return Err(error).context("waiting for the echo"),
        };
        let answer = String::from_utf8_lossy(&buffer[..length]);
        let (name, echo) = answer.split_once(' ').context("an echo without a name")?;
        ensure!(echo == sent, "sent {sent:?}, but {echo:?} came back");
        if self.keep {
            self.socket = Some(socket);
        }
        Ok(name.to_owned())
    }
}

/// Numbered datagrams of one flow, each of which must be echoed.
#[derive(Debug)]
pub struct Sequence {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Count>>,
}

/// What became of a [`Sequence`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    pub sent: u64,
    /// Numbers that never came back.
    pub lost: Vec<u64>,
    /// Numbers that came back more than once.
    pub doubled: Vec<u64>,
    /// Backends that answered.
    pub backends: BTreeSet<String>,
}

impl Sequence {
    /// Sends a datagram every 2 ms until it is ended.
    pub fn start(host: &Host, to: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = host.namespace.spawn(move || sequence(to, &flag))?;
        Ok(Self { stop, thread })
    }

    /// Waits for the echoes under way, and counts.
    pub fn finish(self) -> Result<Count> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.join() {
            Ok(count) => count,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn sequence(to: SocketAddr, stop: &AtomicBool) -> Result<Count> {
    const PERIOD: Duration = Duration::from_millis(2);
    let socket = open(to)?;
    let mut count = Count {
        sent: 0,
        lost: Vec::new(),
        doubled: Vec::new(),
        backends: BTreeSet::new(),
    };
    let mut waited = BTreeSet::new();
    let seen = |count: &mut Count, waited: &mut BTreeSet<u64>| -> Result<bool> {
        let mut buffer = [0; 128];
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("waiting for an echo"),
        };
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let (name, number) = answer.split_once(' ').context("an echo without a name")?;
        let number: u64 = number.parse().context("an echo without a number")?;
        count.backends.insert(name.to_owned());
        if !waited.remove(&number) {
            count.doubled.push(number);
        }
        Ok(true)
    };
    socket.set_read_timeout(Some(PERIOD))?;
    while !stop.load(Ordering::SeqCst) {
        count.sent += 1;
        waited.insert(count.sent);
        socket
            .send(count.sent.to_string().as_bytes())
            .context("sending a datagram")?;
        seen(&mut count, &mut waited)?;
        std::thread::sleep(PERIOD);
    }
    socket.set_read_timeout(Some(TIMEOUT))?;
    while !waited.is_empty() && seen(&mut count, &mut waited)? {}
    count.lost = waited.into_iter().collect();
    Ok(count)
}

fn open(to: SocketAddr) -> Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).context("opening a UDP socket")?;
    // Connected: an echo from any other address than the one asked does not arrive.
    socket.connect(to).context("connecting a UDP socket")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// Sends datagrams that nobody waits for, each from a socket of its own: a flood of new flows.
/// Gives how many were sent.
pub fn flood(host: &Host, to: SocketAddr, datagrams: u32) -> Result<u32> {
    host.namespace.within(|| {
        let sent =
            (0..datagrams).filter(|_| open(to).is_ok_and(|socket| socket.send(b"flood").is_ok()));
        u32::try_from(sent.count()).unwrap_or(u32::MAX)
    })
}
