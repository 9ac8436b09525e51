//! Fragments: the first one's ports lead the others, by NAT under another identification.

use lb_common::abi::BackendState::{Active, Out};
use lb_common::abi::FRAGMENT_LIFETIME;
use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::slot::{Slot, TABLE_SIZES};
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol;

use crate::kernel::{DROP, Kernel, PASS, SOURCE4, SOURCE6, TX, VIP4, VIP6, at, ip, kernel};
use crate::packets::{CLIENT_MAC, Frame, Seen, checksum, parse};

const CLIENT4: &str = "198.51.100.1:4000";
const CLIENT6: &str = "[2001:db8:1::1]:4000";

/// A fragment of what `frame` carries: `length` bytes from `offset` on, both multiples of 8 unless
/// it is the last.
fn fragment(frame: &Frame, id: u32, offset: usize, length: usize) -> Vec<u8> {
    let whole = frame.bytes();
    let l3 = 14 + 4 * frame.vlans;
    let header = if frame.dst.is_ipv4() { 20 } else { 40 };
    let payload = &whole[l3 + header..];
    let end = (offset + length).min(payload.len());
    let more = end < payload.len();
    let mut bytes = whole[..l3 + header].to_vec();
    let part = &payload[offset..end];
    if frame.dst.is_ipv4() {
        let total = (header + part.len()) as u16;
        let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        bytes[l3 + 2..l3 + 4].copy_from_slice(&total.to_be_bytes());
        bytes[l3 + 4..l3 + 6].copy_from_slice(&(id as u16).to_be_bytes());
        bytes[l3 + 6..l3 + 8].copy_from_slice(&field.to_be_bytes());
        bytes[l3 + 10..l3 + 12].fill(0);
        let sum = checksum(&bytes[l3..l3 + 20], 0);
        bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let payload = (8 + part.len()) as u16;
        bytes[l3 + 4..l3 + 6].copy_from_slice(&payload.to_be_bytes());
        let next = std::mem::replace(&mut bytes[l3 + 6], 44);
        let field = offset as u16 | u16::from(more);
        bytes.extend_from_slice(&[next, 0]);
        bytes.extend_from_slice(&field.to_be_bytes());
        bytes.extend_from_slice(&id.to_be_bytes());
    }
    bytes.extend_from_slice(part);
    bytes
}

fn large(frame: Frame) -> Frame {
    Frame {
        payload: (0..2000).map(|n| n as u8).collect(),
        ..frame
    }
}

/// Two backends whose slots alternate, so that only the right ports lead to the right one.
fn alternating(kernel: &mut Kernel, vip: &str, protocol: Protocol, first: u16) {
    let v4 = vip == VIP4;
    let addresses = if v4 {
        ["10.0.0.11:80", "10.0.0.12:80"]
    } else {
        ["[fd00::11]:80", "[fd00::12]:80"]
    };
    let both = [(first, addresses[0]), (first + 1, addresses[1])];
    let id = kernel.serve(vip, protocol, Dsr, Slot::settled(first), &both);
    let mut wanted = kernel.contents.clone();
    let slots = (0..TABLE_SIZES[0]).map(|n| Slot::settled(first + (n % 2) as u16));
    wanted.services.get_mut(&id).unwrap().slots = slots.collect::<Vec<_>>().into();
    kernel.want(wanted);
}

/// The backend that a whole packet goes to.
fn backend_of(kernel: &mut Kernel, frame: &Frame, first: u16) -> u16 {
    let before = kernel.datapath.traffic(first).unwrap().packets;
    kernel.run(&frame.bytes());
    if kernel.datapath.traffic(first).unwrap().packets > before {
        first
    } else {
        first + 1
    }
}

/// The IP header's checksum is right, the hops are one less, and nothing else has changed.
fn only_hops_and_macs_changed(before: &[u8], after: &[u8], vlans: usize) {
    let l3 = 14 + 4 * vlans;
    let mut expected = before.to_vec();
    expected[..12].copy_from_slice(&after[..12]);
    if before[l3] >> 4 == 4 {
        expected[l3 + 8] -= 1;
        expected[l3 + 10..l3 + 12].copy_from_slice(&after[l3 + 10..l3 + 12]);
        assert_eq!(checksum(&after[l3..l3 + 20], 0), 0);
    } else {
        expected[l3 + 7] -= 1;
    }
    assert_eq!(after, expected);
}

