//! `affinity = "quic"`: connection IDs that name a backend.

use std::sync::Arc;

use lb_common::abi::Affinity;
use lb_common::abi::BackendState::{Draining, Out};
use lb_common::abi::Forwarding::{self, Dsr, Gue, Nat};
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol::Udp;
use lb_userspace::plan::Contents;

use crate::kernel::{Kernel, TX, VIP4, VIP6, ip, kernel};
use crate::packets::{CLIENT_MAC, Frame, Icmp, parse};

const CLIENT: &str = "198.51.100.1:4000";
const V1: u32 = 1;
const V2: u32 = 0x6b33_43cf;

/// A packet with a short header and a connection ID of the draft's form: config rotation 0, server
/// ID, nonce.
fn short(id: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x40, 0x0f];
    bytes.extend(id);
    bytes.extend([0x5a; 40]);
    bytes
}

/// A packet with a long header; `kind` is its type's two bits.
fn long(version: u32, kind: u8, id: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc0 | kind << 4];
    bytes.extend(version.to_be_bytes());
    bytes.push(1 + id.len() as u8 + 6);
    bytes.push(0x0f);
    bytes.extend(id);
    bytes.extend([0x5a; 40]);
    bytes
}

fn datagram(client: &str, vip: &str, payload: Vec<u8>) -> Vec<u8> {
    Frame {
        payload,
        ..Frame::udp(client, vip)
    }
    .bytes()
}

