//! The services of the scenario: each application once for each way to forward.

use std::net::{IpAddr, SocketAddr};

use super::backend::{GRPC, HAPROXY, IPERF, NGINX};
use crate::config::Service;
use crate::lab::{DSR_VIP, Lab, NAT_VIP};

/// A way to forward that the applications are tried with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Addresses rewritten, over IPv4.
    Nat,
    /// Direct server return, over IPv6.
    Dsr,
    /// IP-in-IP over IPv4, taken apart by `lb decap`.
    Ipip,
    /// GUE over IPv6, taken apart by `lb decap`.
    Gue,
}

impl Mode {
    /// All of them. A new one is added here and in the matches below; its test is a line in
    /// `tests/applications.rs`.
    pub const ALL: [Self; 4] = [Self::Nat, Self::Dsr, Self::Ipip, Self::Gue];

    /// Those that have services of their own addresses, so that they can be tried at the same time.
    pub const TOGETHER: [Self; 3] = [Self::Nat, Self::Dsr, Self::Ipip];

    /// Whether backends need `lb decap`.
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }

    /// Its word in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        }
    }

    /// Address of its services.
    pub const fn vip(self) -> IpAddr {
        match self {
            Self::Nat => NAT_VIP[0],
            Self::Ipip => DSR_VIP[0],
            Self::Dsr | Self::Gue => DSR_VIP[1],
        }
    }

    /// Port of its iperf3 servers: each serves one test at a time, so modes do not share them.
    pub const fn iperf_port(self) -> u16 {
        match self {
            Self::Nat => IPERF,
            Self::Dsr | Self::Gue => IPERF + 1,
            Self::Ipip => IPERF + 2,
        }
    }

    /// Where clients find the service on `port`.
    pub const fn at(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.vip(), port)
    }
}

/// A false alarm would break connections that must not break, so an ejection takes three failures,
/// each of them generously late.
const PACE: &str = "interval = \"1s\"\ntimeout = \"900ms\"";

/// Seconds that a backend keeps its connections while it drains: longer than a round needs it to.
pub(super) const DRAIN_DEADLINE: u64 = 30;

/// The services of one mode, with these backends.
pub(super) fn services(lab: &Lab, mode: Mode, backends: &[&str]) -> Vec<Service> {
    let http = format!("probe = \"http\"\npath = \"/readyz\"\n{PACE}");
    let grpc = format!("probe = \"grpc\"\n{PACE}");
    let elsewhere = format!("{http}\nport = {}", crate::server_handle::HTTP);
    let drain = format!("drain_deadline = \"{DRAIN_DEADLINE}s\"");
    // iperf3 opens several connections for one test, which must all reach one server.
    let sticky = format!("{drain}\naffinity = \"client\"");
    let service = |name: &str, port, health: &str, options: &str| {
        let name = format!("{}-{name}", mode.word());
        let service = Service::tcp(lab, &name, mode.at(port), port).health(health);
        Service {
            forwarding: mode.word(),
            ..service.options(options).only(backends)
        }
    };
    vec![
        service("nginx", NGINX, &http, &drain),
        service("haproxy", HAPROXY, &http, &drain),
        service("grpc", GRPC, &grpc, &drain),
        service("iperf", mode.iperf_port(), &elsewhere, &sticky),
    ]
}
