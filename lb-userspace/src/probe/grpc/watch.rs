//! `grpc.health.v1.Health/Watch`: a stream on which the server says each change at once, kept open
//! between probes.
//!
//! A probe on it asks whether the connection lives (an HTTP/2 PING) and takes the server's last
//! word. That a stream has ended says nothing: the probe then asks on a fresh one. A change, and an
//! end, are reported, so that a probe can follow at once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::Builder;
use h2::{Ping, PingPong};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Call, CallError, MAX_HEADERS, Observed, UNIMPLEMENTED, grpc_status, message};
use crate::model::ProbeSpec;
use crate::probe::connect::ProbeStream;
use crate::probe::failure::Failure;
use crate::probe::trace::Trace;
use crate::probe::{Answer, text};

const PATH: &str = "/grpc.health.v1.Health/Watch";
/// A server that does not offer Watch is asked by Check for so long.
const FALLBACK: Duration = Duration::from_secs(60);
/// A stream that no probe has asked for so long belongs to none any more.
pub const UNUSED: Duration = Duration::from_secs(600);
/// Changes of one stream are reported this often at the most, whatever the server does.
const REPORT: Duration = Duration::from_secs(1);

/// The streams between two probes, one for each probe that keeps one.
#[derive(Debug, Default)]
pub struct Watches {
    known: Mutex<HashMap<ProbeSpec, Known>>,
    report: Option<mpsc::UnboundedSender<ProbeSpec>>,
}

#[derive(Debug)]
enum Known {
    Open {
        stream: Stream,
        used: Instant,
    },
    /// The server does not offer it.
    Absent {
        until: Instant,
    },
}

/// How a probe by Watch ends.
pub enum Watched {
    Answer(Answer),
    /// The server does not offer it: Check is to be called.
    Unoffered,
}

/// An open stream; it ends with this value.
#[derive(Debug)]
struct Stream {
    ping: PingPong,
    state: watch::Receiver<State>,
    _tasks: JoinSet<()>,
}

/// What the server has said.
#[derive(Clone, Debug)]
enum State {
    Nothing,
    /// A `ServingStatus`.
    Status(i32),
    /// The call was answered with this status, without a message before.
    Refused(u32, Failure),
    /// Broken off.
    Ended(Failure),
}

impl Watches {
    /// Changes are reported there, by the probe that they are for.
    pub fn new(report: mpsc::UnboundedSender<ProbeSpec>) -> Self {
        Self {
            known: Mutex::default(),
            report: Some(report),
        }
    }

