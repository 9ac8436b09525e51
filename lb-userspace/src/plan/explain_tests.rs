use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::BackendState::{Active, Draining, Out};
use lb_common::abi::Hop;
use lb_common::slot::TABLE_SIZES;

use super::*;
use crate::plan::{Backend, Path, SnatPorts, Tunnel};

const SOURCE: &str = "10.0.0.1:20001";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn tuple(protocol: Protocol) -> Tuple {
    Tuple {
        src: at("198.51.100.1:4000"),
        dst: at("203.0.113.10:80"),
        protocol,
        connection_id: None,
    }
}

fn world(
    forwarding: Forwarding,
    protocol: Protocol,
    slot: Slot,
    states: &[BackendState],
) -> Contents {
    let backend = |(n, state): (usize, &BackendState)| {
        let backend = Backend {
            service: 1,
            address: at(&format!("10.0.0.{}:8080", 11 + n)),
            server_id: None,
            watches_http: false,
            state: *state,
            path: Some(Path {
                hop: Hop {
                    ifindex: 1,
                    ..Hop::default()
                },
                source: at(SOURCE).ip(),
                mtu: 1500,
                tunnel: Tunnel::default(),
            }),
        };
        (n as BackendIndex + 1, backend)
    };
    let service = Service {
        address: at("203.0.113.10:80").into(),
        protocol,
        forwarding,
        affinity: Affinity::Flow,
        on_death: OnDeath::Rehash,
        syn_rescue: false,
        server_id_length: 0,
        slots: Arc::new(vec![slot; TABLE_SIZES[0] as usize]),
    };
    Contents {
        ports: Some(SnatPorts {
            first: 20_000,
            count: 100,
        }),
        services: BTreeMap::from([(1, service)]),
        backends: states.iter().enumerate().map(backend).collect(),
        ..Contents::default()
    }
}

/// The record of the flow, if it has one.
#[derive(Clone, Copy, Default)]
struct One(Option<Flow>);

impl Flows for One {
    fn find(&self, key: &FlowKey) -> Option<Flow> {
        self.0.filter(|flow| flow.is_of(key))
    }

    fn find_reply(&self, _: &FlowKey) -> Option<Flow> {
        None
    }

    fn source(&self, _: &Flow) -> IpAddr {
        at(SOURCE).ip()
    }
}

fn ask(contents: &Contents, protocol: Protocol, flows: &One) -> Explanation {
    explain(contents, tuple(protocol), flows).unwrap()
}

fn record(protocol: Protocol, backend: BackendIndex) -> One {
    let key = key(tuple(protocol));
    One(Some(Flow {
        client: key.src,
        vip: key.dst,
        client_port: key.sport,
        vip_port: key.dport,
        protocol: protocol.number(),
        backend,
        ..Flow::default()
    }))
}

fn nat_flow(protocol: Protocol, backend: BackendIndex, forward: u8, reply: u8) -> One {
    One(record(protocol, backend).0.map(|flow| Flow {
        source: 1,
        nat_port: at(SOURCE).port().to_be(),
        forward,
        reply,
        ..flow
    }))
}

fn to(index: BackendIndex, reason: Reason) -> Decision {
    Decision {
        fate: Fate::To(index),
        reason,
    }
}

fn not(verdict: Verdict, reason: Reason) -> Decision {
    Decision::not(verdict, reason)
}

/// Contents, flows, and what is expected of a new and of an established connection.
type Case = (Slot, [BackendState; 2], One, Decision, Decision);

fn check(forwarding: Forwarding, protocol: Protocol, cases: Vec<Case>) {
    for (n, (slot, states, flows, new, established)) in cases.into_iter().enumerate() {
        let contents = world(forwarding, protocol, slot, &states);
        let found = ask(&contents, protocol, &flows);
        assert_eq!(
            (found.new, found.established),
            (new, established),
            "case {n}"
        );
    }
}

