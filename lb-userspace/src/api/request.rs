//! What a client asks and what it is answered.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::capture::{self, Closed, Opened, Packet};
use super::event::{Event, Origin, Via};
use super::explain::Explained;
use super::status::Status;
use crate::config::suggest::nearest;
use crate::health::SetHealth;
use crate::model::{BackendKey, ConnectionId, Protocol};

/// One request; a connection carries one, as a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What is routed where. The loop answers with all services; the server picks the one asked
    /// for.
    Status {
        #[serde(default)]
        service: Option<String>,
    },
    /// The last `limit` events (all that are remembered if absent), those after `since` only; with
    /// `follow`, all that come.
    Events {
        #[serde(default)]
        follow: bool,
        #[serde(default)]
        since: Option<u64>,
        #[serde(default)]
        limit: Option<usize>,
    },
    /// No new flows; established ones until the deadline, by default the service's.
    Drain {
        backend: BackendName,
        #[serde(default)]
        deadline_ms: Option<u64>,
    },
    /// Takes back a drain or a disable.
    Enable { backend: BackendName },
    /// Out at once, flows reset.
    Disable { backend: BackendName },
    /// Makes it the active backend of its service, which has one at a time.
    Promote { backend: BackendName },
    /// Another weight than the configured one.
    Weight { backend: BackendName, weight: u32 },
    /// All probes of a backend now, or the one of that name, which changes nothing.
    Probe {
        backend: BackendName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        probe: Option<String>,
    },
    /// What the operator has to say about probing.
    Probes {
        backend: BackendName,
        order: ProbesOrder,
    },
    /// Where a flow goes and why.
    Explain {
        src: SocketAddr,
        dst: SocketAddr,
        protocol: Protocol,
        /// What its packets carry.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection_id: Option<ConnectionId>,
    },
    /// Packets with what becomes of them, until the client shuts down its end or leaves.
    Capture {
        /// Absent: everything that is for a VIP.
        #[serde(default)]
        service: Option<String>,
        /// Bytes to keep of each packet.
        snaplen: u16,
    },
    /// Reads the configuration again.
    Reload,
    /// Takes the program off, removes what is pinned and ends the agent.
    Detach,
}

impl Request {
    /// Its name on the command line.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Events { .. } => "events",
            Self::Drain { .. } => "drain",
            Self::Enable { .. } => "enable",
            Self::Disable { .. } => "disable",
            Self::Promote { .. } => "promote",
            Self::Weight { .. } => "weight",
            Self::Probe { .. } => "probe",
            Self::Probes { .. } => "probes",
            Self::Explain { .. } => "explain",
            Self::Capture { .. } => "capture",
            Self::Reload => "reload",
            Self::Detach => "detach",
        }
    }

    /// How long the agent may take to answer.
    pub const fn patience(&self) -> Duration {
        match self {
            // A probe has the service's timeout; a reload and a detach talk to the kernel.
            Self::Probe { .. } | Self::Reload | Self::Detach => Duration::from_secs(120),
            Self::Status { .. } => Duration::from_secs(2),
            Self::Events { .. }
            | Self::Drain { .. }
            | Self::Enable { .. }
            | Self::Disable { .. }
            | Self::Promote { .. }
            | Self::Weight { .. }
            | Self::Probes { .. }
            | Self::Explain { .. }
            | Self::Capture { .. } => Duration::from_secs(10),
        }
    }
}

/// For [`Request::Probes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbesOrder {
    /// No probes until they are resumed; its health stays what it is.
    Pause,
    Resume,
    /// Its health is this until its probes say otherwise.
    Set(SetHealth),
}

/// `SERVICE/BACKEND`, as the operator writes it; nothing says yet that it exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackendName {
    pub service: String,
    pub backend: String,
}

impl BackendName {
    /// As a key of the model.
    pub fn key(&self) -> BackendKey {
        BackendKey::new(self.service.as_str(), self.backend.as_str())
    }
}

impl FromStr for BackendName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((service, backend)) if !service.is_empty() && !backend.is_empty() => Ok(Self {
                service: service.to_owned(),
                backend: backend.to_owned(),
            }),
            _ => Err(format!(
                "{text:?} is not SERVICE/BACKEND, for example web/web-1"
            )),
        }
    }
}

impl TryFrom<String> for BackendName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<BackendName> for String {
    fn from(name: BackendName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// What the loop answers.
#[derive(Debug)]
pub enum Reply {
    /// To `status`: all services.
    Status(Arc<Status>),
    /// To `events`: the past ones; the server adds those to come.
    Events(Vec<Arc<Event>>),
    /// To `probe`: the result as `lb probe --json` and `lb probe` print it.
    Probe(ProbeReport),
    /// To `explain`.
    Explained(Box<Explained>),
    /// To `capture`.
    Capture(Box<capture::Stream>),
    /// To everything else.
    Done(Done),
}

/// A probe's result, written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    pub json: serde_json::Value,
    pub text: String,
}

/// Something was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What, for the operator: `web/web-1 drains until 12:00:30`.
    pub message: String,
    /// Whether anything is other than before.
    pub changed: bool,
}

