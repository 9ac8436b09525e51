use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config;
use crate::health::Engine;
use crate::model::{BackendKey, Model};
use crate::probe::{Class, Outcome};
use crate::routing::{self, Admin, Orders, RoutingState};

const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10));

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Drives the real engine, the routing and this decision together; thresholds are 1, so that one
/// outcome is a verdict.
struct World {
    model: Model,
    engine: Engine,
    admin: BTreeMap<BackendKey, Admin>,
    /// Whose verdicts are an earlier agent's.
    remembered: BTreeSet<BackendKey>,
    unreached: BTreeSet<BackendKey>,
    ready: bool,
    routing: RoutingState,
    state: State,
    now: Duration,
    /// `+web` for announced, `-web` for withdrawn.
    turns: Vec<String>,
    next: Option<Duration>,
}

/// A service with so many backends, `b0`, `b1`, …, on a port of its own.
fn service(name: &str, port: u16, backends: usize, options: &str) -> String {
    let mut text = format!(
        "[[service]]\nname = \"{name}\"\naddress = \"{VIP}:{port}\"\ndrain_deadline = \"5s\"\n\
         {options}\n[service.health]\nprobe = \"tcp\"\nhealthy_threshold = 1\n\
         unhealthy_threshold = 1\n"
    );
    for n in 0..backends {
        let _ = write!(
            text,
            "[[service.backend]]\nname = \"b{n}\"\naddress = \"10.0.0.{}:{port}\"\n",
            n + 1
        );
    }
    text
}

impl World {
    /// Announced VIPs are `found` by an agent that starts.
    fn new(services: &str, found: &[IpAddr]) -> Self {
        let mut world = Self {
            model: parse(services),
            engine: Engine::new(1),
            admin: BTreeMap::new(),
            remembered: BTreeSet::new(),
            unreached: BTreeSet::new(),
            ready: true,
            routing: RoutingState::default(),
            state: State::adopt(found.iter().copied()),
            now: s(100),
            turns: Vec::new(),
            next: None,
        };
        world.configure();
        world
    }

    /// Four backends of one service, all healthy.
    fn healthy(options: &str) -> Self {
        let mut world = Self::new(&service("web", 80, 4, options), &[]);
        for n in 0..4 {
            world.probe("web", n, true);
        }
        world.turns.clear();
        world
    }

    fn configure(&mut self) -> &mut Self {
        let services = &self.model.services;
        self.engine.configure(services, &BTreeMap::new(), self.now);
        self.decide()
    }

    fn reload(&mut self, services: &str) -> &mut Self {
        self.model = parse(services);
        self.configure()
    }

    fn probe(&mut self, service: &str, n: usize, well: bool) -> &mut Self {
        let key = key(service, n);
        let said = if well { Class::Ok } else { Class::Refused };
        assert!(self.engine.probe_now(&key, self.now));
        for start in self.engine.start_due_up_to(self.now, usize::MAX) {
            let class = if start.key == key {
                said
            } else {
                Class::Internal
            };
            self.engine.finish(start.seq, &Outcome::of(class), self.now);
        }
        self.remembered.remove(&key);
        self.decide()
    }

    fn admin(&mut self, n: usize, admin: Admin) -> &mut Self {
        self.admin.insert(key("web", n), admin);
        self.decide()
    }

    fn wait(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self.decide()
    }

