//! What a probe has done so far: its steps and the bytes seen.

use std::fmt::Display;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::connect::ProbeStream;
use super::failure::Failure;
use super::outcome::{Class, Outcome, Step, Verdict};
use super::{Success, text};
use crate::health::agent::Report;

/// Steps and times of one probe. It outlives the probe's future, so that a timeout can still say
/// how far the probe had come.
#[derive(Debug)]
pub struct Trace {
    start: Instant,
    steps: Vec<Step>,
    /// Steps before this place belong to an attempt that was given up.
    begin: usize,
    seen: Arc<Seen>,
    /// A TLS handshake was begun.
    handshake: bool,
    /// What the probe waits for now.
    waiting: Option<String>,
    /// What kind of success it would be.
    kind: Class,
    /// What an agent has said.
    agent: Option<Report>,
    /// When the server's certificate expires.
    certificate_not_after: Option<Timestamp>,
    /// Whether anybody reads what the steps saw. Putting that into words costs several allocations
    /// for each probe.
    told: bool,
}

impl Trace {
    /// `told`: each step keeps what was seen, in words.
    pub fn start(told: bool) -> Self {
        Self {
            told,
            start: Instant::now(),
            steps: Vec::with_capacity(5),
            begin: 0,
            seen: Arc::default(),
            handshake: false,
            waiting: None,
            kind: Class::Ok,
            agent: None,
            certificate_not_after: None,
        }
    }

    /// The clock starts now.
    pub fn begin(&mut self) {
        self.start = Instant::now();
    }

    /// The TLS handshake begins.
    pub fn begin_handshake(&mut self) {
        self.handshake = true;
    }

    /// Whether steps keep what was seen.
    pub const fn is_told(&self) -> bool {
        self.told
    }

    /// A step was done just now.
    pub fn step(&mut self, name: &'static str, detail: impl Display) {
        self.waiting = None;
        // The status line is part of what a timeout says.
        let told = self.told || name == "headers";
        let detail = if told {
            detail.to_string()
        } else {
            String::new()
        };
        self.steps.push(Step {
            name,
            at: self.elapsed(),
            detail,
        });
    }

    /// A last step, and the probe starts over: what it has done and seen so far counts no more.
    pub fn start_over(&mut self, name: &'static str, why: impl Display) {
        self.step(name, why);
        self.begin = self.steps.len();
        self.seen = Arc::default();
        self.handshake = false;
    }

    /// What the probe waits for from now on, until the next step: `no "+PONG" in "-ERR"`.
    pub fn waiting(&mut self, what: impl Into<String>) {
        self.waiting = Some(what.into());
    }

    /// The backend says that it is degraded.
    pub const fn degraded(&mut self) {
        self.kind = Class::Degraded;
    }

    /// The backend asks to be drained.
    pub const fn drains(&mut self) {
        self.kind = Class::Drain;
    }

    /// What an agent says beside its yes or no.
    pub fn reported(&mut self, report: Report) {
        self.agent = Some(report);
    }

    /// The server shows a certificate that expires then, if that can be read.
    pub const fn certificate(&mut self, not_after: Option<Timestamp>) {
        self.certificate_not_after = not_after;
    }

    /// What was received through [`Observed`] streams.
    pub fn seen(&self) -> &Arc<Seen> {
        &self.seen
    }

    /// Whether the step of this name was done.
    pub fn done(&self, name: &str) -> bool {
        self.steps[self.begin..]
            .iter()
            .any(|step| step.name == name)
    }

    /// Where the probe stands: `connected, request sent, 0 bytes received`.
    pub fn progress(&self) -> String {
        if !self.done("connect") && !self.done("reuse") {
            // A probe without a connection says itself what it waits for.
            let waiting = self.waiting.clone();
            return waiting.unwrap_or_else(|| "no reply to SYN".to_owned());
        }
        let mut progress = String::from("connected");
        if self.done("tls") {
            progress.push_str(", TLS established");
        } else if self.handshake {
            progress.push_str(", TLS handshake not finished");
        }
        if self.done("request") {
            progress.push_str(", request sent, ");
            progress.push_str(&text::bytes(self.seen.bytes()));
            progress.push_str(" received");
        }
        if let Some(headers) = self.steps[self.begin..]
            .iter()
            .rev()
            .find(|step| step.name == "headers")
        {
            progress.push_str(": ");
            progress.push_str(&headers.detail);
        }
        if let Some(waiting) = &self.waiting {
            progress.push_str(", ");
            progress.push_str(waiting);
        }
        progress
    }

