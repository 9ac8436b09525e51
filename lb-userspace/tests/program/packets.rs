//! Frames in and out of the program, built and taken apart by etherparse.

use std::net::IpAddr;

use etherparse::{Ethernet2Header, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket};
use etherparse::{TransportSlice, VlanId};

use crate::kernel::LB_MAC;

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc1];
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

/// What a test frame is made of.
#[derive(Clone, Debug)]
pub struct Frame {
    pub src: std::net::SocketAddr,
    pub dst: std::net::SocketAddr,
    pub from: [u8; 6],
    pub udp: bool,
    pub flags: &'static str,
    pub ttl: u8,
    pub vlans: usize,
    pub payload: Vec<u8>,
    pub sequence: u32,
    pub acknowledgement: u32,
    /// TCP options as they stand in the header, a multiple of four bytes.
    pub options: Vec<u8>,
}

impl Frame {
    pub fn tcp(src: &str, dst: &str, flags: &'static str) -> Self {
        Self {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            from: CLIENT_MAC,
            udp: false,
            flags,
            ttl: 64,
            vlans: 0,
            payload: b"hello".to_vec(),
            sequence: 1000,
            acknowledgement: 2000,
            options: Vec::new(),
        }
    }

    pub fn udp(src: &str, dst: &str) -> Self {
        Self {
            udp: true,
            ..Self::tcp(src, dst, "")
        }
    }

    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    pub fn vlans(self, vlans: usize) -> Self {
        Self { vlans, ..self }
    }

    pub fn sent_by(self, from: [u8; 6]) -> Self {
        Self { from, ..self }
    }

    pub fn bytes(&self) -> Vec<u8> {
        use std::net::IpAddr::{V4, V6};
        let ethernet = PacketBuilder::ethernet2(self.from, LB_MAC);
        let (src, dst) = (self.src.ip(), self.dst.ip());
        let vlan = |id: u16| VlanId::try_new(id).unwrap();
        match (src, dst, self.vlans) {
            (V4(src), V4(dst), 0) => {
                self.finish(ethernet.ipv4(src.octets(), dst.octets(), self.ttl))
            }
            (V6(src), V6(dst), 0) => {
                self.finish(ethernet.ipv6(src.octets(), dst.octets(), self.ttl))
            }
            (V4(src), V4(dst), 1) => {
                let vlan = ethernet.single_vlan(vlan(7));
                self.finish(vlan.ipv4(src.octets(), dst.octets(), self.ttl))
            }
            (V6(src), V6(dst), 1) => {
                let vlan = ethernet.single_vlan(vlan(7));
                self.finish(vlan.ipv6(src.octets(), dst.octets(), self.ttl))
            }
            (V4(src), V4(dst), _) => {
                let vlan = ethernet.double_vlan(vlan(7), vlan(8));
                self.finish(vlan.ipv4(src.octets(), dst.octets(), self.ttl))
            }
            (V6(src), V6(dst), _) => {
                let vlan = ethernet.double_vlan(vlan(7), vlan(8));
                self.finish(vlan.ipv6(src.octets(), dst.octets(), self.ttl))
            }
            _ => panic!("mixed families"),
        }
    }

    fn finish(&self, ip: PacketBuilderStep<etherparse::IpHeaders>) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.udp {
            let udp = ip.udp(self.src.port(), self.dst.port());
            udp.write(&mut bytes, &self.payload).unwrap();
            return bytes;
        }
        let mut tcp = ip.tcp(self.src.port(), self.dst.port(), self.sequence, 1024);
        for flag in self.flags.chars() {
            tcp = match flag {
                'S' => tcp.syn(),
                'A' => tcp.ack(self.acknowledgement),
                'F' => tcp.fin(),
                'R' => tcp.rst(),
                'P' => tcp.psh(),
                other => panic!("flag {other}"),
            };
        }
        let tcp = tcp.options_raw(&self.options).unwrap();
        tcp.write(&mut bytes, &self.payload).unwrap();
        bytes
    }
}

/// What came out of the program. All checksums have been recomputed and found right.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub src: std::net::SocketAddr,
    pub dst: std::net::SocketAddr,
    pub ttl: u8,
    pub payload: Vec<u8>,
    /// Flags in the order of [`Frame::tcp`]; empty for UDP.
    pub flags: String,
    pub sequence: u32,
    pub acknowledgement: u32,
}

pub fn parse(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (src, dst, ttl): (std::net::IpAddr, std::net::IpAddr, u8) =
        match packet.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(
                    header.header_checksum,
                    header.calc_header_checksum(),
                    "IPv4 checksum"
                );
                (
                    header.source.into(),
                    header.destination.into(),
                    header.time_to_live,
                )
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                (
                    header.source.into(),
                    header.destination.into(),
                    header.hop_limit,
                )
            }
            other => panic!("{other:?}"),
        };
    let sum = |checksum: u16,
               v4: &dyn Fn([u8; 4], [u8; 4]) -> u16,
               v6: &dyn Fn([u8; 16], [u8; 16]) -> u16| {
        use std::net::IpAddr::{V4, V6};
        let expected = match (src, dst) {
            (V4(src), V4(dst)) => v4(src.octets(), dst.octets()),
            (V6(src), V6(dst)) => v6(src.octets(), dst.octets()),
            _ => unreachable!(),
        };
        assert_eq!(checksum, expected, "transport checksum");
    };
    match packet.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            sum(
                header.checksum,
                &|src, dst| {
                    header
                        .calc_checksum_ipv4_raw(src, dst, tcp.payload())
                        .unwrap()
                },
                &|src, dst| {
                    header
                        .calc_checksum_ipv6_raw(src, dst, tcp.payload())
                        .unwrap()
                },
            );
            let mut flags = String::new();
            for (set, name) in [
                (header.syn, 'S'),
                (header.ack, 'A'),
                (header.fin, 'F'),
                (header.rst, 'R'),
                (header.psh, 'P'),
            ] {
                if set {
                    flags.push(name);
                }
            }
            Seen {
                src: (src, header.source_port).into(),
                dst: (dst, header.destination_port).into(),
                ttl,
                payload: tcp.payload().to_vec(),
                flags,
                sequence: header.sequence_number,
                acknowledgement: header.acknowledgment_number,
            }
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            if header.checksum != 0 {
                sum(
                    header.checksum,
                    &|src, dst| {
                        header
                            .calc_checksum_ipv4_raw(src, dst, udp.payload())
                            .unwrap()
                    },
                    &|src, dst| {
                        header
                            .calc_checksum_ipv6_raw(src, dst, udp.payload())
                            .unwrap()
                    },
                );
            }
            Seen {
                src: (src, header.source_port).into(),
                dst: (dst, header.destination_port).into(),
                ttl,
                payload: udp.payload().to_vec(),
                flags: String::new(),
                sequence: 0,
                acknowledgement: 0,
            }
        }
        other => panic!("{other:?}"),
    }
}

