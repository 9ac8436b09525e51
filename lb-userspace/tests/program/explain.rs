//! What `lb explain` says, held against what the program does with the very next packet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_common::abi::BackendState::{Active, Draining, Out};
use lb_common::abi::Forwarding::{Dsr, Gue, Ipip, Nat};
use lb_common::abi::{Affinity, Forwarding};
use lb_common::hash::mix;
use lb_common::slot::Slot;
use lb_common::verdict::Verdict;
use lb_userspace::model::OnDeath;
use lb_userspace::model::Protocol::{self, Tcp, Udp};
use lb_userspace::plan::explain::{Decision, Explanation, Fate, Reason, Tuple};

use crate::kernel::{BACKEND_MAC, INGRESS, Kernel, TX, at, kernel, node, path};
use crate::packets::{Frame, parse};

const FLOWS: usize = 10_000;
/// How often the tables, the states and the next hops change.
const ROUNDS: usize = 20;
/// Flows that send packets in each round.
const SENDERS: usize = 1_000;

const SERVICES: [(&str, Protocol, Forwarding, Affinity); 8] = [
    ("203.0.113.10:80", Tcp, Nat, Affinity::Flow),
    ("203.0.113.11:80", Tcp, Dsr, Affinity::Flow),
    ("203.0.113.10:53", Udp, Nat, Affinity::Flow),
    ("203.0.113.11:53", Udp, Dsr, Affinity::Client),
    ("[2001:db8::10]:80", Tcp, Nat, Affinity::Client),
    ("[2001:db8::11]:80", Tcp, Dsr, Affinity::Flow),
    ("203.0.113.12:80", Tcp, Ipip, Affinity::Flow),
    ("[2001:db8::12]:53", Udp, Gue, Affinity::Client),
];
/// Backends of each service.
const BACKENDS: u16 = 3;

/// The same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 33) as usize % end
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

fn serve_all(kernel: &mut Kernel) {
    for (n, (vip, protocol, forwarding, affinity)) in SERVICES.into_iter().enumerate() {
        let backends: Vec<(u16, String)> = (1..=BACKENDS)
            .map(|b| {
                let address = if at(vip).is_ipv4() {
                    format!("10.0.{n}.{b}:8080")
                } else {
                    format!("[fd00::{n}:{b}]:8080")
                };
                (n as u16 * BACKENDS + b, address)
            })
            .collect();
        let named: Vec<(u16, &str)> = backends.iter().map(|(id, at)| (*id, &**at)).collect();
        let id = kernel.serve(vip, protocol, forwarding, Slot::settled(named[0].0), &named);
        let mut wanted = kernel.contents.clone();
        wanted.services.get_mut(&id).unwrap().affinity = affinity;
        kernel.want(wanted);
    }
}

/// Other owners, states and next hops.
fn shuffle(kernel: &mut Kernel, random: &mut Random) {
    let mut wanted = kernel.contents.clone();
    for (id, backend) in &mut wanted.backends {
        backend.state = random.of(&[Active, Active, Active, Draining, Out]);
        let resolved = random.below(10) > 0;
        let v4 = backend.address.is_ipv4();
        let forwarding = wanted.services[&backend.service].forwarding;
        backend.path = resolved
            .then(|| path(*id, v4, INGRESS).through(forwarding, &node()))
            .flatten();
    }
    for (id, service) in &mut wanted.services {
        if service.protocol == Tcp {
            service.syn_rescue = random.below(2) == 0;
            service.on_death = match service.forwarding {
                Nat => OnDeath::Reset,
                Dsr | Ipip | Gue => random.of(&[OnDeath::Reset, OnDeath::Rehash]),
            };
        }
        let first = (id - 1) * BACKENDS;
        let mut owner = || match random.below(12) {
            0 => 0,
            n => first + 1 + n as u16 % BACKENDS,
        };
        let mut slots = Vec::with_capacity(service.slots.len());
        for n in 0..service.slots.len() {
            let (current, previous) = (owner(), owner());
            slots.push(match n % 2 {
                0 => Slot::settled(current),
                _ => Slot::transition(current, previous),
            });
        }
        service.slots = Arc::new(slots);
    }
    kernel.want(wanted);
}