    /// Closes the record with the probe's result.
    pub fn finish(mut self, result: Result<Success, Failure>) -> Outcome {
        let latency = self.elapsed();
        let (verdict, class, detail) = match result {
            Ok(Success(detail)) => (Verdict::Success, self.kind, detail),
            Err(failure) => {
                self.steps.push(Step {
                    name: "failed",
                    at: latency,
                    detail: failure.detail.clone(),
                });
                (failure.verdict, failure.class, failure.detail)
            }
        };
        Outcome {
            verdict,
            class,
            detail,
            latency,
            steps: self.steps,
            agent: self.agent,
            certificate_not_after: self.certificate_not_after,
        }
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Counts what was read from a stream and remembers its first eight bytes.
#[derive(Debug, Default)]
pub struct Seen {
    bytes: AtomicU64,
    /// First eight bytes, the first in the highest place; zeros where none came yet.
    head: AtomicU64,
}

impl Seen {
    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether the stream began with `prefix` (eight bytes at most).
    pub fn starts_with(&self, prefix: &[u8]) -> bool {
        let head = self.head.load(Ordering::Relaxed).to_be_bytes();
        let have = usize::try_from(self.bytes()).unwrap_or(usize::MAX).min(8);
        head[..have].starts_with(prefix)
    }

    /// Which protocol the peer speaks, if its first bytes tell and it is none of a plain HTTP/1
    /// answer.
    pub fn other_protocol(&self) -> Option<&'static str> {
        // A TLS alert or handshake record; and HTTP/2's first frame, SETTINGS on stream 0.
        if self.starts_with(&[0x15, 3]) || self.starts_with(&[0x16, 3]) {
            return Some("TLS");
        }
        if self.starts_with(&[0, 0]) && self.head.load(Ordering::Relaxed).to_be_bytes()[3] == 4 {
            return Some("HTTP/2");
        }
        if self.starts_with(b"SSH-") {
            return Some("SSH");
        }
        None
    }

    fn add(&self, read: &[u8]) {
        let before = self.bytes.load(Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Relaxed);
        for (place, byte) in (before..8).zip(read) {
            head |= u64::from(*byte) << (56 - 8 * place);
        }
        self.head.store(head, Ordering::Relaxed);
        self.bytes
            .store(before + read.len() as u64, Ordering::Relaxed);
    }
}

/// A stream whose received bytes are recorded in [`Seen`].
#[derive(Debug)]
pub struct Observed<S> {
    stream: S,
    seen: Arc<Seen>,
}

impl<S> Observed<S> {
    pub fn into_inner(self) -> S {
        self.stream
    }

    pub fn new(stream: S, trace: &Trace) -> Self {
        Self {
            stream,
            seen: trace.seen.clone(),
        }
    }
}

impl<S: ProbeStream> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.seen.add(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: ProbeStream> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Says goodbye in the session's own words, without FIN: the RST that follows then finds the
    /// peer's socket before TIME_WAIT.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.farewell();
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_protocols_are_named() {
        let named = |bytes: &[u8]| {
            let seen = Seen::default();
            seen.add(bytes);
            seen.other_protocol()
        };
        assert_eq!(named(&[0x15, 3, 1, 0, 2, 2, 10]), Some("TLS"));
        assert_eq!(named(&[0, 0, 18, 4, 0, 0, 0, 0, 0]), Some("HTTP/2"));
        assert_eq!(named(b"SSH-2.0-OpenSSH_9.2"), Some("SSH"));
        assert_eq!(named(b"HTTP/1.1 200 OK"), None);
        assert_eq!(named(b"220 mail"), None);
        assert_eq!(named(&[0, 0, 0]), None);
    }

    #[test]
    fn seen_keeps_the_first_bytes_of_many_reads() {
        let seen = Seen::default();
        assert!(!seen.starts_with(b"H"));
        seen.add(b"HT");
        seen.add(b"TP/1.1 200 OK");
        assert!(seen.starts_with(b"HTTP/1."));
        assert!(!seen.starts_with(b"HTTP/2"));
        assert_eq!(seen.bytes(), 15);
    }
}