/// An ICMP packet of the family of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub from: [u8; 6],
    pub ttl: u8,
    pub vlans: usize,
    /// Type, code, and the rest of the header.
    pub kind: (u8, u8, u32),
    pub payload: Vec<u8>,
}

impl Icmp {
    pub fn bytes(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(self.from, LB_MAC);
        let vlan = |id: u16| VlanId::try_new(id).unwrap();
        match self.vlans {
            0 => self.finish(ethernet.ip(self.ip())),
            1 => self.finish(ethernet.single_vlan(vlan(7)).ip(self.ip())),
            _ => self.finish(ethernet.double_vlan(vlan(7), vlan(8)).ip(self.ip())),
        }
    }

    fn ip(&self) -> etherparse::IpHeaders {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => etherparse::IpHeaders::Ipv4(
                etherparse::Ipv4Header {
                    source: src.octets(),
                    destination: dst.octets(),
                    time_to_live: self.ttl,
                    ..Default::default()
                },
                Default::default(),
            ),
            (IpAddr::V6(src), IpAddr::V6(dst)) => etherparse::IpHeaders::Ipv6(
                etherparse::Ipv6Header {
                    source: src.octets(),
                    destination: dst.octets(),
                    hop_limit: self.ttl,
                    ..Default::default()
                },
                Default::default(),
            ),
            _ => panic!("mixed families"),
        }
    }

    fn finish(&self, ip: PacketBuilderStep<etherparse::IpHeaders>) -> Vec<u8> {
        let (kind, code, rest) = self.kind;
        let rest = rest.to_be_bytes();
        let mut bytes = Vec::new();
        if self.dst.is_ipv4() {
            let icmp = ip.icmpv4_raw(kind, code, rest);
            icmp.write(&mut bytes, &self.payload).unwrap();
        } else {
            let icmp = ip.icmpv6_raw(kind, code, rest);
            icmp.write(&mut bytes, &self.payload).unwrap();
        }
        bytes
    }
}

/// Takes an ICMP packet apart. All its checksums, but for those that it quotes, have been found
/// right, and its lengths.
pub fn parse_icmp(frame: &[u8]) -> Icmp {
    let vlans = frame[12..]
        .chunks(4)
        .take_while(|tag| tag[..2] == [0x81, 0] || tag[..2] == [0x88, 0xa8])
        .count();
    let packet = &frame[14 + 4 * vlans..];
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let (src, dst, ttl, icmp, pseudo);
    if packet[0] >> 4 == 4 {
        assert_eq!((packet[0], packet[9]), (0x45, 1));
        assert_eq!(usize::from(word(2)), packet.len());
        assert_eq!(checksum(&packet[..20], 0), 0, "IPv4 checksum");
        src = IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).unwrap());
        dst = IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap());
        (ttl, icmp, pseudo) = (packet[8], &packet[20..], 0);
    } else {
        assert_eq!((packet[0] >> 4, packet[6]), (6, 58));
        assert_eq!(usize::from(word(4)), packet.len() - 40);
        (src, dst) = (address(8), address(24));
        (ttl, icmp) = (packet[7], &packet[40..]);
        let sum: u32 = (8..40).step_by(2).map(|at| u32::from(word(at))).sum();
        pseudo = sum + u32::from(word(4)) + 58;
    }
    assert_eq!(checksum(icmp, pseudo), 0, "ICMP checksum");
    Icmp {
        src,
        dst,
        from: frame[6..12].try_into().unwrap(),
        ttl,
        vlans,
        kind: (
            icmp[0],
            icmp[1],
            u32::from_be_bytes(icmp[4..8].try_into().unwrap()),
        ),
        payload: icmp[8..].to_vec(),
    }
}

/// The Internet checksum (RFC 1071) of `bytes` on top of a sum; 0 if a right one is among them.
pub fn checksum(bytes: &[u8], sum: u32) -> u16 {
    let mut sum = sum;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sets the checksum of an IPv4 header anew.
pub fn sum_header(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..header], 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// An ICMP echo request.
pub fn echo(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    Icmp {
        src: src.into(),
        dst: dst.into(),
        from: CLIENT_MAC,
        ttl: 64,
        vlans: 0,
        kind: (8, 0, 0x1_0001),
        payload: b"ping".to_vec(),
    }
    .bytes()
}

/// A frame with any EtherType.
pub fn raw(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header {
        source: CLIENT_MAC,
        destination: LB_MAC,
        ether_type: etherparse::EtherType(ether_type),
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}
