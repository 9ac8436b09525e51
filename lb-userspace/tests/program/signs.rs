//! What the program counts of the backends' behaviour, for passive detection.

use std::collections::BTreeMap;

use lb_common::abi::Forwarding::{Dsr, Gue, Ipip, Nat};
use lb_common::abi::Traffic;
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol;

use crate::kernel::{Kernel, PASS, SOURCE4, SOURCE6, VIP4, VIP6, ip, kernel};
use crate::packets::{Frame, Icmp, ROUTER_MAC, Seen, parse};

const CLIENTS: [(&str, &str, &str); 2] = [
    (VIP4, "198.51.100.1:4000", "10.0.0.11:8080"),
    (VIP6, "[2001:db8::1]:4000", "[fd00::11]:8080"),
];

/// The counters that signs add to.
fn signs(kernel: &Kernel) -> Traffic {
    let traffic = kernel.datapath.traffic(1).unwrap();
    let signs = kernel.datapath.signs();
    let mut signs = signs.unwrap();
    // From the first on, from a later one, and by several system calls.
    for range in [0..2, 1..2, 0..700] {
        let mut read = BTreeMap::new();
        let each = |index, traffic| {
            read.insert(usize::from(index), traffic);
        };
        signs.read(range.clone(), each).unwrap();
        assert!(read.keys().copied().eq(range), "each once");
        assert_eq!(read[&1], traffic, "the two ways of reading");
    }
    Traffic {
        packets: 0,
        bytes: 0,
        by_previous: 0,
        timed: 0,
        timed_nanos: 0,
        ..traffic
    }
}

fn serve(name: &str, vip: &str, server: &str) -> Option<Kernel> {
    let mut kernel = kernel(name)?;
    kernel.serve_one(vip, Protocol::Tcp, Nat, (1, server));
    Some(kernel)
}

/// Opens a flow; what its backend sees.
fn open(kernel: &mut Kernel, client: &str, vip: &str) -> Seen {
    parse(&kernel.forwards(&Frame::tcp(client, vip, "S").bytes(), 1))
}

fn answer(kernel: &mut Kernel, to: &Seen, flags: &'static str, payload: &[u8]) {
    let frame = Frame {
        payload: payload.to_vec(),
        ..Frame::tcp(&to.dst.to_string(), &to.src.to_string(), flags)
    };
    kernel.expect(&frame.bytes(), Verdict::NatReply);
}

#[test]
fn first_answers_are_told_from_refusals() {
    for (vip, client, server) in CLIENTS {
        let Some(mut kernel) = serve("first_answers_are_told_from_refusals", vip, server) else {
            return;
        };
        let mut expected = Traffic::default();
        let first = open(&mut kernel, client, vip);
        expected.flows += 1;
        assert_eq!(signs(&kernel), expected);
        // Two more SYNs before any answer.
        for _ in 0..2 {
            open(&mut kernel, client, vip);
            expected.repeated += 1;
            assert_eq!(signs(&kernel), expected);
        }
        answer(&mut kernel, &first, "SA", b"");
        expected.answered += 1;
        assert_eq!(signs(&kernel), expected);
        // What follows in the flow says nothing new, a RST and a late SYN neither.
        answer(&mut kernel, &first, "A", b"");
        open(&mut kernel, client, vip);
        answer(&mut kernel, &first, "RA", b"");
        assert_eq!(signs(&kernel), expected);

        let second = client.replace("4000", "4001");
        let second = open(&mut kernel, &second, vip);
        answer(&mut kernel, &second, "RA", b"");
        expected.flows += 1;
        expected.answered += 1;
        expected.refused += 1;
        assert_eq!(signs(&kernel), expected);
    }
}

