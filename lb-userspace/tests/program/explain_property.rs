//! What `lb explain` says of 10,000 flows, held against what the program does with the very next
//! packet of each, while tables, states and next hops change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_common::abi::BackendState::{Active, Draining, Out};
use lb_common::abi::Forwarding::{Dsr, Gue, Ipip, Nat};
use lb_common::abi::{Affinity, Forwarding};
use lb_common::hash::mix;
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol::{self, Tcp, Udp};
use lb_userspace::model::{ConnectionId, OnDeath};
use lb_userspace::plan::explain::{Explanation, Fate, Reason, Tuple};

use crate::explain::{Observer, frame};
use crate::kernel::{INGRESS, Kernel, at, endpoint, ip, kernel, node, path};
use crate::packets::{Frame, Icmp, ROUTER_MAC, parse};

const FLOWS: usize = 10_000;
/// How often the tables, the states and the next hops change.
const ROUNDS: usize = 20;
/// Flows that send packets in each round.
const SENDERS: usize = 1_000;

const SERVICES: [(&str, Protocol, Forwarding, Affinity); 16] = [
    ("203.0.113.10:80", Tcp, Nat, Affinity::Flow),
    ("203.0.113.11:80", Tcp, Dsr, Affinity::Flow),
    ("203.0.113.10:53", Udp, Nat, Affinity::Flow),
    ("203.0.113.11:53", Udp, Dsr, Affinity::Client),
    ("[2001:db8::10]:80", Tcp, Nat, Affinity::Client),
    ("[2001:db8::11]:80", Tcp, Dsr, Affinity::Flow),
    ("203.0.113.12:80", Tcp, Ipip, Affinity::Flow),
    ("[2001:db8::12]:53", Udp, Gue, Affinity::Client),
    // Ports that one of the above has are that one's.
    ("203.0.113.10:50-99", Tcp, Nat, Affinity::Flow),
    ("203.0.113.10:*", Tcp, Nat, Affinity::Client),
    ("[2001:db8::11]:70-90", Tcp, Dsr, Affinity::Flow),
    ("203.0.113.11:*", Udp, Dsr, Affinity::Flow),
    ("203.0.113.10:443", Udp, Nat, Affinity::Quic),
    ("203.0.113.11:443", Udp, Dsr, Affinity::Quic),
    ("[2001:db8::10]:440-445", Udp, Nat, Affinity::Quic),
    ("[2001:db8::12]:443", Udp, Gue, Affinity::Quic),
];
/// Backends of each service.
const BACKENDS: u16 = 3;
/// Octets of a server ID.
const SERVER_ID: u8 = 3;

/// The same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 33) as usize % end
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// The host, as it stands in `host:ports`.
fn host(vip: &str) -> &str {
    vip.rsplit_once(':').unwrap().0
}

fn has_range(vip: &str) -> bool {
    vip.ends_with('*') || vip.rsplit_once(':').unwrap().1.contains('-')
}

fn serve_all(kernel: &mut Kernel) {
    for (n, (vip, protocol, forwarding, affinity)) in SERVICES.into_iter().enumerate() {
        // The port that the client has chosen, where there are several.
        let port = if has_range(vip) { 0 } else { 8080 };
        let backends: Vec<(u16, String)> = (1..=BACKENDS)
            .map(|b| {
                let address = if endpoint(vip).ip.is_ipv4() {
                    format!("10.0.{n}.{b}:{port}")
                } else {
                    format!("[fd00::{n}:{b}]:{port}")
                };
                (n as u16 * BACKENDS + b, address)
            })
            .collect();
        let named: Vec<(u16, &str)> = backends.iter().map(|(id, at)| (*id, &**at)).collect();
        let id = kernel.serve(vip, protocol, forwarding, Slot::settled(named[0].0), &named);
        let mut wanted = kernel.contents.clone();
        let service = wanted.services.get_mut(&id).unwrap();
        service.affinity = affinity;
        if affinity == Affinity::Quic {
            service.server_id_length = SERVER_ID;
            for (index, _) in named {
                let backend = wanted.backends.get_mut(&index).unwrap();
                backend.server_id = Some(u64::from(index));
            }
        }
        kernel.want(wanted);
    }
}

