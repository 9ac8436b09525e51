//! IP-in-IP and GUE: exact outer headers, the packet inside, and what is too long.

use std::net::IpAddr;

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use etherparse::{NetSlice, SlicedPacket, TransportSlice, icmpv4};
use lb_common::abi::BackendState::{Active, Draining, Out};
use lb_common::abi::Forwarding::{self, Gue, Ipip};
use lb_common::abi::GUE_PORT;
use lb_common::slot::{Slot, TABLE_SIZES};
use lb_common::verdict::Verdict;
use lb_userspace::model::{Prefix, Protocol};

use crate::kernel::{DROP, INGRESS, Kernel, LB_MAC, SOURCE4, SOURCE6, TX, VIP4, VIP6};
use crate::kernel::{ip, kernel, node, path};
use crate::packets::{CLIENT_MAC, Frame, parse};

const CLIENT4: &str = "198.51.100.1:4000";
const CLIENT6: &str = "[2001:db8::1]:4000";
const BACKEND4: &str = "10.0.0.11:80";
const BACKEND6: &str = "[fd00::11]:80";

/// The outer headers of a frame.
#[derive(Debug, PartialEq, Eq)]
struct Outer {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ttl: u8,
    class: u8,
    /// GUE's ports.
    ports: Option<(u16, u16)>,
}

/// Takes a frame with this many VLAN tags apart: outer headers, flow label of IPv6, inner packet
/// with the Ethernet header before it, as if it had never been wrapped.
fn unwrap(frame: &[u8], vlans: usize) -> (Outer, u32, Vec<u8>) {
    let l3 = 14 + 4 * vlans;
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (mut outer, label, mut rest) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!((header.identification, header.dont_fragment), (0, true));
            assert!(!header.more_fragments && header.options.is_empty());
            assert_eq!(usize::from(header.total_len), frame.len() - l3);
            let outer = Outer {
                src: header.source.into(),
                dst: header.destination.into(),
                protocol: header.protocol.0,
                ttl: header.time_to_live,
                class: frame[l3 + 1],
                ports: None,
            };
            (outer, 0, &frame[l3 + 20..])
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(usize::from(header.payload_length), frame.len() - l3 - 40);
            let outer = Outer {
                src: header.source.into(),
                dst: header.destination.into(),
                protocol: header.next_header.0,
                ttl: header.hop_limit,
                class: header.traffic_class,
                ports: None,
            };
            (outer, header.flow_label.value(), &frame[l3 + 40..])
        }
        other => panic!("{other:?}"),
    };
    if outer.protocol == 17 {
        let word = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        assert_eq!(usize::from(word(4)), rest.len());
        assert_eq!(word(6), 0, "UDP checksum");
        outer.ports = Some((word(0), word(2)));
        rest = &rest[8..];
    }
    let mut inner = frame[..l3].to_vec();
    let v6 = rest[0] >> 4 == 6;
    inner[l3 - 2..].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
    inner.extend_from_slice(rest);
    (outer, label, inner)
}

/// The frame with another type of service or traffic class, and a right checksum.
pub fn with_class(mut frame: Vec<u8>, vlans: usize, class: u8) -> Vec<u8> {
    let l3 = 14 + 4 * vlans;
    if frame[l3] >> 4 == 6 {
        frame[l3] |= class >> 4;
        frame[l3 + 1] |= class << 4;
        return frame;
    }
    frame[l3 + 1] = class;
    checksum4(&mut frame[l3..l3 + 20]);
    frame
}

pub fn checksum4(header: &mut [u8]) {
    header[10..12].fill(0);
    let mut sum: u32 = (header.chunks_exact(2))
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

fn client(vip: &str) -> &'static str {
    if vip == VIP4 { CLIENT4 } else { CLIENT6 }
}

