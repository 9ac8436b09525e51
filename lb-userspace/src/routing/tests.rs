use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::health::passive::{Doubt, Kind};
use crate::health::{Engine, Health};
use crate::model::{
    Affinity, Backend, Endpoint, Forwarding, HealthPolicy, Mode, PanicRules, PassiveRules,
    ProbeKind, ProbeSpec, Protocol, Service,
};
use crate::probe::{Class, Outcome, Verdict};

mod active_passive;
mod panic;
mod pool;
mod precedence;
mod weight;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Drives the real engine and the decision together; thresholds are 1, so that one outcome is a
/// verdict. Interval 5 s, timeout 2 s, drain deadline 30 s.
struct World {
    service: Service,
    engine: Engine,
    admin: BTreeMap<BackendKey, Admin>,
    passive: BTreeMap<BackendKey, Doubt>,
    removed: BTreeMap<BackendKey, Duration>,
    orders: Orders,
    state: RoutingState,
    now: Duration,
    events: Vec<(Option<String>, EventKind)>,
    /// Of all events.
    reasons: Vec<String>,
    next: Option<Duration>,
}

fn key(n: usize) -> BackendKey {
    BackendKey::new("web", format!("b{n}"))
}

impl World {
    /// Backends as (weight, tier), named b0, b1, …
    fn new(panic_threshold: u8, backends: &[(u32, u8)]) -> Self {
        let backend = |(n, &(weight, tier)): (usize, &(u32, u8))| {
            let address = format!("10.0.0.{}:80", n + 1).parse().unwrap();
            Backend {
                name: format!("b{n}").into(),
                address,
                server_id: None,
                weight,
                tier,
                fallback: false,
                probes: vec![Arc::new(ProbeSpec {
                    target: address,
                    timeout: s(2),
                    kind: ProbeKind::Tcp.into(),
                    egress: Default::default(),
                })],
            }
        };
        let service = Service {
            name: "web".into(),
            address: Endpoint::from("203.0.113.10:80".parse::<SocketAddr>().unwrap()),
            protocol: Protocol::Tcp,
            forwarding: Forwarding::Dsr,
            affinity: Affinity::Flow,
            mode: Mode::Balance,
            panic: PanicRules::default(),
            on_death: crate::model::OnDeath::Reset,
            syn_rescue: true,
            passive: PassiveRules::default(),
            server_id_length: 0,
            panic_threshold,
            drain_deadline: s(30),
            announce: None,
            slow_start: Default::default(),
            pool: Default::default(),
            health: vec![HealthPolicy {
                interval: s(5),
                timeout: s(2),
                unhealthy_threshold: 1,
                healthy_threshold: 1,
                fast_interval: s(5),
                down_interval: s(5),
                jitter: 0,
                ..HealthPolicy::default()
            }],
            backends: backends.iter().enumerate().map(backend).collect(),
        };
        let mut engine = Engine::new(1);
        engine.configure(std::slice::from_ref(&service), &BTreeMap::new(), s(100));
        let mut world = Self {
            service,
            engine,
            admin: BTreeMap::new(),
            passive: BTreeMap::new(),
            removed: BTreeMap::new(),
            orders: Orders::default(),
            state: RoutingState::default(),
            now: s(100),
            events: Vec::new(),
            reasons: Vec::new(),
            next: None,
        };
        world.decide();
        world
    }

    /// All healthy.
    fn healthy(panic_threshold: u8, backends: &[(u32, u8)]) -> Self {
        let mut world = Self::new(panic_threshold, backends);
        for n in 0..backends.len() {
            world.probe(n, Class::Ok);
        }
        world.events.clear();
        world
    }

    fn probe(&mut self, n: usize, class: Class) -> &mut Self {
        assert!(self.engine.probe_now(&key(n), self.now));
        let start = self.engine.start_due_up_to(self.now, usize::MAX);
        // Others that are due meanwhile say nothing.
        for start in start {
            let class = match start.key == key(n) {
                true => class,
                false => Class::Internal,
            };
            self.engine.finish(start.seq, &Outcome::of(class), self.now);
        }
        self.decide()
    }

    fn admin(&mut self, n: usize, admin: Admin) -> &mut Self {
        self.admin.insert(key(n), admin);
        self.decide()
    }

    fn wait(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self.decide()
    }

