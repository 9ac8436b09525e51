//! When there is panic, and who gets the new flows then.

use super::*;
use crate::model::PanicAction;

fn world(rules: PanicRules, percent: u8, backends: usize) -> World {
    let mut world = World::healthy(percent, &vec![(100, 0); backends]);
    world.service.panic = rules;
    world.decide();
    world.events.clear();
    world
}

#[test]
fn fewer_than_a_number_are_panic_whatever_their_weight() {
    let rules = PanicRules {
        min_healthy: 2,
        ..PanicRules::default()
    };
    let mut world = World::healthy(0, &[(1000, 0), (1, 0), (1, 0), (1, 0)]);
    world.service.panic = rules;
    world.probe(1, Class::Status).probe(2, Class::Status);
    assert_eq!((world.picture().as_str(), world.panic()), ("ADDA", false));
    world.probe(3, Class::Status);
    assert_eq!((world.picture().as_str(), world.panic()), ("APPP", true));
    // Two are enough after an interval of it, three at once.
    world.probe(1, Class::Ok).wait(s(4));
    assert_eq!((world.picture().as_str(), world.panic()), ("AAPP", true));
    world.wait(s(1));
    assert_eq!((world.picture().as_str(), world.panic()), ("AADD", false));
    world.probe(1, Class::Status);
    assert!(world.panic());
    world.probe(1, Class::Ok).probe(2, Class::Ok);
    assert_eq!((world.picture().as_str(), world.panic()), ("AAAD", false));
}

#[test]
fn either_the_percent_or_the_number_suffices_and_both_must_recover() {
    let rules = PanicRules {
        min_healthy: 3,
        ..PanicRules::default()
    };
    let mut world = world(rules, 50, 4);
    world.probe(0, Class::Status);
    assert!(!world.panic());
    world.probe(1, Class::Status);
    assert!(world.panic(), "half is enough, two are not");
    world.probe(0, Class::Ok).wait(s(5));
    assert!(!world.panic());
    // A number that cannot be reached is always panic, but never without a failure to ignore.
    world.service.panic.min_healthy = 9;
    world.wait(s(100));
    assert!(world.panic());
}

#[test]
fn with_fail_nobody_gets_new_flows_and_established_ones_go_on() {
    let rules = PanicRules {
        action: PanicAction::Fail,
        ..PanicRules::default()
    };
    let mut world = world(rules, 50, 3);
    world.probe(0, Class::Status).probe(1, Class::Timeout);
    assert_eq!((world.picture().as_str(), world.panic()), ("DOS", true));
    assert_eq!(
        world.state.get(&key(2)).unwrap().reason,
        "panic, too few are healthy, new flows are dropped: first probe: ok"
    );
    world.probe(0, Class::Ok);
    assert_eq!((world.picture().as_str(), world.panic()), ("AOA", false));
}

#[test]
fn the_fallback_serves_in_panic_only_and_counts_nowhere() {
    let rules = PanicRules {
        action: PanicAction::Fallback,
        ..PanicRules::default()
    };
    let mut world = World::healthy(50, &[(100, 0), (100, 0), (100, 0), (100, 1)]);
    world.service.panic = rules;
    world.service.backends[3].fallback = true;
    world.decide();
    assert_eq!((world.picture().as_str(), world.panic()), ("AAAS", false));
    world.probe(0, Class::Timeout).probe(1, Class::Status);
    assert_eq!((world.picture().as_str(), world.panic()), ("ODSA", true));
    assert_eq!(world.state.services["web"].healthy_percent, 100.0 / 3.0);
    // Without a fallback that can serve, health is ignored.
    world.probe(3, Class::Timeout);
    assert_eq!((world.picture().as_str(), world.panic()), ("PPAP", true));
    world.probe(3, Class::Ok).admin(3, Admin::Disabled);
    assert_eq!((world.picture().as_str(), world.panic()), ("PPAO", true));
    world.admin(3, Admin::Enabled).probe(0, Class::Ok);
    assert_eq!((world.picture().as_str(), world.panic()), ("ADAS", false));
}

#[test]
fn a_closed_port_gets_nothing_in_panic_if_asked_for() {
    let rules = PanicRules {
        exclude_refused: true,
        ..PanicRules::default()
    };
    let mut world = world(rules, 50, 3);
    world.probe(0, Class::Refused).probe(1, Class::Status);
    assert_eq!((world.picture().as_str(), world.panic()), ("OPA", true));
    // It is what the last probe found that counts.
    world.probe(0, Class::Timeout);
    assert_eq!(world.picture(), "PPA");
    world.probe(0, Class::Refused).probe(0, Class::Internal);
    assert_eq!(world.picture(), "OPA");
    // Another port than that of the traffic says nothing of it.
    let probe = Arc::make_mut(&mut world.service.backends[0].probes[0]);
    probe.target.set_port(9999);
    world.decide();
    assert_eq!(world.picture(), "PPA");
}

/// A drain by a backend's own word is a plan and no failure.
#[test]
fn backends_that_ask_to_be_drained_are_no_reason_to_panic() {
    let mut world = World::healthy(50, &[(100, 0); 4]);
    for n in 0..3 {
        world.probe(n, Class::Drain);
    }
    assert_eq!((world.picture().as_str(), world.panic()), ("DDDA", false));
    assert_eq!(world.state.services["web"].healthy_percent, 100.0);
    let first = world.state.get(&key(0)).unwrap();
    assert_eq!(
        (first.cause, &*first.reason),
        (Cause::Leaving, "by its own word: drain")
    );
    let draining: Vec<_> = (world.events.drain(..)).map(|(_, kind)| kind).collect();
    assert_eq!(draining, [EventKind::Draining; 3]);
    // It ends as any drain does, or by its word.
    world.probe(1, Class::Ok);
    assert_eq!(world.picture(), "DADA");
    world.wait(s(30));
    assert_eq!(world.picture(), "OAOA");
    assert_eq!(world.probe(0, Class::Ok).picture(), "AAOA");
    // Those left are what counts, and in panic everybody serves.
    world.probe(0, Class::Drain).probe(1, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("DOOA", false));
    world.probe(3, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("PPPP", true));
}

#[test]
fn that_all_ask_to_be_drained_is_a_failure() {
    let mut world = World::healthy(50, &[(100, 0); 2]);
    world.probe(0, Class::Drain);
    assert_eq!((world.picture().as_str(), world.panic()), ("DA", false));
    world.probe(1, Class::Drain);
    assert_eq!((world.picture().as_str(), world.panic()), ("PP", true));
    // Without panic their word is taken.
    world.service.panic_threshold = 0;
    world.wait(s(0));
    assert_eq!((world.picture().as_str(), world.panic()), ("DD", false));
    // A higher tier takes over from one that leaves.
    let mut world = World::healthy(50, &[(100, 0), (100, 1)]);
    assert_eq!(world.picture(), "AS");
    assert_eq!(world.probe(0, Class::Drain).picture(), "DA");
}
