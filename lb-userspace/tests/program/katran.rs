//! The situations of Katran's packet fixtures (facebookincubator/katran, GPL-2.0), rebuilt with our own
//! packets: what passes, what is dropped, and the outer headers of what is forwarded. Which of its
//! servers a flow goes to, and the outer source address, are each balancer's own affair.
//!
//! One thing is other than recorded, see `docs/backends.md`: the TTL of the packet inside counts the
//! balancer as one hop (RFC 2003, section 3.1), which Katran leaves as it was.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::PacketBuilder;
use lb_common::abi::BackendState;
use lb_common::verdict::Verdict;
use lb_userspace::config;
use lb_userspace::model::Model;
use lb_userspace::plan::{Builder, Duty, Path};

use crate::kernel::{DROP, Kernel, LB_MAC, PASS, TX, at, ip, kernel, path};
use crate::packets::{CLIENT_MAC, Frame, Icmp, ROUTER_MAC, raw, sum_header};
use crate::tunnel::with_class;

mod table;

/// The next hop of all of Katran's packets.
const ROUTER: [u8; 6] = [0x02, 0, 0xde, 0xad, 0xbe, 0xaf];
const PAYLOAD: &[u8] = b"fifteen letters";

struct Case {
    /// Suite, phase and number of the recorded case.
    id: &'static str,
    packet: Packet,
    outcome: Outcome,
}

enum Packet {
    Tcp {
        src: &'static str,
        dst: &'static str,
        flags: &'static str,
        class: u8,
        /// Bytes of options, none of which means anything to us.
        options: usize,
    },
    Udp {
        src: &'static str,
        dst: &'static str,
        payload: usize,
    },
    /// An error about a packet of the VIP to its client.
    Icmp {
        from: &'static str,
        client: &'static str,
        vip: &'static str,
        kind: (u8, u8, u32),
        payload: usize,
    },
    Wrapped {
        outer: (&'static str, &'static str),
        /// UDP ports.
        gue: Option<(u16, u16)>,
        inner: &'static Packet,
    },
    Arp,
}

enum Outcome {
    /// Sent inside of an outer header to one of these.
    Tunnelled {
        to: &'static [&'static str],
        protocol: u8,
        /// As the outer header says it.
        length: u16,
    },
    /// Left as it is.
    Refused(Verdict),
    NotOffered(&'static str),
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        match *self {
            Self::Tcp {
                src,
                dst,
                flags,
                class,
                options,
            } => {
                let frame = Frame {
                    payload: PAYLOAD.to_vec(),
                    // An unknown kind (253, for experiments), its length, then anything.
                    options: match options {
                        0 => Vec::new(),
                        n => [vec![253, n as u8], vec![0x5a; n - 2]].concat(),
                    },
                    ..Frame::tcp(src, dst, flags)
                };
                with_class(frame.bytes(), 0, class)
            }
            Self::Udp { src, dst, payload } => Frame {
                payload: vec![0xc3; payload],
                ..Frame::udp(src, dst)
            }
            .bytes(),
            Self::Icmp {
                from,
                client,
                vip,
                kind,
                payload,
            } => {
                let quoted = Frame {
                    payload: vec![7; payload],
                    ..Frame::tcp(vip, client, "S")
                };
                let icmp = Icmp {
                    src: ip(from),
                    dst: at(vip).ip(),
                    from: ROUTER_MAC,
                    ttl: 64,
                    vlans: 0,
                    kind,
                    payload: quoted.bytes()[14..].to_vec(),
                };
                icmp.bytes()
            }
            Self::Wrapped { outer, gue, inner } => wrapped(outer, gue, &inner.bytes()),
            Self::Arp => raw(0x0806, &[0; 28]),
        }
    }

    /// The client's end and the VIP's, and whether it is UDP.
    fn flow(&self) -> Option<(SocketAddr, SocketAddr, bool)> {
        match *self {
            Self::Tcp { src, dst, .. } => Some((at(src), at(dst), false)),
            Self::Udp { src, dst, .. } => Some((at(src), at(dst), true)),
            Self::Icmp { client, vip, .. } => Some((at(client), at(vip), false)),
            Self::Wrapped { .. } | Self::Arp => None,
        }
    }
}