fn flows(random: &mut Random) -> Vec<Tuple> {
    let flow = |n: usize| {
        let (vip, protocol, ..) = SERVICES[n % SERVICES.len()];
        let (host, port) = (random.below(50_000), 1024 + random.below(60_000));
        let src = if at(vip).is_ipv4() {
            format!("198.51.{}.{}:{port}", host / 250, 1 + host % 250)
        } else {
            format!("[2001:db8:1::{host:x}]:{port}")
        };
        Tuple::new(at(&src), at(vip), protocol).unwrap()
    };
    (0..FLOWS).map(flow).collect()
}

fn frame(tuple: Tuple, flags: &'static str) -> Vec<u8> {
    let (src, dst) = (tuple.src.to_string(), tuple.dst.to_string());
    match tuple.protocol {
        Tcp => Frame::tcp(&src, &dst, flags).bytes(),
        Udp => Frame::udp(&src, &dst).bytes(),
    }
}

/// Runs packets and tells what became of each.
struct Observer {
    /// The counters before the next packet; to read them takes longer than all else.
    verdicts: BTreeMap<&'static str, u64>,
}

impl Observer {
    fn new(kernel: &Kernel) -> Self {
        Self {
            verdicts: kernel.verdicts(),
        }
    }

    /// What the program does with a packet, and the packet as it leaves.
    fn fate(&mut self, kernel: &mut Kernel, bytes: &[u8]) -> (Fate, Vec<u8>) {
        let result = kernel.run(bytes);
        if result.action == TX && result.frame[..4] == BACKEND_MAC[..4] && is_backend(&result.frame)
        {
            // Its number is the end of its MAC address.
            let number = u16::from_be_bytes([result.frame[4], result.frame[5]]);
            return (Fate::To(number), result.frame);
        }
        let before = std::mem::replace(&mut self.verdicts, kernel.verdicts());
        // A rescue is counted beside what becomes of the packet.
        let mut all = (Verdict::ALL.iter()).filter(|verdict| **verdict != Verdict::Rescued);
        let happened =
            all.find(|verdict| before.get(verdict.label()) != self.verdicts.get(verdict.label()));
        (Fate::Not(*happened.unwrap()), result.frame)
    }
}

/// Whether a frame goes to a backend, and not back to a client.
fn is_backend(frame: &[u8]) -> bool {
    let number = u16::from_be_bytes([frame[4], frame[5]]);
    (1..=SERVICES.len() as u16 * BACKENDS).contains(&number)
}

fn explain(kernel: &Kernel, tuple: Tuple) -> Explanation {
    let explained = kernel.datapath.explain(&kernel.contents, tuple);
    explained.unwrap()
}

#[test]
fn explanations_agree_with_the_program() {
    let Some(mut kernel) = kernel("explanations_agree_with_the_program") else {
        return;
    };
    let mut random = Random(7);
    serve_all(&mut kernel);
    let flows = flows(&mut random);
    let mut observer = Observer::new(&kernel);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut compared = BTreeSet::new();
    for round in 0..ROUNDS {
        shuffle(&mut kernel, &mut random);
        for n in 0..SENDERS {
            let number = (round * SENDERS / 2 + n) % FLOWS;
            let tuple = flows[number];
            // What the flow's end looks like is a matter of what was sent; not compared.
            if random.below(6) == 0 {
                let flags = random.of(&["FA", "R", "SA"]);
                observer.fate(&mut kernel, &frame(tuple, flags));
            }
            let opens = random.below(2) == 0;
            let explained = explain(&kernel, tuple);
            let Decision { fate: said, reason } = if opens {
                explained.new
            } else {
                explained.established
            };
            let flags = if opens { "S" } else { "A" };
            let (done, out) = observer.fate(&mut kernel, &frame(tuple, flags));
            assert_eq!(
                done, said,
                "round {round}, {opens} {tuple:?}: {explained:?}"
            );
            compared.insert(number);
            let kind = match explained.forwarding {
                Nat => "nat",
                Dsr | Ipip | Gue => "direct",
            };
            let name = format!("{kind} {} {reason:?}", tuple.protocol.name());
            *seen.entry(name.leak()).or_default() += 1;
            if explained.forwarding == Nat && matches!(done, Fate::To(_)) {
                let sent = parse(&out);
                if reason == Reason::Entry {
                    let rewritten = explained.entry.and_then(|entry| entry.rewritten);
                    assert_eq!(rewritten, Some((sent.src, sent.dst)));
                }
                if random.below(4) == 0 {
                    let answer = Tuple::new(sent.dst, sent.src, tuple.protocol).unwrap();
                    let flags = random.of(&["SA", "FA", "R"]);
                    observer.fate(&mut kernel, &frame(answer, flags));
                }
            }
        }
    }
    assert_eq!(compared.len(), FLOWS);
    // Every rule must have been at work, or the agreement means little.
    for rule in [
        "nat tcp Entry",
        "nat tcp EntryOut",
        "nat tcp NoEntry",
        "nat tcp Owner",
        "nat tcp NoOwner",
        "nat tcp OwnerRefuses",
        "nat tcp Unresolved",
        "nat udp Entry",
        "nat udp Owner",
        "nat tcp Rescued",
        "direct tcp Rescued",
        "direct tcp Dead",
        "direct tcp Entry",
        "direct tcp Owner",
        "direct tcp Previous",
        "direct tcp Fallback",
        "direct tcp NoOwner",
        "direct tcp OwnerRefuses",
        "direct tcp Unresolved",
        "direct udp Previous",
        "direct udp Fallback",
    ] {
        assert!(
            seen.get(rule).is_some_and(|n| *n >= 5),
            "{rule} in {seen:?}"
        );
    }
}

