//! Records of captured packets: as they came in, with what became of them.

use lb_common::abi::BackendState::Out;
use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::datapath::Tap;
use lb_userspace::datapath::sys::monotonic;
use lb_userspace::datapath::tap::Packet;
use lb_userspace::model::Protocol;

use crate::kernel::{DROP, INGRESS, Kernel, PASS, TX, VIP4, VIP6, kernel};
use crate::packets::{CLIENT_MAC, Frame, echo, parse, sum_header};

const CLIENT: &str = "198.51.100.1:4000";

fn one(tap: &mut Tap) -> Packet {
    let packet = tap.take().unwrap().expect("a record");
    assert_eq!(tap.take().unwrap(), None, "one record a packet");
    packet
}

fn none(tap: &mut Tap) {
    assert_eq!(tap.take().unwrap(), None);
}

#[test]
fn a_nat_flow_is_captured_in_both_directions_as_it_came_in() {
    let Some(mut kernel) = kernel("a_nat_flow_is_captured_in_both_directions_as_it_came_in") else {
        return;
    };
    let web = kernel.serve_one(VIP4, Protocol::Tcp, Nat, (7, "10.0.0.11:8080"));
    let web6 = kernel.serve_one(VIP6, Protocol::Tcp, Nat, (8, "[fd00::11]:8080"));
    let mut tap = kernel.datapath.tap().unwrap();
    for (service, backend, client, vip) in [
        (web, 7, CLIENT, VIP4),
        (web6, 8, "[2001:db8::1]:4000", VIP6),
    ] {
        tap.start(Some(service), 4096).unwrap();
        for vlans in 0..=2 {
            let frame = Frame::tcp(client, vip, "S").vlans(vlans);
            let before = monotonic();
            let sent = kernel.forwards(&frame.bytes(), backend);
            let packet = one(&mut tap);
            assert!((before..=monotonic()).contains(&packet.time));
            assert_eq!(
                (packet.service, packet.backend, packet.verdict),
                (service, backend, None)
            );
            assert_eq!((packet.ifindex, packet.action), (INGRESS, TX));
            assert_eq!(packet.data, frame.bytes(), "the client's own packet");
            assert_eq!(packet.length as usize, packet.data.len());
            assert_eq!(packet.sent, sent[..packet.sent.len()]);
            assert_eq!(packet.sent.len(), sent.len().min(96));

            let sent = parse(&sent);
            let reply = Frame {
                src: sent.dst,
                dst: sent.src,
                flags: "SA",
                ..frame
            };
            let result = kernel.expect(&reply.bytes(), Verdict::NatReply);
            let packet = one(&mut tap);
            assert_eq!((packet.service, packet.backend), (service, backend));
            assert_eq!(packet.verdict, Some(Verdict::NatReply));
            assert_eq!(packet.data, reply.bytes());
            assert_eq!(packet.sent, result.frame[..packet.sent.len()]);
            assert_eq!(packet.sent[..6], CLIENT_MAC);
        }
    }
    assert_eq!(tap.lost().unwrap(), 0);
}

/// It is changed before the way of whole packets sees it.
#[test]
fn a_fragment_by_nat_is_captured_as_it_came_in() {
    let Some(mut kernel) = kernel("a_fragment_by_nat_is_captured_as_it_came_in") else {
        return;
    };
    let dns = kernel.serve_one(VIP4, Protocol::Udp, Nat, (1, "10.0.0.11:53"));
    let mut tap = kernel.datapath.tap().unwrap();
    tap.start(Some(dns), 4096).unwrap();
    let whole = Frame::udp(CLIENT, VIP4).bytes();
    let mut first = whole.clone();
    first[20] |= 0x20;
    sum_header(&mut first[14..]);
    for frame in [&first, &whole, &first, &whole] {
        let sent = kernel.forwards(frame, 1);
        assert_eq!(sent[20..22], frame[20..22], "a fragment or not, as before");
        let packet = one(&mut tap);
        assert_eq!((packet.backend, packet.verdict), (1, None));
        assert_eq!(&packet.data, frame);
        assert_eq!(packet.sent, sent[..packet.sent.len()]);
    }
    tap.stop();
    kernel.forwards(&first, 1);
    none(&mut tap);
}