/// Other owners, states and next hops.
fn shuffle(kernel: &mut Kernel, random: &mut Random) {
    let mut wanted = kernel.contents.clone();
    for (id, backend) in &mut wanted.backends {
        backend.state = random.of(&[Active, Active, Active, Draining, Out]);
        let resolved = random.below(10) > 0;
        let v4 = backend.address.is_ipv4();
        let forwarding = wanted.services[&backend.service].forwarding;
        backend.path = resolved
            .then(|| path(*id, v4, INGRESS).through(forwarding, &node()))
            .flatten();
    }
    for (id, service) in &mut wanted.services {
        if service.protocol == Tcp {
            service.syn_rescue = random.below(2) == 0;
            service.on_death = match service.forwarding {
                Nat => OnDeath::Reset,
                Dsr | Ipip | Gue => random.of(&[OnDeath::Reset, OnDeath::Rehash]),
            };
        }
        let first = (id - 1) * BACKENDS;
        let mut owner = || match random.below(12) {
            0 => 0,
            n => first + 1 + n as u16 % BACKENDS,
        };
        let mut slots = Vec::with_capacity(service.slots.len());
        for n in 0..service.slots.len() {
            let (current, previous) = (owner(), owner());
            slots.push(match n % 2 {
                0 => Slot::settled(current),
                _ => Slot::transition(current, previous),
            });
        }
        service.slots = Arc::new(slots);
    }
    kernel.want(wanted);
}

fn flows(random: &mut Random) -> Vec<Tuple> {
    let flow = |n: usize| {
        let (vip, protocol, ..) = SERVICES[n % SERVICES.len()];
        let port = match vip.rsplit_once(':').unwrap().1.parse() {
            Ok(port) => port,
            // Also such as another service has, and such as none has.
            Err(_) => match random.below(4) {
                0 => random.of(&[49, 50, 53, 80, 99, 100, 439, 440, 445, 446, 65_535]),
                1 => 1 + random.below(65_535) as u16,
                _ if protocol == Udp => 440 + random.below(6) as u16,
                _ => 70 + random.below(21) as u16,
            },
        };
        let dst = at(&format!("{}:{port}", host(vip)));
        let (client, port) = (random.below(50_000), 1024 + random.below(60_000));
        let src = if dst.is_ipv4() {
            format!("198.51.{}.{}:{port}", client / 250, 1 + client % 250)
        } else {
            format!("[2001:db8:1::{client:x}]:{port}")
        };
        Tuple::new(at(&src), dst, protocol).unwrap()
    };
    (0..FLOWS).map(flow).collect()
}

/// A connection ID of a backend, of none, without a server ID, or too short for one.
fn connection_id(random: &mut Random) -> Vec<u8> {
    let first = random.of(&[0x00, 0x4b, 0x9f, 0xc0, 0xe0]);
    let server = random.below(SERVICES.len() * usize::from(BACKENDS) + 2) as u32;
    let mut id = vec![first];
    id.extend(&server.to_be_bytes()[4 - usize::from(SERVER_ID)..]);
    id.extend([0x77; 5]);
    id
}

/// A QUIC packet with this connection ID: with a short header, or Handshake of version 1.
fn quic(tuple: Tuple, id: &[u8], short: bool) -> Vec<u8> {
    let mut payload = if short {
        vec![0x40]
    } else {
        vec![0xe0, 0, 0, 0, 1, id.len() as u8]
    };
    payload.extend(id);
    payload.extend([0x5a; 30]);
    let frame = Frame::udp(&tuple.src.to_string(), &tuple.dst.to_string());
    Frame { payload, ..frame }.bytes()
}

/// A router's word on an answer that a backend has sent to the client.
fn error(tuple: Tuple) -> Vec<u8> {
    let answer = Tuple::new(tuple.dst, tuple.src, tuple.protocol).unwrap();
    let v4 = tuple.src.is_ipv4();
    Icmp {
        src: ip(if v4 { "192.0.2.7" } else { "2001:db8:7::7" }),
        dst: tuple.dst.ip(),
        from: ROUTER_MAC,
        ttl: 50,
        vlans: 0,
        kind: if v4 { (3, 4, 1400) } else { (2, 0, 1400) },
        payload: frame(answer, "A")[14..].to_vec(),
    }
    .bytes()
}

/// A kind of packet that a flow's client, or a router, may send.
#[derive(Clone, Copy, Debug)]
enum Packet {
    Opening,
    Established,
    /// A connection ID, and whether behind a short header.
    Quic(bool),
    /// An ICMP error.
    Error,
}

impl Packet {
    fn of(tuple: Tuple, random: &mut Random) -> Self {
        match tuple.protocol {
            _ if random.below(10) == 0 => Self::Error,
            Tcp => random.of(&[Self::Opening, Self::Established]),
            Udp => random.of(&[Self::Established, Self::Quic(true), Self::Quic(false)]),
        }
    }

    /// The packet, and what explains it.
    fn bytes(self, tuple: Tuple, random: &mut Random) -> (Tuple, Vec<u8>) {
        match self {
            Self::Opening => (tuple, frame(tuple, "S")),
            Self::Established => (tuple, frame(tuple, "A")),
            Self::Quic(short) => {
                let id = connection_id(random);
                let bytes = quic(tuple, &id, short);
                (tuple.carrying(ConnectionId::new(&id)), bytes)
            }
            Self::Error => (tuple, error(tuple)),
        }
    }

