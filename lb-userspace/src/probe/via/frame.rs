//! Packets as they come out of the device, and the outer headers that the data plane would put before
//! them (`lb-ebpf/src/forward/tunnel.rs`).

use std::net::IpAddr;

use lb_common::abi::{Forwarding, IPV4_LEN, IPV6_LEN, UDP_LEN};
use lb_common::{checksum, hash};

use crate::model::Via;
use crate::plan::Path;

const IPV4_IN: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_IN: u8 = 41;
/// First UDP source port of GUE: the dynamic range (RFC 6335, section 6).
const FIRST_PORT: u16 = 0xc000;
/// Hops that an outer packet may take, as in the data plane.
const TTL: u8 = 64;

/// Whose packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub target: (IpAddr, u16),
}

impl Flow {
    /// The flow of a packet that this host has made: TCP or UDP, whole, without extension headers.
    /// `None` for any other.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let (protocol, source, target, payload) = match packet.first()? >> 4 {
            4 => {
                let length = usize::from(packet[0] & 15) * 4;
                let header = packet.get(..length.max(20))?;
                (
                    header[9],
                    v4(&header[12..16])?,
                    v4(&header[16..20])?,
                    &packet[length..],
                )
            }
            6 => {
                let header = packet.get(..40)?;
                (
                    header[6],
                    v6(&header[8..24])?,
                    v6(&header[24..40])?,
                    &packet[40..],
                )
            }
            _ => return None,
        };
        let &[a, b, c, d, ..] = payload else {
            return None;
        };
        matches!(protocol, TCP | UDP).then_some(Self {
            protocol,
            source: (source, u16::from_be_bytes([a, b])),
            target: (target, u16::from_be_bytes([c, d])),
        })
    }

    /// Tells flows apart on the way, as the data plane's hash does.
    pub fn entropy(&self) -> u32 {
        hash::mix(u64::from(self.source.1) << 16 | u64::from(self.target.1)) as u32
    }
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    Some(<[u8; 4]>::try_from(bytes).ok()?.into())
}

fn v6(bytes: &[u8]) -> Option<IpAddr> {
    Some(<[u8; 16]>::try_from(bytes).ok()?.into())
}

