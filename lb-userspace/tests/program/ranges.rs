//! Services with a range of ports, or all of them.

use lb_common::abi::BackendState::Out;
use lb_common::abi::Forwarding::{Dsr, Ipip, Nat};
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol::{Tcp, Udp};
use lb_userspace::plan::Contents;

use crate::kernel::{Kernel, at, endpoint, kernel};
use crate::packets::{Frame, parse};

const CLIENT: &str = "198.51.100.1:4000";
const CLIENT6: &str = "[2001:db8::1]:4000";
const VIP: &str = "203.0.113.10";
const VIP6: &str = "[2001:db8::10]";

fn syn(vip: &str, port: u16) -> Vec<u8> {
    let client = if vip.starts_with('[') {
        CLIENT6
    } else {
        CLIENT
    };
    Frame::tcp(client, &format!("{vip}:{port}"), "S").bytes()
}

/// By direct server return, where nothing is recorded that could lead past the ranges.
fn serve(kernel: &mut Kernel, ports: &str, backend: u16) -> u16 {
    let address = format!("10.0.0.{backend}:0");
    kernel.serve_one(&format!("{VIP}:{ports}"), Tcp, Dsr, (backend, &address))
}

#[test]
fn a_port_goes_before_a_range_and_a_range_before_any() {
    let Some(mut kernel) = kernel("a_port_goes_before_a_range_and_a_range_before_any") else {
        return;
    };
    serve(&mut kernel, "*", 1);
    serve(&mut kernel, "8000-8099", 2);
    serve(&mut kernel, "8050", 3);
    serve(&mut kernel, "1-7", 4);
    serve(&mut kernel, "65000-65535", 5);
    let cases = [
        (8000, 2),
        (8049, 2),
        (8050, 3),
        (8051, 2),
        (8099, 2),
        (7999, 1),
        (8100, 1),
        (1, 4),
        (7, 4),
        (8, 1),
        (64_999, 1),
        (65_000, 5),
        (65_535, 5),
    ];
    for (port, backend) in cases {
        kernel.forwards(&syn(VIP, port), backend);
    }
    // Another protocol, another address of the same service's kind.
    let udp = Frame::udp(CLIENT, "203.0.113.10:8000").bytes();
    kernel.expect(&udp, Verdict::PassNoService);
}

#[test]
fn a_range_alone_takes_nothing_else() {
    let Some(mut kernel) = kernel("a_range_alone_takes_nothing_else") else {
        return;
    };
    serve(&mut kernel, "8000-8099", 1);
    kernel.serve_one(&format!("{VIP6}:8000-8001"), Udp, Dsr, (2, "[fd00::11]:0"));
    for port in [0, 1, 7999, 8100, 65_535] {
        kernel.expect(&syn(VIP, port), Verdict::PassNoService);
    }
    kernel.forwards(&Frame::udp(CLIENT6, "[2001:db8::10]:8001").bytes(), 2);
    let beside = Frame::udp(CLIENT6, "[2001:db8::10]:8002").bytes();
    kernel.expect(&beside, Verdict::PassNoService);
    kernel.expect(&syn(VIP6, 8001), Verdict::PassNoService);
}

