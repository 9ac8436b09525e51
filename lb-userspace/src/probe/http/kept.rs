//! Connections kept between HTTP probes, for services that ask for it (`reuse`).

use std::collections::HashMap;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Either, select};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::client::TlsStream;

use super::Asked;
use crate::model::{HttpProbe, ProbeSpec, Reuse};
use crate::probe::connect::ProbeStream;
use crate::probe::dial::Dialer;
use crate::probe::failure::Failure;
use crate::probe::outcome::Verdict;
use crate::probe::tls::{Joined, TlsContext};
use crate::probe::trace::Trace;
use crate::probe::{Answer, text};

/// One connection for each probe that keeps them, between two of its runs.
#[derive(Debug, Default)]
pub struct Kept {
    all: Mutex<All>,
}

#[derive(Debug)]
struct All {
    /// By what is asked; boxed, since a probe in flight carries it.
    idle: HashMap<Box<ProbeSpec>, Idle>,
    /// When those that are too old leave next.
    sweep: Instant,
}

impl Default for All {
    fn default() -> Self {
        Self {
            idle: HashMap::new(),
            sweep: Instant::now(),
        }
    }
}

/// How often connections that nobody asks on any more are closed.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Idle {
    connection: Connection,
    opened: Instant,
    /// Probes that it has served.
    uses: u32,
    /// When it is too old.
    expires: Instant,
}

impl Kept {
    /// The probe, on a kept connection if there is a usable one.
    ///
    /// A kept connection proves less than a fresh one, and its end proves nothing: the server may
    /// close it at any time (RFC 9112, 9.3.1), and a middlebox may have forgotten it. So if nothing
    /// at all comes back on it, the probe asks again on a fresh one, within the same deadline.
    pub async fn ask(
        &self,
        dialer: &Dialer,
        spec: &ProbeSpec,
        probe: &HttpProbe,
        tls: Option<&TlsContext>,
        trace: &mut Trace,
    ) -> Answer {
        let Some(reuse) = probe.reuse else {
            let connection = open(dialer, spec, tls, trace).await?;
            return super::ask(connection, probe, &spec.authority(), trace)
                .await
                .answer;
        };
        if let Some((key, idle)) = self.take(spec) {
            trace.step(
                "reuse",
                format_args!(
                    "probe number {} on a connection {} old",
                    idle.uses + 1,
                    text::duration(idle.opened.elapsed())
                ),
            );
            let (opened, uses) = (idle.opened, idle.uses + 1);
            match Box::pin(on_kept(idle.connection, spec, probe, trace)).await {
                Ok(asked) => {
                    self.put(key, reuse, asked.open, opened, uses);
                    return asked.answer;
                }
                Err(why) => {
                    trace.start_over("stale", format_args!("{why}: asking on a fresh one"));
                }
            }
        }
        let connection = open(dialer, spec, tls, trace).await?;
        let opened = Instant::now();
        let asked = super::ask(connection, probe, &spec.authority(), trace).await;
        self.put(Box::new(spec.clone()), reuse, asked.open, opened, 1);
        asked.answer
    }

    /// The connection kept for this probe, if it is still to be used and nothing came on it since;
    /// with the probe, as [`Kept::put`] wants it.
    fn take(&self, spec: &ProbeSpec) -> Option<(Box<ProbeSpec>, Idle)> {
        let (key, mut idle) = self.lock().idle.remove_entry(spec)?;
        let quiet = idle.connection.read(&mut [0]).now_or_never().is_none();
        (quiet && Instant::now() < idle.expires).then_some((key, idle))
    }

    fn put(
        &self,
        spec: Box<ProbeSpec>,
        reuse: Reuse,
        connection: Option<Connection>,
        opened: Instant,
        uses: u32,
    ) {
        let (now, expires) = (Instant::now(), opened + reuse.max_age);
        let mut all = self.lock();
        // Those of probes that are not asked any more leave here; not each time, since it means to
        // look at all of them.
        if now >= all.sweep {
            all.sweep = now + SWEEP;
            all.idle.retain(|_, idle| now < idle.expires);
        }
        if let Some(connection) = connection
            && now < expires
            && uses < reuse.max_uses
        {
            all.idle.insert(
                spec,
                Idle {
                    connection,
                    opened,
                    uses,
                    expires,
                },
            );
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open(
    dialer: &Dialer,
    spec: &ProbeSpec,
    tls: Option<&TlsContext>,
    trace: &mut Trace,
) -> Result<Connection, Failure> {
    let tcp = dialer
        .connect_with(spec, trace, super::super::connect::speak_first)
        .await?;
    Ok(match tls {
        None => Connection::Plain(tcp),
        Some(context) => Connection::Tls(Box::new(Box::pin(context.connect(tcp, trace)).await?)),
    })
}

/// Asks on a kept connection. The error says in what way it was stale.
///
/// The first byte must come within half of the deadline: the other half is for a fresh connection.
async fn on_kept(
    connection: Connection,
    spec: &ProbeSpec,
    probe: &HttpProbe,
    trace: &mut Trace,
) -> Result<Asked<Connection>, String> {
    let seen = trace.seen().clone();
    let half = spec.timeout / 2;
    let host = spec.authority();
    let asking = pin!(super::ask(connection, probe, &host, trace));
    let asked = match select(asking, pin!(sleep(half))).await {
        Either::Left((asked, _)) => asked,
        Either::Right(((), _)) if seen.bytes() == 0 => {
            return Err(format!("no byte within {}", text::duration(half)));
        }
        Either::Right(((), asking)) => asking.await,
    };
    match &asked.answer {
        // This host's own fault is the same on a fresh one.
        Err(failure) if seen.bytes() == 0 && failure.verdict != Verdict::Internal => {
            Err(failure.detail.clone())
        }
        _ => Ok(asked),
    }
}

/// A connection, plain or TLS.
#[derive(Debug)]
pub enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<Joined>>),
}

impl ProbeStream for Connection {
    fn farewell(&mut self) {
        match self {
            Self::Plain(stream) => stream.farewell(),
            Self::Tls(stream) => stream.farewell(),
        }
    }
}

impl Connection {
    fn stream(&mut self) -> Pin<&mut dyn Stream> {
        match self {
            Self::Plain(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