#[test]
fn nat_goes_by_the_entry_and_then_by_the_owner() {
    let tcp = Protocol::Tcp;
    let one = Slot::settled(1);
    let lost = not(Verdict::ResetNoFlow, Reason::NoEntry);
    let reset = not(Verdict::ResetBackendOut, Reason::EntryOut);
    let by_entry = to(2, Reason::Entry);
    let by_owner = to(1, Reason::Owner);
    let none = not(Verdict::DropNoBackend, Reason::NoOwner);
    let refused = not(Verdict::DropNoBackend, Reason::OwnerRefuses);
    let flow = |forward, reply| nat_flow(tcp, 2, forward, reply);
    check(
        Forwarding::Nat,
        tcp,
        vec![
            (one, [Active, Active], One::default(), by_owner, lost),
            (one, [Active, Active], flow(0, 0), by_entry, by_entry),
            (one, [Active, Draining], flow(0, 0), by_entry, by_entry),
            (one, [Active, Out], flow(0, 0), by_owner, reset),
            (
                one,
                [Active, Active],
                flow(tcp_seen::CLIENT_FIN, 0),
                by_owner,
                by_entry,
            ),
            (
                one,
                [Active, Active],
                flow(0, tcp_seen::BACKEND_FIN),
                by_owner,
                by_entry,
            ),
            (
                one,
                [Active, Active],
                flow(0, tcp_seen::RST),
                by_owner,
                by_entry,
            ),
            (one, [Draining, Active], One::default(), refused, lost),
            (
                Slot::settled(0),
                [Active, Active],
                One::default(),
                none,
                lost,
            ),
            // A record of the time when the service was `dsr`.
            (one, [Active, Active], record(tcp, 2), by_owner, lost),
        ],
    );
}

#[test]
fn datagrams_over_nat_open_flows_themselves() {
    let udp = Protocol::Udp;
    let flow = || nat_flow(udp, 2, 0, 0);
    let (entry, owner) = (to(2, Reason::Entry), to(1, Reason::Owner));
    check(
        Forwarding::Nat,
        udp,
        vec![
            (
                Slot::settled(1),
                [Active, Active],
                One::default(),
                owner,
                owner,
            ),
            (Slot::settled(1), [Active, Draining], flow(), entry, entry),
            (Slot::settled(1), [Active, Out], flow(), owner, owner),
        ],
    );
}

#[test]
fn direct_services_look_at_records_in_a_transition_only() {
    for forwarding in [Forwarding::Dsr, Forwarding::Ipip, Forwarding::Gue] {
        records_count_in_a_transition_only(forwarding);
    }
}

fn records_count_in_a_transition_only(forwarding: Forwarding) {
    let tcp = Protocol::Tcp;
    let change = Slot::transition(1, 2);
    let owner = to(1, Reason::Owner);
    let previous = to(2, Reason::Previous);
    let fallback = to(1, Reason::Fallback);
    let refused = not(Verdict::DropBackendOut, Reason::OwnerRefuses);
    let no_new = not(Verdict::DropNoBackend, Reason::OwnerRefuses);
    check(
        forwarding,
        tcp,
        vec![
            (
                Slot::settled(1),
                [Active, Active],
                record(tcp, 2),
                owner,
                owner,
            ),
            (
                Slot::settled(1),
                [Draining, Active],
                One::default(),
                refused,
                owner,
            ),
            (
                Slot::settled(1),
                [Out, Active],
                One::default(),
                refused,
                refused,
            ),
            (change, [Active, Active], One::default(), owner, previous),
            (change, [Active, Draining], One::default(), owner, previous),
            (change, [Active, Out], One::default(), owner, fallback),
            (
                change,
                [Active, Active],
                record(tcp, 1),
                owner,
                to(1, Reason::Entry),
            ),
            (change, [Active, Out], record(tcp, 2), owner, fallback),
            (change, [Draining, Active], One::default(), no_new, previous),
            (change, [Draining, Out], One::default(), no_new, fallback),
        ],
    );
    let udp = Protocol::Udp;
    check(
        forwarding,
        udp,
        vec![
            (change, [Active, Active], One::default(), previous, previous),
            (change, [Active, Out], One::default(), fallback, fallback),
        ],
    );
}