    fn decide(&mut self) -> &mut Self {
        let engine = &self.engine;
        let input = Input {
            services: std::slice::from_ref(&self.service),
            health: &|key| engine.get(key),
            passive: &self.passive,
            admin: &self.admin,
            removed: &self.removed,
            orders: &self.orders,
        };
        let decided = decide(&input, &self.state, self.now);
        assert_eq!(decided, decide(&input, &self.state, self.now), "pure");
        let again = decide(&input, &decided.state, self.now);
        assert_eq!(again.state, decided.state, "deciding twice changes nothing");
        assert_eq!(again.events, []);
        // Until the deadline time alone changes nothing.
        assert!(decided.next_deadline.is_none_or(|at| at > self.now));
        let last = decided.next_deadline.unwrap_or(self.now + s(10_000));
        let later = decide(&input, &decided.state, last - Duration::from_nanos(1));
        assert_eq!((later.state, later.events), (decided.state.clone(), vec![]));
        self.events.extend(
            decided
                .events
                .iter()
                .map(|e| (e.backend.as_ref().map(|b| b.backend.to_string()), e.kind)),
        );
        let reasons = decided.events.into_iter().map(|event| event.reason);
        self.reasons.extend(reasons);
        self.next = decided.next_deadline;
        self.state = decided.state;
        self
    }

    fn routing(&self, n: usize) -> Routing {
        self.state.get(&key(n)).unwrap().routing
    }

    /// One letter for each backend: Active, Draining, Out, Standby, Panic.
    fn picture(&self) -> String {
        let letter = |n| self.routing(n).name()[..1].to_uppercase();
        (0..self.service.backends.len()).map(letter).collect()
    }

    fn panic(&self) -> bool {
        self.state.services["web"].panic
    }
}

#[test]
fn undecided_waits_and_the_first_verdict_admits() {
    let mut world = World::new(50, &[(100, 0), (100, 0)]);
    assert_eq!(world.picture(), "OO");
    assert_eq!(world.probe(1, Class::Ok).picture(), "OA");
    assert_eq!(world.state.services["web"].healthy_percent, 100.0);
    assert_eq!(world.events, [(Some("b1".into()), EventKind::Admitted)]);
}

#[test]
fn without_any_verdict_a_service_waits_one_probe_round() {
    let mut world = World::new(50, &[(100, 0), (100, 0)]);
    assert_eq!(world.next, Some(s(107)));
    assert_eq!(world.probe(0, Class::Internal).wait(s(6)).picture(), "OO");
    assert_eq!(world.wait(s(1)).picture(), "AA");
    assert_eq!(world.state.get(&key(0)).unwrap().cause, Cause::FailOpen);
    // The verdict on one does not cut the flows of the other.
    assert_eq!(world.probe(0, Class::Ok).picture(), "AA");
    assert_eq!(world.probe(1, Class::Refused).picture(), "AO");
}

#[test]
fn answers_drain_and_silence_kills() {
    let mut world = World::healthy(0, &[(100, 0); 4]);
    assert_eq!(world.probe(0, Class::Status).picture(), "DAAA");
    assert_eq!(world.routing(0), Routing::Draining { until: s(130) });
    assert_eq!(world.next, Some(s(130)));
    assert_eq!(world.probe(1, Class::Refused).picture(), "DOAA");
    assert_eq!(world.wait(s(29)).picture(), "DOAA");
    assert_eq!(world.wait(s(1)).picture(), "OOAA");
    assert_eq!(world.next, None);
    assert_eq!(world.probe(0, Class::Ok).picture(), "AOAA");
    use EventKind::{Drained, Draining, Ejected, Readmitted};
    let named = |n: &str, kind| (Some(n.to_owned()), kind);
    let expected = [named("b0", Draining), named("b1", Ejected)];
    assert_eq!(world.events[..2], expected);
    assert_eq!(
        world.events[2..],
        [named("b0", Drained), named("b0", Readmitted)]
    );
}

#[test]
fn success_ends_a_drain_and_silence_cuts_it_short() {
    let mut world = World::healthy(0, &[(100, 0); 2]);
    world.probe(0, Class::Status).wait(s(10));
    assert_eq!(world.probe(0, Class::Ok).picture(), "AA");
    world.probe(0, Class::Status).wait(s(10));
    assert_eq!(world.probe(0, Class::Timeout).picture(), "OA");
    // Back to bad answers: what was given up is not drained again.
    assert_eq!(world.probe(0, Class::Status).picture(), "OA");
}