/// Backends 1 and 2 with the IDs 0xa1 and 0xa2; all slots belong to backend 1.
fn serve(kernel: &mut Kernel, forwarding: Forwarding, length: u8, slot: Slot) -> u16 {
    let backends = match forwarding {
        Nat => [(1, "10.0.0.11:4433"), (2, "10.0.0.12:4433")],
        _ => [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")],
    };
    let id = kernel.serve(VIP4, Udp, forwarding, slot, &backends);
    let mut wanted = kernel.contents.clone();
    let service = wanted.services.get_mut(&id).unwrap();
    (service.affinity, service.server_id_length) = (Affinity::Quic, length);
    for (backend, server_id) in [(1, 0xa1), (2, 0xa2)] {
        wanted.backends.get_mut(&backend).unwrap().server_id = Some(server_id);
    }
    kernel.want(wanted);
    id
}

fn id(length: u8, number: u64) -> Vec<u8> {
    number.to_be_bytes()[8 - usize::from(length)..].to_vec()
}

#[test]
fn the_connection_id_goes_before_the_hash() {
    let Some(mut kernel) = kernel("the_connection_id_goes_before_the_hash") else {
        return;
    };
    serve(&mut kernel, Dsr, 2, Slot::settled(1));
    let [known, unknown] = [id(2, 0xa2), id(2, 0xa3)];
    let mut unroutable = short(&known);
    unroutable[1] |= 0xe0;
    let mut other_config = short(&known);
    other_config[1] |= 0xc0;
    let cases = [
        ("short", short(&known), 2),
        ("another configuration", other_config, 2),
        ("unknown ID", short(&unknown), 1),
        ("unroutable", unroutable, 1),
        ("Initial", long(V1, 0, &known), 1),
        ("0-RTT", long(V1, 1, &known), 1),
        ("Handshake", long(V1, 2, &known), 2),
        ("Handshake of an unknown ID", long(V1, 2, &unknown), 1),
        ("Initial, version 2", long(V2, 1, &known), 1),
        ("0-RTT, version 2", long(V2, 2, &known), 1),
        ("Handshake, version 2", long(V2, 3, &known), 2),
        ("another version", long(0xff00_001d, 2, &known), 1),
        ("version negotiation", long(0, 2, &known), 1),
        ("empty", Vec::new(), 1),
        ("one octet", vec![0x40], 1),
        ("cut off", short(&known)[..9].to_vec(), 1),
        ("cut off, long", long(V1, 2, &known)[..14].to_vec(), 1),
    ];
    for (what, payload, backend) in cases {
        println!("{what}");
        kernel.forwards(&datagram(CLIENT, VIP4, payload), backend);
    }
    // The client moves; the service does not.
    for client in ["198.51.100.1:4001", "198.51.100.99:53", "192.0.2.7:4000"] {
        kernel.forwards(&datagram(client, VIP4, short(&known)), 2);
    }
    // Behind VLAN tags the packet is found as well.
    let tagged = Frame {
        payload: short(&known),
        ..Frame::udp(CLIENT, VIP4).vlans(2)
    };
    kernel.forwards(&tagged.bytes(), 2);
}

/// Fragments and ICMP errors have no connection ID where a datagram has it, whatever stands there:
/// they go by the 5-tuple.
#[test]
fn what_only_looks_like_a_connection_id_is_none() {
    let Some(mut kernel) = kernel("what_only_looks_like_a_connection_id_is_none") else {
        return;
    };
    serve(&mut kernel, Dsr, 8, Slot::settled(1));
    let mut fragment = datagram(CLIENT, VIP4, vec![7; 64]);
    // More fragments follow.
    fragment[20] = 0x20;
    let error = Icmp {
        src: ip("192.0.2.7"),
        dst: ip("203.0.113.10"),
        from: CLIENT_MAC,
        ttl: 64,
        vlans: 0,
        kind: (3, 4, 1400),
        payload: Frame::udp(VIP4, CLIENT).bytes()[14..].to_vec(),
    };
    for frame in [fragment, error.bytes()] {
        // The IP header, taken for the UDP header: its TTL is the packet's first octet.
        let octets: [u8; 8] = frame[14 + 10..][..8].try_into().unwrap();
        let mut wanted = kernel.contents.clone();
        let backend = wanted.backends.get_mut(&2).unwrap();
        backend.server_id = Some(u64::from_be_bytes(octets));
        kernel.want(wanted);
        let before = kernel.datapath.traffic(1).unwrap().packets;
        assert_eq!(kernel.run(&frame).action, TX);
        assert_eq!(kernel.datapath.traffic(1).unwrap().packets, before + 1);
    }
}

#[test]
fn server_ids_have_one_to_eight_octets() {
    for length in 1..=8 {
        let Some(mut kernel) = kernel("server_ids_have_one_to_eight_octets") else {
            return;
        };
        serve(&mut kernel, Dsr, length, Slot::settled(1));
        kernel.forwards(&datagram(CLIENT, VIP4, short(&id(length, 0xa2))), 2);
        kernel.forwards(&datagram(CLIENT, VIP4, long(V1, 2, &id(length, 0xa2))), 2);
        let mut other = id(length, 0xa2);
        other[0] ^= 0x40;
        kernel.forwards(&datagram(CLIENT, VIP4, short(&other)), 1);
    }
}

#[test]
fn a_draining_backend_keeps_its_connections_and_one_that_is_out_does_not() {
    let name = "a_draining_backend_keeps_its_connections_and_one_that_is_out_does_not";
    let Some(mut kernel) = kernel(name) else {
        return;
    };
    for forwarding in [Dsr, Nat] {
        let ports = kernel.contents.ports;
        kernel.want(Contents {
            ports,
            ..Contents::default()
        });
        serve(&mut kernel, forwarding, 4, Slot::settled(1));
        let packet =
            |port: u16| datagram(&format!("198.51.100.1:{port}"), VIP4, short(&id(4, 0xa2)));
        kernel.forwards(&packet(1), 2);
        kernel.set_state(2, Draining);
        kernel.forwards(&packet(2), 2);
        kernel.set_state(2, Out);
        kernel.forwards(&packet(3), 1);
    }
}

#[test]
fn nat_opens_a_new_flow_to_the_backend_of_the_connection() {
    let Some(mut kernel) = kernel("nat_opens_a_new_flow_to_the_backend_of_the_connection") else {
        return;
    };
    serve(&mut kernel, Nat, 4, Slot::settled(1));
    let known = id(4, 0xa2);
    // A flow that is recorded stays where it is, whatever its packets say.
    kernel.forwards(&datagram(CLIENT, VIP4, long(V1, 0, &known)), 1);
    kernel.forwards(&datagram(CLIENT, VIP4, short(&known)), 1);
    // A client at a new port is not known, but its connection is.
    let moved = Frame {
        payload: short(&known),
        ..Frame::udp("198.51.100.1:4001", VIP4)
    };
    let sent = parse(&kernel.forwards(&moved.bytes(), 2));
    let answer = Frame {
        src: sent.dst,
        dst: sent.src,
        ..moved.clone()
    };
    let reply = kernel.expect(&answer.bytes(), Verdict::NatReply).frame;
    assert_eq!(
        (parse(&reply).src, parse(&reply).dst),
        (moved.dst, moved.src)
    );
}

#[test]
fn a_slot_in_transition_and_a_tunnel_heed_it_too() {
    let Some(mut kernel) = kernel("a_slot_in_transition_and_a_tunnel_heed_it_too") else {
        return;
    };
    let service = serve(&mut kernel, Dsr, 4, Slot::transition(1, 2));
    kernel.forwards(&datagram(CLIENT, VIP4, short(&id(4, 0xa1))), 1);
    kernel.forwards(&datagram(CLIENT, VIP4, short(&id(4, 0xa2))), 2);
    kernel.forwards(&datagram(CLIENT, VIP4, short(&id(4, 0xa3))), 2);
    let mut wanted = kernel.contents.clone();
    wanted.services.get_mut(&service).unwrap().forwarding = Gue;
    kernel.want(wanted);
    let before = kernel.datapath.traffic(1).unwrap().packets;
    kernel.run(&datagram(CLIENT, VIP4, short(&id(4, 0xa1))));
    assert_eq!(kernel.datapath.traffic(1).unwrap().packets, before + 1);
}

#[test]
fn ids_change_hands_survive_the_agent_and_go_with_their_backends() {
    let name = "ids_change_hands_survive_the_agent_and_go_with_their_backends";
    let Some(mut kernel) = kernel(name) else {
        return;
    };
    let service = serve(&mut kernel, Dsr, 4, Slot::settled(1));
    // The two swap theirs; a third takes the first's old one.
    let mut wanted = kernel.contents.clone();
    wanted.backends.get_mut(&1).unwrap().server_id = Some(0xa2);
    wanted.backends.get_mut(&2).unwrap().server_id = Some(0xa1);
    kernel.want(wanted);
    kernel.forwards(&datagram(CLIENT, VIP4, short(&id(4, 0xa1))), 2);
    kernel.forwards(&datagram(CLIENT, VIP4, short(&id(4, 0xa2))), 1);
    let known = kernel.contents.clone();
    kernel.reopen();
    assert_eq!(kernel.datapath.contents().unwrap(), known);
    kernel.forwards(&datagram(CLIENT, VIP4, short(&id(4, 0xa1))), 2);
    // Another service with the same IDs has its own.
    kernel.serve_one(VIP6, Udp, Dsr, (3, "[fd00::13]:80"));
    let mut wanted = kernel.contents.clone();
    let other = wanted.services.get_mut(&(service + 1)).unwrap();
    (other.affinity, other.server_id_length) = (Affinity::Quic, 4);
    let slots = other.slots.len();
    wanted.backends.get_mut(&3).unwrap().server_id = Some(0xa1);
    kernel.want(wanted);
    let v6 = datagram("[2001:db8::1]:4000", VIP6, short(&id(4, 0xa1)));
    kernel.forwards(&v6, 3);
    kernel.forwards(&datagram(CLIENT, VIP4, short(&id(4, 0xa1))), 2);
    // Without its backend an ID says nothing.
    let mut wanted = kernel.contents.clone();
    wanted.backends.remove(&2);
    kernel.want(wanted);
    kernel.forwards(&datagram(CLIENT, VIP4, short(&id(4, 0xa1))), 1);
    // Nor does it without the affinity.
    let mut wanted = kernel.contents.clone();
    let entry = wanted.services.get_mut(&service).unwrap();
    (entry.affinity, entry.server_id_length) = (Affinity::Flow, 0);
    entry.slots = Arc::new(vec![Slot::settled(3); slots]);
    kernel.want(wanted);
    kernel.forwards(&datagram(CLIENT, VIP4, short(&id(4, 0xa2))), 3);
}
