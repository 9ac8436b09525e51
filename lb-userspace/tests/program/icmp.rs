//! ICMP errors, in all ways of forwarding.

use std::net::IpAddr;

use lb_common::abi::Affinity;
use lb_common::abi::BackendState::{Draining, Out};
use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol;

use crate::kernel::{
    BACKEND_MAC, DROP, Kernel, LB_MAC, PASS, SOURCE4, SOURCE6, TX, VIP4, VIP6, ip, kernel,
};
use crate::packets::{
    CLIENT_MAC, Frame, Icmp, ROUTER_MAC, checksum, parse, parse_icmp, sum_header,
};

const CLIENT4: &str = "198.51.100.1:4000";
const CLIENT6: &str = "[2001:db8:1::1]:4000";
const ROUTER4: &str = "192.0.2.7";
const ROUTER6: &str = "2001:db8:7::7";

/// "Fragmentation needed" and "packet too big", for an MTU of 1400.
const TOO_BIG4: (u8, u8, u32) = (3, 4, 1400);
const TOO_BIG6: (u8, u8, u32) = (2, 0, 1400);

fn router(like: IpAddr) -> IpAddr {
    ip(if like.is_ipv4() { ROUTER4 } else { ROUTER6 })
}

/// What a router sends to the sender of `quoted`, an IP packet.
fn too_big(from: IpAddr, to: IpAddr, quoted: &[u8]) -> Icmp {
    Icmp {
        src: from,
        dst: to,
        from: ROUTER_MAC,
        ttl: 50,
        vlans: 0,
        kind: if to.is_ipv4() { TOO_BIG4 } else { TOO_BIG6 },
        payload: quoted.to_vec(),
    }
}

/// Length of the headers before TCP or UDP.
fn ip_header(address: IpAddr) -> usize {
    if address.is_ipv4() { 20 } else { 40 }
}

/// A NAT service for each family and protocol, each with one backend and a client's packet.
fn nat_services(kernel: &mut Kernel) -> Vec<(Frame, u16)> {
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.serve_one(VIP4, Protocol::Udp, Nat, (2, "10.0.0.11:53"));
    kernel.serve_one(VIP6, Protocol::Tcp, Nat, (3, "[fd00::11]:8080"));
    kernel.serve_one(VIP6, Protocol::Udp, Nat, (4, "[fd00::11]:53"));
    vec![
        (Frame::tcp(CLIENT4, VIP4, "S"), 1),
        (Frame::udp(CLIENT4, VIP4), 2),
        (Frame::tcp(CLIENT6, VIP6, "S"), 3),
        (Frame::udp(CLIENT6, VIP6), 4),
    ]
}

/// Runs an error that must be sent on; gives the frame.
fn sent_on(kernel: &mut Kernel, icmp: &Icmp) -> Vec<u8> {
    let result = kernel.expect(&icmp.bytes(), Verdict::IcmpError);
    assert_eq!(result.action, TX);
    assert_eq!(result.frame[6..12], LB_MAC);
    result.frame
}

fn to_backend(kernel: &mut Kernel, icmp: &Icmp, backend: u16) -> Icmp {
    let before = kernel.datapath.traffic(backend).unwrap();
    let frame = sent_on(kernel, icmp);
    let after = kernel.datapath.traffic(backend).unwrap();
    assert_eq!(after.packets, before.packets + 1);
    assert_eq!(after.bytes, before.bytes + frame.len() as u64);
    assert_eq!(frame[..4], BACKEND_MAC[..4]);
    assert_eq!(frame[4..6], backend.to_be_bytes());
    parse_icmp(&frame)
}

#[test]
fn nat_sends_errors_from_the_clients_side_to_the_backend() {
    let Some(mut kernel) = kernel("nat_sends_errors_from_the_clients_side_to_the_backend") else {
        return;
    };
    for (request, backend) in nat_services(&mut kernel) {
        let sent = parse(&kernel.forwards(&request.bytes(), backend));
        // What the backend answers, and as the router and the backend see it.
        let answer = Frame {
            src: sent.dst,
            dst: sent.src,
            flags: "SA",
            payload: vec![7; 99],
            ..request.clone()
        };
        let result = kernel.expect(&answer.bytes(), Verdict::NatReply);
        let seen_by_router = &result.frame[14..];
        let once = answer.clone().ttl(63).bytes();
        let sent_by_backend = &once[14..];
        let (vip, from) = (request.dst.ip(), router(request.dst.ip()));
        let all = seen_by_router.len();
        let header = ip_header(vip);
        for length in [header + 8, header + 17, header + 18, header + 20, all] {
            for vlans in 0..=2 {
                let icmp = Icmp {
                    vlans,
                    ..too_big(from, vip, &seen_by_router[..length])
                };
                let seen = to_backend(&mut kernel, &icmp, backend);
                let mut payload = sent_by_backend[..length].to_vec();
                if !request.udp && length == header + 17 {
                    // A checksum that is cut in two is not touched.
                    payload[length - 1] = seen_by_router[length - 1];
                }
                let expected = Icmp {
                    src: sent.src.ip(),
                    dst: sent.dst.ip(),
                    from: LB_MAC,
                    ttl: 49,
                    payload,
                    ..icmp
                };
                assert_eq!(seen, expected, "{length} bytes");
            }
        }
    }
}