#[test]
fn the_operator_goes_before_the_probes() {
    let mut world = World::healthy(0, &[(100, 0); 2]);
    let until = s(110);
    assert_eq!(world.admin(0, Admin::Drain { until }).picture(), "DA");
    assert_eq!(world.wait(s(10)).picture(), "OA");
    assert_eq!(world.admin(0, Admin::Enabled).picture(), "AA");
    assert_eq!(world.admin(0, Admin::Disabled).picture(), "OA");
    assert_eq!(world.probe(0, Class::Ok).picture(), "OA");
    // A drained backend that dies has nothing left to drain.
    world.admin(1, Admin::Drain { until: s(200) });
    assert_eq!(world.picture(), "OD");
    assert_eq!(world.probe(1, Class::Refused).picture(), "OO");
}

#[test]
fn removed_backends_drain_until_their_deadline() {
    let mut world = World::healthy(0, &[(100, 0); 2]);
    world.service.backends.pop();
    world.removed.insert(key(1), s(130));
    world.decide();
    assert_eq!(world.routing(1), Routing::Draining { until: s(130) });
    assert_eq!(world.next, Some(s(130)));
    world.wait(s(30));
    assert_eq!(world.routing(1), Routing::Out);
}

#[test]
fn panic_ignores_health_below_the_threshold_and_ends_by_itself() {
    let mut world = World::healthy(50, &[(100, 0); 4]);
    world.probe(0, Class::Timeout).probe(1, Class::Status);
    assert_eq!((world.picture().as_str(), world.panic()), ("ODAA", false));
    world.probe(2, Class::Timeout);
    assert_eq!((world.picture().as_str(), world.panic()), ("PPPA", true));
    // 50 % is enough, but only after an interval of it.
    world.probe(0, Class::Ok);
    assert_eq!((world.picture().as_str(), world.panic()), ("APPA", true));
    assert_eq!(world.next, Some(s(105)));
    world.wait(s(5));
    assert_eq!((world.picture().as_str(), world.panic()), ("ADOA", false));
    // Again, and out of it at once with 75 %.
    world.probe(0, Class::Timeout);
    assert!(world.panic());
    world.probe(0, Class::Ok).probe(1, Class::Ok);
    assert_eq!((world.picture().as_str(), world.panic()), ("AAOA", false));
}

#[test]
fn what_panic_leaves_out() {
    // Never with 0.
    let mut world = World::healthy(0, &[(100, 0); 2]);
    world.probe(0, Class::Refused).probe(1, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("OO", false));
    // Never the operator's.
    let mut world = World::healthy(50, &[(100, 0); 4]);
    world.admin(0, Admin::Disabled);
    world.admin(1, Admin::Drain { until: s(500) });
    world.probe(2, Class::Refused).probe(3, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("ODPP", true));
    // Neither a drain nor a new backend starts one.
    let mut world = World::healthy(50, &[(100, 0); 4]);
    world.probe(3, Class::Refused);
    for n in 0..2 {
        world.admin(n, Admin::Disabled);
    }
    assert_eq!((world.picture().as_str(), world.panic()), ("OOAO", false));
    // By weight, not by number.
    let mut world = World::healthy(50, &[(100, 0), (1, 0), (1, 0)]);
    world.probe(1, Class::Refused).probe(2, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("AOO", false));
}

#[test]
fn the_first_failures_of_a_start_are_no_panic() {
    let mut world = World::new(50, &[(100, 0); 3]);
    assert_eq!(world.probe(0, Class::Refused).picture(), "OOO");
    assert_eq!(world.next, Some(s(107)));
    assert_eq!(
        world.probe(1, Class::Ok).probe(2, Class::Ok).picture(),
        "OAA"
    );
    let mut world = World::new(50, &[(100, 0); 3]);
    world.probe(0, Class::Timeout);
    // Those of which nothing is known get traffic too, since nobody is healthy.
    assert_eq!(world.wait(s(7)).picture(), "PAA");
}

#[test]
fn tiers_stand_by_and_join() {
    let mut world = World::healthy(50, &[(100, 0), (100, 0), (100, 0), (100, 0), (100, 1)]);
    assert_eq!(world.picture(), "AAAAS");
    assert_eq!(world.probe(0, Class::Refused).picture(), "OAAAS"); // 75 % carries all
    assert_eq!(world.probe(1, Class::Refused).picture(), "OOAAA");
    // No panic while the other tier is whole.
    world.probe(2, Class::Refused).probe(3, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("OOOOA", false));
    world
        .probe(0, Class::Ok)
        .probe(1, Class::Ok)
        .probe(2, Class::Ok);
    assert_eq!(world.picture(), "AAAOS");
    let switched = |(_, kind): &&(_, EventKind)| *kind == EventKind::TierSwitched;
    assert_eq!(world.events.iter().filter(switched).count(), 2);
}

