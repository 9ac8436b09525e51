//! A UDP client that sends one datagram and waits for its echo.

use std::net::{SocketAddr, UdpSocket};
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