#[test]
fn dsr_sends_all_fragments_where_the_whole_would_go() {
    let Some(mut kernel) = kernel("dsr_sends_all_fragments_where_the_whole_would_go") else {
        return;
    };
    alternating(&mut kernel, VIP4, Protocol::Udp, 1);
    alternating(&mut kernel, VIP4, Protocol::Tcp, 3);
    alternating(&mut kernel, VIP6, Protocol::Udp, 5);
    alternating(&mut kernel, VIP6, Protocol::Tcp, 7);
    let mut seen = std::collections::BTreeSet::new();
    for port in 4000..4010u16 {
        let (v4, v6) = (
            format!("198.51.100.1:{port}"),
            format!("[2001:db8:1::1]:{port}"),
        );
        let frames = [
            (large(Frame::udp(&v4, VIP4)), 1),
            (large(Frame::tcp(&v4, VIP4, "PA")), 3),
            (large(Frame::udp(&v6, VIP6)), 5),
            (large(Frame::tcp(&v6, VIP6, "PA")).vlans(2), 7),
        ];
        for (frame, first) in frames {
            let backend = backend_of(&mut kernel, &frame, first);
            seen.insert(backend);
            for offset in [0, 800, 1600] {
                let part = fragment(&frame, u32::from(port), offset, 800);
                let sent = kernel.forwards(&part, backend);
                only_hops_and_macs_changed(&part, &sent, frame.vlans);
            }
            // Twice the last, and one that overlaps: nothing is put together here.
            for offset in [1600, 1592] {
                kernel.forwards(&fragment(&frame, u32::from(port), offset, 800), backend);
            }
        }
    }
    assert_eq!(seen.len(), 8, "every backend had its share: {seen:?}");
}

#[test]
fn datagrams_are_told_apart() {
    let Some(mut kernel) = kernel("datagrams_are_told_apart") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Udp, Dsr, (1, "10.0.0.11:80"));
    kernel.serve_one(VIP4, Protocol::Tcp, Dsr, (2, "10.0.0.11:80"));
    kernel.serve_one("203.0.113.11:80", Protocol::Udp, Dsr, (3, "10.0.0.11:80"));
    kernel.serve_one(VIP6, Protocol::Udp, Dsr, (4, "[fd00::11]:80"));
    let udp = large(Frame::udp(CLIENT4, VIP4));
    let udp6 = large(Frame::udp(CLIENT6, VIP6));
    kernel.forwards(&fragment(&udp, 7, 0, 800), 1);
    kernel.forwards(&fragment(&udp6, 0x10007, 0, 800), 4);
    let strangers = [
        ("another id", fragment(&udp, 8, 800, 800)),
        (
            "another protocol",
            fragment(&large(Frame::tcp(CLIENT4, VIP4, "A")), 7, 800, 800),
        ),
        (
            "another client",
            fragment(&large(Frame::udp("198.51.100.2:4000", VIP4)), 7, 800, 800),
        ),
        (
            "another VIP",
            fragment(&large(Frame::udp(CLIENT4, "203.0.113.11:80")), 7, 800, 800),
        ),
        ("half of the id", fragment(&udp6, 7, 800, 800)),
    ];
    for (name, frame) in strangers {
        let result = kernel.expect(&frame, Verdict::DropFragment);
        assert_eq!(result.action, DROP, "{name}");
    }
    kernel.forwards(&fragment(&udp, 7, 800, 800), 1);
    kernel.forwards(&fragment(&udp6, 0x10007, 800, 800), 4);
    // The id of another datagram of the client: the ports that count are the last first fragment's.
    kernel.serve_one("203.0.113.10:81", Protocol::Udp, Dsr, (5, "10.0.0.11:81"));
    let other = large(Frame::udp(CLIENT4, "203.0.113.10:81"));
    kernel.forwards(&fragment(&other, 7, 0, 800), 5);
    kernel.forwards(&fragment(&udp, 7, 1600, 800), 5);
}

#[test]
fn old_ports_are_not_believed() {
    let Some(mut kernel) = kernel("old_ports_are_not_believed") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Udp, Dsr, (1, "10.0.0.11:80"));
    let frame = large(Frame::udp(CLIENT4, VIP4));
    kernel.forwards(&fragment(&frame, 7, 0, 800), 1);
    kernel.age_fragments(FRAGMENT_LIFETIME - 10);
    kernel.forwards(&fragment(&frame, 7, 800, 800), 1);
    kernel.age_fragments(11);
    kernel.expect(&fragment(&frame, 7, 1600, 800), Verdict::DropFragment);
    kernel.forwards(&fragment(&frame, 7, 0, 800), 1);
    kernel.forwards(&fragment(&frame, 7, 1600, 800), 1);
}

