//! What a probe asks of a backend, once its address is known.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::egress;
use crate::model::{
    Endpoint, ExecProbe, Forwarding, HealthPolicy, HttpProbe, ProbeKind, ProbeSpec, TlsOptions,
    host_text,
};

/// One probe of a service's backends.
#[derive(Clone, Debug)]
pub struct Checks {
    pub policy: HealthPolicy,
    pub(super) port: Option<u16>,
    pub(super) question: Question,
    pub egress: egress::Rules,
}

/// Where a backend is asked, as far as it says so itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
}

/// A probe without its target.
#[derive(Clone, Debug)]
pub(super) enum Question {
    /// The same of every backend, whatever its address.
    Same(ProbeKind),
    Http {
        probe: HttpProbe,
        /// `None`: the target.
        host: Option<String>,
    },
    Grpc {
        service: String,
        authority: Option<String>,
        accept_status: Vec<u32>,
        metadata: Vec<(String, String)>,
        tls: Option<TlsOptions>,
        watch: bool,
    },
}

impl Checks {
    /// Whether they run commands.
    pub fn runs_commands(&self) -> bool {
        matches!(self.question, Question::Same(ProbeKind::Exec(_)))
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
        let kind = match &self.question {
            Question::Same(ProbeKind::Exec(exec)) => ProbeKind::Exec(ExecProbe {
                service: service.clone(),
                backend: name.clone(),
                ..exec.clone()
            }),
            Question::Same(kind) => kind.clone(),
            Question::Http { probe, host } => {
                let usual = if probe.tls.is_some() { 443 } else { 80 };
                let named = host.is_none() && written.is_some();
                ProbeKind::Http(HttpProbe {
                    host: host
                        .clone()
                        .unwrap_or_else(|| authority_of(written, target, usual)),
                    tls: tls_of(&probe.tls, written.filter(|_| named)),
                    ..probe.clone()
                })
            }
            Question::Grpc {
                service,
                authority,
                accept_status,
                metadata,
                tls,
                watch,
            } => {
                let usual = if tls.is_some() { 443 } else { 80 };
                let named = authority.is_none() && written.is_some();
                let authority = authority.clone();
                ProbeKind::Grpc {
                    service: service.clone(),
                    authority: authority.unwrap_or_else(|| authority_of(written, target, usual)),
                    accept_status: accept_status.clone(),
                    metadata: metadata.clone(),
                    tls: tls_of(tls, written.filter(|_| named)),
                    watch: *watch,
                }
            }
        };
        ProbeSpec {
            target,
            timeout: self.policy.timeout,
            kind,
            egress,
        }
    }
}

/// `target`, or the host name that it has, as an authority; the scheme's usual port is left out
/// (RFC 9110, 4.2.3).
fn authority_of(written: Option<&str>, target: SocketAddr, usual_port: u16) -> String {
    let host = match written {
        Some(name) => name.trim_end_matches('.').to_owned(),
        None => host_text(target.ip()),
    };
    if target.port() == usual_port {
        host
    } else {
        format!("{host}:{}", target.port())
    }
}

/// TLS options for a server whose host name is known, unless the settings name another.
fn tls_of(options: &Option<TlsOptions>, name: Option<&str>) -> Option<TlsOptions> {
    let mut options = options.clone()?;
    if options.sni.is_none() {
        options.sni = name.and_then(name_in);
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