/// What the server writes: a line of JSON each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    Status(Arc<Status>),
    Event(Arc<Event>),
    /// A follower was too slow: this many events were left out.
    Missed(u64),
    Probe(ProbeReport),
    Explained(Box<Explained>),
    /// A capture is on.
    Capturing(Opened),
    Packet(Box<Packet>),
    /// A capture is over.
    Captured(Closed),
    Done(Done),
    Error(ApiError),
}

/// Why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    /// What, where, and the mend.
    pub message: String,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request makes no sense.
    Usage,
    /// No such service or backend.
    Unknown,
    /// The configuration is refused; the old one stays.
    Config,
    /// The agent did not answer in time, or has too many clients.
    Busy,
    /// The agent tried and could not.
    Failed,
}

impl ErrorKind {
    /// Exit code of the command line.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Usage | Self::Unknown | Self::Config => 2,
            Self::Busy | Self::Failed => 1,
        }
    }
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The agent tried and could not.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Failed, message.to_string())
    }

    /// The configuration is refused.
    pub fn config(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Config, message.to_string())
    }

    /// There is no such service; `known` are those that there are.
    pub fn unknown_service<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(
            ErrorKind::Unknown,
            format!("no service {name:?}{}", suggestion(name, known)),
        )
    }

    /// The service has no such backend; `known` are those that it has.
    pub fn unknown_backend<'a>(
        name: &BackendName,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self::new(
            ErrorKind::Unknown,
            format!(
                "service {:?} has no backend {:?}{}",
                name.service,
                name.backend,
                suggestion(&name.backend, known)
            ),
        )
    }
}

/// `; did you mean "web"?`, or what there is.
fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(near) = nearest(name, &known) {
        return format!("; did you mean {near:?}?");
    }
    match known.as_slice() {
        [] => "; there are none".to_owned(),
        all if all.len() <= 12 => format!("; there are {}", all.join(", ")),
        some => format!("; `lb status` lists all {}", some.len()),
    }
}

/// Who asks, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// Absent if the peer is in another process namespace.
    pub pid: Option<i32>,
    /// `None`: the control socket.
    pub via: Option<Via>,
}

impl Peer {
    /// The process at the other end of a stream.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn of(stream: &UnixStream, via: Option<Via>) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self {
            uid: credentials.uid(),
            pid: credentials.pid(),
            via,
        })
    }
}

/// A request on its way to the loop.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub peer: Peer,
    pub responder: Responder,
}

impl Call {
    /// A call and the end at which its answer comes out.
    pub fn new(request: Request, peer: Peer) -> (Self, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let call = Self {
            request,
            peer,
            responder: Responder(sender),
        };
        (call, receiver)
    }

    /// For the events that it causes.
    pub fn origin(&self) -> Origin {
        Origin::Operator {
            uid: self.peer.uid,
            pid: self.peer.pid,
            command: self.request.name().to_owned(),
            via: self.peer.via,
        }
    }
}

/// What comes back.
pub type Answer = Result<Reply, ApiError>;

/// Answers a call, at once or later from another task. Dropped unanswered, the client is told that
/// the agent ended.
#[derive(Debug)]
pub struct Responder(oneshot::Sender<Answer>);

impl Responder {
    /// Answers. A client that has gone is no concern of the agent.
    pub fn send(self, answer: Answer) {
        if self.0.send(answer).is_err() {
            tracing::debug!("a client left before its answer");
        }
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_left(&self) -> bool {
        self.0.is_closed()
    }

    /// Answers that it was done.
    pub fn done(self, changed: bool, message: impl Into<String>) {
        self.send(Ok(Reply::Done(Done {
            message: message.into(),
            changed,
        })));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let name: BackendName = "web/web-1".parse().unwrap();
        for request in [
            Request::Status { service: None },
            Request::Events {
                follow: true,
                since: Some(3),
                limit: Some(10),
            },
            Request::Drain {
                backend: name.clone(),
                deadline_ms: Some(30_000),
            },
            Request::Weight {
                backend: name,
                weight: 5,
            },
            Request::Explain {
                src: "[2001:db8::1]:40000".parse().unwrap(),
                dst: "[2001:db8::10]:80".parse().unwrap(),
                protocol: Protocol::Udp,
                connection_id: "400a00000b11223344".parse().ok(),
            },
            Request::Reload,
        ] {
            let line = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        }
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"command":"enable","backend":"web/10.0.0.1:80"}"#)
                .unwrap(),
            Request::Enable {
                backend: BackendName {
                    service: "web".into(),
                    backend: "10.0.0.1:80".into()
                }
            }
        );
    }

    #[test]
    fn half_a_backend_name_is_refused() {
        for text in ["web", "web/", "/web-1", ""] {
            assert!(text.parse::<BackendName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn unknown_names_get_a_suggestion_or_the_list() {
        let name: BackendName = "web/web1".parse().unwrap();
        let error = ApiError::unknown_backend(&name, ["web-1", "db-9"]);
        assert_eq!(
            error.message,
            "service \"web\" has no backend \"web1\"; did you mean \"web-1\"?"
        );
        assert_eq!(error.kind.exit_code(), 2);
        let error = ApiError::unknown_service("zzz", ["web", "db"]);
        assert_eq!(error.message, "no service \"zzz\"; there are web, db");
    }
}
