//! One active backend at a time.

use super::*;
use crate::model::{ActivePassive, Fence};
use crate::routing::active_passive::{Fenced, Known, Phase, Primary};

/// Promotion after 10 s.
const RULES: ActivePassive = ActivePassive {
    promote_after: s(10),
    failback: false,
    fence: None,
};

/// A world of healthy backends in these tiers, of which the first is active.
fn world(rules: ActivePassive, tiers: &[u8]) -> World {
    let backends: Vec<(u32, u8)> = tiers.iter().map(|tier| (100, *tier)).collect();
    let mut world = World::new(0, &backends);
    world.service.mode = Mode::ActivePassive(rules);
    world.state = RoutingState::default();
    for n in 0..tiers.len() {
        world.probe(n, Class::Ok);
    }
    world.events.clear();
    world
}

fn fenced() -> ActivePassive {
    ActivePassive {
        fence: Some(Fence {
            command: vec!["/bin/true".to_owned()],
            timeout: s(30),
        }),
        ..RULES
    }
}

impl World {
    fn primary(&self) -> &Primary {
        self.state.services["web"].primary.as_ref().unwrap()
    }

    fn phase(&self) -> &'static str {
        self.primary().phase.name()
    }

    /// The fence that is under way ends so.
    fn fence(&mut self, result: Result<(), &str>) -> &mut Self {
        let Phase::Fencing { turn, .. } = self.primary().phase else {
            panic!("no fence is under way: {:?}", self.primary());
        };
        let result = result.map_err(str::to_owned);
        self.orders
            .fenced
            .insert("web".into(), Fenced { turn, result });
        self.decide()
    }

    fn promote(&mut self, n: usize) -> &mut Self {
        let wish = key(n).backend;
        self.orders.promote.insert("web".into(), wish);
        self.decide();
        self.orders.promote.clear();
        self.decide()
    }

    fn kinds(&mut self) -> Vec<(String, EventKind)> {
        let events = std::mem::take(&mut self.events);
        let named = events.into_iter();
        named
            .map(|(backend, kind)| (backend.unwrap_or_default(), kind))
            .collect()
    }

    /// Backends that the data plane lets packets to.
    fn served(&self) -> Vec<usize> {
        (0..self.service.backends.len())
            .filter(|n| match self.routing(*n) {
                Routing::Active | Routing::Draining { .. } | Routing::Panic => true,
                Routing::Out | Routing::Standby => false,
            })
            .collect()
    }
}

#[test]
fn the_first_of_the_order_is_active_and_the_others_stand_by() {
    assert_eq!(world(RULES, &[0, 0, 0]).picture(), "ASS");
    // By tier, then as they stand in the file.
    assert_eq!(world(RULES, &[2, 1, 1]).picture(), "SAS");
}

#[test]
fn a_dead_one_is_out_at_once_and_the_next_is_promoted_after_the_hold_down() {
    let mut world = world(RULES, &[0, 0, 0]);
    world.probe(0, Class::Refused);
    assert_eq!(
        (world.picture().as_str(), world.phase()),
        ("OSS", "failing")
    );
    assert_eq!(world.next, Some(s(110)));
    world.wait(s(9));
    assert_eq!(world.phase(), "failing");
    world.wait(s(1));
    assert_eq!(
        (world.picture().as_str(), world.phase()),
        ("OSS", "fencing")
    );
    world.wait(s(3600));
    assert_eq!(world.picture(), "OSS", "nobody before the cut is confirmed");
    world.fence(Ok(()));
    assert_eq!(
        (world.picture().as_str(), world.phase()),
        ("OAS", "serving")
    );
    assert_eq!(
        world.primary().reason,
        "b0 is unhealthy: 1 failure: refused"
    );
    assert_eq!(
        world.kinds(),
        [
            ("b0".to_owned(), EventKind::Ejected),
            ("b1".to_owned(), EventKind::Promoted)
        ]
    );
}