    /// What is said of it.
    fn said(self, explained: &Explanation) -> (Fate, Reason) {
        let decision = match self {
            Self::Opening => explained.new,
            Self::Established | Self::Quic(_) | Self::Error => explained.established,
        };
        let fate = match (self, decision.fate) {
            // An error is not answered with a RST.
            (Self::Error, Fate::Not(Verdict::ResetBackendOut)) => {
                Fate::Not(Verdict::DropBackendOut)
            }
            (_, fate) => fate,
        };
        (fate, decision.reason)
    }
}

#[test]
fn explanations_agree_with_the_program() {
    let Some(mut kernel) = kernel("explanations_agree_with_the_program") else {
        return;
    };
    let mut random = Random(7);
    serve_all(&mut kernel);
    let flows = flows(&mut random);
    let mut observer = Observer::new(&kernel);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut compared = BTreeSet::new();
    for round in 0..ROUNDS {
        shuffle(&mut kernel, &mut random);
        for n in 0..SENDERS {
            let number = (round * SENDERS / 2 + n) % FLOWS;
            let tuple = flows[number];
            // What the flow's end looks like is a matter of what was sent; not compared.
            if random.below(6) == 0 {
                let flags = random.of(&["FA", "R", "SA"]);
                observer.fate(&mut kernel, &frame(tuple, flags));
            }
            let packet = Packet::of(tuple, &mut random);
            let (asked, bytes) = packet.bytes(tuple, &mut random);
            let explained = kernel.datapath.explain(&kernel.contents, asked);
            // By NAT an error goes by its flow's entry alone, whose backend may be out.
            let is_nat = |explained: &Explanation| explained.forwarding == Nat;
            if matches!(packet, Packet::Error) && explained.as_ref().is_none_or(is_nat) {
                continue;
            }
            let (done, out) = observer.fate(&mut kernel, &bytes);
            compared.insert(number);
            let Some(explained) = explained else {
                assert_eq!(done, Fate::Not(Verdict::PassNoService), "{asked:?}");
                *seen.entry("no service".into()).or_default() += 1;
                continue;
            };
            let (said, reason) = packet.said(&explained);
            assert_eq!(
                done, said,
                "round {round}, {packet:?} {asked:?}: {explained:?}"
            );
            let kind = match explained.forwarding {
                Nat => "nat",
                Dsr | Ipip | Gue => "direct",
            };
            let rule = format!("{kind} {} {reason:?}", tuple.protocol.name());
            *seen.entry(rule).or_default() += 1;
            let ports = SERVICES[usize::from(explained.service) - 1].0;
            let by = [
                (has_range(ports), "range"),
                (matches!(packet, Packet::Error), "error"),
                (explained.affinity == Affinity::Quic, "quic"),
            ];
            for (_, what) in by.iter().filter(|(is, _)| *is) {
                *seen.entry(format!("{what} {reason:?}")).or_default() += 1;
            }
            if explained.forwarding == Nat && matches!(done, Fate::To(_)) {
                let sent = parse(&out);
                if reason == Reason::Entry {
                    let rewritten = explained.entry.and_then(|entry| entry.rewritten);
                    assert_eq!(rewritten, Some((sent.src, sent.dst)));
                }
                if random.below(4) == 0 {
                    let answer = Tuple::new(sent.dst, sent.src, tuple.protocol).unwrap();
                    let flags = random.of(&["SA", "FA", "R"]);
                    observer.fate(&mut kernel, &frame(answer, flags));
                }
            }
        }
    }
    // But for the errors that are left out.
    assert!(compared.len() > FLOWS * 95 / 100, "{}", compared.len());
    // Every rule must have been at work, or the agreement means little.
    for rule in [
        "nat tcp Entry",
        "nat tcp EntryOut",
        "nat tcp NoEntry",
        "nat tcp Owner",
        "nat tcp NoOwner",
        "nat tcp OwnerRefuses",
        "nat tcp Unresolved",
        "nat udp Entry",
        "nat udp Owner",
        "nat udp Named",
        "nat tcp Rescued",
        "direct tcp Rescued",
        "direct tcp Dead",
        "direct tcp Entry",
        "direct tcp Owner",
        "direct tcp Previous",
        "direct tcp Fallback",
        "direct tcp NoOwner",
        "direct tcp OwnerRefuses",
        "direct tcp Unresolved",
        "direct udp Previous",
        "direct udp Fallback",
        "direct udp Named",
        "range Entry",
        "range Owner",
        "range Previous",
        "range Rescued",
        "quic Entry",
        "quic Owner",
        "quic Unresolved",
        "error Owner",
        "error Entry",
        "error Previous",
        "error Dead",
        "no service",
    ] {
        assert!(
            seen.get(rule).is_some_and(|n| *n >= 5),
            "{rule} in {seen:?}"
        );
    }
}
