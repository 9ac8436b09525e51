//! Probers: one probe is one async call that ends with an [`Outcome`] before its deadline.
//!
//! [`Prober::run`] starts no task and keeps no connection: dropping its future ends the probe and
//! closes its socket. What a peer sends is never trusted: heads, bodies and messages are bounded,
//! and text from the peer is escaped and shortened before a person sees it.

use std::time::Duration;

use crate::model::{ProbeKind, ProbeSpec, TlsOptions};

mod connect;
mod deadline;
mod failure;
mod grpc;
mod http;
mod outcome;
mod text;
mod tls;
mod trace;

use deadline::Expired;
use failure::Failure;
pub use outcome::{Class, Outcome, Step, Verdict};
use tls::{Alpn, TlsContext, TlsContexts};
use trace::Trace;

/// What the backends see as the one who asks.
const USER_AGENT: &str = concat!("lb/", env!("CARGO_PKG_VERSION"));

/// Runs probes. Holds what they share: TLS settings, trusted roots and session tickets.
///
/// One for the whole agent; [`Prober::run`] can be called any number of times at once.
#[derive(Debug, Default)]
pub struct Prober {
    contexts: TlsContexts,
}

impl Prober {
    pub fn new() -> Self {
        Self::default()
    }

    /// Probes once. Takes `spec.timeout` at most, from the first SYN to the last byte judged.
    ///
    /// Never fails as a call: what went wrong is in the outcome. [`Verdict::Internal`] is a fault
    /// on this side (no descriptors, an unreadable CA file, a starved process) that says nothing
    /// about the backend.
    pub async fn run(&self, spec: &ProbeSpec) -> Outcome {
        // Reading certificates is this host's work, not the backend's: before the clock starts.
        let context = match tls_options(&spec.kind) {
            None => Ok(None),
            Some((options, alpn)) => self
                .contexts
                .get(spec.target, options, alpn)
                .await
                .map(Some),
        };
        let mut trace = Trace::start();
        let result = match context {
            Ok(context) => {
                let work = ask(spec, context.as_ref(), &mut trace);
                match deadline::within(spec.timeout, work).await {
                    Ok(result) => result,
                    Err(expired) => Err(expired_failure(expired, spec.timeout, &trace)),
                }
            }
            Err(error) => Err(Failure::internal(error.to_string())),
        };
        trace.finish(result)
    }
}

/// A successful probe: the line that [`Outcome::detail`] shows.
struct Success(String);

/// What a probe ends with when it ends in time.
type Answer = Result<Success, Failure>;

fn tls_options(kind: &ProbeKind) -> Option<(&TlsOptions, Alpn)> {
    match kind {
        ProbeKind::Tcp => None,
        ProbeKind::Http(http) => http.tls.as_ref().map(|options| (options, Alpn::Http1)),
        ProbeKind::Grpc { tls, .. } => tls.as_ref().map(|options| (options, Alpn::Http2)),
    }
}

async fn ask(spec: &ProbeSpec, context: Option<&TlsContext>, trace: &mut Trace) -> Answer {
    let tcp = connect::connect(spec.target, trace).await?;
    match &spec.kind {
        ProbeKind::Tcp => Ok(Success("connected".to_owned())),
        ProbeKind::Http(http) => match context {
            None => http::ask(tcp, http, trace).await,
            Some(context) => {
                let stream = context.connect(tcp, trace).await?;
                http::ask(stream, http, trace).await
            }
        },
        ProbeKind::Grpc {
            service,
            authority,
            accept_status,
            tls: _,
        } => {
            let call = grpc::Call {
                service,
                authority,
                accept_status,
                timeout: spec.timeout,
                scheme: if context.is_some() { "https" } else { "http" },
            };
            match context {
                None => grpc::ask(tcp, &call, trace).await,
                Some(context) => {
                    let stream = context.connect(tcp, trace).await?;
                    grpc::ask(stream, &call, trace).await
                }
            }
        }
    }
}

fn expired_failure(expired: Expired, timeout: Duration, trace: &Trace) -> Failure {
    match expired {
        Expired::Deadline => Failure::new(
            Class::Timeout,
            format!(
                "no {}answer within {} ({})",
                if trace.done("headers") {
                    "complete "
                } else {
                    ""
                },
                text::duration(timeout),
                trace.progress()
            ),
        ),
        Expired::Starved { stalled } => Failure::internal(format!(
            "the prober itself was late by {} of {} and cannot judge ({}); \
             this host is short of CPU",
            text::duration(stalled),
            text::duration(timeout),
            trace.progress()
        )),
    }
}

#[cfg(test)]
mod tests;
