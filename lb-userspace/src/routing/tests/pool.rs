//! How much of the pool takes traffic: limits of ejections, tiers that stay, backends that are not
//! decided yet.

use super::*;
use crate::health::passive::Kind;
use crate::model::{Assume, PanicAction};

/// Healthy backends of one tier, of which so many percent may be out. No panic.
fn floored(percent: u8, backends: usize) -> World {
    let mut world = World::healthy(0, &vec![(100, 0); backends]);
    world.service.pool.max_ejection_percent = percent;
    world
}

fn cause(world: &World, n: usize) -> Cause {
    world.state.get(&key(n)).unwrap().cause
}

#[test]
fn one_too_many_is_refused_until_there_is_a_place() {
    let mut world = floored(50, 5);
    world.probe(0, Class::Refused).probe(1, Class::Status);
    assert_eq!(world.picture(), "ODAAA");
    world.wait(s(1)).probe(2, Class::Refused);
    world.wait(s(1)).probe(3, Class::Status);
    // Kept, but not healthy.
    assert_eq!(world.picture(), "ODAAA");
    assert_eq!(cause(&world, 2), Cause::EjectionRefused);
    assert_eq!(world.state.services["web"].healthy_percent, 20.0);
    assert_eq!(
        world.state.get(&key(2)).unwrap().reason,
        "not ejected, since as many as may be are out (max_ejection_percent): 1 failure: refused"
    );
    use EventKind::{Ejected, EjectionRefused, Readmitted};
    let of = |n: &str, kind| (Some(n.to_owned()), kind);
    assert_eq!(
        world.events[2..],
        [of("b2", EjectionRefused), of("b3", EjectionRefused)]
    );
    world.events.clear();
    // One recovers: who has been unhealthy for longest takes its place.
    assert_eq!(world.probe(1, Class::Ok).picture(), "OAOAA");
    assert_eq!(world.events, [of("b1", Readmitted), of("b2", Ejected)]);
    world.events.clear();
    // Another does, that was never out.
    assert_eq!(world.probe(3, Class::Ok).picture(), "OAOAA");
    assert_eq!(world.events, [of("b3", Readmitted)]);
    assert_eq!(cause(&world, 3), Cause::Healthy);
    // A draining one has its drain, whenever it gets its place.
    world
        .probe(3, Class::Status)
        .wait(s(20))
        .probe(0, Class::Ok);
    assert_eq!(
        world.routing(3),
        Routing::Draining {
            until: world.now + s(30)
        }
    );
}

#[test]
fn one_may_always_be_ejected() {
    for (percent, backends) in [(0, 2), (0, 10), (10, 3), (49, 2), (100, 1)] {
        let mut world = floored(percent, backends);
        world.probe(0, Class::Refused);
        assert_eq!(world.routing(0), Routing::Out, "{percent} % of {backends}");
        if backends > 1 {
            world.probe(1, Class::Refused);
            assert_eq!(cause(&world, 1), Cause::EjectionRefused);
        }
    }
}

#[test]
fn who_never_came_in_is_kept_out_and_has_a_place() {
    let mut world = World::new(0, &[(100, 0); 4]);
    world.service.pool.max_ejection_percent = 50;
    for n in 0..3 {
        world.probe(n, Class::Refused);
    }
    world.probe(3, Class::Ok);
    assert_eq!(world.picture(), "OOOA");
    world.probe(3, Class::Refused);
    assert_eq!(world.picture(), "OOOA");
    assert_eq!(cause(&world, 3), Cause::EjectionRefused);
}

#[test]
fn packets_and_probes_share_the_places() {
    let mut world = floored(50, 4);
    world.probe(0, Class::Refused);
    for n in 1..3 {
        let doubt = Doubt {
            kind: Kind::Refused,
            since: s(100),
            gone: true,
            reason: "passive: refused".to_owned(),
            until: s(999),
        };
        world.passive.insert(key(n), doubt);
    }
    world.decide();
    assert_eq!(world.picture(), "OOAA");
    assert_eq!(cause(&world, 2), Cause::EjectionRefused);
    world.passive.remove(&key(1));
    assert_eq!(world.decide().picture(), "OAOA");
}