#[test]
fn nat_sends_errors_from_the_backends_side_to_the_client() {
    let Some(mut kernel) = kernel("nat_sends_errors_from_the_backends_side_to_the_client") else {
        return;
    };
    for (request, backend) in nat_services(&mut kernel) {
        let forwarded = kernel.forwards(&request.bytes(), backend);
        let sent = parse(&forwarded);
        let once = request.clone().ttl(63).bytes();
        for (from, shown) in [
            (sent.dst.ip(), request.dst.ip()),
            (router(sent.dst.ip()), router(sent.dst.ip())),
        ] {
            for length in [ip_header(from) + 8, forwarded.len() - 14] {
                let icmp = too_big(from, sent.src.ip(), &forwarded[14..14 + length]);
                let frame = sent_on(&mut kernel, &icmp);
                assert_eq!(frame[..6], CLIENT_MAC);
                let expected = Icmp {
                    src: shown,
                    dst: request.src.ip(),
                    from: LB_MAC,
                    ttl: 49,
                    payload: once[14..14 + length].to_vec(),
                    ..icmp
                };
                assert_eq!(parse_icmp(&frame), expected);
            }
        }
    }
}

#[test]
fn every_kind_of_error_and_nothing_else_is_sent_on() {
    let Some(mut kernel) = kernel("every_kind_of_error_and_nothing_else_is_sent_on") else {
        return;
    };
    for (request, backend) in nat_services(&mut kernel) {
        kernel.forwards(&request.bytes(), backend);
        let vip = request.dst.ip();
        let answer = Frame {
            src: request.dst,
            dst: request.src,
            ..request.clone()
        };
        let errors: &[u8] = if vip.is_ipv4() {
            &[3, 11, 12]
        } else {
            &[1, 2, 3, 4]
        };
        for kind in 0..=255u8 {
            let icmp = Icmp {
                kind: (kind, 1, 0),
                ..too_big(router(vip), vip, &answer.bytes()[14..])
            };
            if errors.contains(&kind) {
                let seen = to_backend(&mut kernel, &icmp, backend);
                assert_eq!((seen.kind, seen.ttl), (icmp.kind, 49));
            } else {
                let result = kernel.expect(&icmp.bytes(), Verdict::PassOtherProtocol);
                assert_eq!((result.action, result.frame), (PASS, icmp.bytes()));
            }
        }
    }
}

/// A backend's packet by `dsr`, as a router at the client quotes it.
fn direct(client: &str, vip: &str, udp: bool) -> Vec<u8> {
    let frame = if udp {
        Frame::udp(vip, client)
    } else {
        Frame::tcp(vip, client, "A")
    };
    frame.ttl(60).bytes()[14..].to_vec()
}