fn wrapped(outer: (&str, &str), gue: Option<(u16, u16)>, inner: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, LB_MAC);
    let ip = match (ip(outer.0), ip(outer.1)) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("mixed families"),
    };
    let number = if inner[14] >> 4 == 4 { 4 } else { 41 };
    let mut bytes = Vec::new();
    match gue {
        Some((from, to)) => {
            ip.udp(from, to).write(&mut bytes, &inner[14..]).unwrap();
        }
        None => {
            let number = etherparse::IpNumber(number);
            ip.write(&mut bytes, number, &inner[14..]).unwrap();
        }
    }
    bytes
}

/// The fixtures' services, as far as there are such here. Of prefixes, the address that is asked
/// for; one backend of the last but two is down, and the last two have none that is not.
fn model(forwarding: &str) -> Model {
    let (v4, v6) = (
        ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
        ["fc00::1", "fc00::2", "fc00::3"],
    );
    let services = [
        ("10.200.1.1:80", "udp", v4),
        ("10.200.1.1:80", "tcp", v4),
        ("10.200.1.2:*", "tcp", v4),
        ("10.200.1.3:80", "tcp", v6),
        ("[fc00:1::1]:80", "tcp", v6),
        ("10.200.1.5:443", "udp", v4),
        ("[fc00:1::2]:443", "udp", v6),
        ("[fc00:2::200]:443", "tcp", v6),
        ("[fc00:4::200]:443", "udp", v6),
        ("10.200.1.6:80", "udp", v4),
        ("10.200.1.99:80", "tcp", v4),
        ("[fc00:1::11]:80", "udp", v6),
    ];
    let mut text = "[node]\ninterfaces = [\"eth0\"]\n".to_owned();
    for (number, (vip, protocol, backends)) in services.into_iter().enumerate() {
        let port = vip.rsplit_once(':').unwrap().1;
        text += &format!(
            "[[service]]\nname = \"s{number}\"\naddress = \"{vip}\"\nprotocol = \"{protocol}\"\n\
             forwarding = \"{forwarding}\"\n[service.health]\nprobe = \"none\"\n"
        );
        for backend in backends {
            let backend = match ip(backend) {
                IpAddr::V4(_) => backend.to_owned(),
                IpAddr::V6(_) => format!("[{backend}]"),
            };
            text += &format!("[[service.backend]]\naddress = \"{backend}:{port}\"\n");
        }
    }
    config::parse(&text, "test").unwrap()
}

fn serve(kernel: &mut Kernel, forwarding: &str) {
    let model = model(forwarding);
    let mut duties = BTreeMap::new();
    let mut paths = BTreeMap::new();
    for service in &model.services {
        let vip = service.address.to_string();
        for backend in &service.backends {
            let address = backend.address.ip();
            let is_down = ["10.200.1.99:80", "[fc00:1::11]:80"].contains(&&*vip)
                || (vip == "10.200.1.6:80" && address == ip("10.0.0.2"));
            let (state, share) = if is_down {
                (BackendState::Out, 0)
            } else {
                (BackendState::Active, 100)
            };
            let weight = backend.weight;
            duties.insert(
                service.key(backend),
                Duty {
                    state,
                    weight,
                    share,
                },
            );
            paths.insert(address, to_router(address.is_ipv4()));
        }
    }
    let mut builder = Builder::new(kernel.contents.clone());
    let contents = builder.build(&model, &duties, &paths, Duration::from_secs(1000));
    kernel.want(lb_userspace::plan::Contents::clone(contents.unwrap()));
}

fn to_router(v4: bool) -> Path {
    let mut path = path(1, v4, crate::kernel::INGRESS);
    path.hop = lb_common::abi::Hop::new(ROUTER, crate::kernel::LB_MAC, path.hop.ifindex);
    path
}