#[test]
fn atomic_fragments_are_whole_packets() {
    let Some(mut kernel) = kernel("atomic_fragments_are_whole_packets") else {
        return;
    };
    kernel.serve_one(VIP6, Protocol::Udp, Dsr, (1, "[fd00::11]:80"));
    kernel.serve_one(VIP6, Protocol::Tcp, Nat, (2, "[fd00::11]:8080"));
    let udp = Frame::udp(CLIENT6, VIP6);
    let whole = fragment(&udp, 5, 0, 800);
    let sent = kernel.forwards(&whole, 1);
    only_hops_and_macs_changed(&whole, &sent, 0);
    // It says nothing about fragments that bear its id.
    kernel.expect(&fragment(&large(udp), 5, 800, 800), Verdict::DropFragment);
    // By NAT it is rewritten behind the fragment header.
    let sent = kernel.forwards(&fragment(&Frame::tcp(CLIENT6, VIP6, "S"), 5, 0, 800), 2);
    assert_eq!((sent[20], sent[54]), (44, 6));
    let mut plain = sent.clone();
    plain.drain(54..62);
    plain[20] = 6;
    plain[19] -= 8;
    let seen = crate::packets::parse(&plain);
    assert_eq!(seen.dst, crate::kernel::at("[fd00::11]:8080"));
    assert_eq!(seen.src.ip(), crate::kernel::ip("fd00::1"));
}

#[test]
fn fragments_without_ports_or_of_other_protocols() {
    let Some(mut kernel) = kernel("fragments_without_ports_or_of_other_protocols") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Udp, Dsr, (1, "10.0.0.11:80"));
    kernel.serve_one(VIP4, Protocol::Tcp, Dsr, (2, "10.0.0.11:80"));
    kernel.serve_one(VIP6, Protocol::Tcp, Dsr, (3, "[fd00::11]:80"));
    let tcp = large(Frame::tcp(CLIENT4, VIP4, "S"));
    let tcp6 = large(Frame::tcp(CLIENT6, VIP6, "S"));
    // Too short for TCP, and what a short frame is padded with does not count.
    for mut frame in [fragment(&tcp, 1, 0, 16), fragment(&tcp6, 1, 0, 16)] {
        kernel.expect(&frame, Verdict::DropMalformed);
        frame.resize(frame.len() + 40, 0);
        let result = kernel.expect(&frame, Verdict::DropMalformed);
        assert_eq!(result.action, DROP);
    }
    // Nothing was kept of them.
    kernel.expect(&fragment(&tcp, 1, 16, 800), Verdict::DropFragment);
    // A port that no service has: all fragments go to the host, like whole packets.
    let other = large(Frame::udp(CLIENT4, "203.0.113.10:81"));
    for offset in [0, 800] {
        let frame = fragment(&other, 2, offset, 800);
        let result = kernel.expect(&frame, Verdict::PassNoService);
        assert_eq!((result.action, result.frame), (PASS, frame));
    }
    // Neither TCP nor UDP: as for whole packets.
    let mut ping = fragment(&tcp, 3, 0, 800);
    ping[23] = 1;
    let result = kernel.expect(&ping, Verdict::PassOtherProtocol);
    assert_eq!((result.action, result.frame), (PASS, ping));
    // Extension headers behind the fragment header hide the ports.
    let mut hidden = fragment(&tcp6, 4, 0, 800);
    hidden[54] = 60;
    kernel.expect(&hidden, Verdict::DropFragment);
    // Fragments for others are none of our business.
    let theirs = fragment(&large(Frame::udp(CLIENT4, "198.51.100.2:80")), 1, 800, 800);
    let result = kernel.expect(&theirs, Verdict::PassNotVip);
    assert_eq!((result.action, result.frame), (PASS, theirs));
}