#[test]
fn nat_keeps_the_port_or_writes_the_backends() {
    let Some(mut kernel) = kernel("nat_keeps_the_port_or_writes_the_backends") else {
        return;
    };
    kernel.serve_one(&format!("{VIP}:*"), Tcp, Nat, (1, "10.0.0.11:0"));
    kernel.serve_one(&format!("{VIP}:9000-9009"), Tcp, Nat, (2, "10.0.0.12:80"));
    kernel.serve_one(&format!("{VIP}:*"), Udp, Nat, (3, "10.0.0.11:0"));
    kernel.serve_one(&format!("{VIP6}:*"), Tcp, Nat, (4, "[fd00::11]:0"));
    // Ports in the range that NAT draws from too.
    let cases = [
        (
            Frame::tcp(CLIENT, "203.0.113.10:22", "S"),
            1,
            "10.0.0.11:22",
        ),
        (
            Frame::tcp(CLIENT, "203.0.113.10:443", "S"),
            1,
            "10.0.0.11:443",
        ),
        (
            Frame::tcp(CLIENT, "203.0.113.10:20500", "S"),
            1,
            "10.0.0.11:20500",
        ),
        (
            Frame::tcp(CLIENT, "203.0.113.10:9004", "S"),
            2,
            "10.0.0.12:80",
        ),
        (Frame::udp(CLIENT, "203.0.113.10:53"), 3, "10.0.0.11:53"),
        (
            Frame::tcp(CLIENT6, "[2001:db8::10]:22", "S"),
            4,
            "[fd00::11]:22",
        ),
    ];
    for (frame, backend, server) in &cases {
        let sent = parse(&kernel.forwards(&frame.bytes(), *backend));
        assert_eq!((sent.dst, sent.ttl), (at(server), 63));
        let answer = Frame {
            src: sent.dst,
            dst: sent.src,
            flags: "SA",
            ..frame.clone()
        };
        let result = kernel.expect(&answer.bytes(), Verdict::NatReply);
        let seen = parse(&result.frame);
        assert_eq!((seen.src, seen.dst), (frame.dst, frame.src));
        // From another port of the backend it is nobody's reply.
        let other = Frame {
            src: (sent.dst.ip(), sent.dst.port() + 1).into(),
            ..answer
        };
        kernel.expect(&other.bytes(), Verdict::PassNoService);
    }
    // Each flow goes on by its record.
    for (frame, backend, server) in cases {
        let next = Frame {
            flags: "A",
            ..frame
        };
        assert_eq!(
            parse(&kernel.forwards(&next.bytes(), backend)).dst,
            at(server)
        );
    }
    // What is open is shown by its own port, and gives its reference back when it goes.
    let sweep = kernel
        .datapath
        .sweep(&kernel.contents, &[1, 2, 3, 4].into());
    assert_eq!(sweep.removed, 6);
}

#[test]
fn tunnels_keep_the_port() {
    let Some(mut kernel) = kernel("tunnels_keep_the_port") else {
        return;
    };
    kernel.serve_one(&format!("{VIP}:8000-8099"), Tcp, Ipip, (1, "10.0.0.11:0"));
    let sent = kernel.run(&syn(VIP, 8042)).frame;
    // Behind the outer header the packet is what it was.
    assert_eq!(sent[14 + 20 + 20 + 2..][..2], 8042u16.to_be_bytes());
}

#[test]
fn ranges_come_change_and_go() {
    let Some(mut kernel) = kernel("ranges_come_change_and_go") else {
        return;
    };
    serve(&mut kernel, "8000-8099", 1);
    serve(&mut kernel, "*", 2);
    // A wider range in its place, as when the configuration changes.
    let mut wanted = kernel.contents.clone();
    wanted.services.get_mut(&1).unwrap().address = endpoint("203.0.113.10:8000-8199");
    kernel.want(wanted);
    kernel.forwards(&syn(VIP, 8000), 1);
    kernel.forwards(&syn(VIP, 8150), 1);
    // The next agent finds the same, and the program goes on by it.
    let known = kernel.contents.clone();
    kernel.reopen();
    assert_eq!(kernel.datapath.contents().unwrap(), known);
    kernel.forwards(&syn(VIP, 8150), 1);
    let mut wanted = kernel.contents.clone();
    wanted.services.remove(&1);
    wanted.backends.remove(&1);
    kernel.want(wanted);
    kernel.forwards(&syn(VIP, 8150), 2);
    kernel.set_state(2, Out);
    kernel.expect(&syn(VIP, 8150), Verdict::DropBackendOut);
    let ports = kernel.contents.ports;
    kernel.want(Contents {
        ports,
        ..Contents::default()
    });
    kernel.expect(&syn(VIP, 8150), Verdict::PassNotVip);
}

#[test]
fn a_vip_has_sixteen_ranges_and_as_many_in_their_stead() {
    let Some(mut kernel) = kernel("a_vip_has_sixteen_ranges_and_as_many_in_their_stead") else {
        return;
    };
    for n in 0..16u16 {
        let ports = format!("{}-{}", 1000 * (n + 1), 1000 * (n + 1) + 9);
        serve(&mut kernel, &ports, n + 1);
    }
    for n in 0..16u16 {
        kernel.forwards(&syn(VIP, 1000 * (n + 1) + 9), n + 1);
        kernel.expect(&syn(VIP, 1000 * (n + 1) + 10), Verdict::PassNoService);
    }
    let mut wanted = kernel.contents.clone();
    let old = std::mem::take(&mut wanted.services);
    for (id, mut service) in old {
        let first = 1000 * id;
        service.address = endpoint(&format!("{VIP}:{}-{}", first + 5, first + 20));
        wanted.services.insert(id + 100, service);
    }
    kernel.want(wanted);
    kernel.forwards(&syn(VIP, 16_020), 16);
    kernel.expect(&syn(VIP, 16_004), Verdict::PassNoService);
}
