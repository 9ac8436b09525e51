//! Full NAT: there and back, and what happens to flows without a backend.

use lb_common::abi::BackendState::{Active, Draining, Out};
use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::flow::{TCP_HANDSHAKE, TCP_IDLE};
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol;
use lb_userspace::plan::SnatPorts;

use crate::kernel::{DROP, Kernel, SOURCE4, TX, VIP4, VIP6, at, ip, kernel};
use crate::packets::{CLIENT_MAC, Frame, Seen, parse};

const CLIENT: &str = "198.51.100.1:4000";
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

fn web(kernel: &mut Kernel) -> u16 {
    kernel.serve(
        VIP4,
        Protocol::Tcp,
        Nat,
        Slot::settled(1),
        &[(1, "10.0.0.11:8080"), (2, "10.0.0.12:8080")],
    )
}

fn reply(kernel: &mut Kernel, request: &Seen, flags: &'static str) -> Vec<u8> {
    let frame = Frame::tcp(&request.dst.to_string(), &request.src.to_string(), flags);
    let result = kernel.expect(&frame.sent_by(SERVER_MAC).bytes(), Verdict::NatReply);
    assert_eq!(result.action, TX);
    assert_eq!(result.frame[..6], CLIENT_MAC);
    result.frame
}

#[test]
fn requests_and_replies_are_rewritten() {
    let Some(mut kernel) = kernel("requests_and_replies_are_rewritten") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.serve_one(VIP4, Protocol::Udp, Nat, (2, "10.0.0.11:53"));
    kernel.serve_one(VIP6, Protocol::Tcp, Nat, (3, "[fd00::11]:8080"));
    kernel.serve_one(VIP6, Protocol::Udp, Nat, (4, "[fd00::11]:53"));
    let cases = [
        (
            Frame::tcp(CLIENT, VIP4, "S"),
            1,
            "10.0.0.11:8080",
            "10.0.0.1",
        ),
        (Frame::udp(CLIENT, VIP4), 2, "10.0.0.11:53", "10.0.0.1"),
        (
            Frame::tcp("[2001:db8::1]:4000", VIP6, "S"),
            3,
            "[fd00::11]:8080",
            "fd00::1",
        ),
        (
            Frame::udp("[2001:db8::1]:4000", VIP6),
            4,
            "[fd00::11]:53",
            "fd00::1",
        ),
        (
            Frame::tcp("198.51.100.2:4000", VIP4, "S").vlans(2),
            1,
            "10.0.0.11:8080",
            "10.0.0.1",
        ),
        (
            Frame::udp("198.51.100.2:4001", VIP4).vlans(1),
            2,
            "10.0.0.11:53",
            "10.0.0.1",
        ),
        (
            Frame::tcp("[2001:db8::2]:4000", VIP6, "S").vlans(1),
            3,
            "[fd00::11]:8080",
            "fd00::1",
        ),
    ];
    for (frame, backend, server, source) in cases {
        // EtherTypes and VLAN tags stay as they came, both ways.
        let (bytes, tags) = (frame.bytes(), 12..14 + 4 * frame.vlans);
        let forwarded = kernel.forwards(&bytes, backend);
        assert_eq!(forwarded[tags.clone()], bytes[tags.clone()]);
        let sent = parse(&forwarded);
        assert_eq!((sent.dst, sent.src.ip()), (at(server), ip(source)));
        assert!((20_000..30_000).contains(&sent.src.port()), "{sent:?}");
        assert_eq!((sent.ttl, &sent.payload), (63, &frame.payload));
        // The next packet of the flow leaves from the same port.
        let next = Frame {
            flags: "A",
            ..frame.clone()
        };
        assert_eq!(
            parse(&kernel.forwards(&next.bytes(), backend)).src,
            sent.src
        );
        // The reply comes back from the VIP to the client's MAC address.
        let answer = Frame {
            src: sent.dst,
            dst: sent.src,
            flags: "SA",
            from: SERVER_MAC,
            ..frame.clone()
        };
        let result = kernel.expect(&answer.bytes(), Verdict::NatReply);
        assert_eq!(result.action, TX);
        assert_eq!(
            (&result.frame[..6], &result.frame[6..12]),
            (&CLIENT_MAC[..], &crate::kernel::LB_MAC[..])
        );
        assert_eq!(result.frame[tags.clone()], bytes[tags]);
        let seen = parse(&result.frame);
        assert_eq!((seen.src, seen.dst, seen.ttl), (frame.dst, frame.src, 63));
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_absent() {
    let Some(mut kernel) = kernel("a_udp_checksum_of_zero_stays_absent") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Udp, Nat, (1, "10.0.0.11:53"));
    let mut frame = Frame::udp(CLIENT, VIP4).bytes();
    frame[40..42].fill(0);
    let sent = kernel.forwards(&frame, 1);
    assert_eq!(sent[40..42], [0, 0]);
}

#[test]
fn an_established_flow_keeps_its_backend_whatever_the_table_says() {
    let Some(mut kernel) = kernel("an_established_flow_keeps_its_backend_whatever_the_table_says")
    else {
        return;
    };
    let service = web(&mut kernel);
    kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 1);
    kernel.set_slots(service, Slot::settled(2));
    kernel.set_state(1, Draining);
    kernel.forwards(&Frame::tcp(CLIENT, VIP4, "A").bytes(), 1);
    kernel.forwards(&Frame::tcp("198.51.100.1:4001", VIP4, "S").bytes(), 2);
    // A repeated SYN is the same flow.
    kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 1);
}

