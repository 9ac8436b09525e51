//! `lb decap` on what the balancer's own tunnels send, and on what is none of its business.

use std::collections::BTreeSet;

use lb_common::abi::Forwarding::{Gue, Ipip};
use lb_common::abi::{GUE_PORT, Stripped};
use lb_userspace::datapath::decap::{Counter, Program};
use lb_userspace::datapath::sys::test_run;
use lb_userspace::model::Protocol;

use crate::kernel::{DROP, PASS, VIP4, VIP6, ip, kernel};
use crate::packets::{Frame, parse};
use crate::tunnel::{checksum4, with_class};

const CLIENT4: &str = "198.51.100.1:4000";
const CLIENT6: &str = "[2001:db8::1]:4000";
const BACKEND4: &str = "10.0.0.11:80";
const BACKEND6: &str = "[fd00::11]:80";

/// The program of a backend with the addresses above; `None` where there is no root.
fn backend(test: &str) -> Option<Program> {
    // SAFETY: always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED {test}: needs root to load the XDP program");
        return None;
    }
    let mut program = Program::load(GUE_PORT).unwrap();
    let own = BTreeSet::from([ip("10.0.0.11"), ip("fd00::11")]);
    program.set_addresses(own).unwrap();
    Some(program)
}

fn run(program: &mut Program, frame: &[u8]) -> (u32, Vec<u8>) {
    let result = test_run(program.fd().unwrap(), frame, 1).unwrap();
    (result.action, result.frame)
}

fn passes_untouched(program: &mut Program, frame: &[u8]) {
    assert_eq!(run(program, frame), (PASS, frame.to_vec()), "{frame:02x?}");
}

/// An IPv4 packet as a tunnel to 10.0.0.11 brings it.
fn wrapped(gue: bool, inner: &[u8]) -> Vec<u8> {
    let mut bytes = inner[..14].to_vec();
    bytes[12..14].copy_from_slice(&[8, 0]);
    let payload = inner.len() - 14 + if gue { 8 } else { 0 };
    let protocol = match (gue, inner[14] >> 4) {
        (true, _) => 17,
        (false, 6) => 41,
        _ => 4,
    };
    let total = (payload as u16 + 20).to_be_bytes();
    let header = [
        0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0,
    ];
    bytes.extend(header);
    bytes.extend([10, 0, 0, 1, 10, 0, 0, 11]);
    checksum4(&mut bytes[14..34]);
    if gue {
        bytes.extend([0xc0, 1]);
        bytes.extend(GUE_PORT.to_be_bytes());
        bytes.extend((payload as u16).to_be_bytes());
        bytes.extend([0, 0]);
    }
    bytes.extend(&inner[14..]);
    bytes
}

#[test]
fn what_the_balancer_wraps_comes_out_as_it_was() {
    const TEST: &str = "what_the_balancer_wraps_comes_out_as_it_was";
    let Some(mut program) = backend(TEST) else {
        return;
    };
    let mut packets = 0;
    for forwarding in [Ipip, Gue] {
        let Some(mut kernel) = kernel(TEST) else {
            return;
        };
        kernel.serve_one(VIP4, Protocol::Tcp, forwarding, (1, BACKEND4));
        kernel.serve_one(VIP6, Protocol::Tcp, forwarding, (2, BACKEND6));
        kernel.serve_one(VIP4, Protocol::Udp, forwarding, (3, BACKEND6));
        kernel.serve_one(VIP6, Protocol::Udp, forwarding, (4, BACKEND4));
        for vlans in 0..=2 {
            let frames = [
                (Frame::tcp(CLIENT4, VIP4, "PA"), 1),
                (Frame::tcp(CLIENT6, VIP6, "PA"), 2),
                (Frame::udp(CLIENT4, VIP4), 3),
                (Frame::udp(CLIENT6, VIP6), 4),
            ];
            for (frame, backend) in frames {
                let before = frame.vlans(vlans).bytes();
                let outside = kernel.forwards(&before, backend);
                let (action, inside) = run(&mut program, &outside);
                assert_eq!(action, PASS);
                let mut expected = parse(&before);
                expected.ttl -= 1;
                assert_eq!(parse(&inside), expected);
                assert_eq!(inside.len(), before.len());
                assert_eq!(inside[..12], outside[..12], "MAC addresses");
                assert_eq!(inside[12..14 + 4 * vlans], before[12..14 + 4 * vlans]);
                packets += 1;
            }
        }
    }
    let ipip = program.count(Stripped::Ipip).unwrap();
    let gue = program.count(Stripped::Gue).unwrap();
    assert_eq!((ipip.packets, gue.packets), (packets / 2, packets / 2));
    // GUE has a UDP header more.
    assert_eq!(gue.bytes, ipip.bytes + 8 * gue.packets);
}

