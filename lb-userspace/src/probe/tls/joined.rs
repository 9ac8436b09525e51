//! The end of a handshake and what the probe says first, in one packet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// So much may wait at the most, bytes: more than what ends a handshake, certificates included.
const MOST: usize = 64 * 1024;

/// A connection that keeps what is written in a handshake until the peer's answer is waited for, or
/// until there is more to write. The last words of a handshake that the client ends so go out with
/// the request, which saves both hosts a packet and the server a wake-up.
#[derive(Debug)]
pub struct Joined {
    tcp: TcpStream,
    waiting: Vec<u8>,
    /// A handshake goes on: to flush sends nothing.
    handshake: bool,
}

impl Joined {
    pub const fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            waiting: Vec::new(),
            handshake: true,
        }
    }

    /// The handshake is over: what waits goes out with what is written next, or with a flush.
    pub const fn handshake_ended(&mut self) {
        self.handshake = false;
    }

    /// Sends what waits. Told once if it cannot be sent: the peer may have answered and closed, and
    /// the answer can be read.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            match ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.waiting)) {
                Ok(sent) => drop(self.waiting.drain(..sent)),
                Err(error) => {
                    self.waiting.clear();
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // That not all can be sent now is no reason not to read.
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.handshake && self.waiting.is_empty() {
            return Pin::new(&mut self.tcp).poll_write(cx, bytes);
        }
        if self.waiting.len() >= MOST {
            ready!(self.poll_send(cx))?;
        }
        self.waiting.extend_from_slice(bytes);
        if !self.handshake
            && let Poll::Ready(Err(error)) = self.poll_send(cx)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.handshake {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