#[test]
fn dsr_sends_errors_where_the_flows_packets_go() {
    let Some(mut kernel) = kernel("dsr_sends_errors_where_the_flows_packets_go") else {
        return;
    };
    let two = [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")];
    let id = kernel.serve(VIP4, Protocol::Tcp, Dsr, Slot::settled(1), &two);
    kernel.serve_one(VIP6, Protocol::Udp, Dsr, (3, "[fd00::11]:80"));
    let vip = ip("203.0.113.10");
    let icmp = too_big(ip(ROUTER4), vip, &direct(CLIENT4, VIP4, false));
    let unchanged = |icmp: &Icmp| Icmp {
        from: LB_MAC,
        ttl: 49,
        ..icmp.clone()
    };
    assert_eq!(to_backend(&mut kernel, &icmp, 1), unchanged(&icmp));
    let short = Icmp {
        vlans: 2,
        payload: icmp.payload[..28].to_vec(),
        ..icmp.clone()
    };
    assert_eq!(to_backend(&mut kernel, &short, 1), unchanged(&short));
    let v6 = too_big(
        ip(ROUTER6),
        ip("2001:db8::10"),
        &direct(CLIENT6, VIP6, true),
    );
    assert_eq!(to_backend(&mut kernel, &v6, 3), unchanged(&v6));
    // In transition: a recorded flow's goes by the record, any other's to the previous owner.
    kernel.set_slots(id, Slot::transition(2, 1));
    kernel.forwards(&Frame::tcp(CLIENT4, VIP4, "S").bytes(), 2);
    to_backend(&mut kernel, &icmp, 2);
    let other = Icmp {
        payload: direct("198.51.100.1:4001", VIP4, false),
        ..icmp.clone()
    };
    to_backend(&mut kernel, &other, 1);
    // Draining, a backend keeps its flows and so the errors about them.
    kernel.set_slots(id, Slot::settled(1));
    kernel.set_state(1, Draining);
    to_backend(&mut kernel, &icmp, 1);
    kernel.set_state(1, Out);
    let result = kernel.expect(&icmp.bytes(), Verdict::DropBackendOut);
    assert_eq!(result.action, DROP);
}

#[test]
fn dsr_with_client_affinity_goes_by_the_client_not_by_the_router() {
    let Some(mut kernel) = kernel("dsr_with_client_affinity_goes_by_the_client_not_by_the_router")
    else {
        return;
    };
    let two = [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")];
    let id = kernel.serve(VIP4, Protocol::Tcp, Dsr, Slot::settled(1), &two);
    let mut wanted = kernel.contents.clone();
    let service = wanted.services.get_mut(&id).unwrap();
    service.affinity = Affinity::Client;
    let mut slots = service.slots.to_vec();
    for slot in slots.iter_mut().step_by(2) {
        *slot = Slot::settled(2);
    }
    service.slots = slots.into();
    kernel.want(wanted);
    let mut seen = std::collections::BTreeSet::new();
    for last in 1..=20 {
        let client = format!("198.51.100.{last}:4000");
        let before = kernel.datapath.traffic(1).unwrap().packets;
        kernel.run(&Frame::tcp(&client, VIP4, "A").bytes());
        let backend = if kernel.datapath.traffic(1).unwrap().packets > before {
            1
        } else {
            2
        };
        let quoted = direct(&client, VIP4, false);
        to_backend(
            &mut kernel,
            &too_big(ip(ROUTER4), ip("203.0.113.10"), &quoted),
            backend,
        );
        seen.insert(backend);
    }
    assert_eq!(seen.len(), 2, "20 clients and only one backend");
}

#[test]
fn errors_about_nothing_of_ours_go_to_the_host() {
    let Some(mut kernel) = kernel("errors_about_nothing_of_ours_go_to_the_host") else {
        return;
    };
    let services = nat_services(&mut kernel);
    for (request, backend) in &services {
        kernel.forwards(&request.bytes(), *backend);
    }
    let (vip4, vip6) = (ip("203.0.113.10"), ip("2001:db8::10"));
    let answer = direct(CLIENT4, VIP4, false);
    let edited = |at: usize, value: u8| {
        let mut quoted = answer.clone();
        quoted[at] = value;
        quoted
    };
    let cases = [
        (
            "another port",
            too_big(
                ip(ROUTER4),
                vip4,
                &direct(CLIENT4, "203.0.113.10:81", false),
            ),
        ),
        (
            "the host's flow",
            too_big(
                ip(ROUTER4),
                ip(SOURCE4),
                &direct(CLIENT4, "10.0.0.1:22", false),
            ),
        ),
        (
            "the host's flow",
            too_big(
                ip(ROUTER6),
                ip(SOURCE6),
                &direct(CLIENT6, "[fd00::1]:22", false),
            ),
        ),
        (
            "a NAT port without flow",
            too_big(
                ip(ROUTER4),
                ip(SOURCE4),
                &direct("10.0.0.11:8080", "10.0.0.1:20500", false),
            ),
        ),
        (
            "sent by another",
            too_big(
                ip(ROUTER4),
                vip4,
                &direct(CLIENT4, "203.0.113.11:80", false),
            ),
        ),
        (
            "sent by another",
            too_big(
                ip(ROUTER6),
                vip6,
                &direct(CLIENT6, "[2001:db8::11]:80", false),
            ),
        ),
        ("ICMP quoted", too_big(ip(ROUTER4), vip4, &edited(9, 1))),
        (
            "IPv6 quoted in IPv4",
            too_big(ip(ROUTER4), vip4, &edited(0, 0x65)),
        ),
        (
            "header of 16 bytes",
            too_big(ip(ROUTER4), vip4, &edited(0, 0x44)),
        ),
        (
            "header beyond the quote",
            too_big(ip(ROUTER4), vip4, &edited(0, 0x4f)),
        ),
        ("later fragment", too_big(ip(ROUTER4), vip4, &edited(7, 1))),
        (
            "seven bytes of TCP",
            too_big(ip(ROUTER4), vip4, &answer[..27]),
        ),
        ("nothing quoted", too_big(ip(ROUTER4), vip4, &[])),
    ];
    for (name, icmp) in cases {
        let frame = icmp.bytes();
        let result = kernel.expect(&frame, Verdict::PassOtherProtocol);
        assert_eq!((result.action, result.frame), (PASS, frame), "{name}");
    }
    // Padding of a short frame is not part of the quote.
    let mut padded = too_big(ip(ROUTER4), vip4, &answer[..20]).bytes();
    padded.extend_from_slice(&answer[20..]);
    kernel.expect(&padded, Verdict::PassOtherProtocol);
    // For a service of ours, but about a flow that nobody has.
    let unknown = direct("198.51.100.1:9", VIP4, false);
    let result = kernel.expect(
        &too_big(ip(ROUTER4), vip4, &unknown).bytes(),
        Verdict::DropIcmpNoFlow,
    );
    assert_eq!(result.action, DROP);
}

#[test]
fn quoted_options_and_fragment_headers_are_passed_over() {
    let Some(mut kernel) = kernel("quoted_options_and_fragment_headers_are_passed_over") else {
        return;
    };
    let services = nat_services(&mut kernel);
    for (request, backend) in services {
        let sent = parse(&kernel.forwards(&request.bytes(), backend));
        let widen = |frame: Frame| {
            let mut packet = frame.bytes()[14..].to_vec();
            if request.dst.is_ipv4() {
                // Three options without an effect, and an end; a first fragment, too.
                packet.splice(20..20, [1, 1, 1, 0]);
                packet[0] = 0x46;
                packet[6] = 0x20;
                sum_header(&mut packet);
            } else {
                // A first fragment.
                packet.splice(40..40, [packet[6], 0, 0, 1, 1, 2, 3, 4]);
                packet[6] = 44;
            }
            packet
        };
        let backends = Frame {
            src: sent.dst,
            dst: sent.src,
            flags: "A",
            ..request.clone()
        };
        let routers = Frame {
            src: request.dst,
            dst: request.src,
            ..backends.clone()
        };
        let vip = request.dst.ip();
        let icmp = too_big(router(vip), vip, &widen(routers));
        let seen = to_backend(&mut kernel, &icmp, backend);
        assert_eq!(seen.payload, widen(backends));
    }
}

#[test]
fn wrong_checksums_stay_wrong_and_absent_ones_absent() {
    let Some(mut kernel) = kernel("wrong_checksums_stay_wrong_and_absent_ones_absent") else {
        return;
    };
    let (request, backend) = nat_services(&mut kernel).swap_remove(1);
    let sent = parse(&kernel.forwards(&request.bytes(), backend));
    let mut quoted = direct(CLIENT4, VIP4, true);
    quoted[26..28].fill(0);
    let icmp = too_big(ip(ROUTER4), request.dst.ip(), &quoted);
    let seen = to_backend(&mut kernel, &icmp, backend);
    assert_eq!(seen.payload[26..28], [0, 0]);
    assert_eq!(seen.payload[22..24], sent.src.port().to_be_bytes());
    // Wrong by as much after as before.
    for at in [10, 26] {
        let mut quoted = direct(CLIENT4, VIP4, true);
        let right = to_backend(
            &mut kernel,
            &too_big(ip(ROUTER4), request.dst.ip(), &quoted),
            backend,
        );
        quoted[at] ^= 1;
        let seen = to_backend(
            &mut kernel,
            &too_big(ip(ROUTER4), request.dst.ip(), &quoted),
            backend,
        );
        // In one's complement, where a carry out of the top comes in at the bottom.
        let sum = |packet: &Icmp| {
            u32::from(u16::from_be_bytes([
                packet.payload[at],
                packet.payload[at + 1],
            ]))
        };
        let difference = (sum(&seen) + 0xffff - sum(&right)) % 0xffff;
        assert!([0x100, 0xffff - 0x100].contains(&difference), "{at}");
    }
    let mut frame = too_big(ip(ROUTER4), request.dst.ip(), &quoted).bytes();
    frame[36] ^= 0x10;
    let result = kernel.expect(&frame, Verdict::IcmpError);
    let error = checksum(&frame[34..], 0);
    assert_ne!(error, 0);
    assert_eq!(checksum(&result.frame[34..], 0), error);
}

#[test]
fn errors_count_hops_and_need_a_way() {
    let Some(mut kernel) = kernel("errors_count_hops_and_need_a_way") else {
        return;
    };
    let (request, backend) = nat_services(&mut kernel).swap_remove(0);
    kernel.forwards(&request.bytes(), backend);
    let icmp = too_big(ip(ROUTER4), request.dst.ip(), &direct(CLIENT4, VIP4, false));
    let old = Icmp {
        ttl: 1,
        ..icmp.clone()
    };
    assert_eq!(kernel.expect(&old.bytes(), Verdict::DropTtl).action, DROP);
    kernel.set_state(backend, Out);
    kernel.expect(&icmp.bytes(), Verdict::DropBackendOut);
}