#[test]
fn what_is_no_tunnel_of_ours_passes_untouched() {
    let Some(mut program) = backend("what_is_no_tunnel_of_ours_passes_untouched") else {
        return;
    };
    let inner = Frame::tcp(CLIENT4, VIP4, "A").bytes();
    let good = wrapped(false, &inner);
    assert_eq!(run(&mut program, &good), (PASS, inner.clone()));
    let change = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        checksum4(&mut frame[14..34]);
        frame
    };
    let other_host = change(33, 12);
    let fragment = change(20, 0x20);
    let other_protocol = change(23, 47);
    let inner_of_other_family = change(23, 41);
    let options = change(14, 0x46);
    for frame in [
        other_host,
        fragment,
        other_protocol,
        inner_of_other_family,
        options,
    ] {
        passes_untouched(&mut program, &frame);
    }
    let gue = wrapped(true, &inner);
    assert_eq!(run(&mut program, &gue), (PASS, inner.clone()));
    let mut other_port = gue.clone();
    other_port[37] ^= 1;
    passes_untouched(&mut program, &other_port);
    // Variant 0, with a header of its own, and one that is none yet.
    for first in [0x00, 0x80] {
        let mut other_variant = gue.clone();
        other_variant[42] = first;
        passes_untouched(&mut program, &other_variant);
    }
    for frame in [
        inner,
        Frame::udp(CLIENT6, VIP6).bytes(),
        Frame::udp(CLIENT4, BACKEND4).bytes(),
    ] {
        passes_untouched(&mut program, &frame);
    }
    // Addresses that are gone are no longer answered to.
    program.set_addresses(BTreeSet::new()).unwrap();
    passes_untouched(&mut program, &good);
}

#[test]
fn frames_cut_short_at_every_byte_do_no_harm() {
    let Some(mut program) = backend("frames_cut_short_at_every_byte_do_no_harm") else {
        return;
    };
    let inner = Frame::tcp(CLIENT4, VIP4, "A").vlans(0).bytes();
    for gue in [false, true] {
        let whole = wrapped(gue, &inner);
        let headers = if gue { 28 } else { 20 };
        for length in 14..whole.len() {
            let cut = &whole[..length];
            let (action, frame) = run(&mut program, cut);
            assert_eq!(action, PASS);
            // From a whole inner IP header on.
            if length >= 14 + headers + 20 {
                assert_eq!(frame.len(), length - headers);
            } else {
                assert_eq!(frame, cut);
            }
        }
    }
}

#[test]
fn marks_of_congestion_are_carried_over() {
    let Some(mut program) = backend("marks_of_congestion_are_carried_over") else {
        return;
    };
    let (not_capable, capable) = (0x10, 0x12);
    for (client, vip) in [(CLIENT4, VIP4), (CLIENT6, VIP6)] {
        let inner = with_class(Frame::tcp(client, vip, "A").bytes(), 0, capable);
        let mut outside = wrapped(false, &inner);
        outside[15] = 0x13;
        checksum4(&mut outside[14..34]);
        let (action, frame) = run(&mut program, &outside);
        let marked = with_class(Frame::tcp(client, vip, "A").bytes(), 0, 0x13);
        assert_eq!((action, frame), (PASS, marked));
        let inner = with_class(Frame::tcp(client, vip, "A").bytes(), 0, not_capable);
        let mut outside = wrapped(true, &inner);
        outside[15] = 0x13;
        checksum4(&mut outside[14..34]);
        assert_eq!(run(&mut program, &outside).0, DROP);
    }
    let dropped = program.count(Stripped::Congested).unwrap();
    assert_eq!(dropped.packets, 2);
    assert_eq!(
        program.count(Stripped::Refused).unwrap(),
        Counter::default()
    );
}
