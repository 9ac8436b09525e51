//! Packets nobody should send. None may give `XDP_ABORTED`, and what passes passes untouched.

use lb_common::abi::Forwarding::{Dsr, Gue, Ipip, Nat};
use lb_common::hash::mix;
use lb_common::slot::Slot;
use lb_userspace::model::Protocol;

use crate::kernel::{Kernel, PASS, REDIRECT, TX, VIP4, VIP6, ip, kernel};
use crate::packets::{CLIENT_MAC, Frame, Icmp, checksum, echo, parse, raw};

const FAR4: &str = "203.0.113.11:80";
const FAR6: &str = "[2001:db8::11]:80";
const ABORTED: u32 = 0;
const PACKETS: usize = 100_000;

fn all_kinds(kernel: &mut Kernel) -> Vec<Vec<u8>> {
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.serve(
        VIP6,
        Protocol::Tcp,
        Dsr,
        Slot::transition(2, 3),
        &[(2, "[fd00::11]:80"), (3, "[fd00::12]:80")],
    );
    kernel.serve_one(VIP4, Protocol::Udp, Dsr, (4, "10.0.0.11:80"));
    kernel.serve_one(VIP6, Protocol::Udp, Nat, (5, "[fd00::11]:8080"));
    kernel.serve_one(FAR4, Protocol::Tcp, Gue, (6, "[fd00::11]:80"));
    kernel.serve_one(FAR6, Protocol::Udp, Ipip, (7, "10.0.0.11:80"));
    let mut long = Frame::tcp("198.51.100.1:1", FAR4, "A");
    long.payload = vec![1; 1460];
    let mut long6 = Frame::udp("[2001:db8::1]:1", FAR6);
    long6.payload = vec![1; 1450];
    vec![
        Frame::tcp("198.51.100.1:1", FAR4, "A").vlans(1).bytes(),
        Frame::udp("[2001:db8::1]:1", FAR6).vlans(2).bytes(),
        long.bytes(),
        long6.vlans(2).bytes(),
        Frame::tcp("198.51.100.1:1", VIP4, "S").bytes(),
        Frame::tcp("198.51.100.1:1", VIP4, "PA").vlans(2).bytes(),
        Frame::tcp("[2001:db8::1]:1", VIP6, "S").bytes(),
        Frame::tcp("[2001:db8::1]:1", VIP6, "FA").vlans(1).bytes(),
        Frame::udp("198.51.100.1:1", VIP4).bytes(),
        Frame::udp("[2001:db8::1]:1", VIP6).bytes(),
        Frame::tcp("10.0.0.11:8080", "10.0.0.1:20500", "SA").bytes(),
        Frame::tcp("198.51.100.1:1", "198.51.100.2:80", "S").bytes(),
        echo([198, 51, 100, 1], [203, 0, 113, 10]),
        raw(0x0806, &[0; 28]),
    ]
}

/// Errors about flows of each way of forwarding, echo requests, and fragments.
fn rare_kinds(kernel: &mut Kernel) -> Vec<Vec<u8>> {
    let mut wanted = kernel.contents.clone();
    wanted.answer_ping = true;
    kernel.want(wanted);
    let error = |src: &str, dst: &str, vlans, quoted: &Frame| {
        let dst = ip(dst);
        let kind = if dst.is_ipv4() {
            (3, 4, 1400)
        } else {
            (2, 0, 1400)
        };
        Icmp {
            src: ip(src),
            dst,
            from: CLIENT_MAC,
            ttl: 9,
            vlans,
            kind,
            payload: quoted.bytes()[14..].to_vec(),
        }
        .bytes()
    };
    let opened = kernel.run(&Frame::tcp("198.51.100.1:1", VIP4, "S").bytes());
    let opened = parse(&opened.frame);
    let inside = Frame::tcp(&opened.src.to_string(), &opened.dst.to_string(), "S");
    let mut options = error(
        "192.0.2.1",
        "203.0.113.10",
        0,
        &Frame::tcp(VIP4, "198.51.100.1:1", "A"),
    );
    options.splice(62..62, [1, 1, 1, 0]);
    (options[17], options[42]) = (options[17] + 4, 0x46);
    let mut fragment4 = Frame::udp("198.51.100.1:1", VIP4).bytes();
    fragment4[20] = 0x20;
    let mut later4 = fragment4.clone();
    later4[21] = 1;
    let mut fragment6 = Frame::tcp("[2001:db8::1]:1", VIP6, "A").vlans(1).bytes();
    fragment6.splice(58..58, [6, 0, 0, 1, 0, 0, 0, 9]);
    (fragment6[23], fragment6[24]) = (fragment6[23] + 8, 44);
    // Headers that lead to each other, and more than are followed.
    let mut chain = Frame::tcp("[2001:db8::1]:1", VIP6, "A").bytes();
    for _ in 0..40 {
        chain.splice(54..54, [60, 0, 1, 4, 0, 0, 0, 0]);
    }
    chain[20] = 0;
    vec![
        error(
            "192.0.2.1",
            "203.0.113.10",
            0,
            &Frame::tcp(VIP4, "198.51.100.1:1", "A"),
        ),
        error("10.0.0.11", "10.0.0.1", 1, &inside),
        error(
            "2001:db8::9",
            "2001:db8::10",
            2,
            &Frame::tcp(VIP6, "[2001:db8::1]:1", "A"),
        ),
        error(
            "203.0.113.10",
            "203.0.113.10",
            0,
            &Frame::udp(VIP4, "198.51.100.1:1"),
        ),
        options,
        echo([203, 0, 113, 11], [203, 0, 113, 10]),
        fragment4,
        later4,
        fragment6,
        chain,
    ]
}