#[test]
fn only_the_service_asked_for_is_captured_and_only_while_it_is() {
    let Some(mut kernel) = kernel("only_the_service_asked_for_is_captured_and_only_while_it_is")
    else {
        return;
    };
    let web = kernel.serve_one(VIP4, Protocol::Tcp, Dsr, (1, "10.0.0.11:80"));
    let other = kernel.serve_one(VIP6, Protocol::Tcp, Dsr, (2, "[fd00::11]:80"));
    let ours = Frame::tcp(CLIENT, VIP4, "S").bytes();
    let others = Frame::tcp("[2001:db8::1]:1", VIP6, "S").bytes();
    let mut tap = kernel.datapath.tap().unwrap();
    kernel.forwards(&ours, 1);
    none(&mut tap);
    tap.start(Some(web), 4096).unwrap();
    assert!(kernel.datapath.is_captured());
    kernel.forwards(&others, 2);
    none(&mut tap);
    kernel.forwards(&ours, 1);
    assert_eq!(one(&mut tap).data, ours);
    // What is left of one capture is no part of the next.
    kernel.forwards(&ours, 1);
    tap.start(Some(other), 4096).unwrap();
    none(&mut tap);
    kernel.forwards(&others, 2);
    assert_eq!(one(&mut tap).service, other);
    tap.start(None, 4096).unwrap();
    kernel.forwards(&ours, 1);
    kernel.forwards(&others, 2);
    let services = [tap.take(), tap.take()].map(|packet| packet.unwrap().unwrap().service);
    assert_eq!(services, [web, other]);
    tap.stop();
    kernel.forwards(&ours, 1);
    none(&mut tap);
    tap.start(Some(web), 4096).unwrap();
    drop(tap);
    assert!(!kernel.datapath.is_captured());
}

fn refusals(kernel: &mut Kernel) -> Vec<(&'static str, Vec<u8>, Verdict, u16, u32)> {
    let web = kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    let dead = "203.0.113.11:80";
    let dead_id = kernel.serve(dead, Protocol::Tcp, Dsr, Slot::settled(0), &[]);
    let syn = Frame::tcp(CLIENT, VIP4, "S").bytes();
    let mut fragment = syn.clone();
    fragment[21] = 0x10;
    let short = syn[..14 + 20 + 19].to_vec();
    let reset = Frame::tcp(CLIENT, VIP4, "A").bytes();
    let ttl = Frame::tcp(CLIENT, VIP4, "S").ttl(1).bytes();
    let nobody = Frame::tcp(CLIENT, dead, "S").bytes();
    let port = Frame::tcp(CLIENT, "203.0.113.10:81", "S").bytes();
    let ping = echo([198, 51, 100, 1], [203, 0, 113, 10]);
    vec![
        ("fragment", fragment, Verdict::DropFragment, 0, DROP),
        ("cut short", short, Verdict::DropMalformed, 0, DROP),
        ("no flow", reset, Verdict::ResetNoFlow, web, TX),
        ("TTL", ttl, Verdict::DropTtl, web, DROP),
        ("no backend", nobody, Verdict::DropNoBackend, dead_id, DROP),
        ("other port", port, Verdict::PassNoService, 0, PASS),
        ("ping", ping, Verdict::PassOtherProtocol, 0, PASS),
    ]
}