/// Panic says who gets traffic, and leaves those out that were.
#[test]
fn in_panic_there_are_no_places() {
    let mut world = World::healthy(50, &[(100, 0); 4]);
    world.service.pool.max_ejection_percent = 25;
    world.probe(0, Class::Timeout).probe(1, Class::Timeout);
    assert_eq!((world.picture().as_str(), world.panic()), ("OAAA", false));
    world.probe(2, Class::Timeout);
    assert_eq!((world.picture().as_str(), world.panic()), ("PPPA", true));
    // Out of it: the one that has been unhealthy for longest is out.
    world.probe(2, Class::Ok).probe(1, Class::Ok);
    assert_eq!((world.picture().as_str(), world.panic()), ("OAAA", false));
    world.service.panic.action = PanicAction::Fail;
    world.probe(1, Class::Refused).probe(2, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("OOOS", true));
    world.probe(1, Class::Ok);
    world.wait(s(5));
    assert_eq!((world.picture().as_str(), world.panic()), ("OAOA", false));
}

/// The next agent ejects nobody in the place of one that is out.
#[test]
fn another_agent_goes_on_with_the_same_ones() {
    let mut world = floored(34, 3);
    world
        .probe(2, Class::Refused)
        .wait(s(1))
        .probe(0, Class::Refused);
    assert_eq!(world.picture(), "AAO");
    world.state = RoutingState::default();
    world.orders.served = [key(0), key(1)].into();
    world.events.clear();
    assert_eq!(world.decide().picture(), "AAO");
    assert_eq!(world.events, []);
}

#[test]
fn fewer_places_bring_nobody_back() {
    let mut world = floored(50, 4);
    world.probe(0, Class::Refused).probe(1, Class::Refused);
    world.service.pool.max_ejection_percent = 25;
    assert_eq!(world.decide().picture(), "OOAA");
    assert_eq!(world.probe(2, Class::Refused).picture(), "OOAA");
    assert_eq!(world.probe(1, Class::Ok).picture(), "OAAA");
}

#[test]
fn overprovisioning_says_when_the_next_tier_joins() {
    let mut world = World::healthy(0, &[(100, 0), (100, 0), (100, 0), (100, 0), (100, 1)]);
    world.service.pool.overprovisioning = 100;
    assert_eq!(world.decide().picture(), "AAAAS");
    assert_eq!(world.probe(0, Class::Refused).picture(), "OAAAA");
    world.service.pool.overprovisioning = 200;
    assert_eq!(world.decide().picture(), "OAAAS");
    assert_eq!(world.probe(1, Class::Refused).picture(), "OOAAS");
    assert_eq!(world.probe(2, Class::Refused).picture(), "OOOAA");
}

#[test]
fn a_higher_tier_stays_a_while() {
    let mut world = World::healthy(0, &[(100, 0), (100, 1), (100, 2)]);
    world.service.pool.failback_after = s(60);
    // From the start only the lowest serves, though its tier was not the first to be decided.
    assert_eq!(world.decide().picture(), "ASS");
    world.wait(s(100)).probe(0, Class::Refused);
    assert_eq!(world.picture(), "OAS");
    world.wait(s(10)).probe(0, Class::Ok);
    assert_eq!(world.picture(), "AAS");
    let until = world.now + s(60);
    assert_eq!(world.next, Some(until));
    // It falls again: the time begins anew.
    world.wait(s(50)).probe(0, Class::Refused);
    assert_eq!((world.picture().as_str(), world.next), ("OAS", None));
    world.wait(s(1)).probe(0, Class::Ok);
    assert_eq!(world.wait(s(59)).picture(), "AAS");
    assert_eq!(world.wait(s(1)).picture(), "ASS");
    assert_eq!(world.next, None);
    // What stays longer in a higher one stays in those between.
    world.probe(0, Class::Refused).probe(1, Class::Refused);
    assert_eq!(world.picture(), "OOA");
    assert_eq!(
        world.probe(0, Class::Ok).probe(1, Class::Ok).picture(),
        "AAA"
    );
    assert_eq!(world.wait(s(60)).picture(), "ASS");
}

fn assuming(assume: Assume, backends: &[(u32, u8)]) -> World {
    let mut world = World::new(50, backends);
    world.service.health[0].assume = assume;
    let services = std::slice::from_ref(&world.service);
    world.engine = Engine::new(1);
    (world.engine).configure(services, &BTreeMap::new(), world.now);
    world.state = RoutingState::default();
    world.events.clear();
    world.decide();
    world
}

