//! A backend that is written by host name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Backend, ExecProbe, ProbeKind, Service};

/// Stands for one backend for each address of its host name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedBackend {
    pub service: Arc<str>,
    pub question: Question,
    /// What its backends have in common. Its name is the first part of theirs, its addresses are
    /// the unspecified one of the family that is asked for.
    pub template: Backend,
}

/// What is asked of DNS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Question {
    /// As it is configured.
    pub host: String,
    pub family: Family,
}

/// Which addresses are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// The type of its DNS records.
    pub const fn record(self) -> &'static str {
        match self {
            Self::Ipv4 => "A",
            Self::Ipv6 => "AAAA",
        }
    }

    /// The unspecified address.
    pub const fn any(self) -> IpAddr {
        match self {
            Self::Ipv4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Self::Ipv6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl NamedBackend {
    /// The backend at `address`, of the service that it belongs to. Its name says the address, so
    /// that it is the same after a restart and on every balancer.
    pub fn at(&self, address: IpAddr, service: &Service) -> Backend {
        let template = &self.template;
        let name: Arc<str> = format!("{}@{address}", template.name).into();
        let mut probes = template.probes.clone();
        for probe in probes.iter_mut().map(Arc::make_mut) {
            match &mut probe.egress.via {
                Some(via) => via.backend = address,
                None => probe.target = SocketAddr::new(address, probe.target.port()),
            }
            if let ProbeKind::Exec(exec) = &*probe.kind {
                probe.kind = Arc::new(ProbeKind::Exec(ExecProbe {
                    backend: name.clone(),
                    ..exec.clone()
                }));
            }
        }
        Backend {
            address: SocketAddr::new(address, template.address.port()),
            server_id: match service.server_id_length {
                0 => None,
                length => Some(server_id(address, length)),
            },
            probes,
            name,
            ..template.clone()
        }
    }
}

/// The server ID of so many octets that a backend at `address` has unless another is configured: the
/// last ones of its address.
pub fn server_id(address: IpAddr, length: u8) -> u64 {
    let number = match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let mask = u64::MAX >> (64 - 8 * u32::from(length.clamp(1, 8)));
    number as u64 & mask
}