#[test]
fn refused_packets_are_captured_with_their_reason() {
    let Some(mut kernel) = kernel("refused_packets_are_captured_with_their_reason") else {
        return;
    };
    let cases = refusals(&mut kernel);
    let mut tap = kernel.datapath.tap().unwrap();
    for (name, frame, verdict, service, action) in cases {
        tap.start(None, 4096).unwrap();
        let result = kernel.expect(&frame, verdict);
        let packet = one(&mut tap);
        assert_eq!(packet.verdict, Some(verdict), "{name}");
        assert_eq!((packet.service, packet.backend), (service, 0), "{name}");
        assert_eq!(packet.data, frame, "{name}");
        assert_eq!((packet.action, result.action), (action, action), "{name}");
        if verdict == Verdict::ResetNoFlow {
            assert_eq!(packet.sent, result.frame, "the RST");
        } else {
            assert!(packet.sent.is_empty(), "{name}");
        }
        // With its service, if it has one, and not otherwise.
        tap.start(Some(1), 4096).unwrap();
        kernel.expect(&frame, verdict);
        let found = tap.take().unwrap().map(|packet| packet.verdict);
        let expected = (service == 1).then_some(Some(verdict));
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_reset_of_a_flow_whose_backend_is_out_names_the_service() {
    let Some(mut kernel) = kernel("a_reset_of_a_flow_whose_backend_is_out_names_the_service")
    else {
        return;
    };
    let web = kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.forwards(&Frame::tcp(CLIENT, VIP4, "S").bytes(), 1);
    kernel.set_state(1, Out);
    let mut tap = kernel.datapath.tap().unwrap();
    tap.start(Some(web), 4096).unwrap();
    let frame = Frame::tcp(CLIENT, VIP4, "A").bytes();
    let result = kernel.expect(&frame, Verdict::ResetBackendOut);
    let packet = one(&mut tap);
    assert_eq!(packet.verdict, Some(Verdict::ResetBackendOut));
    assert_eq!((packet.data, packet.sent), (frame, result.frame));
}

#[test]
fn what_is_not_for_a_vip_is_never_captured() {
    let Some(mut kernel) = kernel("what_is_not_for_a_vip_is_never_captured") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    let mut tap = kernel.datapath.tap().unwrap();
    tap.start(None, 4096).unwrap();
    for (frame, verdict) in [
        (
            Frame::tcp(CLIENT, "198.51.100.2:80", "S").bytes(),
            Verdict::PassNotVip,
        ),
        (crate::packets::raw(0x0806, &[0; 28]), Verdict::PassNotIp),
        // SSH to the address that NAT sends from: a capture over SSH must not capture itself.
        (
            Frame::tcp(CLIENT, "10.0.0.1:22", "S").bytes(),
            Verdict::PassNoService,
        ),
        (
            Frame::tcp(CLIENT, "10.0.0.1:20500", "A").bytes(),
            Verdict::PassNoService,
        ),
        (
            echo([198, 51, 100, 1], [10, 0, 0, 1]),
            Verdict::PassOtherProtocol,
        ),
    ] {
        kernel.expect(&frame, verdict);
        none(&mut tap);
    }
}

#[test]
fn packets_are_cut_to_what_was_asked_for() {
    let Some(mut kernel) = kernel("packets_are_cut_to_what_was_asked_for") else {
        return;
    };
    let web = kernel.serve_one(VIP4, Protocol::Udp, Dsr, (1, "10.0.0.11:80"));
    let frame = Frame {
        payload: (0..3000).map(|n| n as u8).collect(),
        ..Frame::udp(CLIENT, VIP4)
    }
    .bytes();
    let mut tap = kernel.datapath.tap().unwrap();
    for (keep, kept) in [
        (1, 1),
        (64, 64),
        (frame.len() - 1, frame.len() - 1),
        (frame.len(), frame.len()),
        (4096, frame.len()),
        (usize::from(u16::MAX), frame.len()),
    ] {
        tap.start(Some(web), keep as u16).unwrap();
        kernel.forwards(&frame, 1);
        let packet = one(&mut tap);
        assert_eq!(packet.data, frame[..kept]);
        assert_eq!(packet.length as usize, frame.len());
    }
}

#[test]
fn what_finds_no_room_is_counted() {
    let Some(mut kernel) = kernel("what_finds_no_room_is_counted") else {
        return;
    };
    let web = kernel.serve_one(VIP4, Protocol::Udp, Dsr, (1, "10.0.0.11:80"));
    let frame = Frame {
        payload: vec![7; 3000],
        ..Frame::udp(CLIENT, VIP4)
    };
    let mut tap = kernel.datapath.tap().unwrap();
    for _ in 0..2 {
        tap.start(Some(web), 4096).unwrap();
        let runs = 3000;
        for _ in 0..runs {
            tap.renew();
            kernel.run(&frame.bytes());
        }
        let mut read = 0;
        while tap.take().unwrap().is_some() {
            read += 1;
        }
        let lost = tap.lost().unwrap();
        assert!(read > 1000 && lost > 0, "{read} read, {lost} lost");
        assert_eq!(read + lost, runs);
        kernel.forwards(&frame.bytes(), 1);
        one(&mut tap);
    }
}

/// As when the agent is killed: nobody renews the lease, and nobody clears the word.
#[test]
fn a_capture_that_nobody_renews_ends_by_itself() {
    let Some(mut kernel) = kernel("a_capture_that_nobody_renews_ends_by_itself") else {
        return;
    };
    let web = kernel.serve_one(VIP4, Protocol::Tcp, Dsr, (1, "10.0.0.11:80"));
    let frame = Frame::tcp(CLIENT, VIP4, "S").bytes();
    let mut tap = kernel.datapath.tap().unwrap();
    tap.start(Some(web), 64).unwrap();
    kernel.forwards(&frame, 1);
    one(&mut tap);
    std::mem::forget(tap);
    let deadline = monotonic() + std::time::Duration::from_secs(60);
    while kernel.datapath.is_captured() {
        assert!(monotonic() < deadline, "still captured");
        kernel.forwards(&frame, 1);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    kernel.forwards(&frame, 1);
    // A later one works as the first did.
    let mut tap = kernel.datapath.tap().unwrap();
    tap.start(Some(web), 64).unwrap();
    none(&mut tap);
    kernel.forwards(&frame, 1);
    one(&mut tap);
}