#[test]
fn assumed_to_be_up_it_serves_until_its_first_verdict() {
    let mut world = assuming(Assume::Up, &[(100, 0), (100, 0), (100, 1)]);
    assert_eq!(world.picture(), "AAS");
    assert_eq!(cause(&world, 0), Cause::Assumed);
    // It counts in no percentage.
    assert_eq!(world.state.services["web"].healthy_percent, 0.0);
    assert!(!world.panic());
    // One outcome decides, either way.
    assert_eq!(world.probe(1, Class::Ok).picture(), "AAS");
    assert_eq!(world.probe(0, Class::Refused).picture(), "OAA");
    assert!(
        world
            .events
            .contains(&(Some("b0".into()), EventKind::Ejected))
    );
    // The operator goes before.
    world.admin(2, Admin::Disabled);
    assert_eq!(world.picture(), "OAO");
    for assume in [Assume::Down, Assume::Restore] {
        assert_eq!(assuming(assume, &[(100, 0); 2]).picture(), "OO");
    }
}

/// Not only where nothing is decided: also where all that is decided is bad.
#[test]
fn without_anybody_healthy_the_undecided_get_traffic() {
    let mut world = World::new(0, &[(100, 0); 3]);
    world.service.pool.fail_open_after = Some(s(20));
    world.decide();
    assert_eq!(world.next, Some(s(120)));
    world.wait(s(10)).probe(0, Class::Refused);
    assert_eq!(world.picture(), "OOO");
    assert_eq!(world.wait(s(10)).picture(), "OAA");
    assert_eq!(cause(&world, 1), Cause::FailOpen);
    assert_eq!(world.probe(1, Class::Ok).picture(), "OAA");
    // A time that somebody was healthy in does not count.
    let mut world = World::new(0, &[(100, 0); 2]);
    world.probe(0, Class::Ok).wait(s(100));
    assert_eq!(world.picture(), "AO");
    world.probe(0, Class::Refused);
    assert_eq!((world.picture().as_str(), world.next), ("OO", Some(s(207))));
    assert_eq!(world.wait(s(7)).picture(), "OA");
    // In panic that is to drop new flows none are opened.
    let mut world = World::new(50, &[(100, 0); 2]);
    world.service.panic.action = PanicAction::Fail;
    assert_eq!(world.probe(0, Class::Refused).wait(s(10)).picture(), "OO");
    assert!(world.panic());
}

/// Out because of its verdict.
fn is_out(world: &World, n: usize) -> bool {
    let enabled = world
        .admin
        .get(&key(n))
        .is_none_or(|a| *a == Admin::Enabled);
    let unhealthy = world.engine.get(&key(n)).unwrap().health == Health::Unhealthy;
    let routing = world.routing(n);
    enabled && unhealthy && !routing.takes_new_flows() && routing != Routing::Standby
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn never_more_are_ejected_than_may_be_but_one_always(
        percent in 0u8..=100,
        threshold in prop_oneof![Just(0u8), Just(50)],
        failback in prop_oneof![Just(0u64), 1u64..40],
        backends in prop::collection::vec((1u32..4, 0u8..2), 6),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut world = World::new(threshold, &backends);
        world.service.pool.max_ejection_percent = percent;
        world.service.pool.failback_after = s(failback);
        world.decide();
        let mut refused = [false; 6];
        for op in &ops {
            let before = world.state.clone();
            world.events.clear();
            op.happen(&mut world);
            let counted = (0..6).filter(|n| {
                let enabled = world.admin.get(&key(*n)).is_none_or(|a| *a == Admin::Enabled);
                enabled && world.engine.get(&key(*n)).unwrap().health != Health::Unknown
            });
            let places = (counted.count() * usize::from(percent) / 100).max(1);
            let out = (0..6).filter(|n| is_out(&world, *n)).count();
            for (n, was_refused) in refused.iter_mut().enumerate() {
                let served = matches!(
                    before.get(&key(n)).unwrap().routing,
                    Routing::Active | Routing::Standby | Routing::Panic
                );
                let ejected = served && is_out(&world, n);
                prop_assert!(!ejected || out <= places || world.panic(), "{out} of {places}");
                let is_refused = cause(&world, n) == Cause::EjectionRefused;
                // Refused only for want of a place: so one always may be, and who recovers makes room.
                prop_assert!(!is_refused || out >= places, "{out} of {places}");
                prop_assert!(!is_refused || !world.panic());
                let told = world.events.contains(&(Some(format!("b{n}")), EventKind::EjectionRefused));
                prop_assert_eq!(told, is_refused && !*was_refused);
                *was_refused = is_refused;
                if is_refused {
                    let tier = world.service.backends[n].tier;
                    let needed = world.state.services["web"].tiers.contains(&tier);
                    prop_assert_eq!(world.routing(n) == Routing::Active, needed);
                }
            }
        }
    }
}