    fn decide(&mut self) -> &mut Self {
        let engine = &self.engine;
        let routed = routing::decide(
            &routing::Input {
                services: &self.model.services,
                health: &|key| engine.get(key),
                passive: &BTreeMap::new(),
                admin: &self.admin,
                removed: &BTreeMap::new(),
                orders: &Orders::default(),
            },
            &self.routing,
            self.now,
        );
        self.routing = routed.state;
        let (remembered, unreached) = (&self.remembered, &self.unreached);
        let input = Input {
            services: &self.model.services,
            routing: &self.routing,
            known: &|service, backend| Known {
                remembered: remembered.contains(&service.key(backend)),
                reached: !unreached.contains(&service.key(backend)),
            },
            ready: self.ready,
        };
        let decided = decide(&input, &self.state, self.now);
        let again = decide(&input, &decided.state, self.now);
        assert_eq!(again.state, decided.state, "deciding twice changes nothing");
        assert_eq!(again.turns, []);
        assert!(decided.next_deadline.is_none_or(|at| at > self.now));
        let last = decided.next_deadline.unwrap_or(self.now + s(10_000));
        let later = decide(&input, &decided.state, last - Duration::from_nanos(1));
        assert_eq!(later.turns, [], "until the deadline time changes nothing");
        for turn in decided.turns {
            let sign = if turn.announced { '+' } else { '-' };
            let by = turn.service.as_deref().unwrap_or("nobody");
            self.turns.push(format!("{sign}{by}"));
        }
        self.next = decided.next_deadline;
        self.state = decided.state;
        self
    }

    fn announced(&self) -> bool {
        self.state.announced().any(|vip| vip == VIP)
    }

    fn reason(&self) -> &str {
        &self.state.vips[&VIP].reason
    }
}

fn key(service: &str, n: usize) -> BackendKey {
    BackendKey::new(service, format!("b{n}"))
}

fn parse(services: &str) -> Model {
    let text = format!("[node]\ninterfaces = [\"eth0\"]\n{services}");
    config::parse(&text, "lb.toml").unwrap_or_else(|error| panic!("{error}"))
}

const HALF: &str = "announce = \"route\"\nquorum = 50\nquorum_hysteresis = 25";

#[test]
fn nothing_is_announced_before_enough_verdicts() {
    let mut world = World::new(&service("web", 80, 4, HALF), &[]);
    assert!(!world.announced());
    // A whole probe round without verdicts gets the backends traffic, and proves nothing.
    world.wait(s(100));
    assert!(!world.announced());
    world.probe("web", 0, true).probe("web", 1, true);
    assert!(!world.announced(), "{}", world.reason());
    assert_eq!(
        world.reason(),
        "50.0 % of the weight of web can serve, announced from 75 % on"
    );
    world.probe("web", 2, true);
    assert_eq!(world.turns, ["+web"]);
}

#[test]
fn it_is_withdrawn_below_quorum_and_back_with_the_hysteresis() {
    let mut world = World::healthy(HALF);
    world.probe("web", 0, false).probe("web", 1, false);
    assert!(world.announced(), "half is quorum");
    world.probe("web", 2, false);
    assert_eq!(world.turns, ["-web"]);
    assert_eq!(
        world.reason(),
        "25.0 % of the weight of web can serve, announced from 75 % on"
    );
    world.probe("web", 0, true);
    assert!(!world.announced(), "half is not enough to come back");
    world.probe("web", 1, true);
    assert_eq!(world.turns, ["-web", "+web"]);
}

#[test]
fn without_more_said_one_backend_is_enough_and_none_is_not() {
    let mut world = World::healthy("announce = \"route\"");
    for n in 0..3 {
        world.probe("web", n, false);
    }
    assert!(world.announced());
    world.probe("web", 3, false);
    assert_eq!(world.turns, ["-web"]);
    // All get traffic by panic, which is no quorum.
    assert!(world.routing.services["web"].panic);
    world.probe("web", 3, true);
    assert_eq!(world.turns, ["-web", "+web"]);
}

#[test]
fn announce_after_must_pass_without_interruption() {
    let options = "announce = \"route\"\nannounce_after = \"10s\"";
    let mut world = World::new(&service("web", 80, 2, options), &[]);
    world.probe("web", 0, true).wait(s(6));
    assert_eq!(world.next, Some(s(110)));
    assert!(world.reason().ends_with("for less than announce_after"));
    world
        .probe("web", 0, false)
        .probe("web", 0, true)
        .wait(s(9));
    assert!(!world.announced());
    world.wait(s(1));
    assert_eq!(world.turns, ["+web"]);
    // A withdrawal waits for nothing.
    world.probe("web", 0, false);
    assert!(world.announced(), "nothing is known of the other");
    world.probe("web", 1, false);
    assert_eq!(world.turns, ["+web", "-web"]);
}