/// A SYN in pieces opens no record: all of its connection stays with the previous owner.
#[test]
fn fragments_of_unknown_flows_stay_with_the_previous_owner() {
    let Some(mut kernel) = kernel("fragments_of_unknown_flows_stay_with_the_previous_owner") else {
        return;
    };
    let two = [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")];
    kernel.serve(VIP4, Protocol::Tcp, Dsr, Slot::transition(2, 1), &two);
    for (id, flags) in [(1, "S"), (2, "A")] {
        let packet = large(Frame::tcp(CLIENT4, VIP4, flags));
        kernel.forwards(&fragment(&packet, id, 0, 800), 1);
        kernel.forwards(&fragment(&packet, id, 800, 800), 1);
    }
    kernel.forwards(&Frame::tcp(CLIENT4, VIP4, "A").bytes(), 1);
}

const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// Puts fragments together, as their receiver does, and takes apart what comes of it: all checksums
/// have been found right. Gives the identification, too.
fn together(parts: &[Vec<u8>], vlans: usize) -> (u32, Seen) {
    let l3 = 14 + 4 * vlans;
    let v4 = parts[0][l3] >> 4 == 4;
    let header = if v4 { 20 } else { 48 };
    let word = |part: &[u8], at: usize| u16::from_be_bytes([part[l3 + at], part[l3 + at + 1]]);
    let mut ids = std::collections::BTreeSet::new();
    let mut payload = Vec::new();
    for part in parts {
        let offset = if v4 {
            assert_eq!(checksum(&part[l3..l3 + 20], 0), 0);
            ids.insert(u32::from(word(part, 4)));
            usize::from(word(part, 6) & 0x1fff) * 8
        } else {
            ids.insert(u32::from(word(part, 44)) << 16 | u32::from(word(part, 46)));
            usize::from(word(part, 42) & 0xfff8)
        };
        // The addresses, of which the MAC addresses follow.
        assert_eq!(part[..12], parts[0][..12]);
        let addresses = if v4 { 12..20 } else { 8..40 };
        let of = |part: &[u8]| part[l3..][addresses.clone()].to_vec();
        assert_eq!(of(part), of(&parts[0]));
        let piece = &part[l3 + header..];
        payload.resize(payload.len().max(offset + piece.len()), 0);
        payload[offset..offset + piece.len()].copy_from_slice(piece);
    }
    assert_eq!(ids.len(), 1, "{ids:x?}");
    let first = parts.iter().find(|part| {
        let field = if v4 {
            word(part, 6) & 0x1fff
        } else {
            word(part, 42) & 0xfff8
        };
        field == 0
    });
    let mut whole = first.unwrap()[..l3 + if v4 { 20 } else { 40 }].to_vec();
    if v4 {
        let total = (20 + payload.len()) as u16;
        whole[l3 + 2..l3 + 4].copy_from_slice(&total.to_be_bytes());
        whole[l3 + 6..l3 + 8].fill(0);
        crate::packets::sum_header(&mut whole[l3..]);
    } else {
        let length = payload.len() as u16;
        whole[l3 + 4..l3 + 6].copy_from_slice(&length.to_be_bytes());
        whole[l3 + 6] = first.unwrap()[l3 + 40];
    }
    whole.extend_from_slice(&payload);
    (ids.into_iter().next().unwrap(), parse(&whole))
}

/// NAT services of each family and protocol, each with a client's large packet, what it becomes, and
/// its backend.
fn nat_services(kernel: &mut Kernel) -> [(Frame, &'static str, &'static str, u16); 4] {
    kernel.serve_one(VIP4, Protocol::Udp, Nat, (1, "10.0.0.11:53"));
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (2, "10.0.0.11:8080"));
    kernel.serve_one(VIP6, Protocol::Udp, Nat, (3, "[fd00::11]:53"));
    kernel.serve_one(VIP6, Protocol::Tcp, Nat, (4, "[fd00::11]:8080"));
    [
        (large(Frame::udp(CLIENT4, VIP4)), SOURCE4, "10.0.0.11:53", 1),
        (
            large(Frame::tcp(CLIENT4, VIP4, "S")),
            SOURCE4,
            "10.0.0.11:8080",
            2,
        ),
        (
            large(Frame::udp(CLIENT6, VIP6)),
            SOURCE6,
            "[fd00::11]:53",
            3,
        ),
        (
            large(Frame::tcp(CLIENT6, VIP6, "S")),
            SOURCE6,
            "[fd00::11]:8080",
            4,
        ),
    ]
}

