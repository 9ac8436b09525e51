//! What the headers of a captured packet say, as far as they were captured.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TcpSlice, TransportSlice};

/// The headers of an IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub inside: Inside,
}

/// What the IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inside {
    Tcp {
        ports: (u16, u16),
        flags: String,
        /// Bytes of data, as far as they were captured.
        payload: usize,
    },
    Udp {
        ports: (u16, u16),
    },
    Fragment,
    /// Another protocol, or one whose header is not there.
    Other(IpNumber),
}

impl Headers {
    /// Reads an Ethernet frame; `None` if it is not IP, or cut before that can be told.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
        let (src, dst, protocol, fragmented): (IpAddr, IpAddr, _, _) = match &packet.net? {
            LaxNetSlice::Ipv4(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                ip.payload().ip_number,
                ip.is_payload_fragmented(),
            ),
            LaxNetSlice::Ipv6(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                ip.payload().ip_number,
                ip.is_payload_fragmented(),
            ),
            LaxNetSlice::Arp(_) => return None,
        };
        let inside = match packet.transport {
            _ if fragmented => Inside::Fragment,
            Some(TransportSlice::Tcp(tcp)) => Inside::Tcp {
                ports: (tcp.source_port(), tcp.destination_port()),
                flags: flags(&tcp),
                payload: tcp.payload().len(),
            },
            Some(TransportSlice::Udp(udp)) => Inside::Udp {
                ports: (udp.source_port(), udp.destination_port()),
            },
            Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) | None => {
                Inside::Other(protocol)
            }
        };
        Some(Self { src, dst, inside })
    }

    /// `198.51.100.7:40000 > 203.0.113.10:80`, without ports where there are none.
    pub fn ends(&self) -> String {
        match self.inside {
            Inside::Tcp { ports, .. } | Inside::Udp { ports } => format!(
                "{} > {}",
                SocketAddr::new(self.src, ports.0),
                SocketAddr::new(self.dst, ports.1)
            ),
            Inside::Fragment | Inside::Other(_) => format!("{} > {}", self.src, self.dst),
        }
    }
}

impl fmt::Display for Inside {
    /// `tcp SA`, `udp`, `icmp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { flags, .. } => write!(f, "tcp {flags}"),
            Self::Udp { .. } => f.write_str("udp"),
            Self::Fragment => f.write_str("fragment"),
            Self::Other(IpNumber::TCP) => f.write_str("tcp cut short"),
            Self::Other(IpNumber::UDP) => f.write_str("udp cut short"),
            Self::Other(IpNumber::ICMP) => f.write_str("icmp"),
            Self::Other(IpNumber::IPV6_ICMP) => f.write_str("icmpv6"),
            Self::Other(number) => write!(f, "protocol {}", number.0),
        }
    }
}

/// One letter a flag, in the order of the header; `-` for none.
fn flags(tcp: &TcpSlice<'_>) -> String {
    let letters = [
        (tcp.syn(), 'S'),
        (tcp.fin(), 'F'),
        (tcp.rst(), 'R'),
        (tcp.psh(), 'P'),
        (tcp.ack(), 'A'),
        (tcp.urg(), 'U'),
        (tcp.ece(), 'E'),
        (tcp.cwr(), 'C'),
    ];
    let set: String = letters
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, letter)| letter)
        .collect();
    if set.is_empty() { "-".to_owned() } else { set }
}

#[cfg(test)]
pub(super) mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    pub(crate) fn syn() -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([198, 51, 100, 7], [203, 0, 113, 10], 64)
            .tcp(40_000, 80, 1, 1024)
            .syn()
            .write(&mut frame, b"hello")
            .unwrap();
        frame
    }

    fn told(frame: &[u8]) -> String {
        let headers = Headers::read(frame).unwrap();
        format!("{} {}", headers.ends(), headers.inside)
    }

    #[test]
    fn headers_are_told_as_far_as_they_were_captured() {
        let syn = syn();
        assert_eq!(told(&syn), "198.51.100.7:40000 > 203.0.113.10:80 tcp S");
        // Cut within the data, behind the TCP header, within it, and at the IP header.
        assert_eq!(told(&syn[..57]), told(&syn));
        assert_eq!(told(&syn[..54]), told(&syn));
        assert_eq!(
            told(&syn[..40]),
            "198.51.100.7 > 203.0.113.10 tcp cut short"
        );
        assert_eq!(Headers::read(&syn[..30]), None);
        assert_eq!(Headers::read(&[]), None);
        let mut fragment = syn;
        fragment[20] = 0x20;
        assert_eq!(told(&fragment), "198.51.100.7 > 203.0.113.10 fragment");
    }

    #[test]
    fn other_protocols_and_tags_are_told() {
        let mut udp = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .single_vlan(7.try_into().unwrap())
            .ipv6([0x20; 16], [0x30; 16], 64)
            .udp(5353, 53)
            .write(&mut udp, &[0; 100])
            .unwrap();
        let wanted = "[2020:2020:2020:2020:2020:2020:2020:2020]:5353 > \
                      [3030:3030:3030:3030:3030:3030:3030:3030]:53 udp";
        assert_eq!(told(&udp), wanted);
        assert_eq!(told(&udp[..80]), wanted);
        let mut ping = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([198, 51, 100, 7], [203, 0, 113, 10], 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut ping, &[])
            .unwrap();
        assert_eq!(told(&ping), "198.51.100.7 > 203.0.113.10 icmp");
        let mut arp = ping;
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(Headers::read(&arp), None);
    }
}