#[test]
fn what_an_earlier_agent_announced_stays_until_verdicts_speak_against_it() {
    let mut world = World::new(&service("web", 80, 4, HALF), &[VIP]);
    world.wait(s(100));
    assert!(world.announced());
    world.probe("web", 0, false).probe("web", 1, false);
    assert!(world.announced(), "the other two may well be half");
    world.probe("web", 2, false);
    assert_eq!(world.turns, ["-web"]);
}

#[test]
fn a_remembered_verdict_speaks_neither_for_nor_against() {
    for (well, found) in [(true, &[][..]), (false, &[VIP])] {
        let mut world = World::new(&service("web", 80, 2, "announce = \"route\""), found);
        for n in 0..2 {
            world.probe("web", n, well);
        }
        let turns = world.turns.len();
        assert_eq!(turns, 1);
        // The same verdicts, of an earlier agent.
        world.state = State::adopt(found.iter().copied());
        world.remembered.extend([key("web", 0), key("web", 1)]);
        world.decide();
        assert_eq!(world.announced(), !found.is_empty());
        world.probe("web", 0, well).probe("web", 1, well);
        assert_eq!(world.announced(), well);
    }
}

#[test]
fn the_operator_takes_capacity_away_and_a_backend_without_a_way_gives_none() {
    let mut world = World::healthy(HALF);
    let until = s(1_000);
    world
        .admin(0, Admin::Drain { until })
        .admin(1, Admin::Disabled);
    assert!(world.announced());
    world.admin(2, Admin::Drain { until });
    assert_eq!(world.turns, ["-web"]);
    for n in 0..3 {
        world.admin(n, Admin::Enabled);
    }
    assert_eq!(world.turns, ["-web", "+web"]);

    let mut world = World::new(&service("web", 80, 1, "announce = \"route\""), &[]);
    world.unreached.insert(key("web", 0));
    world.probe("web", 0, true);
    assert!(!world.announced());
    world.unreached.clear();
    world.decide();
    assert!(world.announced());
    // The last known way stays in use.
    world.unreached.insert(key("web", 0));
    world.decide();
    assert!(world.announced());
}

#[test]
fn packets_must_be_forwarded_first_and_a_stuck_data_plane_withdraws_nothing() {
    let mut world = World::new(&service("web", 80, 1, "announce = \"route\""), &[]);
    world.ready = false;
    world.probe("web", 0, true);
    assert!(!world.announced());
    assert_eq!(
        world.reason(),
        "the data plane does not yet follow the verdicts"
    );
    world.ready = true;
    world.decide();
    assert!(world.announced());
    world.ready = false;
    world.decide();
    assert_eq!(world.turns, ["+web"]);
}

#[test]
fn all_services_of_a_vip_that_ask_for_it_must_have_quorum() {
    let both = service("web", 80, 1, "announce = \"route\"")
        + &service("tls", 443, 1, "announce = \"route\"")
        + &service("admin", 8080, 1, "");
    let mut world = World::new(&both, &[]);
    world.probe("web", 0, true);
    assert!(!world.announced());
    world.probe("tls", 0, true);
    assert_eq!(world.turns, ["+web"]);
    world.probe("admin", 0, false);
    assert!(world.announced());
    world.probe("tls", 0, false);
    assert_eq!(world.turns, ["+web", "-tls"]);
    // It does not ask any more.
    world.reload(&(service("web", 80, 1, "announce = \"route\"") + &service("tls", 443, 1, "")));
    assert_eq!(world.turns, ["+web", "-tls", "+web"]);
    // A service that is new does not withdraw the VIP for having no verdict yet.
    world.reload(&(service("new", 81, 1, "announce = \"route\"") + &both));
    world.probe("tls", 0, true).wait(s(100));
    assert!(world.announced(), "{:?}", world.turns);
    world.reload(&service("web", 80, 1, ""));
    assert_eq!(world.turns.last().unwrap(), "-nobody");
    assert!(!world.announced());
}