#[test]
fn flows_of_a_backend_that_is_out_are_reset() {
    let Some(mut kernel) = kernel("flows_of_a_backend_that_is_out_are_reset") else {
        return;
    };
    let service = web(&mut kernel);
    kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 1);
    kernel.set_slots(service, Slot::settled(2));
    kernel.set_state(1, Out);
    let result = kernel.expect(
        &Frame::tcp(CLIENT, VIP4, "PA").bytes(),
        Verdict::ResetBackendOut,
    );
    assert_eq!(result.action, TX);
    assert_eq!(
        (&result.frame[..6], &result.frame[6..12]),
        (&CLIENT_MAC[..], &crate::kernel::LB_MAC[..])
    );
    let reset = parse(&result.frame);
    assert_eq!(
        (reset.src, reset.dst, reset.flags.as_str()),
        (at(VIP4), at(CLIENT), "R")
    );
    assert_eq!((reset.sequence, reset.acknowledgement), (2000, 0));
    assert!(reset.payload.is_empty());
    // A new connection from the same port goes to the other backend.
    kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 2);
    // The client's own RST still reaches the backend that has died, in case it has not.
    kernel.set_state(2, Out);
    kernel.forwards(&Frame::tcp(CLIENT, VIP4, "R").bytes(), 2);
}

#[test]
fn packets_of_unknown_flows_are_reset() {
    let Some(mut kernel) = kernel("packets_of_unknown_flows_are_reset") else {
        return;
    };
    web(&mut kernel);
    kernel.serve_one(VIP6, Protocol::Tcp, Nat, (3, "[fd00::11]:8080"));
    let answer = parse(
        &kernel
            .expect(
                &Frame::tcp(CLIENT, VIP4, "PA").bytes(),
                Verdict::ResetNoFlow,
            )
            .frame,
    );
    assert_eq!((answer.flags.as_str(), answer.sequence), ("R", 2000));
    let client6 = "[2001:db8::1]:4000";
    // Without an ACK the RST acknowledges what came: five bytes and the FIN (RFC 9293, 3.10.7.1).
    for (vip, client) in [(VIP4, CLIENT), (VIP6, client6)] {
        for vlans in 0..=2 {
            let frame = Frame::tcp(client, vip, "F").vlans(vlans).bytes();
            let answer = parse(&kernel.expect(&frame, Verdict::ResetNoFlow).frame);
            assert_eq!((answer.src, answer.dst), (at(vip), at(client)));
            assert_eq!(
                (answer.flags.as_str(), answer.acknowledgement),
                ("AR", 1006)
            );
        }
    }
    let rst = Frame::tcp(CLIENT, VIP4, "R").bytes();
    assert_eq!(kernel.expect(&rst, Verdict::DropNoFlow).action, DROP);
}

