//! A flood of SYNs from addresses that nobody has, and what becomes of the flows that were there.

use std::collections::BTreeSet;

use lb_common::abi::Forwarding::{Dsr, Nat};
use lb_common::hash::mix;
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::Protocol;

use crate::kernel::{BACKEND_MAC, DROP, Kernel, TX, kernel};
use crate::packets::{Frame, Seen, parse};

const NAT: &str = "203.0.113.10:80";
/// All its slots are in transition.
const MOVING: &str = "203.0.113.11:80";
const SETTLED: &str = "203.0.113.12:80";
const VIPS: [&str; 3] = [NAT, MOVING, SETTLED];
/// Connections of each service.
const LIVE: u16 = 1_000;
/// Packets between two looks at some of the connections.
const LOOK: u64 = 20_000;

fn client(port: u16, vip: &str, flags: &'static str) -> Vec<u8> {
    Frame::tcp(&format!("198.51.100.1:{}", 1024 + port), vip, flags).bytes()
}

/// A connection that must not be disturbed.
struct Live {
    port: u16,
    vip: &'static str,
    backend: u16,
    /// As its packets leave.
    sent: Seen,
}

fn answer(kernel: &mut Kernel, live: &Live, flags: &'static str) {
    if live.vip == NAT {
        let (from, to) = (live.sent.dst.to_string(), live.sent.src.to_string());
        let frame = Frame::tcp(&from, &to, flags).sent_by([2, 0, 0, 0, 0, 0x99]);
        let seen = parse(&kernel.run(&frame.bytes()).frame);
        assert_eq!(seen.src.to_string(), live.vip);
        assert_eq!(seen.dst.port(), 1024 + live.port);
    }
}

/// Sends a packet of a live connection, which must go where all of them went.
fn look(kernel: &mut Kernel, live: &Live) {
    let result = kernel.run(&client(live.port, live.vip, "PA"));
    let to = u16::from_be_bytes([result.frame[4], result.frame[5]]);
    assert_eq!((result.action, to), (TX, live.backend), "{}", live.vip);
    let seen = parse(&result.frame);
    assert_eq!((seen.src, seen.dst), (live.sent.src, live.sent.dst));
    answer(kernel, live, "PA");
}

fn establish(kernel: &mut Kernel) -> Vec<Live> {
    let mut all = Vec::new();
    for vip in VIPS {
        for port in 0..LIVE {
            let result = kernel.run(&client(port, vip, "S"));
            assert_eq!(result.action, TX);
            let live = Live {
                port,
                vip,
                backend: u16::from_be_bytes([result.frame[4], result.frame[5]]),
                sent: parse(&result.frame),
            };
            answer(kernel, &live, "SA");
            assert_eq!(kernel.run(&client(port, vip, "A")).action, TX);
            all.push(live);
        }
    }
    all
}

fn forwarded(kernel: &Kernel) -> u64 {
    let traffic = |id: &u16| kernel.datapath.traffic(*id).unwrap().packets;
    kernel.contents.backends.keys().map(traffic).sum()
}

fn flood(test: &str, packets: u64) {
    let Some(mut kernel) = kernel(test) else {
        return;
    };
    let two = |first| [(first, "10.0.0.11:80"), (first + 1, "10.0.0.12:80")];
    kernel.serve(NAT, Protocol::Tcp, Nat, Slot::settled(1), &two(1));
    kernel.serve(MOVING, Protocol::Tcp, Dsr, Slot::transition(3, 4), &two(3));
    kernel.serve(SETTLED, Protocol::Tcp, Dsr, Slot::settled(5), &two(5));
    let live = establish(&mut kernel);
    let (forwarded_before, verdicts_before) = (forwarded(&kernel), kernel.verdicts());
    let mut frames: Vec<Vec<u8>> = (VIPS.iter())
        .map(|vip| Frame::tcp("192.0.2.1:1", vip, "S").bytes())
        .collect();
    let mut looks = 0;
    let (mut sent, mut dropped) = (0, 0);
    for n in 0..packets {
        let random = mix(n ^ 0x666c_6f6f_6400_0000);
        let frame = &mut frames[(n % VIPS.len() as u64) as usize];
        // Source address and port; no checksum is looked at on the way.
        frame[26..30].copy_from_slice(&(random as u32 | 1).to_be_bytes());
        frame[34..36].copy_from_slice(&((random >> 32) as u16).to_be_bytes());
        let result = kernel.run(frame);
        sent += u64::from(result.action == TX);
        dropped += u64::from(result.action == DROP);
        if n % LOOK == 0 {
            for _ in 0..20 {
                look(&mut kernel, &live[looks * 7919 % live.len()]);
                looks += 1;
            }
        }
    }
    assert_eq!(sent + dropped, packets);
    // Each packet is counted once, and nothing happened but what may.
    let verdicts = kernel.verdicts();
    let since = |verdict: Verdict| {
        let count = |verdicts: &std::collections::BTreeMap<&str, u64>| {
            verdicts.get(verdict.label()).copied().unwrap_or(0)
        };
        count(&verdicts) - count(&verdicts_before)
    };
    let refused = since(Verdict::DropFlowTable) + since(Verdict::DropNoPort);
    assert_eq!(refused, dropped);
    assert_eq!(forwarded(&kernel) - forwarded_before, sent + looks as u64);
    let others = Verdict::ALL.iter().filter(|verdict| {
        !matches!(
            verdict,
            Verdict::DropFlowTable | Verdict::DropNoPort | Verdict::NatReply
        )
    });
    assert_eq!(others.map(|verdict| since(*verdict)).sum::<u64>(), 0);
    // What is settled takes no room and refuses none.
    assert!(sent >= packets / 3);
    for live in &live {
        look(&mut kernel, live);
    }
    assert_eq!(kernel.datapath.check_flows(), []);
    let ways = u64::from(kernel.datapath.flow_capacity()) * 8 / 5;
    let contents = kernel.contents.clone();
    let sweep = kernel.datapath.sweep(&contents, &BTreeSet::new());
    assert!(sweep.entries <= ways, "{} of {ways}", sweep.entries);
    println!(
        "{packets} SYNs: {sent} forwarded, {} for want of room, {} of a port; {} records in {ways} places",
        since(Verdict::DropFlowTable),
        since(Verdict::DropNoPort),
        sweep.entries
    );
    // Whoever comes with good intent still gets in, if at worst by the repeated SYN.
    for vip in VIPS {
        let admitted = (0..100).filter(|port| {
            let result = kernel.run(&client(LIVE + port, vip, "S"));
            result.action == TX && result.frame[..4] == BACKEND_MAC[..4]
        });
        assert!(admitted.count() > 90, "{vip}");
    }
}

#[test]
fn a_million_spoofed_syns_disturb_no_connection() {
    flood("a_million_spoofed_syns_disturb_no_connection", 1_000_000);
}

#[test]
#[ignore = "takes a minute; `cargo xtask bench` runs it"]
fn ten_million_spoofed_syns_disturb_no_connection() {
    flood("ten_million_spoofed_syns_disturb_no_connection", 10_000_000);
}