/// What a backend answers to a request.
fn answer_to(request: &Seen, frame: &Frame) -> Frame {
    let flags = if frame.udp { "" } else { "SA" };
    Frame {
        src: request.dst,
        dst: request.src,
        flags,
        payload: (0..3000).map(|n| (n * 7) as u8).collect(),
        ..frame.clone()
    }
    .sent_by(SERVER_MAC)
}

#[test]
fn nat_rewrites_all_fragments_both_ways() {
    let Some(mut kernel) = kernel("nat_rewrites_all_fragments_both_ways") else {
        return;
    };
    let services = nat_services(&mut kernel);
    for vlans in 0..=2 {
        // First, last and middle ones; reordered but for the first; twice; overlapping.
        for (n, order) in [
            &[0, 800, 1600][..],
            &[0, 1600, 800],
            &[0, 0, 800, 1600, 800, 0],
            &[0, 792, 1600, 1592, 24],
        ]
        .into_iter()
        .enumerate()
        {
            for (frame, source, server, backend) in &services {
                let mut frame = frame.clone().vlans(vlans);
                frame.src.set_port(5000 + (4 * vlans + n) as u16);
                let id = 0x1000 + n as u32;
                let sent: Vec<_> = order
                    .iter()
                    .map(|offset| kernel.forwards(&fragment(&frame, id, *offset, 808), *backend))
                    .collect();
                let (_, seen) = together(&sent, vlans);
                assert_eq!((seen.dst, seen.src.ip()), (at(server), ip(source)));
                assert_eq!((seen.ttl, &seen.payload), (63, &frame.payload));

                let answer = answer_to(&seen, &frame);
                let returned: Vec<_> = [0, 1200, 2400]
                    .iter()
                    .map(|offset| {
                        let part = fragment(&answer, 0xbeef, *offset, 1200);
                        let result = kernel.expect(&part, Verdict::NatReply);
                        assert_eq!(result.action, TX);
                        assert_eq!(result.frame[..6], CLIENT_MAC);
                        result.frame
                    })
                    .collect();
                let (id, back) = together(&returned, vlans);
                assert_eq!(id, 0xbeef, "it stays");
                assert_eq!((back.src, back.dst, back.ttl), (frame.dst, frame.src, 63));
                assert_eq!(back.payload, answer.payload);
                // Of the same flow a whole packet.
                let next = Frame {
                    flags: if frame.udp { "" } else { "A" },
                    payload: b"small".to_vec(),
                    ..frame.clone()
                };
                let next = parse(&kernel.forwards(&next.bytes(), *backend));
                assert_eq!((next.src, next.dst), (seen.src, seen.dst));
            }
        }
    }
}

/// Two clients, or two services, that send to one backend with the same identification.
#[test]
fn identifications_do_not_collide_behind_nat() {
    let Some(mut kernel) = kernel("identifications_do_not_collide_behind_nat") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Udp, Nat, (1, "10.0.0.11:53"));
    kernel.serve_one("203.0.113.11:53", Protocol::Udp, Nat, (2, "10.0.0.11:53"));
    kernel.serve_one(VIP6, Protocol::Udp, Nat, (3, "[fd00::11]:53"));
    let mut seen = std::collections::BTreeSet::new();
    for (base, vip, backend) in [
        ("198.51.100.", VIP4, 1),
        ("198.51.100.", "203.0.113.11:53", 2),
        ("[2001:db8::", VIP6, 3),
    ] {
        let client = |n: usize| {
            let end = if vip == VIP6 { "]:4000" } else { ":4000" };
            large(Frame::udp(&format!("{base}{}{end}", 1 + n), vip))
        };
        let frames: Vec<_> = (0..20).map(client).collect();
        let mut parts = vec![Vec::new(); frames.len()];
        for offset in [0, 800, 1600] {
            for (n, frame) in frames.iter().enumerate() {
                let part = fragment(frame, 7, offset, 800);
                parts[n].push(kernel.forwards(&part, backend));
            }
        }
        for (frame, parts) in frames.iter().zip(parts) {
            let (id, datagram) = together(&parts, 0);
            assert_eq!(datagram.payload, frame.payload);
            assert!(seen.insert((vip == VIP6, id)), "{id:#x} once more");
        }
    }
    // Another datagram of the same client is another one, and so is the next with the same
    // identification to another port.
    let mut frame = large(Frame::udp(CLIENT4, VIP4));
    for (id, port) in [(8, 4000), (9, 4000), (9, 4001)] {
        frame.src.set_port(port);
        let part = kernel.forwards(&fragment(&frame, id, 0, 800), 1);
        let new = u32::from(u16::from_be_bytes([part[18], part[19]]));
        assert!(seen.insert((false, new)), "{new:#x} once more");
    }
}