#[test]
fn every_family_in_every_other_with_exact_headers() {
    for forwarding in [Ipip, Gue] {
        let Some(mut kernel) = kernel("every_family_in_every_other_with_exact_headers") else {
            return;
        };
        let services = [
            (VIP4, Protocol::Tcp, 1, BACKEND4),
            (VIP6, Protocol::Tcp, 2, BACKEND6),
            (VIP4, Protocol::Udp, 3, BACKEND6),
            (VIP6, Protocol::Udp, 4, BACKEND4),
        ];
        for (vip, protocol, backend, address) in services {
            kernel.serve_one(vip, protocol, forwarding, (backend, address));
        }
        for (vip, protocol, backend, address) in services {
            for vlans in 0..=2 {
                for class in [0, 0xb8, 0x03, 0xff] {
                    let frame = match protocol {
                        Protocol::Tcp => Frame::tcp(client(vip), vip, "PA"),
                        Protocol::Udp => Frame::udp(client(vip), vip),
                    };
                    let before = with_class(frame.vlans(vlans).bytes(), vlans, class);
                    let after = kernel.forwards(&before, backend);
                    let (outer, _, inner) = unwrap(&after, vlans);
                    let over4 = address == BACKEND4;
                    let protocol = match (forwarding, vip == VIP4) {
                        (Gue, _) => 17,
                        (_, true) => 4,
                        (_, false) => 41,
                    };
                    let expected = Outer {
                        src: ip(if over4 { SOURCE4 } else { SOURCE6 }),
                        dst: address.parse::<std::net::SocketAddr>().unwrap().ip(),
                        protocol,
                        ttl: 64,
                        class,
                        ports: outer.ports,
                    };
                    assert_eq!(outer, expected);
                    if let Some((from, to)) = outer.ports {
                        assert!(from >= 0xc000 && to == GUE_PORT, "{outer:?}");
                    }
                    assert_eq!(outer.ports.is_some(), forwarding == Gue);
                    let mut seen = parse(&before);
                    seen.ttl -= 1;
                    assert_eq!(parse(&inner), seen);
                    // Byte for byte but for the TTL and what sums it up.
                    let l3 = 14 + 4 * vlans;
                    let mut rest = before.clone();
                    let changed = if vip == VIP4 { 8..12 } else { 7..8 };
                    let changed = l3 + changed.start..l3 + changed.end;
                    rest[changed.clone()].copy_from_slice(&inner[changed]);
                    assert_eq!(inner[12..], rest[12..]);
                }
            }
        }
    }
}

#[test]
fn padding_of_a_short_frame_is_not_part_of_the_packet() {
    let Some(mut kernel) = kernel("padding_of_a_short_frame_is_not_part_of_the_packet") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Ipip, (1, BACKEND4));
    let mut frame = Frame::tcp(CLIENT4, VIP4, "A");
    frame.payload.clear();
    let mut bytes = frame.bytes();
    bytes.resize(60, 0);
    let after = kernel.forwards(&bytes, 1);
    assert_eq!(after.len(), 80);
    assert_eq!(after[16..18], 60u16.to_be_bytes());
    // One that claims more than there is goes nowhere.
    bytes[16..18].copy_from_slice(&47u16.to_be_bytes());
    checksum4(&mut bytes[14..34]);
    assert_eq!(kernel.expect(&bytes, Verdict::DropMalformed).action, DROP);
}

#[test]
fn flows_differ_in_port_label_and_source() {
    let Some(mut kernel) = kernel("flows_differ_in_port_label_and_source") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Gue, (1, BACKEND4));
    kernel.serve_one(VIP6, Protocol::Tcp, Ipip, (2, BACKEND6));
    kernel.serve_one(VIP4, Protocol::Udp, Ipip, (3, BACKEND4));
    kernel.serve_one(VIP6, Protocol::Udp, Ipip, (4, BACKEND6));
    let mut node = node();
    node.tunnel_source4 = Prefix::new(ip("172.16.0.0"), 16);
    node.tunnel_source6 = Prefix::new(ip("100::"), 64);
    let mut wanted = kernel.contents.clone();
    for id in [3, 4] {
        let path = &mut wanted.backends.get_mut(&id).unwrap().path;
        *path = path.and_then(|path| path.through(Ipip, &node));
    }
    kernel.want(wanted);
    let mut ports = std::collections::BTreeSet::new();
    let mut labels = std::collections::BTreeSet::new();
    let mut sources = std::collections::BTreeSet::new();
    for port in 0..200 {
        let from4 = format!("198.51.100.1:{}", 1000 + port);
        let from6 = format!("[2001:db8::1]:{}", 1000 + port);
        let again = kernel.forwards(&Frame::tcp(&from4, VIP4, "A").bytes(), 1);
        let gue = kernel.forwards(&Frame::tcp(&from4, VIP4, "A").bytes(), 1);
        assert_eq!(unwrap(&gue, 0), unwrap(&again, 0), "one flow, one port");
        ports.insert(unwrap(&gue, 0).0.ports);
        let over6 = kernel.forwards(&Frame::tcp(&from6, VIP6, "A").bytes(), 2);
        labels.insert(unwrap(&over6, 0).1);
        for (frame, backend) in [(Frame::udp(&from4, VIP4), 3), (Frame::udp(&from6, VIP6), 4)] {
            let (outer, _, _) = unwrap(&kernel.forwards(&frame.bytes(), backend), 0);
            match outer.src {
                IpAddr::V4(v4) => assert_eq!(v4.octets()[..2], [172, 16]),
                IpAddr::V6(v6) => assert_eq!(v6.segments()[..6], [0x100, 0, 0, 0, 0, 0]),
            }
            sources.insert(outer.src);
        }
    }
    // 200 draws out of 16,384 repeat one or two; out of more, almost none.
    assert!(ports.len() > 180, "{} ports", ports.len());
    assert!(labels.len() > 190, "{} labels", labels.len());
    assert!(sources.len() > 390, "{} sources", sources.len());
}

