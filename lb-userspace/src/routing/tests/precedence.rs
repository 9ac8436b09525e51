//! Who is heard before whom: the operator, the probes, the packets.

use super::*;
use crate::health::passive::Kind;

#[test]
fn what_the_packets_say_ejects_too() {
    let mut world = World::healthy(50, &[(100, 0), (100, 0), (100, 0)]);
    let doubt = |gone| Doubt {
        kind: Kind::Refused,
        since: s(0),
        gone,
        reason: "passive: refused".to_owned(),
        until: s(999),
    };
    world.passive.insert(key(0), doubt(true));
    world.passive.insert(key(1), doubt(false));
    world.admin(2, Admin::Enabled);
    let decision = |world: &World, n| world.state.get(&key(n)).unwrap().clone();
    // One of three is left: panic.
    assert_eq!(decision(&world, 0).routing, Routing::Panic);
    world.service.panic_threshold = 0;
    world.decide();
    assert_eq!(decision(&world, 0).routing, Routing::Out);
    assert_eq!(decision(&world, 0).cause, Cause::Gone);
    assert!(decision(&world, 0).reason.contains("passive: refused"));
    assert!(matches!(
        decision(&world, 1).routing,
        Routing::Draining { .. }
    ));
    assert_eq!(decision(&world, 2).routing, Routing::Active);
    // The operator goes before, and so do the probes.
    world.admin(0, Admin::Disabled);
    assert_eq!(decision(&world, 0).cause, Cause::Disabled);
    world.probe(1, Class::Refused);
    assert!(decision(&world, 1).reason.contains("refused"));
    world.passive.clear();
    world.admin(0, Admin::Enabled);
    assert_eq!(decision(&world, 0).routing, Routing::Active);
    assert_eq!(decision(&world, 1).cause, Cause::Gone);
}

#[test]
fn who_was_taken_back_by_the_operator_is_told_so() {
    let mut world = World::healthy(50, &[(1, 0), (1, 0)]);
    for word in [Admin::Disabled, Admin::Drain { until: s(1_000) }] {
        world.admin(0, word);
        world.reasons.clear();
        world.admin(0, Admin::Enabled);
        assert_eq!(world.reasons, ["enabled by the operator; first probe: ok"]);
        assert_eq!(world.state.get(&key(0)).unwrap().reason, "first probe: ok");
    }
}