#[test]
fn panic_that_gives_the_traffic_to_nobody_or_to_the_fallback_is_no_service() {
    let fail = format!("{HALF}\npanic_threshold = 80\npanic_action = \"fail\"");
    let mut world = World::healthy(&fail);
    world.probe("web", 0, false);
    assert!(world.routing.services["web"].panic);
    assert_eq!(world.turns, ["-web"]);
    world.probe("web", 0, true);
    assert_eq!(world.turns, ["-web", "+web"]);

    let mut text = service("web", 80, 1, "announce = \"route\"");
    text += "[[service.backend]]\nname = \"b1\"\naddress = \"10.0.0.9:80\"\nfallback = true\n";
    let mut world = World::new(&text, &[]);
    world.probe("web", 0, true).probe("web", 1, true);
    assert!(world.announced());
    world.probe("web", 0, false);
    assert!(!world.announced(), "the fallback says sorry here");
}

#[test]
fn a_backend_that_stands_by_counts() {
    let mode = "announce = \"route\"\nmode = \"active_passive\"\npromote_after = \"10s\"";
    let mut world = World::new(&service("web", 80, 2, mode), &[]);
    world.probe("web", 0, true).probe("web", 1, true);
    world.turns.clear();
    world.probe("web", 0, false).wait(s(10));
    assert!(world.announced(), "the other one takes over");
    world.probe("web", 1, false);
    assert_eq!(world.turns, ["-web"]);
}

/// What happens to one of four backends.
#[derive(Clone, Copy, Debug)]
enum Step {
    Probe(usize, bool),
    Drain(usize),
    Enable(usize),
    Wait(u64),
    /// Another agent takes over: its first verdicts are remembered.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..4, any::<bool>()).prop_map(|(n, well)| Step::Probe(n, well)),
        1 => (0usize..4).prop_map(Step::Drain),
        1 => (0usize..4).prop_map(Step::Enable),
        1 => (0u64..20).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// By an account of its own: withdrawn only when for sure too few can serve, announced only when
    /// for sure enough can; in between it stays as it is.
    #[test]
    fn it_turns_only_beyond_the_borders(
        quorum in 1usize..=100,
        hysteresis in 0usize..100,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let hysteresis = hysteresis.min(100 - quorum);
        let options = format!(
            "announce = \"route\"\nquorum = {quorum}\nquorum_hysteresis = {hysteresis}"
        );
        let mut world = World::new(&service("web", 80, 4, &options), &[]);
        // None: unknown.
        let (mut well, mut drained) = ([None; 4], [false; 4]);
        for step in steps {
            let before = world.announced();
            match step {
                Step::Probe(n, is) => {
                    world.probe("web", n, is);
                    well[n] = Some(is);
                }
                Step::Drain(n) => {
                    world.admin(n, Admin::Disabled);
                    drained[n] = true;
                }
                Step::Enable(n) => {
                    world.admin(n, Admin::Enabled);
                    drained[n] = false;
                }
                Step::Wait(seconds) => {
                    world.wait(s(seconds));
                }
                Step::Restart => {
                    let found: Vec<IpAddr> = world.state.announced().collect();
                    world.state = State::adopt(found);
                    world.remembered = (0..4).map(|n| key("web", n)).collect();
                    world.decide();
                    well = [None; 4];
                }
            }
            let count = |of: &dyn Fn(Option<bool>) -> bool| {
                (0..4).filter(|n| !drained[*n] && of(well[*n])).count()
            };
            let sure = count(&|well| well == Some(true));
            let possible = count(&|well| well != Some(false));
            let enough = sure > 0 && sure * 100 >= 4 * (quorum + hysteresis);
            let too_few = possible == 0 || possible * 100 < 4 * quorum;
            let expected = if before { !too_few } else { enough };
            prop_assert_eq!(world.announced(), expected, "{:?}", step);
        }
    }
}
