//! Flows whose backend died: resets by policy and their rate, and repeated SYNs that go elsewhere.

use std::sync::Arc;

use lb_common::abi::BackendState::{Active, Draining, Out};
use lb_common::abi::Forwarding::{Dsr, Gue, Ipip, Nat};
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::{OnDeath, Protocol};

use crate::kernel::{BACKEND_MAC, DROP, Kernel, PASS, TX, VIP4, VIP6, at, kernel};
use crate::packets::{Frame, Seen, parse};

const CLIENT: &str = "198.51.100.1:4000";
const TWO: [(u16, &str); 2] = [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")];
const THREE: [(u16, &str); 3] = [TWO[0], TWO[1], (3, "10.0.0.13:80")];

fn change(kernel: &mut Kernel, service: u16, on_death: OnDeath, syn_rescue: bool) {
    let mut wanted = kernel.contents.clone();
    let entry = wanted.services.get_mut(&service).unwrap();
    (entry.on_death, entry.syn_rescue) = (on_death, syn_rescue);
    kernel.want(wanted);
}

/// A service whose repeated SYNs are rescued. Slots go round among the backends.
fn rescuing(
    kernel: &mut Kernel,
    forwarding: lb_common::abi::Forwarding,
    backends: &[(u16, &str)],
) -> u16 {
    let slot = Slot::settled(backends[0].0);
    let service = kernel.serve(VIP4, Protocol::Tcp, forwarding, slot, backends);
    let mut wanted = kernel.contents.clone();
    let entry = wanted.services.get_mut(&service).unwrap();
    let owner = |n: usize| Slot::settled(backends[n % backends.len()].0);
    entry.slots = Arc::new((0..entry.slots.len()).map(owner).collect());
    entry.syn_rescue = true;
    kernel.want(wanted);
    service
}

fn from(port: u16, flags: &'static str) -> Vec<u8> {
    Frame::tcp(&format!("198.51.100.1:{port}"), VIP4, flags).bytes()
}

/// Sends a packet that is forwarded; to whom, and as what.
fn sent(kernel: &mut Kernel, frame: &[u8]) -> (u16, Vec<u8>) {
    let result = kernel.run(frame);
    assert_eq!(result.action, TX);
    assert_eq!(result.frame[..4], BACKEND_MAC[..4], "not to a backend");
    let backend = u16::from_be_bytes([result.frame[4], result.frame[5]]);
    (backend, result.frame)
}

fn answer(request: &Seen, flags: &'static str) -> Vec<u8> {
    Frame::tcp(&request.dst.to_string(), &request.src.to_string(), flags).bytes()
}

#[test]
fn a_backend_that_is_out_is_told_that_its_flows_are_over() {
    let Some(mut kernel) = kernel("a_backend_that_is_out_is_told_that_its_flows_are_over") else {
        return;
    };
    kernel.serve(VIP4, Protocol::Tcp, Nat, Slot::settled(1), &TWO);
    kernel.serve_one(VIP6, Protocol::Tcp, Nat, (4, "[fd00::11]:8080"));
    kernel.serve_one(VIP4, Protocol::Udp, Nat, (5, "10.0.0.11:53"));
    let client6 = "[2001:db8::1]:4000";
    for (client, vip, backend) in [(CLIENT, VIP4, 1), (client6, VIP6, 4)] {
        let request = parse(&kernel.forwards(&Frame::tcp(client, vip, "S").bytes(), backend));
        kernel.expect(&answer(&request, "SA"), Verdict::NatReply);
        kernel.forwards(&Frame::tcp(client, vip, "A").bytes(), backend);
        kernel.set_state(backend, Draining);
        kernel.expect(&answer(&request, "PA"), Verdict::NatReply);
        kernel.set_state(backend, Out);
        // A client that only receives must have something to answer to.
        kernel.expect(&answer(&request, "PA"), Verdict::NatReply);
        let data = Frame::tcp(client, vip, "PA").bytes();
        kernel.expect(&data, Verdict::ResetBackendOut);
        for flags in ["PA", "FA", "A"] {
            let result = kernel.expect(&answer(&request, flags), Verdict::ResetToBackend);
            assert_eq!(result.action, TX);
            let reset = parse(&result.frame);
            assert_eq!((reset.src, reset.dst), (request.src, request.dst));
            assert_eq!((reset.flags.as_str(), reset.sequence), ("R", 2000));
        }
        // What it says itself about the end of the flow is for the client.
        kernel.expect(&answer(&request, "R"), Verdict::NatReply);
        kernel.expect(&data, Verdict::ResetBackendOut);
    }
    let request = parse(&kernel.forwards(&Frame::udp(CLIENT, VIP4).bytes(), 5));
    kernel.set_state(5, Out);
    let datagram = Frame::udp(&request.dst.to_string(), &request.src.to_string());
    kernel.expect(&datagram.bytes(), Verdict::NatReply);
}

#[test]
fn flows_of_a_previous_owner_that_is_out_are_reset_where_asked() {
    let test = "flows_of_a_previous_owner_that_is_out_are_reset_where_asked";
    let Some(mut kernel) = kernel(test) else {
        return;
    };
    for (n, forwarding) in [Dsr, Ipip, Gue].into_iter().enumerate() {
        let vip = format!("203.0.113.1{n}:80");
        let first = 1 + 2 * n as u16;
        let backends = [(first, TWO[0].1), (first + 1, TWO[1].1)];
        let slot = Slot::transition(first + 1, first);
        let service = kernel.serve(&vip, Protocol::Tcp, forwarding, slot, &backends);
        change(&mut kernel, service, OnDeath::Reset, false);
        let tcp = |client: &str, flags| Frame::tcp(client, &vip, flags).bytes();
        // One from before, one from the time of the transition.
        kernel.forwards(&tcp(CLIENT, "A"), first);
        let other = "198.51.100.1:4001";
        kernel.forwards(&tcp(other, "S"), first + 1);
        kernel.forwards(&tcp(other, "A"), first + 1);
        kernel.set_state(first, Out);
        let result = kernel.expect(&tcp(CLIENT, "PA"), Verdict::ResetBackendOut);
        let reset = parse(&result.frame);
        assert_eq!((reset.src, reset.dst), (at(&vip), at(CLIENT)));
        assert_eq!(
            kernel
                .expect(&tcp(CLIENT, "R"), Verdict::DropBackendOut)
                .action,
            DROP
        );
        kernel.forwards(&tcp(other, "PA"), first + 1);
        // A new connection from the same port is none of the dead one's.
        kernel.forwards(&tcp(CLIENT, "S"), first + 1);
        kernel.forwards(&tcp(CLIENT, "A"), first + 1);
        // By its record, too.
        kernel.set_state(first, Active);
        kernel.set_state(first + 1, Out);
        kernel.expect(&tcp(other, "PA"), Verdict::ResetBackendOut);
        change(&mut kernel, service, OnDeath::Rehash, false);
        kernel.expect(&tcp(other, "PA"), Verdict::DropBackendOut);
        // Nobody has the slot: still the client is told.
        change(&mut kernel, service, OnDeath::Reset, false);
        kernel.set_slots(service, Slot::transition(0, first));
        kernel.set_state(first, Out);
        kernel.expect(&tcp("198.51.100.1:4002", "A"), Verdict::ResetBackendOut);
        kernel.set_slots(service, Slot::settled(first));
        kernel.expect(&tcp("198.51.100.1:4002", "A"), Verdict::ResetBackendOut);
        kernel.expect(&tcp("198.51.100.1:4002", "S"), Verdict::DropBackendOut);
    }
}

#[test]
fn a_sweep_keeps_what_tells_of_dead_backends() {
    let Some(mut kernel) = kernel("a_sweep_keeps_what_tells_of_dead_backends") else {
        return;
    };
    let service = kernel.serve(VIP4, Protocol::Tcp, Dsr, Slot::transition(2, 1), &TWO);
    change(&mut kernel, service, OnDeath::Reset, false);
    kernel.forwards(&from(1, "S"), 2);
    kernel.set_state(2, Out);
    kernel.set_slots(service, Slot::transition(1, 1));
    let none = std::collections::BTreeSet::new();
    let contents = kernel.contents.clone();
    assert_eq!(kernel.datapath.sweep(&contents, &none).removed, 0);
    kernel.expect(&from(1, "A"), Verdict::ResetBackendOut);
    change(&mut kernel, service, OnDeath::Rehash, false);
    let contents = kernel.contents.clone();
    assert_eq!(kernel.datapath.sweep(&contents, &none).removed, 1);
    kernel.forwards(&from(1, "A"), 1);
}

#[test]
fn resets_have_a_rate() {
    let Some(mut kernel) = kernel("resets_have_a_rate") else {
        return;
    };
    kernel.serve_one(VIP4, Protocol::Tcp, Nat, (1, "10.0.0.11:80"));
    let mut wanted = kernel.contents.clone();
    wanted.reset_rate = 0;
    kernel.want(wanted.clone());
    let unknown = from(1, "A");
    assert_eq!(kernel.expect(&unknown, Verdict::DropResetRate).action, DROP);
    wanted.reset_rate = 20;
    kernel.want(wanted);
    let mut sent = 0;
    for _ in 0..2_000 {
        sent += u32::from(kernel.run(&unknown).action == TX);
    }
    // The burst of a second for each CPU that the test ran on, and what the time it took allows.
    let verdicts = kernel.verdicts();
    assert!(sent >= 20, "{sent} sent");
    assert_eq!(verdicts.get("reset_no_flow"), Some(&u64::from(sent)));
    let dropped = verdicts.get("drop_reset_rate").copied().unwrap_or_default();
    assert_eq!(u64::from(sent) + dropped, 2_001);
    assert!(dropped > 1, "nothing was held back: {verdicts:?}");
    // A RST asks for none.
    kernel.expect(&from(1, "R"), Verdict::DropNoFlow);
}

#[test]
fn a_repeated_syn_goes_to_another_backend() {
    let Some(mut kernel) = kernel("a_repeated_syn_goes_to_another_backend") else {
        return;
    };
    rescuing(&mut kernel, Nat, &THREE);
    let mut rescued = 0;
    for port in 1..=200 {
        let (first, request) = sent(&mut kernel, &from(port, "S"));
        let (second, repeated) = sent(&mut kernel, &from(port, "S"));
        let (request, repeated) = (parse(&request), parse(&repeated));
        if second == first {
            // All slots that were looked at are the first one's.
            assert_eq!((request.src, request.dst), (repeated.src, repeated.dst));
            continue;
        }
        rescued += 1;
        assert_ne!(request.dst, repeated.dst);
        let counted = kernel.verdicts().get("syn_rescued").copied();
        assert_eq!(counted, Some(rescued));
        // The first one's late answer belongs to no flow: the host resets it.
        let late = kernel.expect(&answer(&request, "SA"), Verdict::PassNoService);
        assert_eq!(late.action, PASS);
        kernel.expect(&answer(&repeated, "SA"), Verdict::NatReply);
        // Answered: it stays.
        for flags in ["S", "A", "PA", "S"] {
            kernel.forwards(&from(port, flags), second);
        }
    }
    // One in 81 stays.
    assert!(rescued >= 180, "{rescued}");
    let none = std::collections::BTreeSet::new();
    let contents = kernel.contents.clone();
    // No record is left behind.
    assert_eq!(kernel.datapath.sweep(&contents, &none).entries, 200);
}

#[test]
fn a_refusal_is_kept_from_the_client_while_others_may_accept() {
    let Some(mut kernel) = kernel("a_refusal_is_kept_from_the_client_while_others_may_accept")
    else {
        return;
    };
    rescuing(&mut kernel, Nat, &THREE);
    let (mut held, mut refused, mut accepted) = (0, 0, 0);
    for port in 1..=100 {
        // Its backends refuse it until it has been to all of them.
        for turn in 0..4 {
            let (_, request) = sent(&mut kernel, &from(port, "S"));
            let request = parse(&request);
            let rescued = kernel.verdicts().get("syn_rescued").copied().unwrap_or(0);
            let result = kernel.run(&answer(&request, "RA"));
            if result.action == DROP {
                held += 1;
                assert!(turn < 3, "held for the fourth time");
                assert_eq!(kernel.verdicts()["drop_refusal"], held);
            } else {
                refused += 1;
                assert_eq!(kernel.verdicts()["nat_reply"], refused + accepted);
                assert!(turn == 3 || rescued < 3 * u64::from(port));
                break;
            }
        }
        // A refusal is no answer to a flow that was accepted.
        let other = port + 1000;
        let (_, request) = sent(&mut kernel, &from(other, "S"));
        let request = parse(&request);
        kernel.expect(&answer(&request, "SA"), Verdict::NatReply);
        kernel.expect(&answer(&request, "R"), Verdict::NatReply);
        accepted += 2;
    }
    assert_eq!(refused, 100);
    assert!(held >= 250, "{held}");
}

#[test]
fn without_rescue_a_refusal_is_the_clients() {
    let Some(mut kernel) = kernel("without_rescue_a_refusal_is_the_clients") else {
        return;
    };
    kernel.serve(VIP4, Protocol::Tcp, Nat, Slot::settled(1), &TWO);
    let (_, request) = sent(&mut kernel, &from(1, "S"));
    kernel.expect(&answer(&parse(&request), "RA"), Verdict::NatReply);
}

#[test]
fn a_syn_that_comes_a_third_time_goes_to_a_third() {
    for forwarding in [Nat, Dsr] {
        let Some(mut kernel) = kernel("a_syn_that_comes_a_third_time_goes_to_a_third") else {
            return;
        };
        third(&mut kernel, forwarding);
    }
}

fn third(kernel: &mut Kernel, forwarding: lb_common::abi::Forwarding) {
    rescuing(kernel, forwarding, &THREE);
    let mut all = 0;
    for port in 1..=200 {
        let seen: Vec<u16> = (0..3).map(|_| sent(kernel, &from(port, "S")).0).collect();
        let different: std::collections::BTreeSet<_> = seen.iter().collect();
        all += u32::from(different.len() == 3);
        kernel.forwards(&from(port, "A"), seen[2]);
    }
    // Of two others one is hit within four tries for 65 of 81, after the first for 80 of 81.
    assert!(all > 120, "{all} of 200");
}

#[test]
fn outside_of_nat_flows_follow_their_record_once_rescued() {
    let Some(mut kernel) = kernel("outside_of_nat_flows_follow_their_record_once_rescued") else {
        return;
    };
    let service = rescuing(&mut kernel, Dsr, &TWO);
    let mut rescued = 0;
    for port in 1..=100 {
        let (first, _) = sent(&mut kernel, &from(port, "S"));
        let (second, _) = sent(&mut kernel, &from(port, "S"));
        rescued += u64::from(first != second);
        kernel.forwards(&from(port, "A"), second);
        kernel.forwards(&from(port, "PA"), second);
        // A flow that nobody has seen the SYN of belongs to the slot's owner.
        let (stranger, _) = sent(&mut kernel, &from(port + 1000, "A"));
        assert!([1, 2].contains(&stranger));
    }
    assert!(rescued >= 80, "{rescued}");
    assert_eq!(kernel.verdicts().get("syn_rescued"), Some(&rescued));
    // Each flow counts once for each backend that it was given to.
    let flows = |kernel: &Kernel| -> u64 {
        let flows = [1, 2].map(|backend| kernel.datapath.traffic(backend).unwrap().flows);
        flows.iter().sum()
    };
    assert_eq!(flows(&kernel), 100 + rescued);
    // Without it, every SYN goes to the owner, and nothing is recorded.
    change(&mut kernel, service, OnDeath::Rehash, false);
    for port in 201..=250 {
        let (first, _) = sent(&mut kernel, &from(port, "S"));
        kernel.forwards(&from(port, "S"), first);
    }
    assert_eq!(kernel.verdicts().get("syn_rescued"), Some(&rescued));
}

#[test]
fn without_rescue_a_repeated_syn_is_the_same_flow() {
    let Some(mut kernel) = kernel("without_rescue_a_repeated_syn_is_the_same_flow") else {
        return;
    };
    let service = rescuing(&mut kernel, Nat, &TWO);
    change(&mut kernel, service, OnDeath::Reset, false);
    for port in 1..=50 {
        let (first, request) = sent(&mut kernel, &from(port, "S"));
        let again = kernel.forwards(&from(port, "S"), first);
        assert_eq!(parse(&again).src, parse(&request).src);
    }
}
