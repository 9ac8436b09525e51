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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A connection, and its other end. What one end sends is there when the call returns.
    async fn pair() -> (Joined, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        (Joined::new(client), server)
    }

    /// What has arrived, by one read.
    fn arrived(server: &mut std::net::TcpStream) -> Vec<u8> {
        let mut buffer = [0; 64];
        match server.read(&mut buffer) {
            Ok(length) => buffer[..length].to_vec(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }

    async fn say(joined: &mut Joined, words: &[u8]) {
        joined.write_all(words).await.unwrap();
        joined.flush().await.unwrap();
    }

    #[tokio::test]
    async fn the_last_words_of_a_handshake_go_out_with_the_first_after_it() {
        let (mut joined, mut server) = pair().await;
        say(&mut joined, b"hello").await;
        assert_eq!(arrived(&mut server), b"");
        assert!(joined.read_u8().now_or_never().is_none());
        assert_eq!(arrived(&mut server), b"hello", "an answer is waited for");
        say(&mut joined, b"key, ").await;
        say(&mut joined, b"finished, ").await;
        assert_eq!(arrived(&mut server), b"");
        joined.handshake_ended();
        joined.write_all(b"request").await.unwrap();
        assert_eq!(arrived(&mut server), b"key, finished, request");
        joined.write_all(b"more").await.unwrap();
        assert_eq!(arrived(&mut server), b"more");
    }

    #[tokio::test]
    async fn nothing_waits_for_ever() {
        // A server that speaks first.
        let (mut joined, mut server) = pair().await;
        say(&mut joined, b"finished").await;
        joined.handshake_ended();
        assert!(joined.read_u8().now_or_never().is_none());
        assert_eq!(arrived(&mut server), b"finished");
        // An alert.
        let (mut joined, mut server) = pair().await;
        say(&mut joined, b"alert").await;
        joined.handshake_ended();
        joined.flush().await.unwrap();
        assert_eq!(arrived(&mut server), b"alert");
    }

    #[tokio::test]
    async fn an_answer_can_be_read_though_nothing_can_be_sent() {
        let (mut joined, mut server) = pair().await;
        server.write_all(b"no").unwrap();
        say(&mut joined, b"finished").await;
        let socket = socket2::SockRef::from(&joined.tcp);
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        joined.handshake_ended();
        assert!(joined.write_all(b"request").await.is_err());
        let mut answer = [0; 2];
        joined.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"no");
    }
}
