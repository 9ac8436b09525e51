//! What a probe asks and what it accepts.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::Forwarding;

use super::{
    Backend, DnsProbe, ExecProbe, LdapProbe, MysqlProbe, Pattern, PostgresProbe, Protocol,
    RedisProbe, ScriptStep, Service, SmtpProbe, TcpScript, host_text,
};

/// One probe of one backend, complete in itself: two equal specs are the same probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProbeSpec {
    /// Address and port asked.
    pub target: SocketAddr,
    /// One deadline for the whole probe, from the first SYN to the last byte judged.
    pub timeout: Duration,
    /// One value for all backends that are asked the same.
    pub kind: Arc<ProbeKind>,
    pub egress: Egress,
}

// Of each backend there is one for each of its probes.
const _: () = assert!(size_of::<ProbeSpec>() <= 176);

impl ProbeSpec {
    /// What HTTP calls `Host` and gRPC `:authority`: as configured, else the target, without the
    /// scheme's usual port (RFC 9110, 4.2.3). Nothing for what has neither.
    pub fn authority(&self) -> Cow<'_, str> {
        let (written, tls) = match &*self.kind {
            ProbeKind::Http(http) => (&http.host, &http.tls),
            ProbeKind::Grpc { authority, tls, .. } => (authority, tls),
            _ => return Cow::Borrowed(""),
        };
        match written {
            Some(written) => Cow::Borrowed(written),
            None => {
                let host = host_text(self.target.ip());
                Cow::Owned(authority(&host, self.target.port(), tls.is_some()))
            }
        }
    }

    /// Whether it asks the very port that the backend's flows go to.
    pub fn asks_port_of(&self, service: &Service, backend: &Backend) -> bool {
        let same_protocol = self
            .kind
            .protocol()
            .is_none_or(|own| own == service.protocol);
        let same_port = match self.egress.via {
            None => self.target == backend.address,
            Some(_) => service.address.has(self.target),
        };
        same_protocol && same_port && !self.kind.asks_beside(self.target.port())
    }
}

/// `host` and `port` as an authority.
pub fn authority(host: &str, port: u16, tls: bool) -> String {
    let usual = if tls { 443 } else { 80 };
    if port == usual {
        host.to_owned()
    } else {
        format!("{host}:{port}")
    }
}

/// How a probe's packets leave this host. The default leaves it to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Egress {
    /// Address they come from.
    pub source: Option<IpAddr>,
    /// Their mark, for policy routing and firewalls (SO_MARK).
    pub mark: Option<u32>,
    /// Interface that they must leave and answers must arrive by (SO_BINDTODEVICE).
    pub interface: Option<String>,
    /// Header that each TCP connection begins with.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The target is the VIP: they go to the backend as the service's traffic does.
    pub via: Option<Via>,
}

/// Versions of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    V1,
    V2,
}

/// The way of a service's traffic to one of its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// The backend's own address.
    pub backend: IpAddr,
    /// Never [`Forwarding::Nat`].
    pub forwarding: Forwarding,
}

/// [`Forwarding`] has none to derive it from.
impl Hash for Via {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.backend.hash(state);
        self.forwarding.name().hash(state);
    }
}

/// Kinds of probe.
#[expect(
    clippy::large_enum_variant,
    reason = "specs stand behind an Arc and are not moved, and most of them are of HTTP"
)]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Connection established (and then reset, so that no TIME_WAIT is left).
    Tcp,
    /// SYN, SYN-ACK, RST: the handshake is never completed.
    TcpHalfOpen,
    /// Connection established, then the script.
    TcpScript(TcpScript),
    /// HTTP/1.1, over TLS if there are TLS options.
    Http(HttpProbe),
    /// `grpc.health.v1.Health/Check` over h2c, or TLS if there are TLS options.
    Grpc {
        /// Service asked for; empty: the server as a whole.
        service: String,
        /// `:authority`; `None`: the target.
        authority: Option<String>,
        /// gRPC status codes other than OK that count as a success.
        accept_status: Vec<u32>,
        /// Further request headers, names in lower case.
        metadata: Vec<(String, String)>,
        tls: Option<TlsOptions>,
        /// Whether a stream of `Health/Watch` is kept open, if the server offers it.
        watch: bool,
    },
    Redis(RedisProbe),
    Postgres(PostgresProbe),
    Mysql(MysqlProbe),
    Smtp(SmtpProbe),
    Ldap(LdapProbe),
    Dns(DnsProbe),
    /// A line in the words of HAProxy's agent check.
    Agent,
    Exec(ExecProbe),
}

