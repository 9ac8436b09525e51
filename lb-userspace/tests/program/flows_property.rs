//! Random histories of a node, through the agent's own plans, against a model of what its flows may
//! see: no flow of a backend that serves without a break ever changes its backend, every new flow
//! goes to an active one, and a flow whose backend went out is reset or moved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_common::abi::BackendState::{self, Active, Draining, Out};
use lb_common::abi::Forwarding::{self, Dsr, Ipip, Nat};
use lb_common::flow::TCP_IDLE;
use lb_common::hash::mix;
use lb_common::slot::BackendIndex;
use lb_userspace::config;
use lb_userspace::model::Model;
use lb_userspace::model::Protocol::{self, Tcp, Udp};
use lb_userspace::plan::{Builder, Duty, Path, plan};
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::kernel::{BACKEND_MAC, DROP, INGRESS, Kernel, TX, at, kernel, path};
use crate::packets::{CLIENT_MAC, Frame, Seen, parse};

const SERVICES: [(&str, Protocol, Forwarding); 6] = [
    ("203.0.113.10:80", Tcp, Nat),
    ("[2001:db8::10]:53", Udp, Nat),
    ("203.0.113.11:80", Tcp, Dsr),
    ("203.0.113.11:53", Udp, Dsr),
    ("[2001:db8::12]:80", Tcp, Ipip),
    ("203.0.113.12:53", Udp, Ipip),
];
/// Backends that each service may have; it begins with the first four.
const BACKENDS: u8 = 6;
/// Seconds.
const DRAIN_DEADLINE: u64 = 60;
/// When the simulated time begins, for the builder.
const BEGIN: u64 = 1_000_000;
/// Flows kept alive in each service.
const LIVE: usize = 36;

#[derive(Clone, Debug)]
enum Event {
    /// The probes' or the operator's word on a backend, and its share of new flows if active.
    State(u8, u8, BackendState, u8),
    Weight(u8, u8, u32),
    /// Into the configuration, or out of it.
    Toggle(u8, u8),
    /// Another agent on the same pins.
    Restart,
    /// A backend's state changes; the agent is killed after so many steps towards that.
    Killed(u8, u8, BackendState, u8),
    /// Seconds.
    Pass(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let state = prop_oneof![4 => Just(Active), 3 => Just(Draining), 3 => Just(Out)];
    let one = (0..SERVICES.len() as u8, 0..BACKENDS);
    let share = prop_oneof![3 => Just(100u8), 1 => Just(30u8)];
    prop_oneof![
        12 => (one.clone(), state.clone(), share).prop_map(|((s, b), state, share)| Event::State(s, b, state, share)),
        4 => (one.clone(), prop_oneof![Just(50u32), Just(100), Just(200)]).prop_map(|((s, b), weight)| Event::Weight(s, b, weight)),
        6 => one.clone().prop_map(|(s, b)| Event::Toggle(s, b)),
        1 => Just(Event::Restart),
        1 => (one, state, 0..6u8).prop_map(|((s, b), state, steps)| Event::Killed(s, b, state, steps)),
        8 => prop_oneof![3 => 1..60u32, 2 => 60..110u32, 1 => Just(3_000u32), 1 => Just(7_000u32)].prop_map(Event::Pass),
    ]
}

/// A backend: its service and its number there, as its MAC address says them.
type Name = (u8, u8);

/// What the model knows of a backend.
#[derive(Clone, Debug)]
struct Known {
    state: BackendState,
    /// How often it went out.
    outs: u32,
    /// Not in the configuration any more: when its flows are given up.
    leaves: Option<u64>,
}

struct Flow {
    service: usize,
    client: SocketAddr,
    on: Name,
    /// How often its backend had gone out when it was opened.
    outs: u32,
    /// What its packets look like to the backend of a NAT service.
    ends: Option<(SocketAddr, SocketAddr)>,
}

struct World {
    kernel: Kernel,
    builder: Builder,
    /// Members with their weights, by service.
    members: Vec<BTreeMap<u8, u32>>,
    duties: BTreeMap<Name, (BackendState, u8)>,
    known: BTreeMap<Name, Known>,
    flows: Vec<Flow>,
    /// Tuples of flows that were closed, for their successors.
    closed: Vec<(usize, SocketAddr)>,
    quiet: BTreeMap<BackendIndex, (u64, u64)>,
    /// Simulated seconds.
    now: u64,
    random: u64,
    clients: u32,
    packets: u64,
    seen: BTreeMap<&'static str, u64>,
}

/// What became of a client's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    To(Name),
    Reset,
    Dropped,
}

