//! Probers: one probe is one async call that ends with an [`Outcome`] before its deadline.
//!
//! [`Prober::run`] starts no task: dropping its future ends the probe and closes its socket. After
//! the end only HTTP connections are kept, for services that ask for it. What a peer sends is never trusted: heads, bodies and messages are bounded,
//! and text from the peer is escaped and shortened before a person sees it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::model::{ProbeKind, ProbeSpec, RedisProbe, TcpScript, TlsOptions};

mod agent;
mod connect;
mod deadline;
mod dial;
mod dns;
mod exec;
mod failure;
mod grpc;
mod half_open;
mod http;
mod ldap;
mod mysql;
mod outcome;
mod postgres;
mod proxy_protocol;
mod redis;
mod script;
mod secret;
mod smtp;
mod text;
mod tls;
mod trace;
pub mod via;
mod wire;

use connect::ProbeStream;
use deadline::Expired;
use dial::Dialer;
pub use exec::run_command;
use failure::Failure;
pub use grpc::message as grpc_health;
use grpc::watch::Watched;
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
    dialer: Dialer,
    watches: grpc::watch::Watches,
}

impl Prober {
    pub fn new() -> Self {
        Self::default()
    }

    /// With a carrier for probes by way of VIPs, which are `internal` without.
    pub fn with_carrier(carrier: Arc<via::Carrier>) -> Self {
        Self {
            dialer: Dialer::new(carrier),
            ..Self::default()
        }
    }

    /// Reports changes that servers say on kept streams, by the probe that should follow.
    pub fn reporting(self, report: mpsc::UnboundedSender<ProbeSpec>) -> Self {
        Self {
            watches: grpc::watch::Watches::new(report),
            ..self
        }
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
        let prepared = match &*spec.kind {
            ProbeKind::Redis(_) => Box::pin(self.prepare(spec)).await,
            kind if tls_options(kind).is_some() => Box::pin(self.prepare(spec)).await,
            _ => Ok(Prepared::default()),
        };
        trace.begin();
        let result = match prepared {
            Ok(prepared) => {
                let work = self.ask(spec, &prepared, &mut trace);
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
                let context = self.contexts.get(spec, options, alpn).await;
                Some(context.map_err(|error| Failure::internal(error.to_string()))?)
            }
        };
        let password = match &*spec.kind {
            ProbeKind::Redis(RedisProbe {
                password_file: Some(path),
                ..
            }) => Some(secret::read(path).await?),
            _ => None,
        };
        Ok(Prepared { tls, password })
    }

    async fn ask(&self, spec: &ProbeSpec, prepared: &Prepared, trace: &mut Trace) -> Answer {
        let dialer = &self.dialer;
        match &*spec.kind {
            ProbeKind::Http(http) => {
                let tls = prepared.tls.as_ref();
                self.kept.ask(dialer, spec, http, tls, trace).await
            }
            ProbeKind::Tcp => {
                dialer.connect(spec, trace).await?;
                Ok(Success("connected".to_owned()))
            }
            // Apart, since every probe in flight would be as large as the largest kind of them.
            _ => Box::pin(self.ask_otherwise(spec, prepared, trace)).await,
        }
    }

    async fn ask_otherwise(
        &self,
        spec: &ProbeSpec,
        prepared: &Prepared,
        trace: &mut Trace,
    ) -> Answer {
        let dialer = &self.dialer;
        match &*spec.kind {
            ProbeKind::TcpHalfOpen => half_open::ask(dialer, spec, trace).await,
            ProbeKind::Dns(dns) => dns::ask(dialer, spec, dns, trace).await,
            ProbeKind::Exec(exec) => exec::ask(spec.target, exec, trace).await,
            ProbeKind::Grpc { watch: true, .. } => self.watch(spec, prepared, trace).await,
            ProbeKind::TcpScript(script) => self.play(spec, script, prepared, trace).await,
            _ => self.converse(spec, prepared, trace).await,
        }
    }