#[test]
fn a_recovery_within_the_hold_down_promotes_nobody() {
    let mut world = world(RULES, &[0, 0]);
    world
        .probe(0, Class::Timeout)
        .wait(s(9))
        .probe(0, Class::Ok);
    assert_eq!((world.picture().as_str(), world.phase()), ("AS", "serving"));
    // And the next failure holds down anew.
    world.probe(0, Class::Timeout).wait(s(9));
    assert_eq!(world.phase(), "failing");
}

#[test]
fn one_that_answers_badly_keeps_its_flows_until_another_takes_over() {
    let mut world = world(RULES, &[0, 0]);
    world.probe(0, Class::Status);
    assert_eq!(world.picture(), "DS");
    world.wait(s(10));
    assert_eq!((world.picture().as_str(), world.phase()), ("OS", "fencing"));
    world.fence(Ok(()));
    assert_eq!(world.picture(), "OA");
}

#[test]
fn there_is_no_failback_unless_asked_for() {
    let mut world = world(RULES, &[0, 0]);
    world.probe(0, Class::Refused).wait(s(10)).fence(Ok(()));
    world.probe(0, Class::Ok).wait(s(100_000));
    assert_eq!((world.picture().as_str(), world.next), ("SA", None));
}

#[test]
fn a_failback_waits_for_the_first_to_be_healthy_as_long_as_for_a_promotion() {
    let rules = ActivePassive {
        failback: true,
        ..RULES
    };
    let mut world = world(rules, &[0, 0]);
    world.probe(0, Class::Refused).wait(s(10)).fence(Ok(()));
    world
        .probe(0, Class::Ok)
        .wait(s(9))
        .probe(0, Class::Refused);
    world.wait(s(5)).probe(0, Class::Ok).wait(s(9));
    assert_eq!((world.picture().as_str(), world.phase()), ("SA", "serving"));
    world.wait(s(1));
    assert_eq!((world.picture().as_str(), world.phase()), ("SO", "fencing"));
    world.fence(Ok(()));
    assert_eq!(world.picture(), "AS");
    assert_eq!(world.primary().reason, "b0 comes first and is back");
}

#[test]
fn without_anybody_to_take_over_the_active_one_is_kept() {
    let mut world = world(RULES, &[0, 0]);
    world
        .probe(1, Class::Refused)
        .probe(0, Class::Refused)
        .wait(s(60));
    assert_eq!((world.picture().as_str(), world.phase()), ("OO", "failing"));
    // Whoever can serve first does.
    world.probe(1, Class::Ok);
    assert_eq!(world.phase(), "fencing");
    world.fence(Ok(()));
    assert_eq!(world.picture(), "OA");
}

