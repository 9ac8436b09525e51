//! What kind of answer a probe got.

use serde::{Deserialize, Serialize};

/// Why. Named as operators know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Ok,
    /// A success, but the backend says that it is degraded.
    Degraded,
    /// A success, but the backend asks to be drained.
    Drain,
    /// A complete HTTP answer with another status code than wanted.
    Status,
    /// The body does not hold what it must.
    Body,
    /// An answer other than the one wanted, of a protocol without statuses.
    Content,
    /// The server says no in its own protocol: NOT_SERVING, `-ERR`, `FATAL`, `421`.
    Application,
    /// The server says that it is starting and not ready yet.
    Starting,
    /// Not the protocol (gRPC).
    Protocol,
    /// Broken off on the way (gRPC).
    Network,
    /// No complete answer before the deadline.
    Timeout,
    /// Connection refused.
    Refused,
    /// Host or network unreachable.
    Unreachable,
    /// Connection reset.
    Reset,
    /// Closed without a byte.
    Empty,
    /// Closed in the middle of the answer.
    Truncated,
    /// Not the protocol that is asked for (HTTP, Redis, DNS, …).
    Malformed,
    /// Headers beyond the limit.
    TooLarge,
    /// The TLS handshake failed.
    Tls,
    /// The prober itself could not ask, which says nothing about the backend: descriptors, ports,
    /// memory or CPU were short on this host.
    Shortage,
    /// The same for any other reason.
    Internal,
}

impl Class {
    /// Every class of failure.
    pub const FAILURES: [Self; 16] = [
        Self::Status,
        Self::Body,
        Self::Content,
        Self::Application,
        Self::Starting,
        Self::Protocol,
        Self::Network,
        Self::Timeout,
        Self::Refused,
        Self::Unreachable,
        Self::Reset,
        Self::Empty,
        Self::Truncated,
        Self::Malformed,
        Self::TooLarge,
        Self::Tls,
    ];

    /// Name in JSON, events and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Drain => "drain",
            Self::Status => "status",
            Self::Body => "body",
            Self::Content => "content",
            Self::Application => "application",
            Self::Starting => "starting",
            Self::Protocol => "protocol",
            Self::Network => "network",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Empty => "empty",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::Tls => "tls",
            Self::Shortage => "shortage",
            Self::Internal => "internal",
        }
    }

    /// Whether the backend itself said that it should not get traffic. It is then drained, while
    /// after any other failure it is taken for dead and its flows are given up.
    pub const fn is_answer(self) -> bool {
        matches!(
            self,
            Self::Status | Self::Body | Self::Content | Self::Application | Self::Starting
        )
    }
}