/// The packet inside its tunnel; `None` where there is none.
pub fn wrap(packet: &[u8], entropy: u32, via: Via, path: &Path) -> Option<Vec<u8>> {
    match via.forwarding {
        Forwarding::Nat | Forwarding::Dsr => return None,
        Forwarding::Ipip | Forwarding::Gue => {}
    }
    let inner_v6 = packet.first()? >> 4 == 6;
    let class = match packet {
        [first, second, ..] if inner_v6 => first << 4 | second >> 4,
        [_, second, ..] => *second,
        _ => return None,
    };
    let (protocol, udp) = match (path.tunnel.gue_port, inner_v6) {
        (0, false) => (IPV4_IN, None),
        (0, true) => (IPV6_IN, None),
        (port, _) => (UDP, Some(port)),
    };
    let payload = packet.len() as u16 + if udp.is_some() { UDP_LEN } else { 0 };
    let mut out = match (path.source, via.backend) {
        (IpAddr::V4(source), IpAddr::V4(backend)) => {
            let source = source.to_bits() | entropy & u32::from_be(path.tunnel.source_bits);
            let [high, low] = (payload + IPV4_LEN).to_be_bytes();
            let mut header = vec![0x45, class, high, low, 0, 0, 0x40, 0, TTL, protocol, 0, 0];
            header.extend(source.to_be_bytes());
            header.extend(backend.octets());
            let words = header.as_chunks::<2>().0;
            let sum = words
                .iter()
                .map(|word| u64::from(u16::from_ne_bytes(*word)));
            let sum = !checksum::fold(sum.sum());
            header[10..12].copy_from_slice(&sum.to_ne_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(backend)) => {
            let bits = u32::from_be(path.tunnel.source_bits);
            let source = source.to_bits() | u128::from(entropy & bits);
            let first = 6 << 28 | u32::from(class) << 20 | entropy & 0xf_ffff;
            let mut header = Vec::from(first.to_be_bytes());
            header.extend(payload.to_be_bytes());
            header.extend([protocol, TTL]);
            header.extend(source.to_be_bytes());
            header.extend(backend.octets());
            header
        }
        // A path's source is of the backend's family.
        _ => return None,
    };
    if let Some(port) = udp {
        out.extend((FIRST_PORT | entropy as u16).to_be_bytes());
        out.extend(port.to_be_bytes());
        out.extend(payload.to_be_bytes());
        // Tunnels may leave it out, over IPv6 too (RFC 6935).
        out.extend([0, 0]);
    }
    debug_assert_eq!(
        out.len() + packet.len(),
        usize::from(payload)
            + usize::from(if path.source.is_ipv4() {
                IPV4_LEN
            } else {
                IPV6_LEN
            })
    );
    out.extend(packet);
    Some(out)
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use lb_common::abi::Hop;

    use super::*;
    use crate::plan::Tunnel;

    const MARKED: u8 = 0xb8;

    fn inner(v6: bool) -> Vec<u8> {
        let builder = match v6 {
            false => PacketBuilder::ipv4([10, 0, 0, 2], [203, 0, 113, 10], 64),
            true => PacketBuilder::ipv6([1; 16], [2; 16], 64),
        };
        let mut packet = Vec::new();
        let tcp = builder.tcp(40_000, 80, 1, 1024).syn();
        tcp.write(&mut packet, b"hello").unwrap();
        match v6 {
            false => packet[1] = MARKED,
            true => (packet[0], packet[1]) = (0x60 | MARKED >> 4, MARKED << 4),
        }
        packet
    }

    fn path(source: &str, tunnel: Tunnel) -> Path {
        Path {
            hop: Hop::default(),
            source: source.parse().unwrap(),
            mtu: 1500,
            tunnel,
        }
    }

    #[test]
    fn a_flow_is_read_off_its_packets() {
        let flow = Flow::of(&inner(false)).unwrap();
        assert_eq!(flow.protocol, TCP);
        assert_eq!(flow.source, ("10.0.0.2".parse().unwrap(), 40_000));
        assert_eq!(flow.target, ("203.0.113.10".parse().unwrap(), 80));
        assert!(Flow::of(&inner(true)).is_some());
        let mut ping = inner(false);
        ping[9] = 1;
        assert_eq!(Flow::of(&ping), None);
        // Whatever is cut off.
        for v6 in [false, true] {
            let packet = inner(v6);
            let header = if v6 { 40 } else { 20 };
            for length in 0..header + 4 {
                assert_eq!(Flow::of(&packet[..length]), None, "{length}");
            }
        }
        // A header length that is impossible.
        let mut short = inner(false);
        short[0] = 0x41;
        assert!(Flow::of(&short).is_none_or(|flow| flow.protocol == TCP));
    }

    #[test]
    fn outer_headers_are_those_of_the_data_plane() {
        let (v4, v6) = (("10.0.0.2", "10.9.9.9"), ("fd00::2", "fd00::9"));
        for forwarding in [Forwarding::Ipip, Forwarding::Gue] {
            for ((source, backend), inner_v6) in [(v4, false), (v4, true), (v6, false), (v6, true)]
            {
                let gue_port = if forwarding == Forwarding::Gue {
                    6080
                } else {
                    0
                };
                let tunnel = Tunnel {
                    gue_port,
                    source_bits: 0,
                };
                let via = Via {
                    backend: backend.parse().unwrap(),
                    forwarding,
                };
                let packet = inner(inner_v6);
                let bytes = wrap(&packet, 0x1234_5678, via, &path(source, tunnel)).unwrap();
                assert!(bytes.ends_with(&packet));
                let outer = SlicedPacket::from_ip(&bytes).unwrap();
                let (protocol, class) = match outer.net.unwrap() {
                    etherparse::NetSlice::Ipv4(ip) => {
                        let header = ip.header().to_header();
                        assert_eq!(header.header_checksum, header.calc_header_checksum());
                        assert!(header.dont_fragment);
                        assert_eq!(
                            IpAddr::from(header.source),
                            source.parse::<IpAddr>().unwrap()
                        );
                        assert_eq!(IpAddr::from(header.destination), via.backend);
                        assert_eq!(usize::from(header.total_len), bytes.len());
                        (header.protocol.0, bytes[1])
                    }
                    etherparse::NetSlice::Ipv6(ip) => {
                        let header = ip.header().to_header();
                        assert_eq!(
                            IpAddr::from(header.source),
                            source.parse::<IpAddr>().unwrap()
                        );
                        assert_eq!(IpAddr::from(header.destination), via.backend);
                        assert_eq!(usize::from(header.payload_length) + 40, bytes.len());
                        (header.next_header.0, header.traffic_class)
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(class, MARKED);
                match (forwarding, inner_v6) {
                    (Forwarding::Gue, _) => {
                        let Some(TransportSlice::Udp(udp)) = outer.transport else {
                            panic!("no UDP");
                        };
                        assert_eq!((udp.destination_port(), udp.checksum()), (6080, 0));
                        assert!(udp.source_port() >= FIRST_PORT);
                        assert_eq!(usize::from(udp.length()), packet.len() + 8);
                    }
                    (_, false) => assert_eq!(protocol, IPV4_IN),
                    (_, true) => assert_eq!(protocol, IPV6_IN),
                }
            }
        }
    }

    #[test]
    fn the_source_varies_in_its_network_only() {
        let bits = u32::from_be_bytes([0, 0, 0xff, 0xff]).to_be();
        let tunnel = Tunnel {
            gue_port: 0,
            source_bits: bits,
        };
        let via = Via {
            backend: "10.9.9.9".parse().unwrap(),
            forwarding: Forwarding::Ipip,
        };
        let bytes = wrap(&inner(false), 0xabcd_1234, via, &path("172.16.0.0", tunnel)).unwrap();
        assert_eq!(bytes[12..16], [172, 16, 0x12, 0x34]);
        let direct = Via {
            forwarding: Forwarding::Dsr,
            ..via
        };
        assert_eq!(
            wrap(&inner(false), 1, direct, &path("10.0.0.2", tunnel)),
            None
        );
    }
}
