//! Probers: one probe is one async call that ends with an [`Outcome`] before its deadline.
//!
//! [`Prober::run`] starts no task: dropping its future ends the probe and closes its socket. After
//! the end only HTTP connections are kept, for services that ask for it. What a peer sends is never trusted: heads, bodies and messages are bounded,
//! and text from the peer is escaped and shortened before a person sees it.

use std::time::Duration;

use crate::model::{ProbeKind, ProbeSpec, RedisProbe, TlsOptions};

mod agent;
mod connect;
mod deadline;
mod dns;
mod exec;
mod failure;
mod grpc;
mod half_open;
mod http;
mod mysql;
mod outcome;
mod postgres;
mod redis;
mod script;
mod secret;
mod smtp;
mod text;
mod tls;
mod trace;
mod wire;

use connect::ProbeStream;
use deadline::Expired;
use failure::Failure;
pub use outcome::{Class, Outcome, Step, Verdict};
use tls::{Alpn, TlsContext, TlsContexts};
use trace::Trace;

/// What the backends see as the one who asks.
const USER_AGENT: &str = concat!("lb/", env!("CARGO_PKG_VERSION"));

/// Runs probes. Holds what they share: TLS settings, trusted roots, session tickets, and connections
/// kept between probes.
///
/// One for the whole agent; [`Prober::run`] can be called any number of times at once.
#[derive(Debug, Default)]
pub struct Prober {
    contexts: TlsContexts,
    kept: http::Kept,
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
        self.trace(spec, Trace::start(true)).await
    }

    /// As [`Prober::run`], for those who look at the verdict and not at what each step has seen.
    pub async fn judge(&self, spec: &ProbeSpec) -> Outcome {
        self.trace(spec, Trace::start(false)).await
    }

    async fn trace(&self, spec: &ProbeSpec, mut trace: Trace) -> Outcome {
        // Reading certificates and passwords is this host's work, not the backend's: before the
        // clock starts.
        let prepared = match &spec.kind {
            ProbeKind::Redis(_) => Box::pin(self.prepare(spec)).await,
            kind if tls_options(kind).is_some() => Box::pin(self.prepare(spec)).await,
            _ => Ok(Prepared::default()),
        };
        trace.begin();
        let result = match prepared {
            Ok(prepared) => {
                let work = ask(spec, &prepared, &self.kept, &mut trace);
                match deadline::within(spec.timeout, work).await {
                    Ok(result) => result,
                    Err(expired) => Err(expired_failure(expired, spec.timeout, &trace)),
                }
            }
            Err(failure) => Err(failure),
        };
        trace.finish(result)
    }

    async fn prepare(&self, spec: &ProbeSpec) -> Result<Prepared, Failure> {
        let tls = match tls_options(&spec.kind) {
            None => None,
            Some((options, alpn)) => {
                let context = self.contexts.get(spec.target, options, alpn).await;
                Some(context.map_err(|error| Failure::internal(error.to_string()))?)
            }
        };
        let password = match &spec.kind {
            ProbeKind::Redis(RedisProbe {
                password_file: Some(path),
                ..
            }) => Some(secret::read(path).await?),
            _ => None,
        };
        Ok(Prepared { tls, password })
    }
}

/// What a probe needs from this host.
#[derive(Default)]
struct Prepared {
    tls: Option<TlsContext>,
    password: Option<String>,
}

/// A successful probe: the line that [`Outcome::detail`] shows.
struct Success(String);

/// What a probe ends with when it ends in time.
type Answer = Result<Success, Failure>;

fn tls_options(kind: &ProbeKind) -> Option<(&TlsOptions, Alpn)> {
    let (tls, alpn) = match kind {
        ProbeKind::Http(http) => (&http.tls, Alpn::Http1),
        ProbeKind::Grpc { tls, .. } => (tls, Alpn::Http2),
        ProbeKind::TcpScript(script) => (&script.tls, Alpn::Absent),
        ProbeKind::Redis(redis) => (&redis.tls, Alpn::Absent),
        ProbeKind::Smtp(smtp) => (&smtp.tls, Alpn::Absent),
        ProbeKind::Tcp
        | ProbeKind::TcpHalfOpen
        | ProbeKind::Postgres(_)
        | ProbeKind::Mysql(_)
        | ProbeKind::Dns(_)
        | ProbeKind::Agent
        | ProbeKind::Exec(_) => return None,
    };
    tls.as_ref().map(|options| (options, alpn))
}

async fn ask(
    spec: &ProbeSpec,
    prepared: &Prepared,
    kept: &http::Kept,
    trace: &mut Trace,
) -> Answer {
    match &spec.kind {
        ProbeKind::Http(http) => kept.ask(spec, http, prepared.tls.as_ref(), trace).await,
        ProbeKind::Tcp => {
            connect::connect(spec.target, trace).await?;
            Ok(Success("connected".to_owned()))
        }
        // Apart, since every probe in flight would be as large as the largest kind of them.
        _ => Box::pin(ask_otherwise(spec, prepared, trace)).await,
    }
}

async fn ask_otherwise(spec: &ProbeSpec, prepared: &Prepared, trace: &mut Trace) -> Answer {
    match &spec.kind {
        ProbeKind::TcpHalfOpen => half_open::ask(spec.target, trace).await,
        ProbeKind::Dns(dns) => dns::ask(spec.target, dns, spec.timeout, trace).await,
        ProbeKind::Exec(exec) => exec::ask(spec.target, exec, trace).await,
        _ => {
            let tcp = connect::connect(spec.target, trace).await?;
            match &prepared.tls {
                None => converse(tcp, spec, prepared, trace).await,
                Some(context) => {
                    let stream = context.connect(tcp, trace).await?;
                    converse(stream, spec, prepared, trace).await
                }
            }
        }
    }
}

/// Speaks the probe's protocol on an established connection.
async fn converse<S: ProbeStream>(
    stream: S,
    spec: &ProbeSpec,
    prepared: &Prepared,
    trace: &mut Trace,
) -> Answer {
    match &spec.kind {
        ProbeKind::TcpScript(script) => script::ask(stream, script, trace).await,
        ProbeKind::Grpc {
            service,
            authority,
            accept_status,
            metadata,
            tls: _,
        } => {
            let call = grpc::Call {
                service,
                authority,
                accept_status,
                metadata,
                timeout: spec.timeout,
                scheme: if prepared.tls.is_some() {
                    "https"
                } else {
                    "http"
                },
            };
            grpc::ask(stream, &call, trace).await
        }
        ProbeKind::Redis(redis) => {
            redis::ask(stream, redis, prepared.password.as_deref(), trace).await
        }
        ProbeKind::Agent => agent::ask(stream, trace).await,
        ProbeKind::Postgres(postgres) => postgres::ask(stream, postgres, trace).await,
        ProbeKind::Mysql(mysql) => mysql::ask(stream, mysql, trace).await,
        ProbeKind::Smtp(smtp) => smtp::ask(stream, smtp, trace).await,
        ProbeKind::Tcp
        | ProbeKind::TcpHalfOpen
        | ProbeKind::Http(_)
        | ProbeKind::Dns(_)
        | ProbeKind::Exec(_) => Err(Failure::internal("this probe connects by itself")),
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
        Expired::Starved { stalled } => Failure::shortage(format!(
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