#[test]
fn a_fence_that_fails_promotes_nobody_and_is_tried_again_ever_more_slowly() {
    let mut world = world(fenced(), &[0, 0]);
    world
        .probe(0, Class::Refused)
        .wait(s(10))
        .fence(Err("exit status 1"));
    let mut pauses = Vec::new();
    for _ in 0..7 {
        assert_eq!(
            (world.picture().as_str(), world.phase()),
            ("OS", "fence_failed")
        );
        let pause = world.next.unwrap() - world.now;
        pauses.push(pause.as_secs());
        world.wait(pause).fence(Err("exit status 1"));
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    world.wait(s(30)).fence(Ok(()));
    assert_eq!(world.picture(), "OA");
    let kinds: Vec<EventKind> = world.kinds().into_iter().map(|(_, kind)| kind).collect();
    use EventKind::{Ejected, FenceFailed, Fencing, Promoted};
    assert_eq!(kinds, [Ejected, Fencing, FenceFailed, Promoted]);
}

#[test]
fn one_that_could_not_be_fenced_goes_on_when_it_can_serve_again() {
    let mut world = world(fenced(), &[0, 0]);
    world
        .probe(0, Class::Refused)
        .wait(s(10))
        .probe(0, Class::Ok);
    // The fence may succeed yet.
    assert_eq!((world.picture().as_str(), world.phase()), ("OS", "fencing"));
    world.fence(Err("still running after 30 s and killed"));
    assert_eq!((world.picture().as_str(), world.phase()), ("AS", "serving"));
    world
        .probe(0, Class::Refused)
        .wait(s(10))
        .fence(Err("exit status 1"));
    world.probe(0, Class::Ok);
    assert_eq!((world.picture().as_str(), world.phase()), ("AS", "serving"));
}

#[test]
fn one_that_was_fenced_is_not_believed_to_be_back() {
    let mut world = world(fenced(), &[0, 0]);
    world
        .probe(0, Class::Refused)
        .wait(s(10))
        .probe(0, Class::Ok)
        .fence(Ok(()));
    assert_eq!(world.picture(), "SA");
    // Unless it is the only one left.
    world.probe(1, Class::Refused).wait(s(10));
    world.probe(0, Class::Refused).fence(Ok(()));
    assert_eq!((world.picture().as_str(), world.phase()), ("OO", "fenced"));
    world.probe(1, Class::Ok);
    assert_eq!((world.picture().as_str(), world.phase()), ("OA", "serving"));
}

#[test]
fn an_answer_to_another_fence_counts_for_nothing() {
    let mut world = world(fenced(), &[0, 0]);
    world
        .probe(0, Class::Refused)
        .wait(s(10))
        .fence(Err("exit status 1"));
    // The old answer is still there when the next attempt begins.
    world.wait(s(1)).wait(s(1));
    assert_eq!((world.picture().as_str(), world.phase()), ("OS", "fencing"));
}

#[test]
fn the_operator_disables_drains_and_promotes() {
    let mut world = world(RULES, &[0, 0, 0]);
    world.admin(0, Admin::Disabled);
    assert_eq!(
        (world.picture().as_str(), world.phase()),
        ("OSS", "fencing")
    );
    world.fence(Ok(()));
    assert_eq!(world.picture(), "OAS");
    world.admin(0, Admin::Enabled);
    assert_eq!(world.picture(), "SAS");
    // A drain ends before another begins to serve.
    let until = world.now + s(30);
    world.admin(1, Admin::Drain { until });
    assert_eq!(world.picture(), "SDS");
    world.wait(s(29));
    assert_eq!(
        (world.picture().as_str(), world.phase()),
        ("SDS", "serving")
    );
    world.wait(s(1)).fence(Ok(()));
    assert_eq!(world.picture(), "AOS");
    world.promote(2);
    assert_eq!(
        (world.picture().as_str(), world.phase()),
        ("OOS", "fencing")
    );
    world.fence(Ok(()));
    assert_eq!(world.picture(), "SOA");
    // Whoever cannot serve is not promoted.
    world.promote(1);
    assert_eq!(world.picture(), "SOA");
    // Nor is one that dies meanwhile.
    world.promote(0).probe(0, Class::Refused).fence(Ok(()));
    assert_eq!(
        world.picture(),
        "OOA",
        "the old one goes on when it is the only one"
    );
}

#[test]
fn one_that_leaves_the_configuration_hands_over_and_a_new_name_is_no_handover() {
    let mut world = world(RULES, &[0, 0, 0]);
    world.service.backends[0].name = "zero".into();
    world.decide();
    assert_eq!(
        (&*world.primary().backend, world.phase()),
        ("zero", "serving")
    );
    world.service.backends.remove(0);
    world.decide();
    assert_eq!(world.phase(), "fencing");
    let routing = |world: &World| {
        let backends = &world.state.services["web"].backends;
        let names = backends.values().map(|decision| decision.routing.name());
        names.collect::<Vec<_>>()
    };
    assert_eq!(routing(&world), ["standby", "standby"]);
    world.fence(Ok(()));
    assert_eq!(&*world.primary().backend, "b1");
    assert_eq!(routing(&world), ["active", "standby"]);
}

#[test]
fn a_new_agent_keeps_whom_it_finds_and_promotes_nobody_for_what_it_remembers() {
    let mut world = world(RULES, &[0, 0, 0]);
    world.state = RoutingState::default();
    let known = Known {
        backend: "b1".into(),
        address: world.service.backends[1].address,
        reason: "as before".to_owned(),
    };
    world.orders.known.insert("web".into(), known);
    let restored = |n: usize, health| {
        let restored = crate::health::Restored {
            health,
            gone: health == Health::Unhealthy,
            reason: "remembered".to_owned(),
            address: world.service.backends[n].address,
            past: Default::default(),
            checks: Default::default(),
        };
        (key(n), restored)
    };
    let restored = BTreeMap::from([
        restored(0, Health::Healthy),
        restored(1, Health::Unhealthy),
        restored(2, Health::Healthy),
    ]);
    world.engine = Engine::new(1);
    let service = std::slice::from_ref(&world.service);
    world.engine.configure(service, &restored, world.now);
    world.decide().wait(s(10_000));
    assert_eq!(
        (world.picture().as_str(), world.phase()),
        ("SOS", "serving")
    );
    assert_eq!(world.primary().reason, "as before");
    // Only what it sees itself counts, and from when it sees it.
    world.probe(1, Class::Refused).wait(s(9));
    assert_eq!(world.phase(), "failing");
    world.wait(s(1)).fence(Ok(()));
    assert_eq!(world.picture(), "AOS");
}

#[test]
fn the_active_one_waits_for_its_first_verdict_while_others_have_theirs() {
    let mut world = World::new(0, &[(100, 0), (100, 0)]);
    world.service.mode = Mode::ActivePassive(RULES);
    world.state = RoutingState::default();
    world.decide().probe(1, Class::Ok).wait(s(3600));
    assert_eq!((world.picture().as_str(), world.phase()), ("OS", "serving"));
    world.probe(0, Class::Ok);
    assert_eq!(world.picture(), "AS");
}

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Probe(usize, Class),
    Admin(usize, u8),
    Promote(usize),
    Fence(bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let class = proptest::sample::select(vec![
        Class::Ok,
        Class::Ok,
        Class::Refused,
        Class::Status,
        Class::Internal,
    ]);
    prop_oneof![
        4 => (0..3usize, class).prop_map(|(n, class)| Step::Probe(n, class)),
        1 => (0..3usize, 0..3u8).prop_map(|(n, word)| Step::Admin(n, word)),
        1 => (0..3usize).prop_map(Step::Promote),
        3 => any::<bool>().prop_map(Step::Fence),
        2 => (1..40u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// At no time do two backends get packets; between one and another there is a time in which
    /// none does, and it ends only with a fence that succeeded.
    #[test]
    fn never_two_at_a_time(
        steps in proptest::collection::vec(step(), 1..60),
        failback: bool,
        tiers in proptest::collection::vec(0..3u8, 3),
    ) {
        let mut world = world(ActivePassive { failback, ..fenced() }, &tiers);
        let mut active = world.primary().backend.clone();
        for step in steps {
            let before = world.primary().clone();
            let mut succeeded = false;
            match step {
                Step::Probe(n, class) => { world.probe(n, class); }
                Step::Admin(n, 0) => { world.admin(n, Admin::Enabled); }
                Step::Admin(n, 1) => { world.admin(n, Admin::Disabled); }
                Step::Admin(n, _) => {
                    let until = world.now + s(15);
                    world.admin(n, Admin::Drain { until });
                }
                Step::Promote(n) => { world.promote(n); }
                Step::Fence(ok) => if matches!(before.phase, Phase::Fencing { .. }) {
                    succeeded = ok;
                    world.fence(if ok { Ok(()) } else { Err("exit status 1") });
                },
                Step::Wait(seconds) => {
                    // As the agent does: a decision at each deadline.
                    let end = world.now + s(seconds);
                    while let Some(next) = world.next.filter(|next| *next <= end) {
                        let time = next - world.now;
                        world.wait(time);
                    }
                    let time = end - world.now;
                    world.wait(time);
                }
            }
            let served = world.served();
            prop_assert!(served.len() <= 1, "{served:?}");
            let primary = world.primary();
            for n in served {
                prop_assert_eq!(&world.service.backends[n].name, &primary.backend);
                prop_assert!(primary.phase.handover().is_none());
            }
            if primary.backend != active {
                let was_cut = matches!(before.phase, Phase::Fencing { .. } | Phase::Fenced { .. });
                prop_assert!(was_cut, "from {before:?} to {primary:?}");
                let fenced = succeeded || matches!(before.phase, Phase::Fenced { .. });
                prop_assert!(fenced);
                active = primary.backend.clone();
            }
        }
    }
}