/// An HTTP request and the answer it wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HttpProbe {
    pub method: String,
    pub path: String,
    /// `Host` header; `None`: the target.
    pub host: Option<String>,
    pub headers: Vec<(String, String)>,
    /// Sent with the request; only with methods whose requests have one (POST, PUT, PATCH).
    pub body: Option<String>,
    pub expect_status: Vec<StatusRange>,
    /// Each must be in the answer.
    pub expect_header: Vec<HeaderMatch>,
    /// None may be in it.
    pub reject_header: Vec<HeaderMatch>,
    /// Must occur in the first 256 KiB of the body.
    pub expect_body: Option<String>,
    /// Must match in the first 256 KiB of the body.
    pub expect_body_regex: Option<Pattern>,
    /// Must not occur in the first 256 KiB of the body; what comes after them is not judged.
    pub reject_body: Option<String>,
    /// Must not match there.
    pub reject_body_regex: Option<Pattern>,
    /// A right answer whose body has this, in its first 256 KiB, is that of a degraded backend.
    pub degraded_body: Option<String>,
    /// Status codes by which a backend asks to be drained; none of them in `expect_status`.
    pub drain_status: Vec<StatusRange>,
    /// A header by which it does, whatever the status.
    pub drain_header: Option<HeaderMatch>,
    /// `None`: a fresh connection each time.
    pub reuse: Option<Reuse>,
    pub tls: Option<TlsOptions>,
}

/// Methods whose requests have a body, be it an empty one (RFC 9110, 9.3; RFC 5789).
pub const BODY_METHODS: [&str; 3] = ["POST", "PUT", "PATCH"];

/// A header of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: String,
    /// `None`: whatever it says.
    pub value: Option<String>,
}

/// How long a probe's connection may serve further probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reuse {
    pub max_age: Duration,
    /// Probes on one connection, the first included.
    pub max_uses: u32,
}

/// Inclusive range of HTTP status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusRange {
    pub first: u16,
    pub last: u16,
}

/// How a probe speaks TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// Server name; `None`: no SNI is sent.
    pub sni: Option<String>,
    /// Whether the certificate is checked. A certificate that would not pass is reported either way.
    pub verify: bool,
    /// PEM file with the roots to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Shown to servers that ask for a client's certificate.
    pub client: Option<ClientCertificate>,
    /// Protocols offered by ALPN (RFC 7301) in the place of the probe's own; empty: none.
    pub alpn: Option<Vec<String>>,
}

/// PEM files with a certificate (its chain after it) and its private key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl ProbeKind {
    /// Whether it asks another port beside this one.
    fn asks_beside(&self, port: u16) -> bool {
        let Self::TcpScript(script) = self else {
            return false;
        };
        let mut steps = script.steps.iter();
        steps.any(|step| matches!(step, ScriptStep::Connect(other) if *other != port))
    }

    /// What it is carried by; `None` if the probe itself sends nothing.
    pub const fn protocol(&self) -> Option<Protocol> {
        match self {
            Self::Exec(_) => None,
            Self::Dns(_) => Some(Protocol::Udp),
            Self::Tcp
            | Self::TcpHalfOpen
            | Self::TcpScript(_)
            | Self::Http(_)
            | Self::Grpc { .. }
            | Self::Redis(_)
            | Self::Postgres(_)
            | Self::Mysql(_)
            | Self::Smtp(_)
            | Self::Ldap(_)
            | Self::Agent => Some(Protocol::Tcp),
        }
    }

    /// Name in configuration and JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tcp | Self::TcpHalfOpen | Self::TcpScript(_) => "tcp",
            Self::Http(HttpProbe { tls: None, .. }) => "http",
            Self::Http(HttpProbe { tls: Some(_), .. }) => "https",
            Self::Grpc { .. } => "grpc",
            Self::Redis(_) => "redis",
            Self::Postgres(_) => "postgres",
            Self::Mysql(_) => "mysql",
            Self::Smtp(_) => "smtp",
            Self::Ldap(_) => "ldap",
            Self::Dns(_) => "dns",
            Self::Exec(_) => "exec",
            Self::Agent => "agent",
        }
    }
}

impl HeaderMatch {
    /// Whether every header that `other` means is one that this means.
    pub fn covers(&self, other: &Self) -> bool {
        self.name == other.name
            && match (&self.value, &other.value) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(own), Some(other)) => own.eq_ignore_ascii_case(other),
            }
    }
}

/// As it is written in the configuration.
impl fmt::Display for HeaderMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            None => f.write_str(&self.name),
            Some(value) => write!(f, "{}: {value}", self.name),
        }
    }
}

impl StatusRange {
    /// Whether both have a status.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether `status` is in it.
    pub const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }
}

/// gRPC status codes by number (https://grpc.io/docs/guides/status-codes/).
pub const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
