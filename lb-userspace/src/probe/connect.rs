//! The TCP connection of a probe.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use super::failure::Failure;
use super::outcome::Class;
use super::tls::Joined;

/// A probe's connection, plain or TLS.
pub trait ProbeStream: AsyncRead + AsyncWrite + Unpin {
    /// Prepares the last words, if the session has any; they go out with the next flush.
    fn farewell(&mut self);
}

impl ProbeStream for TcpStream {
    fn farewell(&mut self) {}
}

impl ProbeStream for TlsStream<Joined> {
    fn farewell(&mut self) {
        self.get_mut().1.send_close_notify();
    }
}

/// Connects a socket of [`open`] to `target`; also gives its own address.
pub async fn connect(
    socket: TcpSocket,
    target: SocketAddr,
) -> Result<(TcpStream, SocketAddr), Failure> {
    let stream = socket
        .connect(target)
        .await
        .map_err(|error| Failure::connecting(&error))?;
    let local = stream
        .local_addr()
        .map_err(|error| Failure::connecting(&error))?;
    if local == target {
        // The kernel chose the port that was asked for as the local one and TCP connected to
        // itself. Nobody listens there, or the port would not have been free.
        return Err(Failure::new(
            Class::Refused,
            "connection refused (the port is unused: the kernel connected the probe to itself)",
        ));
    }
    Ok((stream, local))
}

/// For probes whose side speaks first: the acknowledgement of the server's SYN goes out with the
/// request instead of before it, which saves both hosts a packet. The kernel waits for that with the
/// acknowledgement for as long as for any delayed one (40 to 200 ms).
pub fn speak_first(socket: &TcpSocket) -> io::Result<()> {
    SockRef::from(socket).set_tcp_quickack(false)
}

/// A socket for a connection to `target`.
///
/// It closes with RST, whenever and however it is closed: a prober opens many connections to the
/// same few addresses, and a TIME_WAIT for each would use up its ports. A probe asks for
/// `Connection: close` and reads the answer to its end, so a well-behaved server has nothing left
/// to lose by it.
pub fn open(target: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_zero_linger()?;
    socket.set_nodelay(true)?;
    Ok(socket)
}