fn check(kernel: &mut Kernel, frame: &[u8]) {
    let result = kernel.run(frame);
    assert_ne!(result.action, ABORTED, "{frame:02x?}");
    // By the headers of a tunnel at the most.
    assert!(result.frame.len() <= frame.len() + 48, "{frame:02x?}");
    if result.action == PASS {
        assert_eq!(result.frame, frame);
    }
    let sent = result.action == TX || result.action == REDIRECT;
    if sent && result.frame.len() <= frame.len() {
        keeps_its_errors(frame, &result.frame);
    }
}

/// The IPv4 header and an ICMP message have the same error in their checksums before and after: a
/// right one stays right, a wrong one is not mended.
fn keeps_its_errors(before: &[u8], after: &[u8]) {
    let tags = before[12..]
        .chunks(4)
        .take(2)
        .take_while(|tag| tag[..2] == [0x81, 0] || tag[..2] == [0x88, 0xa8])
        .count();
    let l3 = 14 + 4 * tags;
    let is_reset = before.len() != after.len();
    if before[l3 - 2..l3] != [0x08, 0x00] || is_reset {
        return;
    }
    let header = usize::from(before[l3] & 15) * 4;
    let error = |bytes: &[u8]| match checksum(bytes, 0) {
        // Two words that mean the same.
        0xffff => 0,
        error => error,
    };
    let word = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let end = |frame: &[u8]| (l3 + usize::from(word(frame, l3 + 2))).min(frame.len());
    assert_eq!(
        error(&before[l3..l3 + header]),
        error(&after[l3..l3 + header]),
        "{before:02x?} became {after:02x?}"
    );
    let is_fragment = word(before, l3 + 6) & 0x3fff != 0;
    if before[l3 + 9] == 1 && !is_fragment {
        assert_eq!(
            error(&before[l3 + header..end(before)]),
            error(&after[l3 + header..end(after)]),
            "{before:02x?} became {after:02x?}"
        );
    }
}

#[test]
fn packets_truncated_at_every_byte() {
    let Some(mut kernel) = kernel("packets_truncated_at_every_byte") else {
        return;
    };
    let mut kinds = all_kinds(&mut kernel);
    kinds.append(&mut rare_kinds(&mut kernel));
    for frame in kinds {
        // The kernel refuses test runs of less than an Ethernet header.
        for length in 14..=frame.len() {
            check(&mut kernel, &frame[..length]);
        }
    }
}

#[test]
fn random_and_mutated_packets() {
    let Some(mut kernel) = kernel("random_and_mutated_packets") else {
        return;
    };
    let mut kinds = all_kinds(&mut kernel);
    kinds.append(&mut rare_kinds(&mut kernel));
    let mut state: u64 = 0x1234_5678_9abc_def0;
    let mut random = |below: usize| {
        state = mix(state).wrapping_add(0x9e37_79b9_7f4a_7c15);
        (state >> 33) as usize % below
    };
    for n in 0..PACKETS {
        let mut frame = kinds[n % kinds.len()].clone();
        match n % 4 {
            0 => {
                let length = 14 + random(120);
                frame.resize_with(length, || random(256) as u8);
                // Mostly IP, or hardly anything would get beyond the EtherType.
                if n % 8 == 0 {
                    frame[12..14].copy_from_slice(&[0x08, 0x00]);
                }
            }
            _ => {
                for _ in 0..1 + random(6) {
                    let at = 12 + random(frame.len() - 12);
                    frame[at] = random(256) as u8;
                }
                if n % 5 == 0 {
                    frame.truncate(14 + random(frame.len() - 14));
                }
            }
        }
        check(&mut kernel, &frame);
    }
    // The mutations must have reached deep: forwarded, reset, and dropped for many reasons.
    let verdicts = kernel.verdicts();
    for verdict in [
        "pass_not_vip",
        "drop_fragment",
        "drop_malformed",
        "reset_no_flow",
        "drop_ttl",
        "too_big",
        "icmp_error",
        "echo_reply",
        "drop_icmp_no_flow",
        "drop_extension_headers",
    ] {
        assert!(verdicts.contains_key(verdict), "{verdict} in {verdicts:?}");
    }
    assert!(kernel.datapath.traffic(1).unwrap().packets > 0);
    assert!(kernel.datapath.traffic(5).unwrap().packets > 0);
    assert!(kernel.datapath.traffic(6).unwrap().packets > 0);
    assert!(kernel.datapath.traffic(7).unwrap().packets > 0);
}

#[test]
fn what_goes_round_ends() {
    let Some(mut kernel) = kernel("what_goes_round_ends") else {
        return;
    };
    all_kinds(&mut kernel);
    rare_kinds(&mut kernel);
    // Packets of a backend to the VIP come back to it, and each time with one hop less; and an
    // error, sent by the VIP about a packet of the VIP, does as well.
    let quoted = Frame::udp(VIP4, "10.0.0.11:80").bytes()[14..].to_vec();
    let error = Icmp {
        src: ip("203.0.113.10"),
        dst: ip("203.0.113.10"),
        from: CLIENT_MAC,
        ttl: 64,
        vlans: 0,
        kind: (3, 3, 0),
        payload: quoted,
    };
    for frame in [Frame::udp("10.0.0.11:80", VIP4).bytes(), error.bytes()] {
        let mut frame = frame;
        let mut rounds = 0;
        loop {
            let result = kernel.run(&frame);
            if result.action != TX {
                break;
            }
            frame = result.frame;
            rounds += 1;
        }
        assert_eq!(rounds, 63);
    }
    // The answer to an echo request from another VIP is none that is answered again.
    let request = echo([203, 0, 113, 11], [203, 0, 113, 10]);
    let answer = kernel.run(&request);
    assert_eq!(answer.action, TX);
    assert_eq!(kernel.run(&answer.frame).action, PASS);
}
