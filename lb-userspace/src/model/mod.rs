//! What the configuration means: checked, with all defaults filled in, and free of syntax.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use lb_common::abi::{Affinity, Forwarding};
use serde::{Deserialize, Serialize};

mod announce;
mod class;
mod connection_id;
mod endpoint;
mod mode;
mod named;
mod panic;
mod pattern;
mod policy;
mod pool;
mod probe;
mod question;
pub use announce::Announce;
pub use class::Class;
pub use connection_id::ConnectionId;
pub use endpoint::{Endpoint, Ports, backend_text};
pub use mode::{ActivePassive, Fence, Mode};
pub use named::{Family, NamedBackend, Question, server_id};
pub use panic::{PanicAction, PanicRules};
pub use pattern::Pattern;
pub use policy::{Assume, HealthPolicy, HoldDown, Window};
pub use pool::{PoolRules, SlowStart};
pub use probe::{
    BODY_METHODS, ClientCertificate, Egress, GRPC_CODES, HeaderMatch, HttpProbe, ProbeKind,
    ProbeSpec, ProxyProtocol, Reuse, StatusRange, TlsOptions, Via, authority,
};
pub use question::{
    DnsProbe, ExecProbe, LdapProbe, Match, MysqlProbe, PostgresProbe, RedisProbe, RedisRole,
    ScriptStep, SmtpProbe, TcpScript,
};

/// Everything the agent works from.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub node: Node,
    pub services: Vec<Service>,
    /// Backends that are written by name, in the order of the file; they are not among those of
    /// `services`, but the ones they stand for are put there.
    pub names: Vec<NamedBackend>,
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Interfaces to attach to.
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    pub control_socket: PathBuf,
    /// Address of the HTTP endpoints; `None`: off.
    pub http: Option<SocketAddr>,
    /// Holds the token that detailed answers are given for; `None`: to everybody.
    pub http_token_file: Option<PathBuf>,
    /// Address of the gRPC health service; `None`: off.
    pub grpc: Option<SocketAddr>,
    /// Socket for runtime commands of HAProxy; `None`: off.
    pub haproxy_socket: Option<PathBuf>,
    /// From SIGTERM to the end, with readiness failing.
    pub shutdown_grace: Duration,
    pub state_dir: PathBuf,
    pub on_exit: OnExit,
    /// Source ports for NAT; must not overlap `ip_local_port_range`.
    pub snat_ports: RangeInclusive<u16>,
    /// Capacity of the flow table.
    pub flow_entries: u32,
    /// RSTs that each CPU may send in a second; 0: none.
    pub reset_rate: u32,
    /// Pin of the XDP program that gets what is left to the host.
    pub chain: Option<PathBuf>,
    /// UDP port that GUE packets go to.
    pub gue_port: u16,
    /// Where the outer sources of IP-in-IP come from; `None`: the host's own address.
    pub tunnel_source4: Option<Prefix>,
    pub tunnel_source6: Option<Prefix>,
    /// Whether echo requests to a VIP are answered.
    pub answer_ping: bool,
    /// Whether probes may run commands of this host.
    pub allow_exec: bool,
    /// Probes in flight at a time at the most; `None`: as many as there are descriptors for.
    pub probes_in_flight: Option<u32>,
    /// Probes that may be started in a second; `None`: all that are due.
    pub probes_per_second: Option<u32>,
    /// Who is asked for host names; `None`: as the host's /etc/resolv.conf says.
    pub dns_servers: Option<Vec<SocketAddr>>,
    /// Longest time between two questions for one name.
    pub dns_max_ttl: Duration,
    /// Routing table that the routes of announced VIPs stand in.
    pub announce_table: u32,
    /// A certificate that expires sooner than this is worth a warning.
    pub certificate_warning: Duration,
}

/// A network: the addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The network of `address` whose first `length` bits count; `None` where the address has not
    /// as many. Further bits of the address are cleared.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) => {
                let host = 32u32.checked_sub(length.into())?;
                let mask = u32::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) => {
                let host = 128u32.checked_sub(length.into())?;
                let mask = u128::MAX.checked_shl(host).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
        };
        Some(Self { address, length })
    }

    /// The first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether it is the whole of a family's addresses.
    pub const fn is_all(&self) -> bool {
        self.length == 0
    }

    /// Those of the address's last 32 bits that differ among its addresses, as they stand in a
    /// packet.
    pub fn host_bits(&self) -> u32 {
        let all = if self.address.is_ipv4() { 32 } else { 128 };
        let host = u32::from(all - self.length);
        u32::MAX
            .checked_shl(host)
            .map_or(u32::MAX, |mask| !mask)
            .to_be()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Which kind of XDP to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native, else generic with a warning.
    Auto,
    Native,
    Generic,
}

/// What becomes of the data plane when the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExit {
    /// It goes on without the agent.
    Keep,
    /// It is taken off the interfaces.
    Detach,
}

/// What becomes of a TCP flow whose backend is out, at its next packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDeath {
    /// The client gets a RST.
    Reset,
    /// The present owner of the flow's slot gets the packet.
    Rehash,
}

impl OnDeath {
    /// Name in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Rehash => "rehash",
        }
    }
}

