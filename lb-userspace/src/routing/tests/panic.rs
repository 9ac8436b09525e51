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
