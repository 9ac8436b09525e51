//! How the agent is asked and watched: the control socket, its events, and the HTTP endpoints.
//!
//! Nothing here holds state of the load balancer. A request becomes a [`Call`] on a channel to the
//! agent's loop, which answers through the call's [`Responder`]. What everybody may read (HTTP, a
//! `status` while the loop is busy) is a [`status::Status`] that the loop publishes on a `watch`.

pub mod capture;
pub mod client;
pub mod detail;
pub mod event;
pub mod explain;
pub mod grpc;
pub mod haproxy;
pub mod http;
pub mod journal;
pub mod lateness;
pub mod metrics;
mod page;
pub mod primary;
pub mod quorum;
pub mod request;
pub mod server;
pub mod socket;
pub mod status;
pub mod token;

pub use event::{Change, Event, Kind, Origin};
pub use journal::Journal;
pub use request::{ApiError, BackendName, Call, Done, ErrorKind, Peer, Reply, Request, Responder};
pub use socket::{DEFAULT_SOCKET, Listener};
pub use status::Status;

/// Wall clock, to the millisecond: the resolution of all times that are shown.
pub fn now() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