#[test]
fn only_what_cannot_be_reached_counts_as_unreachable() {
    for (vip, client, server) in CLIENTS {
        let name = "only_what_cannot_be_reached_counts_as_unreachable";
        let Some(mut kernel) = serve(name, vip, server) else {
            return;
        };
        let sent = kernel.forwards(&Frame::tcp(client, vip, "S").bytes(), 1);
        let seen = parse(&sent);
        let error = |kind| Icmp {
            src: seen.dst.ip(),
            dst: seen.src.ip(),
            from: ROUTER_MAC,
            ttl: 60,
            vlans: 0,
            kind,
            payload: sent[14..].to_vec(),
        };
        // Too long, time exceeded; host and port unreachable, administratively prohibited.
        let (others, unreachable) = if seen.dst.is_ipv4() {
            (
                [(3, 4, 1400), (11, 0, 0)],
                [(3, 1, 0), (3, 3, 0), (3, 13, 0)],
            )
        } else {
            ([(2, 0, 1400), (3, 0, 0)], [(1, 3, 0), (1, 4, 0), (1, 1, 0)])
        };
        for kind in others {
            kernel.expect(&error(kind).bytes(), Verdict::IcmpError);
        }
        assert_eq!(signs(&kernel).unreachable, 0);
        for (n, kind) in unreachable.into_iter().enumerate() {
            kernel.expect(&error(kind).bytes(), Verdict::IcmpError);
            assert_eq!(signs(&kernel).unreachable, n as u64 + 1);
        }
        // The same from the client's side says nothing of the backend.
        let client_error = Icmp {
            src: client.parse::<std::net::SocketAddr>().unwrap().ip(),
            dst: vip.parse::<std::net::SocketAddr>().unwrap().ip(),
            payload: Frame::tcp(vip, client, "SA").bytes()[14..].to_vec(),
            ..error(unreachable[0])
        };
        kernel.expect(&client_error.bytes(), Verdict::IcmpError);
        assert_eq!(signs(&kernel).unreachable, unreachable.len() as u64);
    }
}

/// Nothing is recorded of them, and yet those that come again are seen.
#[test]
fn repeated_syns_are_counted_without_records() {
    let name = "repeated_syns_are_counted_without_records";
    for (vip, client, forwarding, server) in [
        (VIP4, CLIENTS[0].1, Dsr, "10.0.0.11:80"),
        (VIP6, CLIENTS[1].1, Gue, "[fd00::11]:80"),
        (VIP4, CLIENTS[0].1, Ipip, "[fd00::11]:80"),
    ] {
        let Some(mut kernel) = kernel(name) else {
            return;
        };
        kernel.serve_one(vip, Protocol::Tcp, forwarding, (1, server));
        let send = |kernel: &mut Kernel, port: u16, sequence, flags| {
            let client = client.replace("4000", &port.to_string());
            let frame = Frame {
                sequence,
                ..Frame::tcp(&client, vip, flags)
            };
            kernel.forwards(&frame.bytes(), 1);
            kernel.datapath.traffic(1).unwrap().repeated
        };
        // A flood, connections that use a port again, and packets that are no SYNs.
        for n in 0..2000 {
            assert_eq!(send(&mut kernel, 5000 + n as u16, n, "S"), 0);
        }
        for n in 0..100 {
            assert_eq!(send(&mut kernel, 4000, 100_000 + n, "S"), 0);
        }
        for _ in 0..5 {
            assert_eq!(send(&mut kernel, 4000, 100_099, "A"), 0);
        }
        // All but those of whose place another has been meanwhile, or that another CPU runs: until
        // both are run by the same.
        let mut rounds = 0;
        loop {
            for n in 0..50 {
                send(&mut kernel, 4000, 200_000 + rounds * 50 + n, "S");
            }
            let before = kernel.datapath.traffic(1).unwrap().repeated;
            for n in 0..50 {
                send(&mut kernel, 4000, 200_000 + rounds * 50 + n, "S");
            }
            let counted = kernel.datapath.traffic(1).unwrap().repeated - before;
            assert!(counted <= 50);
            if counted >= 45 {
                break;
            }
            rounds += 1;
            assert!(rounds < 100, "never counted");
        }
    }
}