fn address(vip: &str, (service, backend): Name) -> SocketAddr {
    let port = at(vip).port();
    if at(vip).is_ipv4() {
        SocketAddr::new([10, 0, service, backend + 1].into(), port)
    } else {
        at(&format!("[fd00::{service}:{}]:{port}", backend + 1))
    }
}

const fn serves(state: BackendState) -> bool {
    matches!(state, Active | Draining)
}

impl World {
    fn new(kernel: Kernel, seed: u64) -> Self {
        let builder = Builder::new(kernel.contents.clone());
        let mut duties = BTreeMap::new();
        for service in 0..SERVICES.len() as u8 {
            for backend in 0..BACKENDS {
                duties.insert((service, backend), (Active, 100));
            }
        }
        let members = (0..4).map(|backend| (backend, 100)).collect();
        let mut world = Self {
            kernel,
            builder,
            members: vec![members; SERVICES.len()],
            duties,
            known: BTreeMap::new(),
            flows: Vec::new(),
            closed: Vec::new(),
            quiet: BTreeMap::new(),
            now: 0,
            random: seed,
            clients: 0,
            packets: 0,
            seen: BTreeMap::new(),
        };
        world.build();
        world
    }

    fn below(&mut self, end: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.random) >> 33) as usize % end
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn model(&self) -> Model {
        let mut text = "[node]\ninterfaces = [\"eth0\"]\n".to_owned();
        for (number, (vip, protocol, forwarding)) in SERVICES.into_iter().enumerate() {
            text += &format!(
                "[[service]]\nname = \"{number}\"\naddress = \"{vip}\"\nprotocol = \"{}\"\n\
                 forwarding = \"{}\"\ndrain_deadline = \"{DRAIN_DEADLINE}s\"\n\
                 [service.health]\nprobe = \"none\"\n",
                protocol.name(),
                forwarding.name()
            );
            for (backend, weight) in &self.members[number] {
                let address = address(vip, (number as u8, *backend));
                text += &format!(
                    "[[service.backend]]\nname = \"{backend}\"\naddress = \"{address}\"\nweight = {weight}\n"
                );
            }
        }
        config::parse(&text, "test").unwrap()
    }

    fn time(&self) -> Duration {
        Duration::from_secs(BEGIN + self.now)
    }

    /// The builder's next contents.
    fn next(&mut self) -> lb_userspace::plan::Contents {
        let model = self.model();
        let mut duties = BTreeMap::new();
        let mut paths: BTreeMap<IpAddr, Path> = BTreeMap::new();
        for (number, service) in model.services.iter().enumerate() {
            for backend in &service.backends {
                let name = (number as u8, backend.name.parse().unwrap());
                let (state, share) = self.duties[&name];
                let duty = Duty {
                    state,
                    weight: backend.weight,
                    share: if state == Active { share } else { 0 },
                };
                duties.insert(service.key(backend), duty);
                let id = u16::from_be_bytes([name.0, name.1]);
                let path = path(id, backend.address.is_ipv4(), INGRESS);
                paths.insert(backend.address.ip(), path);
            }
        }
        let now = self.time();
        let built = self.builder.build(&model, &duties, &paths, now);
        lb_userspace::plan::Contents::clone(built.unwrap())
    }

    /// Brings the maps to what should hold, and the model with them.
    fn build(&mut self) {
        let next = self.next();
        self.kernel.want(next);
        for (name, (duty, _)) in self.duties.clone() {
            let is_member = self.members[usize::from(name.0)].contains_key(&name.1);
            let Some(known) = self.known.get_mut(&name) else {
                if is_member {
                    let outs = u32::from(!serves(duty));
                    let known = Known {
                        state: duty,
                        outs,
                        leaves: None,
                    };
                    self.known.insert(name, known);
                }
                continue;
            };
            let state = if is_member {
                known.leaves = None;
                duty
            } else if !serves(known.state) {
                Out
            } else {
                let until = *known.leaves.get_or_insert(self.now + DRAIN_DEADLINE);
                if self.now >= until { Out } else { Draining }
            };
            if serves(known.state) && !serves(state) {
                known.outs += 1;
            }
            known.state = state;
        }
    }

    /// What the agent does after each sweep.
    fn sweep(&mut self) {
        self.kernel.datapath.advance(self.now as u32);
        let gone = self.builder.gone();
        let contents = self.kernel.contents.clone();
        let sweep = self.kernel.datapath.sweep(&contents, &gone);
        assert!(sweep.entries <= u64::from(self.kernel.datapath.flow_capacity()));
        for index in contents.backends.keys() {
            let moved = self.kernel.datapath.traffic(*index).unwrap().by_previous;
            let quiet = self.quiet.entry(*index).or_insert((moved, self.now));
            if quiet.0 != moved {
                *quiet = (moved, self.now);
            }
        }
        self.quiet
            .retain(|index, _| contents.backends.contains_key(index));
        self.builder.release(&sweep.gone);
        let (quiet, now) = (&self.quiet, self.now);
        let silent = |index| {
            let since = quiet.get(&index).map(|(_, since)| *since);
            since.is_some_and(|since| now - since >= u64::from(TCP_IDLE))
        };
        let time = self.time();
        let settled = self.builder.settle(silent, &sweep.held, time);
        if settled {
            self.note("settled");
            // Their packets say nothing of when they began: those of a slot move together.
            for flow in &mut self.flows {
                if SERVICES[flow.service].1 == Udp && SERVICES[flow.service].2 != Nat {
                    flow.outs = u32::MAX;
                }
            }
        }
        self.build();
    }

    fn restart(&mut self) {
        self.kernel.reopen();
        self.kernel.contents = self.kernel.datapath.contents().unwrap();
        self.builder = Builder::new(self.kernel.contents.clone());
        self.quiet.clear();
        for known in self.known.values_mut() {
            // The next agent does not know how long a backend has been leaving.
            known.leaves = None;
        }
        self.build();
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::State(service, backend, state, share) => {
                self.duties.insert((service, backend), (state, share));
            }
            Event::Weight(service, backend, weight) => {
                let members = &mut self.members[usize::from(service)];
                members.entry(backend).and_modify(|known| *known = weight);
            }
            Event::Toggle(service, backend) => {
                let members = &mut self.members[usize::from(service)];
                let was_there = members.remove(&backend).is_some();
                if !was_there || members.is_empty() {
                    members.insert(backend, 100);
                }
            }
            Event::Restart => {
                self.note("restarts");
                self.restart();
            }
            Event::Killed(service, backend, state, steps) => {
                self.duties.insert((service, backend), (state, 100));
                let next = self.next();
                for op in plan(&self.kernel.contents, &next).iter().take(steps.into()) {
                    self.kernel.datapath.apply(op).unwrap();
                }
                self.note("restarts");
                self.restart();
            }
            Event::Pass(seconds) => {
                self.now += u64::from(seconds);
                if seconds > 110 {
                    // Longer than UDP flows last.
                    self.flows.retain(|flow| SERVICES[flow.service].1 == Tcp);
                }
            }
        }
        self.build();
        self.sweep();
        self.talk();
        self.open();
        self.close();
    }

    fn send(&mut self, service: usize, client: SocketAddr, flags: &'static str) -> (Fate, Seen) {
        let (vip, protocol, _) = SERVICES[service];
        let frame = match protocol {
            Tcp => Frame::tcp(&client.to_string(), vip, flags),
            Udp => Frame::udp(&client.to_string(), vip),
        };
        // Whatever opens a flow sets the clock.
        self.kernel.datapath.advance(self.now as u32);
        let result = self.kernel.run(&frame.bytes());
        self.packets += 1;
        let out = result.frame;
        let fate = if result.action == DROP {
            Fate::Dropped
        } else if out[..6] == CLIENT_MAC {
            Fate::Reset
        } else {
            assert_eq!((result.action, &out[..4]), (TX, &BACKEND_MAC[..4]));
            Fate::To((out[4], out[5]))
        };
        let seen = match SERVICES[service].2 {
            Nat => parse(&out),
            _ => parse(&frame.bytes()),
        };
        (fate, seen)
    }

    /// The backend answers; the client must see its own connection.
    fn answer(&mut self, flow: &Flow, flags: &'static str) {
        let Some((src, dst)) = flow.ends else {
            return;
        };
        let (vip, protocol, _) = SERVICES[flow.service];
        let (from, to) = (dst.to_string(), src.to_string());
        let frame = match protocol {
            Tcp => Frame::tcp(&from, &to, flags),
            Udp => Frame::udp(&from, &to),
        };
        self.kernel.datapath.advance(self.now as u32);
        let result = self
            .kernel
            .run(&frame.sent_by([2, 0, 0, 0, 0, 0x99]).bytes());
        self.packets += 1;
        assert_eq!((result.action, &result.frame[..6]), (TX, &CLIENT_MAC[..]));
        let seen = parse(&result.frame);
        assert_eq!((seen.src, seen.dst), (at(vip), flow.client));
    }

    /// Every live flow sends a packet.
    fn talk(&mut self) {
        for flow in std::mem::take(&mut self.flows) {
            let (fate, seen) = self.send(flow.service, flow.client, "PA");
            let (_, protocol, forwarding) = SERVICES[flow.service];
            let known = &self.known[&flow.on];
            let context = || {
                format!(
                    "{:?} {} on {:?} {known:?}",
                    forwarding, flow.client, flow.on
                )
            };
            if known.outs == flow.outs {
                // Its backend has served all the time.
                assert_eq!(fate, Fate::To(flow.on), "{}", context());
                if let Some(ends) = flow.ends {
                    assert_eq!((seen.src, seen.dst), ends, "{}", context());
                }
                self.note("kept");
                if self.packets.is_multiple_of(3) {
                    self.answer(&flow, "PA");
                }
                self.flows.push(flow);
                continue;
            }
            match fate {
                Fate::Reset => {
                    assert_eq!((protocol, forwarding), (Tcp, Nat), "{}", context());
                    self.note("reset");
                }
                Fate::To(name) => {
                    let now = self.known[&name].state;
                    assert_eq!(usize::from(name.0), flow.service);
                    assert!(serves(now), "{}: to {name:?}, {now:?}", context());
                    self.note("moved");
                    if protocol == Udp {
                        // It goes on there. What opened it anew took the real time for the simulated,
                        // which is ahead; the next packet sets that right.
                        let (again, _) = self.send(flow.service, flow.client, "PA");
                        assert_eq!(again, fate, "{}: the next packet", flow.client);
                        let outs = self.known[&name].outs;
                        let ends = flow.ends.map(|_| (seen.src, seen.dst));
                        self.flows.push(Flow {
                            on: name,
                            outs,
                            ends,
                            ..flow
                        });
                    }
                }
                Fate::Dropped => {
                    let none = !self.has_active(flow.service);
                    assert!(none, "{}: dropped", context());
                    self.note("dropped for want of a backend");
                }
            }
        }
    }

    fn has_active(&self, service: usize) -> bool {
        let mut known = self.known.iter();
        known.any(|((s, _), known)| usize::from(*s) == service && known.state == Active)
    }

    /// New flows, some of them with the addresses and ports of closed ones.
    fn open(&mut self) {
        for service in 0..SERVICES.len() {
            let live = self.flows.iter().filter(|flow| flow.service == service);
            for _ in 0..LIVE.saturating_sub(live.count()).min(6) {
                let again = self
                    .closed
                    .iter()
                    .position(|(closed, _)| *closed == service);
                let client = match again.filter(|_| self.packets.is_multiple_of(2)) {
                    Some(at) => self.closed.swap_remove(at).1,
                    None => self.client(service),
                };
                self.open_one(service, client);
            }
        }
    }

    fn client(&mut self, service: usize) -> SocketAddr {
        self.clients += 1;
        let [_, a, b, c] = self.clients.to_be_bytes();
        let port = 1024 + self.below(60_000) as u16;
        if at(SERVICES[service].0).is_ipv4() {
            SocketAddr::new([60 + a, b, c, 1].into(), port)
        } else {
            at(&format!("[2001:db8:1::{:x}]:{port}", self.clients))
        }
    }

    fn open_one(&mut self, service: usize, client: SocketAddr) {
        let (_, protocol, forwarding) = SERVICES[service];
        let (fate, seen) = self.send(service, client, "S");
        let Fate::To(on) = fate else {
            assert_eq!(fate, Fate::Dropped);
            assert!(
                !self.has_active(service),
                "{:?} {client}",
                SERVICES[service]
            );
            self.note("refused for want of a backend");
            return;
        };
        let known = &self.known[&on];
        assert_eq!(usize::from(on.0), service);
        // A datagram does not say whether it is the first.
        let may = known.state == Active
            || (protocol == Udp && forwarding != Nat && known.state == Draining);
        assert!(
            may,
            "{:?} {client}: to {on:?}, {known:?}",
            SERVICES[service]
        );
        let flow = Flow {
            service,
            client,
            on,
            outs: known.outs,
            ends: (forwarding == Nat).then_some((seen.src, seen.dst)),
        };
        self.answer(&flow, "SA");
        let (fate, _) = self.send(service, client, "A");
        assert_eq!(fate, Fate::To(on), "second packet of {client}");
        self.note("opened");
        self.flows.push(flow);
    }

    /// Some flows end.
    fn close(&mut self) {
        for flow in std::mem::take(&mut self.flows) {
            let stays = self.known[&flow.on].outs != flow.outs
                || SERVICES[flow.service].1 == Udp
                || self.below(12) > 0;
            if stays {
                self.flows.push(flow);
                continue;
            }
            let (fate, _) = self.send(flow.service, flow.client, "FA");
            assert_eq!(fate, Fate::To(flow.on));
            self.answer(&flow, "FA");
            self.closed.push((flow.service, flow.client));
            self.note("closed");
        }
    }
}