    /// The same probe with another deadline has the same stream.
    fn key(spec: &ProbeSpec) -> ProbeSpec {
        ProbeSpec {
            timeout: Duration::ZERO,
            ..spec.clone()
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ProbeSpec, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks on the stream kept for this probe. `None`: there is none that lives.
    pub async fn ask_kept(&self, spec: &ProbeSpec, trace: &mut Trace) -> Option<Watched> {
        let key = Self::key(spec);
        let known = self.lock().remove(&key)?;
        let mut stream = match known {
            Known::Absent { until } if Instant::now() < until => {
                self.lock().insert(key, Known::Absent { until });
                return Some(Watched::Unoffered);
            }
            Known::Absent { .. } => return None,
            Known::Open { stream, .. } => stream,
        };
        trace.waiting("PING on the kept stream, no answer");
        if let Err(error) = stream.ping.ping(Ping::opaque()).await {
            trace.start_over("stale", format!("{error}: asking on a fresh stream"));
            return None;
        }
        trace.step("ping", "the kept stream lives");
        let state = stream.state.borrow().clone();
        let State::Status(status) = state else {
            trace.start_over(
                "stale",
                "the stream has ended: asking on a fresh one".to_owned(),
            );
            return None;
        };
        self.keep(key, stream);
        Some(Watched::Answer(super::judge_status(status)))
    }

    fn keep(&self, key: ProbeSpec, stream: Stream) {
        let used = Instant::now();
        let mut known = self.lock();
        known.retain(|_, known| match known {
            Known::Open { used, .. } => used.elapsed() < UNUSED,
            Known::Absent { until } => Instant::now() < *until,
        });
        known.insert(key, Known::Open { stream, used });
    }

    /// Opens a stream on a fresh connection, and waits for the server's first word.
    pub async fn ask_fresh<S>(
        &self,
        connection: S,
        spec: &ProbeSpec,
        call: &Call<'_>,
        trace: &mut Trace,
    ) -> Watched
    where
        S: ProbeStream + Send + 'static,
    {
        let stream = match self.open(connection, spec, call, trace).await {
            Ok(stream) => stream,
            Err(failure) => return Watched::Answer(Err(failure)),
        };
        let mut state = stream.state.clone();
        let first = state
            .wait_for(|state| !matches!(state, State::Nothing))
            .await;
        let first = match first {
            Ok(first) => first.clone(),
            Err(_) => State::Ended(Failure::internal("the stream's task has ended")),
        };
        Watched::Answer(match first {
            State::Status(status) => {
                trace.step("watch", message::serving_status(status));
                self.keep(Self::key(spec), stream);
                super::judge_status(status)
            }
            State::Refused(UNIMPLEMENTED, _) => {
                let until = Instant::now() + FALLBACK;
                self.lock().insert(Self::key(spec), Known::Absent { until });
                return Watched::Unoffered;
            }
            State::Refused(_, failure) | State::Ended(failure) => Err(failure),
            State::Nothing => Err(Failure::internal("the stream said nothing")),
        })
    }

    async fn open<S>(
        &self,
        connection: S,
        spec: &ProbeSpec,
        call: &Call<'_>,
        trace: &mut Trace,
    ) -> Result<Stream, Failure>
    where
        S: ProbeStream + Send + 'static,
    {
        let request = super::request(call, PATH, None)?;
        let seen = trace.seen().clone();
        let failed = move |error: &h2::Error| super::h2_failure(error, &seen);
        let (sender, mut connection) = Builder::new()
            .enable_push(false)
            .max_header_list_size(MAX_HEADERS)
            .handshake::<_, Bytes>(Observed::new(connection, trace))
            .await
            .map_err(|error| failed(&error))?;
        let ping =
            (connection.ping_pong()).ok_or_else(|| Failure::internal("HTTP/2 offers no PING"))?;
        let mut tasks = JoinSet::new();
        // Its end is seen on the stream, too.
        tasks.spawn(async move {
            let _ = connection.await;
        });
        let (state, receiver) = watch::channel(State::Nothing);
        let mut sender = sender.ready().await.map_err(|error| failed(&error))?;
        let (response, mut body) =
            (sender.send_request(request, false)).map_err(|error| failed(&error))?;
        (body.send_data(message::encode_request(call.service).into(), true))
            .map_err(|error| failed(&error))?;
        trace.step("request", "Watch");
        let changed = std::sync::Arc::new(Notify::new());
        if let Some(report) = self.report.clone() {
            tasks.spawn(report_changes(changed.clone(), report, spec.clone()));
        }
        tasks.spawn(async move {
            // A stream without a reader may be closed by the last sender.
            let _sender = sender;
            let end = match read(response, &state, &changed).await {
                Ok(end) => end,
                Err(CallError::Failed(failure)) => State::Ended(failure),
                Err(CallError::Http2(error)) => State::Ended(failed(&error)),
            };
            state.send_replace(end);
            changed.notify_one();
        });
        Ok(Stream {
            ping,
            state: receiver,
            _tasks: tasks,
        })
    }
}

/// The first change is the first word, which the probe that opened the stream waits for itself.
async fn report_changes(
    changed: std::sync::Arc<Notify>,
    report: mpsc::UnboundedSender<ProbeSpec>,
    spec: ProbeSpec,
) {
    loop {
        // What comes meanwhile is told in one.
        sleep(REPORT).await;
        changed.notified().await;
        if report.send(spec.clone()).is_err() {
            return;
        }
    }
}

/// Reads statuses until the stream ends.
async fn read(
    response: h2::client::ResponseFuture,
    state: &watch::Sender<State>,
    changed: &Notify,
) -> Result<State, CallError> {
    let response = response.await?;
    if let Some(code) = grpc_status(response.headers())? {
        return Ok(ended(code));
    }
    super::check_headers(&response)?;
    let mut body = response.into_body();
    let mut buffer = Vec::new();
    let mut first = true;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        buffer.extend_from_slice(&data);
        while let Some(framed) =
            message::first(&buffer).map_err(|e| super::protocol(e.to_string()))?
        {
            let answer = message::decode_response(&buffer[..framed])
                .map_err(|error| super::protocol(format!("not a health answer: {error}")))?;
            buffer.drain(..framed);
            state.send_replace(State::Status(answer.status));
            if !first {
                changed.notify_one();
            }
            first = false;
        }
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(match grpc_status(&trailers)? {
        Some(code) => ended(code),
        None => State::Ended(super::protocol("no grpc-status at the end of the stream")),
    })
}

fn ended(code: u32) -> State {
    let name = message::status_name(code);
    let failure = Failure::new(
        crate::probe::Class::Application,
        format!(
            "the server has ended the stream: {}",
            text::excerpt(name.as_bytes())
        ),
    );
    State::Refused(code, failure)
}