/// Errors about outer headers go to the host as before, and count for the backend whose packet they
/// quote.
#[test]
fn errors_about_tunnels_count_for_the_backend_of_the_packet_inside() {
    let name = "errors_about_tunnels_count_for_the_backend_of_the_packet_inside";
    for (forwarding, vip, client, outer4) in [
        (Ipip, VIP4, CLIENTS[0].1, true),
        (Ipip, VIP6, CLIENTS[1].1, true),
        (Ipip, VIP4, CLIENTS[0].1, false),
        (Ipip, VIP6, CLIENTS[1].1, false),
        (Gue, VIP4, CLIENTS[0].1, true),
        (Gue, VIP6, CLIENTS[1].1, false),
    ] {
        let Some(mut kernel) = kernel(name) else {
            return;
        };
        let addresses = if outer4 {
            ["10.0.0.11:80", "10.0.0.12:80"]
        } else {
            ["[fd00::11]:80", "[fd00::12]:80"]
        };
        let both = [(1, addresses[0]), (2, addresses[1])];
        kernel.serve(vip, Protocol::Tcp, forwarding, Slot::settled(1), &both);
        let sent = kernel.forwards(&Frame::tcp(client, vip, "S").bytes(), 1);
        let quoted = &sent[14..];
        let outer = if outer4 { 20 } else { 40 };
        let inner = outer + if forwarding == Gue { 8 } else { 0 };
        let ports = inner + if vip == VIP4 { 20 } else { 40 };
        let error = |kind, quoted: &[u8]| Icmp {
            src: ip(if outer4 { "192.0.2.7" } else { "2001:db8:7::7" }),
            dst: ip(if outer4 { SOURCE4 } else { SOURCE6 }),
            from: ROUTER_MAC,
            ttl: 60,
            vlans: 0,
            kind,
            payload: quoted.to_vec(),
        };
        let (others, unreachable) = if outer4 {
            (
                [(3, 4, 1400), (11, 0, 0)],
                [(3, 1, 0), (3, 2, 0), (3, 3, 0), (3, 13, 0)],
            )
        } else {
            (
                [(2, 0, 1400), (3, 0, 0)],
                [(1, 0, 0), (1, 1, 0), (1, 3, 0), (1, 4, 0)],
            )
        };
        let counted = |kernel: &mut Kernel, icmp: Icmp| {
            let count = |kernel: &Kernel, backend| {
                let traffic = kernel.datapath.traffic(backend).unwrap();
                assert_eq!((traffic.refused, traffic.answered), (0, 0));
                traffic.unreachable
            };
            let before = [1, 2].map(|backend| count(kernel, backend));
            let frame = icmp.bytes();
            let result = kernel.expect(&frame, Verdict::PassOtherProtocol);
            assert_eq!((result.action, result.frame), (PASS, frame));
            [count(kernel, 1) - before[0], count(kernel, 2) - before[1]]
        };
        for kind in others {
            assert_eq!(counted(&mut kernel, error(kind, quoted)), [0, 0]);
        }
        for kind in unreachable {
            for length in [ports + 4, ports + 8, quoted.len()] {
                let icmp = error(kind, &quoted[..length]);
                assert_eq!(counted(&mut kernel, icmp.clone()), [1, 0], "{length}");
                let tagged = Icmp { vlans: 2, ..icmp };
                assert_eq!(counted(&mut kernel, tagged), [1, 0], "{length}");
            }
            // Whose packet it was cannot be seen.
            for length in [outer, inner + 8, ports, ports + 3] {
                let short = error(kind, &quoted[..length]);
                assert_eq!(counted(&mut kernel, short), [0, 0], "{length}");
            }
        }
        let altered = |place: usize, byte: u8| {
            let mut quoted = quoted.to_vec();
            assert_ne!(quoted[place], byte);
            quoted[place] = byte;
            error(unreachable[0], &quoted)
        };
        let mut wrong = vec![
            ("sent by another host", altered(outer - 5, 9)),
            ("not to the flow's backend", altered(outer - 1, 0x12)),
            ("the port is no service's", altered(ports + 3, 81)),
            (
                "neither TCP nor UDP",
                altered(inner + if vip == VIP4 { 9 } else { 6 }, 1),
            ),
            ("no IP packet inside", altered(inner, 0x70)),
        ];
        if forwarding == Gue {
            wrong.push(("another port of UDP", altered(outer + 3, 1)));
        }
        if vip == VIP4 {
            wrong.push(("a later fragment", altered(inner + 7, 1)));
        }
        for (name, icmp) in wrong {
            assert_eq!(counted(&mut kernel, icmp), [0, 0], "{name}");
        }
        // The flow stays with the previous owner: the slot's, or the one that its record names.
        kernel.set_slots(1, Slot::transition(2, 1));
        let icmp = error(unreachable[0], quoted);
        assert_eq!(counted(&mut kernel, icmp.clone()), [1, 0]);
        kernel.set_slots(1, Slot::settled(2));
        assert_eq!(counted(&mut kernel, icmp), [0, 0], "nobody's any more");
    }
}