#[test]
fn operators_drains_of_everything_are_no_panic() {
    let mut world = World::healthy(50, &[(100, 0); 2]);
    world.admin(0, Admin::Drain { until: s(200) });
    world.admin(1, Admin::Drain { until: s(200) });
    assert_eq!((world.picture().as_str(), world.panic()), ("DD", false));
    assert_eq!(world.state.services["web"].healthy_percent, 0.0);
}

/// The end of panic gives those that answer badly their drain, for the flows that panic sent them.
#[test]
fn after_panic_comes_the_drain() {
    let mut world = World::healthy(50, &[(100, 0); 2]);
    world.probe(0, Class::Status).probe(1, Class::Status);
    assert_eq!(world.picture(), "PP");
    world.wait(s(100)).probe(0, Class::Ok).wait(s(5));
    assert_eq!(world.picture(), "AD");
    assert_eq!(world.routing(1), Routing::Draining { until: s(235) });
}

#[test]
fn events_tell_every_change_of_panic() {
    let mut world = World::healthy(50, &[(100, 0); 2]);
    world.probe(0, Class::Timeout).probe(1, Class::Timeout);
    world.probe(0, Class::Ok).probe(1, Class::Ok);
    use EventKind::{Ejected, PanicEntered, PanicLeft, Panicked, Readmitted};
    let expected = [
        (Some("b0"), Ejected),
        (None, PanicEntered),
        (Some("b0"), Panicked),
        (Some("b1"), Panicked),
        (Some("b0"), Readmitted),
        (None, PanicLeft),
        (Some("b1"), Readmitted),
    ];
    let events: Vec<_> = world
        .events
        .iter()
        .map(|(b, kind)| (b.as_deref(), *kind))
        .collect();
    assert_eq!(events, expected);
}

#[test]
fn a_returning_backend_is_eased_in() {
    let mut world = World::healthy(0, &[(100, 0); 3]);
    world.service.slow_start.window = s(100);
    let share = |world: &World, n: usize| world.state.get(&key(n)).unwrap().share;
    world
        .probe(0, Class::Refused)
        .wait(s(7))
        .probe(0, Class::Ok);
    let mut seen = Vec::new();
    for _ in 0..21 {
        seen.push(share(&world, 0));
        assert_eq!(share(&world, 1), 100);
        world.wait(s(5));
    }
    let expected: Vec<u8> = (0..=20).map(|step| (step * 5).max(10)).collect();
    assert_eq!(seen, expected);
    assert_eq!(world.next, None);
    // Nobody is held back while there is nobody else.
    for n in 0..3 {
        world.probe(n, Class::Refused);
    }
    for n in 0..3 {
        world.probe(n, Class::Ok);
    }
    assert_eq!(
        (0..3).map(|n| share(&world, n)).collect::<Vec<_>>(),
        [100; 3]
    );
    // Neither a start nor a panic makes one.
    let mut world = World::new(50, &[(100, 0); 2]);
    world.service.slow_start.window = s(100);
    world.probe(0, Class::Ok).probe(1, Class::Ok);
    assert_eq!((share(&world, 0), share(&world, 1)), (100, 100));
    world
        .wait(s(200))
        .probe(0, Class::Timeout)
        .probe(1, Class::Timeout);
    world.probe(0, Class::Ok).probe(1, Class::Ok);
    assert_eq!(share(&world, 1), 100);
}

#[derive(Clone, Debug)]
enum Op {
    Probe(usize, Class),
    Admin(usize, u8),
    Wait(u64),
}

impl Op {
    fn happen(&self, world: &mut World) {
        match *self {
            Self::Probe(n, class) => world.probe(n, class),
            Self::Admin(n, 0) => world.admin(n, Admin::Disabled),
            Self::Admin(n, 1) => {
                let until = world.now + s(20);
                world.admin(n, Admin::Drain { until })
            }
            Self::Admin(n, _) => world.admin(n, Admin::Enabled),
            Self::Wait(seconds) => world.wait(s(seconds)),
        };
    }
}

