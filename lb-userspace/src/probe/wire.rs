//! Reading and writing for the protocols that are spoken by hand: everything received is bounded.

use std::io;

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::Class;
use super::text;
use super::trace::{Observed, Trace};

/// A connection with what was received and not yet used.
#[derive(Debug)]
pub struct Wire<S> {
    stream: Observed<S>,
    buffer: Vec<u8>,
    /// Bytes before this place are used.
    start: usize,
    /// The protocol, for messages: `Redis`.
    protocol: &'static str,
}

impl<S: ProbeStream> Wire<S> {
    pub fn new(stream: S, protocol: &'static str, trace: &Trace) -> Self {
        Self {
            stream: Observed::new(stream, trace),
            buffer: Vec::new(),
            start: 0,
            protocol,
        }
    }

    /// Sends all of `bytes`.
    ///
    /// That the peer takes no more is no verdict: it may have answered first. Reading finds the
    /// answer, or the error again.
    pub async fn send(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).await.is_ok() {
            // As above.
            let _ = self.stream.flush().await;
        }
    }

    /// Sends `bytes` as far as they go out at once, and says farewell: nobody waits for the
    /// answer, and the verdict does not depend on it.
    pub fn part(&mut self, bytes: &[u8]) {
        // A leave that cannot be taken is none of the backend's faults.
        let _ = self.send(bytes).now_or_never();
        let _ = self.stream.shutdown().now_or_never();
    }

    /// What was received and not yet used.
    pub fn received(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The first `length` bytes of it are used.
    pub fn consume(&mut self, length: usize) {
        self.start = (self.start + length).min(self.buffer.len());
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    /// Waits for more bytes; false if the peer has closed.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn more(&mut self) -> Result<bool, Failure> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk).await {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.buffer.drain(..self.start);
                self.start = 0;
                self.buffer.extend_from_slice(&chunk[..length]);
                Ok(true)
            }
            // TLS without close_notify: closed is closed here.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(Failure::established(&error)),
        }
    }

    /// Exactly `length` bytes, which the caller has bounded.
    ///
    /// # Errors
    /// The connection broke or ended before.
    pub async fn exact(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        while self.received().len() < length {
            if !self.more().await? {
                return Err(self.closed());
            }
        }
        let bytes = self.received()[..length].to_vec();
        self.consume(length);
        Ok(bytes)
    }

    /// A line without its CR LF (or LF), of at most `most` bytes.
    ///
    /// # Errors
    /// It is longer; or the connection broke or ended before its end.
    pub async fn line(&mut self, most: usize) -> Result<Vec<u8>, Failure> {
        loop {
            let end = self.received().iter().position(|byte| *byte == b'\n');
            if let Some(end) = end.filter(|end| *end <= most) {
                let line = &self.received()[..end];
                let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
                self.consume(end + 1);
                return Ok(line);
            }
            if self.received().len() > most {
                return Err(Failure::new(
                    Class::Malformed,
                    format!(
                        "not {}: no line of at most {most} bytes, but \"{}\"",
                        self.protocol,
                        text::excerpt(self.received())
                    ),
                ));
            }
            if !self.more().await? {
                return Err(self.closed());
            }
        }
    }

    /// The peer closed where more was expected.
    pub fn closed(&self) -> Failure {
        let received = self.received();
        if received.is_empty() {
            Failure::new(Class::Empty, "connection closed without an answer")
        } else {
            Failure::new(
                Class::Truncated,
                format!(
                    "connection closed in the middle of the answer, after \"{}\"",
                    text::excerpt(received)
                ),
            )
        }
    }

    /// What came is not the protocol.
    pub fn malformed(&self, what: &str, bytes: &[u8], trace: &Trace) -> Failure {
        let detail = match trace.seen().other_protocol() {
            Some(other) => format!(
                "the peer speaks {other}, not {}, on this port",
                self.protocol
            ),
            None => format!(
                "not {}: {what}: \"{}\"",
                self.protocol,
                text::excerpt(bytes)
            ),
        };
        Failure::new(Class::Malformed, detail)
    }
}