/// What the packets of a service's flows may say of its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassiveRules {
    /// Connections that a backend does not answer or refuses provoke probes at once, which may
    /// eject it.
    pub connections: bool,
    pub http: PassiveHttp,
    /// Percent of the backends that may be out by it at a time; one always may, if there are two.
    pub max_ejection_percent: u8,
}

impl Default for PassiveRules {
    fn default() -> Self {
        Self {
            connections: false,
            http: PassiveHttp::Off,
            max_ejection_percent: 50,
        }
    }
}

/// What HTTP answers with a status of 500 and above lead to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassiveHttp {
    /// They are not looked for.
    #[default]
    Off,
    /// They are shown.
    Report,
    /// A backend that gives far more of them than the others is ejected for a time.
    Eject,
}

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Name in configuration and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// `[[service]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub name: Arc<str>,
    /// VIP and port, or ports.
    pub address: Endpoint,
    pub protocol: Protocol,
    pub forwarding: Forwarding,
    pub affinity: Affinity,
    /// Whether all backends share the traffic or one has it all.
    pub mode: Mode,
    /// Always [`OnDeath::Reset`] for TCP by NAT, [`OnDeath::Rehash`] for UDP.
    pub on_death: OnDeath,
    /// Whether a repeated SYN goes to another backend; never for UDP.
    pub syn_rescue: bool,
    /// Octets of the server ID in QUIC connection IDs; 0 unless the affinity is [`Affinity::Quic`].
    pub server_id_length: u8,
    /// Percent of healthy weight under which health is ignored; 0: never, as with one active
    /// backend.
    pub panic_threshold: u8,
    pub panic: PanicRules,
    pub drain_deadline: Duration,
    /// When its VIP is announced; `None`: this service asks for no announcement.
    pub announce: Option<Announce>,
    pub slow_start: SlowStart,
    pub pool: PoolRules,
    pub passive: PassiveRules,
    /// Its probes, all of which a backend must pass; none for `probe = "none"`: its backends count
    /// as healthy.
    pub health: Vec<HealthPolicy>,
    pub backends: Vec<Backend>,
}

/// `[[service.backend]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub name: Arc<str>,
    /// Port 0: packets keep the port that the client sends to.
    pub address: SocketAddr,
    /// The octets of its server ID in QUIC connection IDs as a number.
    pub server_id: Option<u64>,
    /// 0: no new flows.
    pub weight: u32,
    pub tier: u8,
    /// Whether it only takes traffic in panic.
    pub fallback: bool,
    /// What to ask, for each of the service's probes.
    pub probes: Vec<Arc<ProbeSpec>>,
}

/// Names a backend: `service/backend`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    pub service: Arc<str>,
    pub backend: Arc<str>,
}

impl BackendKey {
    pub fn new(service: impl Into<Arc<str>>, backend: impl Into<Arc<str>>) -> Self {
        Self {
            service: service.into(),
            backend: backend.into(),
        }
    }
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

impl Service {
    /// How long a backend waits for its first verdict at the most: the longest of its probes'
    /// intervals and timeouts.
    pub fn probe_round(&self) -> Duration {
        let rounds = self
            .health
            .iter()
            .map(|policy| policy.interval + policy.timeout);
        rounds.max().unwrap_or_default()
    }

    /// How long nobody is healthy before backends without a verdict get traffic.
    pub fn fail_open_after(&self) -> Duration {
        self.pool
            .fail_open_after
            .unwrap_or_else(|| self.probe_round())
    }

    /// The probes of one of its backends.
    pub fn probes_of<'a>(
        &'a self,
        backend: &'a Backend,
    ) -> impl Iterator<Item = (&'a HealthPolicy, &'a ProbeSpec)> {
        self.health
            .iter()
            .zip(backend.probes.iter().map(Arc::as_ref))
    }

    /// Key of one of its backends.
    pub fn key(&self, backend: &Backend) -> BackendKey {
        BackendKey {
            service: self.name.clone(),
            backend: backend.name.clone(),
        }
    }
}

impl Model {
    /// The service of this name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| &*service.name == name)
    }

    /// A backend and its service.
    pub fn backend(&self, key: &BackendKey) -> Option<(&Service, &Backend)> {
        let service = self.service(&key.service)?;
        let backend = service
            .backends
            .iter()
            .find(|backend| backend.name == key.backend)?;
        Some((service, backend))
    }
}

/// `ip` in the form a URL or an authority has it.
pub fn host_text(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_clears_and_gives_its_host_bits() {
        let prefix = |text: &str, length| Prefix::new(text.parse().unwrap(), length);
        let bits = |text, length| prefix(text, length).unwrap().host_bits().to_ne_bytes();
        assert_eq!(bits("172.16.0.0", 12), [0, 0x0f, 0xff, 0xff]);
        assert_eq!(bits("10.0.0.0", 32), [0; 4]);
        assert_eq!(bits("0.0.0.0", 0), [0xff; 4]);
        assert_eq!(bits("100::", 64), [0xff; 4]);
        assert_eq!(bits("100::", 120), [0, 0, 0, 0xff]);
        assert_eq!(bits("::", 0), [0xff; 4]);
        let cleared = prefix("172.16.99.1", 16).unwrap();
        assert_eq!(cleared.to_string(), "172.16.0.0/16");
        assert_eq!(prefix("10.0.0.0", 33), None);
        assert_eq!(prefix("100::", 129), None);
    }
}