fn op() -> impl Strategy<Value = Op> {
    let class = prop_oneof![
        3 => Just(Class::Ok),
        1 => Just(Class::Degraded),
        2 => Just(Class::Status),
        2 => Just(Class::Refused),
        1 => Just(Class::Internal)
    ];
    prop_oneof![
        5 => (0usize..6, class).prop_map(|(n, class)| Op::Probe(n, class)),
        2 => (0usize..6, 0u8..4).prop_map(|(n, word)| Op::Admin(n, word)),
        2 => (1u64..20).prop_map(Op::Wait),
    ]
}

/// Whether the last probe was refused.
fn refuses(world: &World, n: usize) -> bool {
    let checks = &world.engine.get(&key(n)).unwrap().checks;
    let mut outcomes = checks[0].history.iter().rev();
    let last = outcomes.find(|outcome| outcome.verdict != Verdict::Internal);
    last.is_some_and(|last| last.class == Class::Refused)
}

/// Whether everybody who may have traffic in panic refuses it.
fn all_refuse(world: &World) -> bool {
    (0..world.service.backends.len()).all(|n| {
        let admin = world.admin.get(&key(n)).copied().unwrap_or_default();
        let health = world.engine.get(&key(n)).unwrap().health;
        let waits = health == Health::Unknown && !world.routing(n).takes_new_flows();
        admin != Admin::Enabled || waits || refuses(world, n)
    })
}

/// What must hold whatever happened.
fn check(world: &World) -> Result<(), TestCaseError> {
    let service = &world.state.services["web"];
    prop_assert!((0.0..=100.0).contains(&service.healthy_percent));
    for (n, backend) in world.service.backends.iter().enumerate() {
        let decision = &service.backends[&key(n)];
        let view = world.engine.get(&key(n)).unwrap();
        let admin = world.admin.get(&key(n)).copied().unwrap_or_default();
        let takes = decision.routing.takes_new_flows();
        match (admin, view.health) {
            (Admin::Disabled, _) => prop_assert_eq!(decision.routing, Routing::Out),
            (Admin::Drain { .. }, _) => prop_assert!(!takes),
            (Admin::Enabled, Health::Unknown) => {
                prop_assert_eq!(takes, decision.cause == Cause::FailOpen);
            }
            (Admin::Enabled, Health::Unhealthy) => {
                prop_assert_eq!(
                    takes,
                    service.panic && (!refuses(world, n) || all_refuse(world))
                );
                prop_assert!(takes || !view.gone || decision.routing == Routing::Out);
            }
            (Admin::Enabled, Health::Healthy) => {
                let needed = service.tiers.contains(&backend.tier);
                let expected = if needed {
                    Routing::Active
                } else {
                    Routing::Standby
                };
                prop_assert_eq!(decision.routing, expected);
            }
        }
        if let Routing::Draining { until } = decision.routing {
            prop_assert!(world.now < until && until <= world.now + s(30));
        }
        prop_assert!((5..=100).contains(&decision.share));
        prop_assert!(decision.routing == Routing::Active || decision.share == 100);
        prop_assert!(decision.since <= world.now && !decision.reason.is_empty());
    }
    // Somebody serves, if anybody may.
    let healthy = |n: usize| {
        let enabled = world
            .admin
            .get(&key(n))
            .is_none_or(|a| *a == Admin::Enabled);
        enabled && world.engine.get(&key(n)).unwrap().health == Health::Healthy
    };
    let count = world.service.backends.len();
    let active = (0..count).any(|n| world.routing(n) == Routing::Active);
    let share = |n: usize| service.backends[&key(n)].share;
    let full = (0..count).any(|n| world.routing(n).takes_new_flows() && share(n) == 100);
    prop_assert!(full || !active, "somebody carries the load");
    prop_assert!(active || !(0..count).any(healthy));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_rules_hold_whatever_happens(
        threshold in prop_oneof![Just(0u8), Just(50), Just(95), 0u8..=100],
        slow_start in prop_oneof![Just(0u64), 1u64..40],
        backends in prop::collection::vec((1u32..4, 0u8..3), 6),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut world = World::new(threshold, &backends);
        world.service.slow_start.window = s(slow_start);
        world.decide();
        check(&world)?;
        for op in &ops {
            op.happen(&mut world);
            check(&world)?;
            prop_assert!(threshold > 0 || !world.panic());
        }
        // Panic ends by itself when enough are healthy, though only just.
        world.wait(s(5));
        if world.state.services["web"].healthy_percent >= f64::from(threshold) {
            world.wait(s(5));
            prop_assert!(!world.panic());
        }
    }
}