#[test]
fn udp_flows_of_a_backend_that_is_out_go_to_the_next() {
    let Some(mut kernel) = kernel("udp_flows_of_a_backend_that_is_out_go_to_the_next") else {
        return;
    };
    let two = [(1, "10.0.0.11:53"), (2, "10.0.0.12:53")];
    let service = kernel.serve(VIP4, Protocol::Udp, Nat, Slot::settled(1), &two);
    let datagram = Frame::udp(CLIENT, VIP4).bytes();
    kernel.forwards(&datagram, 1);
    kernel.set_slots(service, Slot::settled(2));
    kernel.forwards(&datagram, 1);
    kernel.set_state(1, Out);
    kernel.forwards(&datagram, 2);
    kernel.set_state(1, Active);
    kernel.forwards(&datagram, 2);
}

/// A NAT service with so many source ports.
fn web_with_ports(kernel: &mut Kernel, count: u16) {
    web(kernel);
    let mut wanted = kernel.contents.clone();
    let first = 30_000;
    wanted.ports = Some(SnatPorts { first, count });
    kernel.want(wanted);
}

fn from(port: u16, flags: &'static str) -> Vec<u8> {
    Frame::tcp(&format!("198.51.100.1:{port}"), VIP4, flags).bytes()
}

/// Opens a connection from a client's port, with its handshake; gives the SYN as it left.
fn establish(kernel: &mut Kernel, port: u16) -> Seen {
    let request = parse(&kernel.forwards(&from(port, "S"), 1));
    reply(kernel, &request, "SA");
    kernel.forwards(&from(port, "A"), 1);
    request
}

#[test]
fn ports_are_not_shared() {
    let Some(mut kernel) = kernel("ports_are_not_shared") else {
        return;
    };
    web_with_ports(&mut kernel, 200);
    let mut ports = std::collections::BTreeSet::new();
    for port in 1..=100 {
        assert!(
            ports.insert(establish(&mut kernel, port).src.port()),
            "shared"
        );
    }
    assert!(ports.iter().all(|port| (30_000..30_200).contains(port)));
}

#[test]
fn ports_run_out_by_name_and_are_taken_from_flows_that_are_over() {
    let test = "ports_run_out_by_name_and_are_taken_from_flows_that_are_over";
    let Some(mut kernel) = kernel(test) else {
        return;
    };
    web_with_ports(&mut kernel, 1);
    // A flow that nobody has answered gives its port to the next: a flood holds no ports.
    kernel.forwards(&from(1, "S"), 1);
    let first = establish(&mut kernel, 2);
    kernel.expect(&from(1, "A"), Verdict::ResetNoFlow);
    assert_eq!(
        kernel.expect(&from(3, "S"), Verdict::DropNoPort).action,
        DROP
    );
    // One that both ends have closed does too.
    kernel.forwards(&from(2, "FA"), 1);
    assert_eq!(
        kernel.expect(&from(3, "S"), Verdict::DropNoPort).action,
        DROP
    );
    reply(&mut kernel, &first, "FA");
    assert_eq!(parse(&kernel.forwards(&from(3, "S"), 1)).src, first.src);
    // Its late packets belong to no flow any more.
    kernel.expect(&from(2, "A"), Verdict::ResetNoFlow);
}