    /// A script, on one connection after another.
    async fn play(
        &self,
        spec: &ProbeSpec,
        script: &TcpScript,
        prepared: &Prepared,
        trace: &mut Trace,
    ) -> Answer {
        let mut answer = Success(String::new());
        for (port, steps) in script.parts() {
            let mut target = spec.target;
            target.set_port(port.unwrap_or(target.port()));
            let spec = ProbeSpec {
                target,
                ..spec.clone()
            };
            let tcp = self.dialer.connect(&spec, trace).await?;
            answer = match &prepared.tls {
                None => script::ask(tcp, steps, trace).await?,
                Some(context) => {
                    let stream = context.connect(tcp, trace).await?;
                    script::ask(stream, steps, trace).await?
                }
            };
        }
        Ok(answer)
    }

    /// By the stream of a gRPC server, or by a call where it offers none.
    async fn watch(&self, spec: &ProbeSpec, prepared: &Prepared, trace: &mut Trace) -> Answer {
        let watched = match self.watches.ask_kept(spec, trace).await {
            Some(watched) => watched,
            None => {
                let call = grpc_call(spec, prepared)?;
                let tcp = self.dialer.connect(spec, trace).await?;
                match &prepared.tls {
                    None => self.watches.ask_fresh(tcp, spec, &call, trace).await,
                    Some(context) => {
                        let stream = context.connect(tcp, trace).await?;
                        self.watches.ask_fresh(stream, spec, &call, trace).await
                    }
                }
            }
        };
        match watched {
            Watched::Answer(answer) => answer,
            Watched::Unoffered => self.converse(spec, prepared, trace).await,
        }
    }

    /// On a fresh connection.
    async fn converse(&self, spec: &ProbeSpec, prepared: &Prepared, trace: &mut Trace) -> Answer {
        let tcp = self.dialer.connect(spec, trace).await?;
        match &prepared.tls {
            None => converse(tcp, spec, prepared, trace).await,
            Some(context) => {
                let stream = context.connect(tcp, trace).await?;
                converse(stream, spec, prepared, trace).await
            }
        }
    }
}

/// The call of a gRPC probe.
fn grpc_call<'a>(spec: &'a ProbeSpec, prepared: &Prepared) -> Result<grpc::Call<'a>, Failure> {
    let ProbeKind::Grpc {
        service,
        authority: _,
        accept_status,
        metadata,
        tls: _,
        watch: _,
    } = &*spec.kind
    else {
        return Err(Failure::internal("this probe is not one of gRPC"));
    };
    Ok(grpc::Call {
        service,
        authority: spec.authority(),
        accept_status,
        metadata,
        timeout: spec.timeout,
        scheme: if prepared.tls.is_some() {
            "https"
        } else {
            "http"
        },
    })
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
        ProbeKind::Ldap(ldap) => (&ldap.tls, Alpn::Absent),
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

/// Speaks the probe's protocol on an established connection.
async fn converse<S: ProbeStream>(
    stream: S,
    spec: &ProbeSpec,
    prepared: &Prepared,
    trace: &mut Trace,
) -> Answer {
    match &*spec.kind {
        ProbeKind::Grpc { .. } => grpc::ask(stream, &grpc_call(spec, prepared)?, trace).await,
        ProbeKind::Redis(redis) => {
            redis::ask(stream, redis, prepared.password.as_deref(), trace).await
        }
        ProbeKind::Agent => agent::ask(stream, trace).await,
        ProbeKind::Postgres(postgres) => postgres::ask(stream, postgres, trace).await,
        ProbeKind::Mysql(mysql) => mysql::ask(stream, mysql, trace).await,
        ProbeKind::Smtp(smtp) => smtp::ask(stream, smtp, trace).await,
        ProbeKind::Ldap(_) => ldap::ask(stream, trace).await,
        ProbeKind::Tcp
        | ProbeKind::TcpHalfOpen
        | ProbeKind::TcpScript(_)
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
