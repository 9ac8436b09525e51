//! Backends that are good for less than their weight.

use super::*;
use crate::health::agent::parse;

fn shares(world: &World) -> Vec<u8> {
    let backends = 0..world.service.backends.len();
    backends
        .map(|n| world.state.get(&key(n)).unwrap().share)
        .collect()
}

#[test]
fn a_degraded_backend_gets_half_until_it_is_well() {
    let mut world = World::healthy(50, &[(100, 0); 3]);
    assert_eq!(shares(&world), [100; 3]);
    world.probe(1, Class::Degraded);
    assert_eq!(
        (world.picture().as_str(), shares(&world)),
        ("AAA", vec![100, 50, 100])
    );
    let reason = &world.state.get(&key(1)).unwrap().reason;
    assert_eq!(reason, "first probe: ok; weight 50 %: degraded");
    // It counts as healthy.
    assert_eq!(world.state.services["web"].healthy_percent, 100.0);
    world.probe(1, Class::Ok);
    assert_eq!(shares(&world), [100; 3]);
    assert_eq!(world.events, [], "its routing is what it was");
}

#[test]
fn shares_are_relative() {
    let mut world = World::healthy(0, &[(100, 0); 2]);
    world.probe(0, Class::Degraded).probe(1, Class::Degraded);
    assert_eq!(shares(&world), [100, 100], "all alike: nobody is spared");
    world.probe(1, Class::Ok);
    assert_eq!(shares(&world), [50, 100]);
    world.probe(1, Class::Refused);
    assert_eq!((world.picture().as_str(), shares(&world)[0]), ("AO", 100));
    // Who gets nothing by configuration relieves nobody.
    let mut world = World::healthy(0, &[(100, 0), (0, 0)]);
    assert_eq!(shares(world.probe(0, Class::Degraded)), [100, 100]);
}

#[test]
fn panic_leaves_the_weights_of_the_healthy() {
    let mut world = World::healthy(60, &[(100, 0); 3]);
    world.probe(0, Class::Degraded).probe(1, Class::Timeout);
    assert_eq!(
        (world.picture().as_str(), shares(&world)),
        ("AOA", vec![50, 100, 100])
    );
    world.probe(2, Class::Timeout);
    assert_eq!(
        (world.picture().as_str(), shares(&world)),
        ("APP", vec![50, 100, 100])
    );
}

/// An agent's percents go in steps, and never to nothing but by its word.
#[test]
fn an_agents_weight_goes_in_steps() {
    let mut world = World::healthy(0, &[(100, 0); 2]);
    let mut say = |line: &str| {
        let said = Outcome {
            detail: line.to_owned(),
            agent: Some(parse(line.as_bytes()).unwrap()),
            ..Outcome::of(Class::Ok)
        };
        let now = world.now;
        world.engine.observe(&key(0), 0, &said, now);
        world.decide();
        (world.picture(), shares(&world)[0])
    };
    let active = |share| ("AA".to_owned(), share);
    assert_eq!(say("75%"), active(75));
    assert_eq!(say("74%"), active(70));
    assert_eq!(say("1%"), active(5));
    assert_eq!(say("1000%"), active(100));
    assert_eq!(say("0%").0, "DA");
    assert_eq!(say("33%"), active(30));
}

/// A slow start and a lower weight multiply.
#[test]
fn a_degraded_backend_is_eased_in_too() {
    let mut world = World::healthy(0, &[(100, 0); 2]);
    world.service.slow_start.window = s(100);
    world
        .probe(0, Class::Refused)
        .wait(s(7))
        .probe(0, Class::Ok);
    world.wait(s(50));
    assert_eq!(shares(&world), [50, 100]);
    world.probe(0, Class::Degraded);
    assert_eq!(shares(&world), [25, 100]);
    world.wait(s(60));
    assert_eq!(shares(&world), [50, 100]);
}