#[test]
fn nat_wants_the_first_fragment_first() {
    let Some(mut kernel) = kernel("nat_wants_the_first_fragment_first") else {
        return;
    };
    for (frame, _, _, backend) in nat_services(&mut kernel) {
        let request = |offset| fragment(&frame, 7, offset, 800);
        kernel.expect(&request(800), Verdict::DropFragment);
        let sent = [0, 800, 1600].map(|offset| kernel.forwards(&request(offset), backend));
        let (first, seen) = together(&sent, 0);
        let answer = answer_to(&seen, &frame);
        let reply = |offset| fragment(&answer, 9, offset, 1200);
        // Whose it is cannot be seen, and the host may have sent something of its own.
        let early = reply(1200);
        let result = kernel.expect(&early, Verdict::PassNotVip);
        assert_eq!((result.action, result.frame), (PASS, early));
        for offset in [0, 2400] {
            kernel.expect(&reply(offset), Verdict::NatReply);
        }
        // What was noted is not believed for ever.
        kernel.age_fragments(FRAGMENT_LIFETIME + 1);
        kernel.expect(&request(800), Verdict::DropFragment);
        kernel.expect(&reply(1200), Verdict::PassNotVip);
        let sent = [0, 1600, 800].map(|offset| kernel.forwards(&request(offset), backend));
        assert_ne!(together(&sent, 0).0, first);
        // Its backend is out.
        kernel.set_state(backend, Out);
        kernel.expect(&request(800), Verdict::DropBackendOut);
        kernel.set_state(backend, Active);
        // Too short for its ports, and none of the datagram at all.
        let short = fragment(&frame, 8, 0, 0);
        kernel.expect(&short, Verdict::DropMalformed);
        kernel.expect(&fragment(&frame, 8, 800, 800), Verdict::DropFragment);
    }
}

#[test]
fn nat_fragments_that_open_nothing() {
    let Some(mut kernel) = kernel("nat_fragments_that_open_nothing") else {
        return;
    };
    let web = kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.serve("203.0.113.11:53", Protocol::Udp, Nat, Slot::settled(0), &[]);
    // No fragment is answered with a RST.
    let stray = large(Frame::tcp(CLIENT4, VIP4, "A"));
    let result = kernel.expect(&fragment(&stray, 1, 0, 800), Verdict::DropNoFlow);
    assert_eq!(result.action, DROP);
    kernel.expect(&fragment(&stray, 1, 800, 800), Verdict::DropFragment);
    let nobody = large(Frame::udp(CLIENT4, "203.0.113.11:53"));
    kernel.expect(&fragment(&nobody, 1, 0, 800), Verdict::DropNoBackend);
    kernel.expect(&fragment(&nobody, 1, 800, 800), Verdict::DropFragment);
    // Of another protocol than the service's, to the host.
    let other = fragment(&large(Frame::udp(CLIENT4, VIP4)), 1, 0, 800);
    let result = kernel.expect(&other, Verdict::PassNoService);
    assert_eq!((result.action, result.frame), (PASS, other));
    // The flow's backend was refused its service meanwhile.
    kernel.forwards(&Frame::tcp(CLIENT4, VIP4, "S").bytes(), 1);
    kernel.set_state(1, Out);
    kernel.set_slots(web, Slot::settled(0));
    kernel.expect(&fragment(&stray, 1, 0, 800), Verdict::DropBackendOut);
}

#[test]
fn a_datagram_without_a_checksum_gets_none() {
    let Some(mut kernel) = kernel("a_datagram_without_a_checksum_gets_none") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Udp, Nat, (1, "10.0.0.11:53"));
    let frame = large(Frame::udp(CLIENT4, VIP4));
    let mut first = fragment(&frame, 7, 0, 800);
    first[40..42].fill(0);
    let sent = kernel.forwards(&first, 1);
    assert_eq!(sent[40..42], [0, 0]);
    // A first fragment with "don't fragment" set keeps it.
    first[20] |= 0x40;
    crate::packets::sum_header(&mut first[14..]);
    let sent = kernel.forwards(&first, 1);
    assert_eq!(sent[20..22], first[20..22]);
}