/// A frame whose packet, from the IP header on, has this length.
fn long(vip: &str, length: usize, dont_fragment: bool) -> Vec<u8> {
    let mut frame = Frame::tcp(client(vip), vip, "A");
    frame.payload = vec![7; length - if vip == VIP4 { 40 } else { 60 }];
    let mut bytes = frame.bytes();
    if vip == VIP4 {
        bytes[20] = if dont_fragment { 0x40 } else { 0 };
        checksum4(&mut bytes[14..34]);
    }
    bytes
}

pub fn tag(mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0, 0, 7]);
    frame
}

#[test]
fn what_is_too_long_is_answered_with_the_exact_length() {
    let cases: [(Forwarding, &str, &str, u16); 8] = [
        (Ipip, VIP4, BACKEND4, 20),
        (Ipip, VIP4, BACKEND6, 40),
        (Ipip, VIP6, BACKEND4, 20),
        (Ipip, VIP6, BACKEND6, 40),
        (Gue, VIP4, BACKEND4, 28),
        (Gue, VIP4, BACKEND6, 48),
        (Gue, VIP6, BACKEND4, 28),
        (Gue, VIP6, BACKEND6, 48),
    ];
    for (forwarding, vip, backend, overhead) in cases {
        let Some(mut kernel) = kernel("what_is_too_long_is_answered_with_the_exact_length") else {
            return;
        };
        kernel.serve_one(vip, Protocol::Tcp, forwarding, (1, backend));
        let room = 1500 - overhead;
        for tagged in [false, true] {
            let frame = |length: u16| {
                let frame = long(vip, length.into(), true);
                if tagged { tag(frame) } else { frame }
            };
            let fits = kernel.forwards(&frame(room), 1);
            assert_eq!(fits.len(), 1514 + if tagged { 4 } else { 0 });
            let refused = frame(room + 1);
            let answer = kernel.expect(&refused, Verdict::TooBig);
            assert_eq!(answer.action, TX);
            must_be_the_answer(&answer.frame, &refused, vip, room, tagged);
        }
        if vip == VIP4 {
            let may_be_cut = long(vip, usize::from(room) + 1, false);
            let result = kernel.expect(&may_be_cut, Verdict::DropTooBig);
            assert_eq!(result.action, DROP);
            kernel.forwards(&long(vip, room.into(), false), 1);
        }
    }
}

fn must_be_the_answer(answer: &[u8], refused: &[u8], vip: &str, room: u16, tagged: bool) {
    let l3 = if tagged { 18 } else { 14 };
    assert_eq!(
        (&answer[..6], &answer[6..12]),
        (&CLIENT_MAC[..], &LB_MAC[..])
    );
    assert_eq!(answer[12..l3], refused[12..l3]);
    let sliced = SlicedPacket::from_ethernet(answer).unwrap();
    let (src, dst, ttl) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(usize::from(header.total_len), answer.len() - l3);
            let (src, dst) = (
                IpAddr::from(header.source),
                IpAddr::from(header.destination),
            );
            (src, dst, header.time_to_live)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(usize::from(header.payload_length), answer.len() - l3 - 40);
            let (src, dst) = (
                IpAddr::from(header.source),
                IpAddr::from(header.destination),
            );
            (src, dst, header.hop_limit)
        }
        other => panic!("{other:?}"),
    };
    let at = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().ip();
    assert_eq!((src, dst, ttl), (at(vip), at(client(vip)), 64));
    let quoted = match sliced.transport.as_ref().unwrap() {
        TransportSlice::Icmpv4(icmp) => {
            let next_hop_mtu = room;
            let kind = Icmpv4Type::DestinationUnreachable(
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
            );
            assert_eq!(icmp.icmp_type(), kind);
            let made = Icmpv4Header::with_checksum(kind, icmp.payload());
            assert_eq!(icmp.header().checksum, made.checksum);
            icmp.payload()
        }
        TransportSlice::Icmpv6(icmp) => {
            let kind = Icmpv6Type::PacketTooBig { mtu: room.into() };
            assert_eq!(icmp.icmp_type(), kind);
            let octets = |ip: IpAddr| match ip {
                IpAddr::V6(v6) => v6.octets(),
                IpAddr::V4(_) => panic!("{ip}"),
            };
            let made = Icmpv6Header::with_checksum(kind, octets(src), octets(dst), icmp.payload());
            assert_eq!(icmp.header().checksum, made.unwrap().checksum);
            icmp.payload()
        }
        other => panic!("{other:?}"),
    };
    // As it came, TTL included.
    assert_eq!(quoted, &refused[l3..l3 + 128]);
}