#[test]
fn flows_of_dead_backends_are_reset_where_asked() {
    let tcp = Protocol::Tcp;
    let dead = not(Verdict::ResetBackendOut, Reason::Dead);
    let cases = [
        (Slot::transition(1, 2), One::default()),
        (Slot::transition(0, 2), One::default()),
        (Slot::transition(1, 1), record(tcp, 2)),
        (Slot::settled(2), One::default()),
    ];
    for (slot, flows) in cases {
        let mut contents = world(Forwarding::Dsr, tcp, slot, &[Active, Out]);
        contents.services.get_mut(&1).unwrap().on_death = OnDeath::Reset;
        assert_eq!(ask(&contents, tcp, &flows).established, dead, "{slot:?}");
    }
}

#[test]
fn a_repeated_syn_goes_elsewhere_until_it_is_answered() {
    let tcp = Protocol::Tcp;
    for forwarding in [Forwarding::Nat, Forwarding::Dsr] {
        let mut contents = world(forwarding, tcp, Slot::settled(2), &[Active, Active]);
        let service = contents.services.get_mut(&1).unwrap();
        service.syn_rescue = true;
        let flow = |forward, reply| match forwarding {
            Forwarding::Nat => nat_flow(tcp, 1, forward, reply),
            Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => {
                One(record(tcp, 1).0.map(|flow| Flow { forward, ..flow }))
            }
        };
        assert_eq!(ask(&contents, tcp, &flow(0, 0)).new, to(2, Reason::Rescued));
        let kept = match forwarding {
            Forwarding::Nat => to(1, Reason::Entry),
            Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => to(2, Reason::Owner),
        };
        let established = flow(tcp_seen::CLIENT_ACK, 0);
        assert_eq!(ask(&contents, tcp, &established).new, kept);
        // Nobody else is there.
        contents.backends.get_mut(&2).unwrap().state = Out;
        assert_eq!(ask(&contents, tcp, &flow(0, 0)).new, to(1, Reason::Entry));
    }
}

#[test]
fn a_backend_without_a_next_hop_gets_nothing() {
    let tcp = Protocol::Tcp;
    for forwarding in Forwarding::ALL {
        let mut contents = world(forwarding, tcp, Slot::settled(1), &[Active]);
        contents.backends.get_mut(&1).unwrap().path = None;
        let found = ask(&contents, tcp, &One::default());
        let dropped = not(Verdict::DropNoNeighbor, Reason::Unresolved);
        assert_eq!(found.new, dropped, "{forwarding:?}");
    }
}

#[test]
fn the_entry_says_what_the_packets_leave_with() {
    let tcp = Protocol::Tcp;
    let contents = world(Forwarding::Nat, tcp, Slot::settled(1), &[Active, Active]);
    let found = ask(&contents, tcp, &nat_flow(tcp, 2, 0, 0));
    let rewritten = found.entry.unwrap().rewritten;
    assert_eq!(rewritten, Some((at(SOURCE), at("10.0.0.12:8080"))));
    assert_eq!((found.service, found.slots), (1, TABLE_SIZES[0]));
    assert_eq!(found.slot, hash::slot(found.hash, found.slots));
}

#[test]
fn what_no_service_is_for_is_not_explained() {
    let contents = world(Forwarding::Nat, Protocol::Tcp, Slot::settled(1), &[Active]);
    assert_eq!(
        explain(&contents, tuple(Protocol::Udp), &One::default()),
        None
    );
}

#[test]
fn addresses_are_of_one_family_and_plain() {
    let new = |src, dst| Tuple::new(at(src), at(dst), Protocol::Tcp);
    let mapped = new("[::ffff:198.51.100.1]:4000", "203.0.113.10:80");
    assert_eq!(mapped, Ok(tuple(Protocol::Tcp)));
    let mixed = new("[2001:db8::1]:4000", "203.0.113.10:80").unwrap_err();
    assert!(mixed.to_string().contains("different families"));
}