/// What a tunnelled frame says outside: destination, protocol, TTL, class and length.
fn outer(frame: &[u8]) -> (IpAddr, u8, u8, u8, u16, &[u8]) {
    let packet = &frame[14..];
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    if frame[12..14] == [8, 0] {
        let mut summed = packet[..20].to_vec();
        sum_header(&mut summed);
        assert_eq!(summed, packet[..20], "IPv4 checksum");
        let dst = <[u8; 4]>::try_from(&packet[16..20]).unwrap();
        return (
            dst.into(),
            packet[9],
            packet[8],
            packet[1],
            word(2),
            &packet[20..],
        );
    }
    assert_eq!(frame[12..14], [0x86, 0xdd]);
    let dst = <[u8; 16]>::try_from(&packet[24..40]).unwrap();
    let class = (word(0) >> 4) as u8;
    (
        dst.into(),
        packet[6],
        packet[7],
        class,
        word(4),
        &packet[40..],
    )
}

/// An IP packet one hop on.
fn one_hop_on(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
    } else {
        packet[8] -= 1;
        sum_header(&mut packet);
    }
    packet
}

#[test]
fn packets_fare_as_with_katran() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for forwarding in ["ipip", "gue"] {
        let Some(mut kernel) = kernel("packets_fare_as_with_katran") else {
            return;
        };
        serve(&mut kernel, forwarding);
        // Packets of one flow go to one server, whatever else they carry, errors included.
        let mut servers = BTreeMap::new();
        for case in table::CASES {
            let suite = case.id.split('/').next().unwrap();
            let is_gue = ["gue", "cidr_vip", "xpop_decap", "hc_gue"].contains(&suite);
            if is_gue != (forwarding == "gue") {
                continue;
            }
            let kind = match &case.outcome {
                Outcome::Tunnelled { .. } => "match but for the inner TTL",
                Outcome::Refused(_) => "match",
                Outcome::NotOffered(_) => "are not offered",
            };
            *counts.entry(kind).or_default() += 1;
            run(&mut kernel, case, &mut servers);
        }
    }
    println!("packet cases that {counts:?}");
    assert_eq!(counts.values().sum::<usize>(), 45);
    assert_eq!(counts["match"], 18);
    assert_eq!(counts["match but for the inner TTL"], 22);
}

type Servers = BTreeMap<(SocketAddr, SocketAddr, bool), IpAddr>;

fn run(kernel: &mut Kernel, case: &Case, servers: &mut Servers) {
    let id = case.id;
    let before = case.packet.bytes();
    match case.outcome {
        Outcome::Tunnelled {
            to,
            protocol,
            length,
        } => {
            let result = kernel.run(&before);
            assert_eq!(result.action, TX, "{id}: {:?}", kernel.verdicts());
            let after = &result.frame;
            assert_eq!(
                (&after[..6], &after[6..12]),
                (&ROUTER[..], &LB_MAC[..]),
                "{id}"
            );
            let class = if before[14] >> 4 == 4 {
                before[15]
            } else {
                before[14] << 4 | before[15] >> 4
            };
            let (server, found, ttl, outside, said, inner) = outer(after);
            assert_eq!(
                (found, ttl, outside, said),
                (protocol, 64, class, length),
                "{id}"
            );
            assert!(to.iter().any(|real| ip(real) == server), "{id}: {server}");
            assert_eq!(inner, one_hop_on(&before[14..]), "{id}");
            let flow = case.packet.flow().unwrap();
            assert_eq!(*servers.entry(flow).or_insert(server), server, "{id}");
        }
        Outcome::Refused(verdict) => {
            let result = kernel.expect(&before, verdict);
            let action = if verdict == Verdict::DropNoBackend {
                DROP
            } else {
                PASS
            };
            assert_eq!((result.action, result.frame), (action, before), "{id}");
        }
        Outcome::NotOffered(reason) => println!("{id}: {reason}"),
    }
}