#[test]
fn statuses_are_read_where_that_is_wanted() {
    for (vip, client, server) in CLIENTS {
        let name = "statuses_are_read_where_that_is_wanted";
        let Some(mut kernel) = serve(name, vip, server) else {
            return;
        };
        let seen = open(&mut kernel, client, vip);
        let said = |kernel: &mut Kernel, text: &str| {
            let before = signs(kernel);
            answer(kernel, &seen, "A", text.as_bytes());
            let after = signs(kernel);
            (
                after.http_ok - before.http_ok,
                after.http_errors - before.http_errors,
            )
        };
        answer(&mut kernel, &seen, "SA", b"");
        assert_eq!(
            said(&mut kernel, "HTTP/1.1 500 oh\r\n\r\n"),
            (0, 0),
            "not wanted"
        );
        let mut wanted = kernel.contents.clone();
        wanted.backends.get_mut(&1).unwrap().watches_http = true;
        kernel.want(wanted);
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", (1, 0)),
            ("HTTP/1.0 404 no\r\n\r\n", (1, 0)),
            ("HTTP/1.1 503 oh\r\n\r\n", (0, 1)),
            ("HTTP/1.1 500", (0, 1)),
            ("HTTP/1.1 5", (0, 1)),
            ("HTTP/1.1 ", (0, 0)),
            ("HTTP/1.1 x00 oh\r\n\r\n", (0, 0)),
            ("HTTP/2.0 500 oh\r\n\r\n", (0, 0)),
            ("http/1.1 500 oh\r\n\r\n", (0, 0)),
            ("the rest of HTTP/1.1 500", (0, 0)),
            ("", (0, 0)),
        ] {
            assert_eq!(said(&mut kernel, text), expected, "{text:?}");
        }
        // Taken over by the next agent, and switched off by it.
        kernel.reopen();
        assert!(kernel.datapath.contents().unwrap().backends[&1].watches_http);
        let mut wanted = kernel.contents.clone();
        wanted.backends.get_mut(&1).unwrap().watches_http = false;
        kernel.want(wanted);
        assert_eq!(said(&mut kernel, "HTTP/1.1 503 oh\r\n\r\n"), (0, 0));
    }
}

#[test]
fn answers_are_timed_one_at_a_time() {
    for (vip, client, server) in CLIENTS {
        let Some(mut kernel) = serve("answers_are_timed_one_at_a_time", vip, server) else {
            return;
        };
        // Both packets are run by the same CPU, or the answer is not timed: until it is.
        let mut port = 4000;
        let timed = |kernel: &Kernel| {
            let traffic = kernel.datapath.traffic(1).unwrap();
            (traffic.timed, traffic.timed_nanos)
        };
        let mut next = |kernel: &mut Kernel| {
            port += 1;
            open(kernel, &client.replace("4000", &port.to_string()), vip)
        };
        let mut pairs = 0;
        while timed(&kernel).0 == 0 {
            let (first, second) = (next(&mut kernel), next(&mut kernel));
            // Only the first is timed.
            answer(&mut kernel, &second, "SA", b"");
            answer(&mut kernel, &first, "SA", b"");
            pairs += 1;
            assert!(pairs < 100, "never timed");
        }
        let (count, nanos) = timed(&kernel);
        assert!(count <= pairs, "{count} of {pairs}");
        assert!(nanos > 0);
    }
}