#[test]
fn the_length_that_fits_follows_the_way() {
    let Some(mut kernel) = kernel("the_length_that_fits_follows_the_way") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Ipip, (1, BACKEND4));
    let frame = long(VIP4, 1500, true);
    kernel.expect(&frame, Verdict::TooBig);
    let mut wanted = kernel.contents.clone();
    let mut jumbo = path(1, true, INGRESS);
    jumbo.mtu = 9000;
    wanted.backends.get_mut(&1).unwrap().path = Some(jumbo);
    kernel.want(wanted.clone());
    kernel.forwards(&frame, 1);
    wanted.backends.get_mut(&1).unwrap().path = None;
    kernel.want(wanted);
    kernel.expect(&frame, Verdict::DropNoNeighbor);
}

#[test]
fn a_way_that_was_never_known_has_no_length() {
    let Some(mut kernel) = kernel("a_way_that_was_never_known_has_no_length") else {
        return;
    };
    for (vip, forwarding, backend) in [(VIP4, Ipip, (1, BACKEND4)), (VIP6, Gue, (2, BACKEND6))] {
        kernel.serve_one(vip, Protocol::Tcp, forwarding, backend);
        // One that is added before its neighbour has answered.
        let mut wanted = kernel.contents.clone();
        let mut known = wanted.backends.remove(&backend.0).unwrap();
        known.path = None;
        let id = known.service;
        wanted.backends.insert(backend.0 + 10, known);
        let slots = vec![Slot::settled(backend.0 + 10); TABLE_SIZES[0] as usize];
        wanted.services.get_mut(&id).unwrap().slots = slots.into();
        kernel.want(wanted);
        let frame = Frame::tcp(client(vip), vip, "A").bytes();
        kernel.expect(&frame, Verdict::DropNoNeighbor);
    }
}

#[test]
fn used_up_hops_are_dropped() {
    let Some(mut kernel) = kernel("used_up_hops_are_dropped") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Gue, (1, BACKEND4));
    kernel.serve_one(VIP6, Protocol::Tcp, Gue, (2, BACKEND6));
    for vip in [VIP4, VIP6] {
        let frame = Frame::tcp(client(vip), vip, "A").ttl(1).bytes();
        assert_eq!(kernel.expect(&frame, Verdict::DropTtl).action, DROP);
    }
}

fn send(kernel: &mut Kernel, port: u16, flags: &'static str, backend: u16) {
    let from = format!("198.51.100.1:{port}");
    kernel.forwards(&Frame::tcp(&from, VIP4, flags).bytes(), backend);
}

#[test]
fn transitions_and_draining_are_those_of_dsr() {
    for forwarding in [Ipip, Gue] {
        let Some(mut kernel) = kernel("transitions_and_draining_are_those_of_dsr") else {
            return;
        };
        let two = [(1, BACKEND4), (2, "[fd00::12]:80")];
        let service = kernel.serve(VIP4, Protocol::Tcp, forwarding, Slot::settled(1), &two);
        send(&mut kernel, 1, "S", 1);
        kernel.set_slots(service, Slot::transition(2, 1));
        send(&mut kernel, 1, "A", 1);
        send(&mut kernel, 2, "S", 2);
        send(&mut kernel, 2, "A", 2);
        let first = kernel.datapath.traffic(1).unwrap();
        let second = kernel.datapath.traffic(2).unwrap();
        assert_eq!((first.by_previous, first.flows), (1, 1));
        assert_eq!((second.by_previous, second.flows), (0, 1));
        kernel.set_slots(service, Slot::transition(1, 1));
        send(&mut kernel, 2, "A", 2);
        kernel.set_state(1, Draining);
        send(&mut kernel, 1, "A", 1);
        let syn = Frame::tcp(CLIENT4, VIP4, "S").bytes();
        kernel.expect(&syn, Verdict::DropNoBackend);
        kernel.set_slots(service, Slot::settled(1));
        kernel.expect(&syn, Verdict::DropBackendOut);
        kernel.set_state(1, Out);
        kernel.expect(
            &Frame::tcp(CLIENT4, VIP4, "A").bytes(),
            Verdict::DropBackendOut,
        );
        kernel.set_state(1, Active);
        send(&mut kernel, 3, "S", 1);
    }
}

/// ICMP to the VIP is the host's, whatever the forwarding.
#[test]
fn ping_is_left_to_the_host() {
    let Some(mut kernel) = kernel("ping_is_left_to_the_host") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Ipip, (1, BACKEND4));
    let echo = crate::packets::echo([198, 51, 100, 1], [203, 0, 113, 10]);
    kernel.expect(&echo, Verdict::PassOtherProtocol);
}
