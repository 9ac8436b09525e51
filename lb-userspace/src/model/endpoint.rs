//! Where a service is reached: a VIP with one port, a range of ports or all of them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::host_text;

/// A VIP and its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub ports: Ports,
}

/// Ports of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    One(u16),
    /// From the first to the last, which is another.
    Range(u16, u16),
    Any,
}

impl Ports {
    /// First and last.
    pub const fn bounds(self) -> (u16, u16) {
        match self {
            Self::One(port) => (port, port),
            Self::Range(first, last) => (first, last),
            Self::Any => (0, u16::MAX),
        }
    }

    /// Whether `port` is one of them.
    pub const fn contain(self, port: u16) -> bool {
        let (first, last) = self.bounds();
        first <= port && port <= last
    }

    /// Whether both are ranges and have a port in common, so that neither goes before the other.
    pub const fn clash(self, other: Self) -> bool {
        match (self, other) {
            (Self::Range(first, last), Self::Range(from, to)) => first <= to && from <= last,
            _ => false,
        }
    }

    /// Of those that a packet's port is in, the least is its service's: a single port goes before a
    /// range, a range before any port.
    const fn rank(self) -> u8 {
        match self {
            Self::One(_) => 0,
            Self::Range(..) => 1,
            Self::Any => 2,
        }
    }
}

impl Endpoint {
    pub const fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Its port, if it has a single one.
    pub const fn port(&self) -> Option<u16> {
        match self.ports {
            Ports::One(port) => Some(port),
            Ports::Range(..) | Ports::Any => None,
        }
    }

    /// Whether packets to `at` are for it, unless another goes before it.
    pub fn has(&self, at: SocketAddr) -> bool {
        self.ip == at.ip() && self.ports.contain(at.port())
    }

    /// Of `candidates`, the one that packets to `at` are for.
    pub fn of<T>(
        at: SocketAddr,
        candidates: impl IntoIterator<Item = T>,
        endpoint: impl Fn(&T) -> Endpoint,
    ) -> Option<T> {
        candidates
            .into_iter()
            .filter(|candidate| endpoint(candidate).has(at))
            .min_by_key(|candidate| endpoint(candidate).ports.rank())
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(at: SocketAddr) -> Self {
        Self {
            ip: at.ip(),
            ports: Ports::One(at.port()),
        }
    }
}

/// As it is configured.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", host_text(self.ip), self.ports)
    }
}

/// As it is written in the configuration.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(port) => write!(f, "{port}"),
            Self::Range(first, last) => write!(f, "{first}-{last}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// The address of a backend as it is configured: port 0 stands for the port that the client sends
/// to.
pub fn backend_text(address: SocketAddr) -> String {
    match address.port() {
        0 => format!("{}:*", host_text(address.ip())),
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(ports: Ports) -> Endpoint {
        Endpoint {
            ip: [203, 0, 113, 10].into(),
            ports,
        }
    }

    #[test]
    fn the_narrowest_is_the_service() {
        let all = [
            endpoint(Ports::Any),
            endpoint(Ports::Range(8000, 8099)),
            endpoint(Ports::One(8001)),
        ];
        let of = |at: &str| Endpoint::of(at.parse().unwrap(), all, |endpoint| *endpoint);
        assert_eq!(of("203.0.113.10:8001"), Some(all[2]));
        assert_eq!(of("203.0.113.10:8000"), Some(all[1]));
        assert_eq!(of("203.0.113.10:8099"), Some(all[1]));
        assert_eq!(of("203.0.113.10:8100"), Some(all[0]));
        assert_eq!(of("203.0.113.11:8100"), None);
        assert_eq!(
            Endpoint::of("203.0.113.10:1".parse().unwrap(), &all[1..], |e| **e),
            None
        );
    }

    #[test]
    fn only_ranges_clash() {
        let range = Ports::Range;
        assert!(range(1, 5).clash(range(5, 9)) && range(5, 9).clash(range(1, 5)));
        assert!(range(1, 9).clash(range(3, 4)));
        assert!(!range(1, 4).clash(range(5, 9)));
        assert!(!range(1, 9).clash(Ports::One(3)) && !Ports::Any.clash(range(1, 9)));
    }

    #[test]
    fn shown_as_configured() {
        assert_eq!(endpoint(Ports::Any).to_string(), "203.0.113.10:*");
        assert_eq!(endpoint(Ports::Range(1, 2)).to_string(), "203.0.113.10:1-2");
        let v6 = Endpoint::from("[2001:db8::1]:80".parse::<SocketAddr>().unwrap());
        assert_eq!(v6.to_string(), "[2001:db8::1]:80");
        assert_eq!(backend_text("[fd00::1]:0".parse().unwrap()), "[fd00::1]:*");
        assert_eq!(backend_text("10.0.0.1:8".parse().unwrap()), "10.0.0.1:8");
    }
}
