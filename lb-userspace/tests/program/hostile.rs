//! Packets nobody should send. None may give `XDP_ABORTED`, and what passes passes untouched.

use lb_common::abi::Forwarding::{Dsr, Gue, Ipip, Nat};
use lb_common::hash::mix;
use lb_common::slot::Slot;
use lb_userspace::model::Protocol;

use crate::kernel::{Kernel, PASS, VIP4, VIP6, kernel};
use crate::packets::{Frame, echo, raw};

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

fn check(kernel: &mut Kernel, frame: &[u8]) {
    let result = kernel.run(frame);
    assert_ne!(result.action, ABORTED, "{frame:02x?}");
    if result.action == PASS {
        assert_eq!(result.frame, frame);
    }
}

#[test]
fn packets_truncated_at_every_byte() {
    let Some(mut kernel) = kernel("packets_truncated_at_every_byte") else {
        return;
    };
    for frame in all_kinds(&mut kernel) {
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
    let kinds = all_kinds(&mut kernel);
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
    ] {
        assert!(verdicts.contains_key(verdict), "{verdict} in {verdicts:?}");
    }
    assert!(kernel.datapath.traffic(1).unwrap().packets > 0);
    assert!(kernel.datapath.traffic(5).unwrap().packets > 0);
    assert!(kernel.datapath.traffic(6).unwrap().packets > 0);
    assert!(kernel.datapath.traffic(7).unwrap().packets > 0);
}
