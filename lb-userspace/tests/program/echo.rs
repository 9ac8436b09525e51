//! Echo requests to a VIP.

use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol;

use crate::kernel::{Kernel, LB_MAC, PASS, SOURCE4, SOURCE6, TX, VIP4, VIP6, ip, kernel};
use crate::packets::{Icmp, ROUTER_MAC, checksum, parse_icmp, sum_header};

fn answer_ping(kernel: &mut Kernel, answer_ping: bool) {
    let mut wanted = kernel.contents.clone();
    wanted.answer_ping = answer_ping;
    kernel.want(wanted);
}

fn ping(src: &str, dst: &str, vlans: usize) -> Icmp {
    let dst = ip(dst);
    Icmp {
        src: ip(src),
        dst,
        from: ROUTER_MAC,
        ttl: 9,
        vlans,
        kind: (if dst.is_ipv4() { 8 } else { 128 }, 0, 0x1234_0005),
        payload: b"abcdefg".to_vec(),
    }
}

#[test]
fn echo_requests_to_a_vip_are_answered() {
    let Some(mut kernel) = kernel("echo_requests_to_a_vip_are_answered") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.serve_one(VIP6, Protocol::Udp, Dsr, (2, "[fd00::11]:80"));
    answer_ping(&mut kernel, true);
    for vlans in 0..=2 {
        for (src, dst) in [
            ("198.51.100.1", "203.0.113.10"),
            ("2001:db8:1::1", "2001:db8::10"),
        ] {
            let request = ping(src, dst, vlans);
            let result = kernel.expect(&request.bytes(), Verdict::EchoReply);
            assert_eq!(result.action, TX);
            assert_eq!(result.frame[..6], ROUTER_MAC);
            let expected = Icmp {
                src: request.dst,
                dst: request.src,
                from: LB_MAC,
                ttl: 64,
                kind: (if request.dst.is_ipv4() { 0 } else { 129 }, 0, 0x1234_0005),
                ..request
            };
            assert_eq!(parse_icmp(&result.frame), expected);
        }
    }
    // A wrong checksum is not mended.
    let mut frame = ping("198.51.100.1", "203.0.113.10", 0).bytes();
    frame[36] ^= 0x55;
    let result = kernel.expect(&frame, Verdict::EchoReply);
    assert_ne!(checksum(&result.frame[34..], 0), 0);
}

#[test]
fn echo_requests_that_must_not_be_answered_are_not() {
    let Some(mut kernel) = kernel("echo_requests_that_must_not_be_answered_are_not") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.serve_one(VIP6, Protocol::Tcp, Nat, (2, "[fd00::11]:8080"));
    answer_ping(&mut kernel, true);
    let vip = "203.0.113.10";
    let mut frames = vec![
        (
            "the host's own address",
            ping("198.51.100.1", SOURCE4, 0).bytes(),
        ),
        (
            "the host's own address",
            ping("2001:db8:1::1", SOURCE6, 0).bytes(),
        ),
        ("from itself", ping(vip, vip, 0).bytes()),
        (
            "from itself",
            ping("2001:db8::10", "2001:db8::10", 0).bytes(),
        ),
    ];
    for src in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        frames.push((src, ping(src, vip, 0).bytes()));
    }
    for src in ["::", "::1", "ff02::1"] {
        frames.push((src, ping(src, "2001:db8::10", 0).bytes()));
    }
    let mut broadcast = ping("198.51.100.1", vip, 0).bytes();
    broadcast[..6].fill(0xff);
    frames.push(("broadcast frame", broadcast));
    let mut options = ping("198.51.100.1", vip, 0).bytes();
    options.splice(34..34, [1, 1, 1, 0]);
    options[14] = 0x46;
    options[17] += 4;
    sum_header(&mut options[14..]);
    frames.push(("IP options", options));
    let mut short = ping("198.51.100.1", vip, 0).bytes();
    short[17] += 1;
    frames.push(("longer than the frame", short));
    for (name, frame) in frames {
        let result = kernel.expect(&frame, Verdict::PassOtherProtocol);
        assert_eq!((result.action, result.frame), (PASS, frame), "{name}");
    }
    answer_ping(&mut kernel, false);
    let frame = ping("198.51.100.1", vip, 0).bytes();
    let result = kernel.expect(&frame, Verdict::PassOtherProtocol);
    assert_eq!((result.action, result.frame), (PASS, frame));
}