/// Runs a history; the packets it took, and what there was to see.
fn run(kernel: Kernel, seed: u64, events: &[Event]) -> World {
    let mut world = World::new(kernel, seed);
    world.open();
    for event in events {
        world.happen(event);
    }
    assert_eq!(world.kernel.datapath.check_flows(), []);
    let entries = {
        let contents = world.kernel.contents.clone();
        world
            .kernel
            .datapath
            .sweep(&contents, &BTreeSet::new())
            .entries
    };
    assert!(entries <= u64::from(world.kernel.datapath.flow_capacity()));
    world
}

#[test]
fn no_flow_of_a_serving_backend_ever_moves() {
    let mut packets = 0;
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 1..=3u64 {
        let Some(kernel) = kernel("no_flow_of_a_serving_backend_ever_moves") else {
            return;
        };
        let config = proptest::test_runner::Config::default();
        let rng = proptest::test_runner::TestRng::from_seed(
            proptest::test_runner::RngAlgorithm::ChaCha,
            &[seed as u8; 32],
        );
        let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, rng);
        let events = proptest::collection::vec(event(), 40..41);
        let events = events.new_tree(&mut runner).unwrap().current();
        let world = run(kernel, seed, &events);
        packets += world.packets;
        for (what, count) in world.seen {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{packets} packets: {seen:?}");
    assert!(packets >= 20_000, "{packets}");
    for what in [
        "kept", "reset", "moved", "opened", "closed", "settled", "restarts",
    ] {
        assert!(seen.get(what).is_some_and(|n| *n > 0), "{what} in {seen:?}");
    }
}

/// A history in which a UDP flow moves long before the clock is set ahead again.
#[test]
fn nor_in_one_that_once_failed() {
    let Some(kernel) = kernel("nor_in_one_that_once_failed") else {
        return;
    };
    let events = [
        Event::Pass(75),
        Event::State(0, 5, Active, 30),
        Event::State(1, 0, Out, 100),
        Event::Pass(46),
        Event::Toggle(1, 4),
    ];
    run(kernel, 1_705_687_522_523_526_550, &events);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3,
        max_shrink_iters: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn nor_in_any_other_history(events in proptest::collection::vec(event(), 5..25), seed in any::<u64>()) {
        let Some(kernel) = kernel("nor_in_any_other_history") else {
            return Ok(());
        };
        run(kernel, seed, &events);
    }
}