#[test]
fn an_entry_of_the_other_forwarding_is_not_heeded() {
    let Some(mut kernel) = kernel("an_entry_of_the_other_forwarding_is_not_heeded") else {
        return;
    };
    let two = [(1, "10.0.0.11:80"), (2, "10.0.0.12:80")];
    let tuple = Tuple::new(at("198.51.100.1:4000"), at("203.0.113.10:80"), Tcp).unwrap();
    let id = kernel.serve("203.0.113.10:80", Tcp, Dsr, Slot::transition(1, 2), &two);
    kernel.forwards(&frame(tuple, "S"), 1);
    assert_eq!(
        explain(&kernel, tuple).entry.map(|entry| entry.backend),
        Some(1)
    );
    let mut wanted = kernel.contents.clone();
    wanted.services.get_mut(&id).unwrap().forwarding = Nat;
    kernel.want(wanted);
    let explained = explain(&kernel, tuple);
    assert_eq!(explained.entry, None);
    assert_eq!(explained.established.fate, Fate::Not(Verdict::ResetNoFlow));
    assert_eq!(
        Observer::new(&kernel)
            .fate(&mut kernel, &frame(tuple, "A"))
            .0,
        explained.established.fate
    );
}

#[test]
fn a_reply_to_the_balancer_itself_is_no_request() {
    let Some(mut kernel) = kernel("a_reply_to_the_balancer_itself_is_no_request") else {
        return;
    };
    kernel.serve(
        "203.0.113.10:80",
        Tcp,
        Nat,
        Slot::settled(1),
        &[(1, "10.0.0.11:80")],
    );
    let tuple = Tuple::new(at("198.51.100.1:4000"), at("203.0.113.10:80"), Tcp).unwrap();
    let sent = parse(&kernel.forwards(&frame(tuple, "S"), 1));
    // A service at the very address and port that the flow leaves from.
    kernel.serve(
        &sent.src.to_string(),
        Tcp,
        Nat,
        Slot::settled(2),
        &[(2, "10.0.0.12:80")],
    );
    let back = Tuple::new(sent.dst, sent.src, Tcp).unwrap();
    let explained = explain(&kernel, back);
    assert_eq!(explained.new.fate, Fate::Not(Verdict::NatReply));
    let mut observer = Observer::new(&kernel);
    let (done, _) = observer.fate(&mut kernel, &frame(back, "S"));
    assert_eq!(done, explained.new.fate);
    assert_eq!(
        observer.fate(&mut kernel, &frame(back, "A")).0,
        explained.established.fate
    );
    kernel.set_state(1, Out);
    kernel.expect(&frame(tuple, "A"), Verdict::ResetBackendOut);
    let explained = explain(&kernel, back);
    assert_eq!(explained.new.fate, Fate::Not(Verdict::ResetToBackend));
    let mut observer = Observer::new(&kernel);
    assert_eq!(
        observer.fate(&mut kernel, &frame(back, "S")).0,
        explained.new.fate
    );
    assert_eq!(
        observer.fate(&mut kernel, &frame(back, "A")).0,
        explained.established.fate
    );
}
