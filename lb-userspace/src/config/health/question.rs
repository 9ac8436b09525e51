//! What a probe asks of a backend, once its address is known.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::egress;
use crate::model::{
    Endpoint, ExecProbe, Forwarding, HealthPolicy, HttpProbe, ProbeKind, ProbeSpec, TlsOptions,
    authority,
};

/// One probe of a service's backends.
#[derive(Clone, Debug)]
pub struct Checks {
    pub policy: HealthPolicy,
    pub(super) port: Option<u16>,
    pub(super) question: Arc<ProbeKind>,
    pub egress: egress::Rules,
}

/// Where a backend is asked, as far as it says so itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
}

impl Checks {
    /// Whether they run commands.
    pub fn runs_commands(&self) -> bool {
        matches!(*self.question, ProbeKind::Exec(_))
    }

    /// Whether there is a port to probe where the backend has none of its own.
    pub const fn has_port(&self) -> bool {
        self.port.is_some()
    }

    /// The probe of the backend `name` at `address`, written as `host` and `asked` there, whose service has this VIP
    /// and is forwarded so.
    pub fn of(
        &self,
        address: SocketAddr,
        written: Option<&str>,
        asked: Asked,
        (vip, forwarding): (Endpoint, Forwarding),
        service: &Arc<str>,
        name: &Arc<str>,
    ) -> ProbeSpec {
        let port = asked.port.or(self.port).unwrap_or(address.port());
        let ip = match self.runs_commands() {
            // They are told what the backend's address is.
            true => address.ip(),
            false => asked.ip.unwrap_or(address.ip()),
        };
        let (target, egress) = self.egress.of(ip, port, vip, forwarding);
        // Where the configuration says nothing, a host name says which site is asked. An address
        // does not need to be said: it is the target.
        let kind = match (&*self.question, written) {
            (ProbeKind::Exec(exec), _) => Arc::new(ProbeKind::Exec(ExecProbe {
                service: service.clone(),
                backend: name.clone(),
                ..exec.clone()
            })),
            (
                ProbeKind::Http(
                    probe @ HttpProbe {
                        host: None, tls, ..
                    },
                ),
                Some(written),
            ) => Arc::new(ProbeKind::Http(HttpProbe {
                host: Some(authority_of(written, target.port(), tls)),
                tls: tls_of(tls, written),
                ..probe.clone()
            })),
            (
                ProbeKind::Grpc {
                    service,
                    authority: None,
                    accept_status,
                    metadata,
                    tls,
                    watch,
                },
                Some(written),
            ) => Arc::new(ProbeKind::Grpc {
                service: service.clone(),
                authority: Some(authority_of(written, target.port(), tls)),
                accept_status: accept_status.clone(),
                metadata: metadata.clone(),
                tls: tls_of(tls, written),
                watch: *watch,
            }),
            _ => self.question.clone(),
        };
        ProbeSpec {
            target,
            timeout: self.policy.timeout,
            kind,
            egress,
        }
    }
}

/// A host name as it was written, as an authority.
fn authority_of(written: &str, port: u16, tls: &Option<TlsOptions>) -> String {
    authority(written.trim_end_matches('.'), port, tls.is_some())
}

/// TLS options for a server whose host name is known, unless the settings name another.
fn tls_of(options: &Option<TlsOptions>, name: &str) -> Option<TlsOptions> {
    let mut options = options.clone()?;
    if options.sni.is_none() {
        options.sni = name_in(name);
    }
    Some(options)
}

/// The DNS name in an authority; `None` if there is an address.
pub(super) fn name_in(authority: &str) -> Option<String> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    let host = authority.host();
    rustls_pki_types::DnsName::try_from(host)
        .ok()
        .map(|_| host.to_string())
}