/// Ten thousand spoofed SYNs into a table for 4,096 flows.
#[test]
fn a_flood_takes_nothing_from_established_flows() {
    let Some(mut kernel) = kernel("a_flood_takes_nothing_from_established_flows") else {
        return;
    };
    web(&mut kernel);
    let requests: Vec<Seen> = (1..=1_000)
        .map(|port| establish(&mut kernel, port))
        .collect();
    for n in 0..10_000 {
        let source = format!("203.0.{}.{}:{}", n / 250, 1 + n % 250, 1024 + n);
        let result = kernel.run(&Frame::tcp(&source, VIP4, "S").bytes());
        assert!([TX, DROP].contains(&result.action));
    }
    for (port, request) in (1..).zip(&requests) {
        let sent = parse(&kernel.forwards(&from(port, "PA"), 1));
        assert_eq!((sent.src, sent.dst), (request.src, request.dst));
        reply(&mut kernel, request, "PA");
    }
    // Whoever comes with good intent still gets in, if at worst by the repeated SYN.
    let opened = |kernel: &mut Kernel, port| kernel.run(&from(port, "S")).action == TX;
    let admitted = (2_000..2_100).filter(|port| opened(&mut kernel, *port));
    assert!(admitted.count() > 90);
}

#[test]
fn a_closed_flow_is_opened_anew_by_the_next_syn() {
    let Some(mut kernel) = kernel("a_closed_flow_is_opened_anew_by_the_next_syn") else {
        return;
    };
    let service = web(&mut kernel);
    let first = parse(&kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 1));
    reply(&mut kernel, &first, "SA");
    reply(&mut kernel, &first, "R");
    kernel.set_slots(service, Slot::settled(2));
    let second = parse(&kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 2));
    assert_eq!(
        (second.src.ip(), second.dst),
        (ip(SOURCE4), at("10.0.0.12:8080"))
    );
}

#[test]
fn replies_follow_a_client_whose_way_changes() {
    let Some(mut kernel) = kernel("replies_follow_a_client_whose_way_changes") else {
        return;
    };
    web(&mut kernel);
    let request = parse(&kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 1));
    reply(&mut kernel, &request, "SA");
    let router = [2, 0, 0, 0, 0, 0xc2];
    kernel.forwards(&Frame::tcp(CLIENT, VIP4, "A").sent_by(router).bytes(), 1);
    let answer = Frame::tcp("10.0.0.11:8080", &request.src.to_string(), "A").sent_by(SERVER_MAC);
    let result = kernel.expect(&answer.bytes(), Verdict::NatReply);
    assert_eq!(result.frame[..6], router);
}

#[test]
fn half_open_flows_end_soon_and_established_ones_do_not() {
    let Some(mut kernel) = kernel("half_open_flows_end_soon_and_established_ones_do_not") else {
        return;
    };
    web(&mut kernel);
    let none = std::collections::BTreeSet::new();
    let contents = kernel.contents.clone();
    kernel.datapath.tick();
    let half_open = parse(&kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 1));
    reply(&mut kernel, &half_open, "SA");
    let other = "198.51.100.1:4001";
    let established = parse(&kernel.forwards(&Frame::tcp(other, VIP4, "S").bytes(), 1));
    reply(&mut kernel, &established, "SA");
    kernel.forwards(&Frame::tcp(other, VIP4, "A").bytes(), 1);
    kernel.datapath.advance(TCP_HANDSHAKE + 2);
    let sweep = kernel.datapath.sweep(&contents, &none);
    assert_eq!((sweep.removed, sweep.active.get(&1)), (1, Some(&1)));
    kernel.datapath.advance(TCP_IDLE + 4);
    assert_eq!(kernel.datapath.sweep(&contents, &none).removed, 1);
}

#[test]
fn a_record_of_a_service_that_was_dsr_before_means_nothing() {
    let Some(mut kernel) = kernel("a_record_of_a_service_that_was_dsr_before_means_nothing") else {
        return;
    };
    let backends = [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")];
    let service = kernel.serve(VIP4, Protocol::Tcp, Dsr, Slot::transition(1, 2), &backends);
    kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 1);
    let mut wanted = kernel.contents.clone();
    wanted.services.get_mut(&service).unwrap().forwarding = Nat;
    kernel.want(wanted);
    let data = Frame::tcp(CLIENT, VIP4, "PA").bytes();
    kernel.expect(&data, Verdict::ResetNoFlow);
    let sent = parse(&kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 1));
    assert_eq!(sent.dst, at("10.0.0.11:80"));
}
