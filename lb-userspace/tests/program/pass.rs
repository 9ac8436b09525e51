//! What is not for a service reaches the host untouched.

use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol;

use crate::kernel::{DROP, PASS, VIP4, VIP6, kernel};
use crate::packets::{Frame, echo, raw};

#[test]
fn other_traffic_passes_untouched() {
    let Some(mut kernel) = kernel("other_traffic_passes_untouched") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.serve_one(VIP6, Protocol::Tcp, Dsr, (2, "[fd00::11]:80"));
    let mut fragment = Frame::tcp("198.51.100.1:1", "198.51.100.2:80", "S").bytes();
    fragment[20] = 0x20;
    let mut options = Frame::tcp("198.51.100.1:1", "198.51.100.2:80", "S").bytes();
    options[14] = 0x46;
    let cases = [
        (
            "TCP to another host",
            Frame::tcp("198.51.100.1:1", "198.51.100.2:80", "S").bytes(),
            Verdict::PassNotVip,
        ),
        (
            "IPv6 to another host",
            Frame::tcp("[2001:db8::1]:1", "[2001:db8::2]:80", "S").bytes(),
            Verdict::PassNotVip,
        ),
        (
            "two VLAN tags",
            Frame::udp("198.51.100.1:1", "198.51.100.2:80")
                .vlans(2)
                .bytes(),
            Verdict::PassNotVip,
        ),
        ("fragment to another host", fragment, Verdict::PassNotVip),
        ("IP options to another host", options, Verdict::PassNotVip),
        ("ARP", raw(0x0806, &[0; 28]), Verdict::PassNotIp),
        ("LLDP", raw(0x88cc, &[2, 7, 4]), Verdict::PassNotIp),
        (
            "IPv4 header cut short",
            raw(0x0800, &[0x45, 0, 0, 20]),
            Verdict::PassNotIp,
        ),
        (
            "IPv6 header cut short",
            raw(0x86dd, &[0x60, 0, 0, 0]),
            Verdict::PassNotIp,
        ),
        (
            "ping of a VIP",
            echo([198, 51, 100, 1], [203, 0, 113, 10]),
            Verdict::PassOtherProtocol,
        ),
        (
            "another port of a VIP",
            Frame::tcp("198.51.100.1:1", "203.0.113.10:81", "S").bytes(),
            Verdict::PassNoService,
        ),
        (
            "another protocol of a VIP",
            Frame::udp("198.51.100.1:1", "203.0.113.10:80").bytes(),
            Verdict::PassNoService,
        ),
        (
            "SSH to the NAT source address",
            Frame::tcp("198.51.100.1:1", "10.0.0.1:22", "S").bytes(),
            Verdict::PassNoService,
        ),
        (
            "a NAT port that no flow has",
            Frame::tcp("10.0.0.11:8080", "10.0.0.1:20500", "A").bytes(),
            Verdict::PassNoService,
        ),
    ];
    for (name, frame, verdict) in cases {
        let result = kernel.expect(&frame, verdict);
        assert_eq!((result.action, &result.frame), (PASS, &frame), "{name}");
    }
}

#[test]
fn neighbour_discovery_passes() {
    let Some(mut kernel) = kernel("neighbour_discovery_passes") else {
        return;
    };
    kernel.serve_one(VIP6, Protocol::Tcp, Dsr, (1, "[fd00::11]:80"));
    for target in ["2001:db8::10", "ff02::1:ff00:10"] {
        let target: std::net::Ipv6Addr = target.parse().unwrap();
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], crate::kernel::LB_MAC)
            .ipv6([0xfe; 16], target.octets(), 255)
            .icmpv6_raw(135, 0, [0; 4])
            .write(&mut frame, &target.octets())
            .unwrap();
        let result = kernel.run(&frame);
        assert_eq!((result.action, &result.frame), (PASS, &frame));
    }
}

#[test]
fn what_is_for_a_vip_and_cannot_be_served_is_dropped_by_name() {
    let Some(mut kernel) = kernel("what_is_for_a_vip_and_cannot_be_served_is_dropped_by_name")
    else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    kernel.serve_one(VIP6, Protocol::Tcp, Dsr, (2, "[fd00::11]:80"));
    kernel.serve("203.0.113.11:80", Protocol::Tcp, Dsr, Slot::settled(0), &[]);
    let syn = Frame::tcp("198.51.100.1:1", VIP4, "S").bytes();
    let syn6 = Frame::tcp("[2001:db8::1]:1", VIP6, "S").bytes();
    let edit = |frame: &[u8], at: usize, value: u8| {
        let mut frame = frame.to_vec();
        frame[at] = value;
        frame
    };
    // An IPv6 header, then `count` destination option headers of eight bytes, then TCP.
    let extended = |first: u8, count: usize| {
        let mut frame = edit(&syn6, 20, first);
        for n in 0..count {
            let next = if n + 1 == count { 6 } else { first };
            frame.splice(54 + 8 * n..54 + 8 * n, [next, 0, 1, 4, 0, 0, 0, 0]);
        }
        frame
    };
    let cases = [
        (
            "later fragment",
            edit(&syn, 21, 0x10),
            Verdict::DropFragment,
        ),
        ("IPv6 fragment", extended(44, 1), Verdict::DropFragment),
        (
            "TCP header cut short",
            syn[..14 + 20 + 19].to_vec(),
            Verdict::DropMalformed,
        ),
        (
            "impossible header length",
            edit(&syn, 14, 0x44),
            Verdict::DropMalformed,
        ),
        (
            "header length beyond the frame",
            edit(&syn[..14 + 20 + 20], 14, 0x4f),
            Verdict::DropMalformed,
        ),
        (
            "extension header beyond the frame",
            edit(&extended(60, 1), 55, 0xff),
            Verdict::DropMalformed,
        ),
        (
            "too many extension headers",
            extended(60, 5),
            Verdict::DropExtensionHeaders,
        ),
        (
            "TTL used up",
            Frame::tcp("198.51.100.1:1", VIP4, "S").ttl(1).bytes(),
            Verdict::DropTtl,
        ),
        (
            "hop limit used up",
            Frame::tcp("[2001:db8::1]:1", VIP6, "S").ttl(1).bytes(),
            Verdict::DropTtl,
        ),
        (
            "no backend",
            Frame::tcp("198.51.100.1:1", "203.0.113.11:80", "S").bytes(),
            Verdict::DropNoBackend,
        ),
    ];
    for (name, frame, verdict) in cases {
        let result = kernel.expect(&frame, verdict);
        assert_eq!(result.action, DROP, "{name}");
    }
    kernel.forwards(&extended(60, 4), 2);
}

#[test]
fn what_the_host_gets_at_the_address_that_nat_sends_from_passes() {
    let Some(mut kernel) = kernel("what_the_host_gets_at_the_address_that_nat_sends_from_passes")
    else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:8080"));
    let whole = Frame::udp("198.51.100.1:53", "10.0.0.1:5353").bytes();
    let mut fragment = whole.clone();
    fragment[20] = 0x20;
    let mut later = whole.clone();
    later[21] = 0x10;
    let short = whole[..14 + 20 + 3].to_vec();
    for frame in [whole, fragment, later, short] {
        let result = kernel.run(&frame);
        assert_eq!((result.action, &result.frame), (PASS, &frame));
    }
    assert!(
        kernel
            .verdicts()
            .keys()
            .all(|verdict| verdict.starts_with("pass_"))
    );
}
