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
fn a_closed_port_gets_nothing_in_panic() {
    let mut world = world(PanicRules::default(), 50, 3);
    world.probe(0, Class::Refused).probe(1, Class::Status);
    assert_eq!((world.picture().as_str(), world.panic()), ("OPA", true));
    let closed = world.state.get(&key(0)).unwrap();
    let reason = "not even in panic, since its port refuses connections: 1 failure: refused";
    assert_eq!((closed.cause, &*closed.reason), (Cause::Refused, reason));
    // It is what the last probe found that counts.
    world.probe(0, Class::Timeout);
    assert_eq!(world.picture(), "PPA");
    world.probe(0, Class::Refused).probe(0, Class::Internal);
    assert_eq!(world.picture(), "OPA");
    // Unless that is not asked for.
    world.service.panic.exclude_refused = false;
    assert_eq!(world.decide().picture(), "PPA");
}

/// That nobody is there, clients learn sooner from a backend than from silence.
#[test]
fn where_all_ports_are_closed_panic_makes_no_difference() {
    let mut world = world(PanicRules::default(), 50, 3);
    world.probe(0, Class::Refused).probe(1, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("OOA", true));
    world.probe(2, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("PPP", true));
    let reason = "panic, and all refuse connections: 1 failure: refused";
    assert_eq!(world.state.get(&key(0)).unwrap().reason, reason);
    // The first that does not refuse any more is preferred, healthy or not.
    assert_eq!(world.probe(1, Class::Timeout).picture(), "OPO");
    // Nobody is who could not have traffic anyway.
    world.admin(1, Admin::Disabled);
    assert_eq!(world.picture(), "POP");
    world.admin(1, Admin::Enabled);
    world.service.backends[1].weight = 0;
    assert_eq!(world.decide().picture(), "PPP");
    world.service.backends[1].weight = 100;
    assert_eq!(world.probe(1, Class::Ok).picture(), "OAO");
}

#[test]
fn where_all_ports_are_closed_the_action_stands() {
    let rules = |action| PanicRules {
        action,
        ..PanicRules::default()
    };
    let mut world = world(rules(PanicAction::Fail), 50, 2);
    world.probe(0, Class::Refused).probe(1, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("OO", true));
    // A fallback that serves has everything; one that refuses is as any other.
    let mut world = World::healthy(50, &[(100, 0), (100, 0), (100, 0)]);
    world.service.panic = rules(PanicAction::Fallback);
    world.service.backends[2].fallback = true;
    world.probe(0, Class::Refused).probe(1, Class::Refused);
    assert_eq!((world.picture().as_str(), world.panic()), ("OOA", true));
    assert_eq!(world.probe(2, Class::Refused).picture(), "PPP");
    assert_eq!(world.probe(2, Class::Timeout).picture(), "OOP");
}

#[test]
fn only_what_is_known_of_the_ports_of_flows_closes_them() {
    // A probe of another port says nothing of it, and neither does one of another protocol.
    for change in [
        |service: &mut Service| {
            for backend in &mut service.backends {
                Arc::make_mut(&mut backend.probes[0]).target.set_port(9999);
            }
        },
        |service: &mut Service| service.protocol = Protocol::Udp,
    ] {
        let mut world = World::new(50, &[(100, 0); 3]);
        change(&mut world.service);
        let services = std::slice::from_ref(&world.service);
        (world.engine).configure(services, &BTreeMap::new(), world.now);
        for class in [Class::Refused, Class::Refused, Class::Ok]
            .iter()
            .enumerate()
        {
            world.probe(class.0, *class.1);
        }
        assert_eq!((world.picture().as_str(), world.panic()), ("PPA", true));
        // The packets do, of whatever kind the probe is.
        let doubt = |kind, since| Doubt {
            kind,
            since,
            gone: true,
            reason: String::new(),
            until: world.now + s(30),
        };
        let (now, silent) = (world.now, doubt(Kind::Silent, world.now));
        let refused = doubt(Kind::Refused, now);
        world.passive = BTreeMap::from([(key(0), refused), (key(1), silent)]);
        assert_eq!(world.decide().picture(), "OPA");
    }
    // By way of the VIP it is the port of the flows.
    let mut world = World::new(50, &[(100, 0); 2]);
    for backend in &mut world.service.backends {
        let probe = Arc::make_mut(&mut backend.probes[0]);
        probe.target = "203.0.113.10:80".parse().unwrap();
        probe.egress.via = Some(crate::model::Via {
            backend: backend.address.ip(),
            forwarding: Forwarding::Dsr,
        });
    }
    let services = std::slice::from_ref(&world.service);
    (world.engine).configure(services, &BTreeMap::new(), world.now);
    world.probe(0, Class::Refused).probe(1, Class::Status);
    assert_eq!((world.picture().as_str(), world.panic()), ("OP", true));
}

/// What was seen of a port last is what counts.
#[test]
fn a_probe_of_the_port_is_newer_than_its_refusals() {
    let mut world = world(PanicRules::default(), 50, 3);
    world.probe(1, Class::Status);
    let refused = Doubt {
        kind: Kind::Refused,
        since: world.now,
        gone: true,
        reason: "3 refused".to_owned(),
        until: world.now + s(30),
    };
    world.passive.insert(key(0), refused);
    assert_eq!(
        (world.decide().picture().as_str(), world.panic()),
        ("OPA", true)
    );
    world.wait(s(5)).probe(0, Class::Ok);
    assert_eq!((world.picture().as_str(), world.panic()), ("PPA", true));
    assert_eq!(world.probe(0, Class::Refused).picture(), "OPA");
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
    world.probe(0, Class::Drain).probe(1, Class::Timeout);
    assert_eq!((world.picture().as_str(), world.panic()), ("DOOA", false));
    world.probe(3, Class::Timeout);
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
