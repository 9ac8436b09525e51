//! Paused probes, and a health that the operator has set.

use super::*;
use crate::model::Assume;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn paused(keys: &[usize]) -> BTreeSet<BackendKey> {
    keys.iter().map(|n| key(*n)).collect()
}

/// All backends of a service, each probed well once.
fn healthy(service: &Service) -> Engine {
    let mut engine = engine(std::slice::from_ref(service));
    for start in engine.start_due(s(1)) {
        engine.finish(start.seq, &outcome(Pass), s(1));
    }
    engine
}

fn state(engine: &Engine, n: usize) -> (Health, bool, &str) {
    let view = engine.get(&key(n)).unwrap();
    (view.health, view.leaving, &view.reason)
}

#[test]
fn what_is_paused_is_not_probed_and_keeps_its_verdict() {
    let mut engine = healthy(&service(2, &policy()));
    engine.pause(paused(&[0]), s(1));
    assert_eq!(engine.get(&key(0)).unwrap().checks[0].next_probe, None);
    for now in 2..30 {
        for start in engine.start_due(s(now)) {
            assert_eq!(start.key, key(1));
            engine.finish(start.seq, &outcome(Refused), s(now));
        }
    }
    assert_eq!(state(&engine, 0).0, Health::Healthy);
    assert_eq!(state(&engine, 1).0, Health::Unhealthy);
    // It is probed at once when that is over, and not twice.
    engine.pause(paused(&[]), s(30));
    assert_eq!(
        engine.get(&key(0)).unwrap().checks[0].next_probe,
        Some(s(30))
    );
    let start = engine.start_due(s(30));
    assert_eq!(start.iter().filter(|start| start.key == key(0)).count(), 1);
    engine.pause(paused(&[]), s(30));
    assert!(engine.start_due(s(30)).is_empty());
}

#[test]
fn a_probe_in_flight_does_not_count_any_more() {
    let policy = HealthPolicy {
        unhealthy_threshold: 1,
        ..policy()
    };
    let mut engine = healthy(&service(1, &policy));
    let start = engine.start_due(s(3)).pop().unwrap();
    engine.pause(paused(&[0]), s(3));
    assert_eq!(engine.asked_by(start.seq).count(), 0);
    let ended = engine.finish(start.seq, &outcome(Refused), s(3));
    assert_eq!(ended, Ended::default());
    assert_eq!(state(&engine, 0).0, Health::Healthy);
    // Nor does one that is lost.
    engine.pause(paused(&[]), s(4));
    assert_eq!(engine.start_due(s(4)).len(), 1);
    engine.pause(paused(&[0]), s(4));
    assert!(engine.start_due(s(60)).is_empty());
    assert_eq!(engine.get(&key(0)).unwrap().checks[0].internal, 0);
}

/// One of two services that share a probe.
#[test]
fn others_who_ask_the_same_go_on() {
    let web = service(1, &policy());
    let mut again = web.clone();
    again.name = "again".into();
    let mut engine = engine(&[web, again]);
    engine.pause(paused(&[0]), s(0));
    let start = engine.start_due(s(1)).pop().unwrap();
    engine.finish(start.seq, &outcome(Pass), s(1));
    assert_eq!(state(&engine, 0).0, Health::Unknown);
    let other = BackendKey::new("again", "b0");
    assert_eq!(engine.get(&other).unwrap().health, Health::Healthy);
}

#[test]
fn what_is_set_stands_until_enough_probes_are_against_it() {
    let mut engine = healthy(&service(1, &policy()));
    let change = engine.set(&key(0), SetHealth::Unhealthy, s(2)).unwrap();
    let change = change.unwrap();
    assert_eq!(
        (change.from, change.to),
        (Health::Healthy, Health::Unhealthy)
    );
    let reason = "set to unhealthy by the operator";
    assert_eq!(state(&engine, 0), (Health::Unhealthy, false, reason));
    assert!(engine.get(&key(0)).unwrap().is_set());
    assert_eq!(engine.set(&key(0), SetHealth::Unhealthy, s(2)), Some(None));
    // `healthy_threshold` is 2: HAProxy's `rise`.
    assert_eq!(feed(&mut engine, &[Pass]), [(Health::Unhealthy, false)]);
    assert_eq!(feed(&mut engine, &[Pass]), [(Health::Healthy, false)]);
    assert!(!engine.get(&key(0)).unwrap().is_set());
    // Up: as many failures as ever take it out.
    feed(&mut engine, &[Refused; 5]);
    assert_eq!(state(&engine, 0).0, Health::Unhealthy);
    engine
        .set(&key(0), SetHealth::Healthy, s(99))
        .unwrap()
        .unwrap();
    let seen = feed(&mut engine, &[Refused; 3]);
    assert_eq!(seen[1], (Health::Healthy, false));
    assert_eq!(seen[2], (Health::Unhealthy, true));
    // One that leaves stays by its next success.
    engine
        .set(&key(0), SetHealth::Leaving, s(200))
        .unwrap()
        .unwrap();
    assert!(state(&engine, 0).1);
    feed(&mut engine, &[Pass]);
    assert_eq!(
        (state(&engine, 0).0, state(&engine, 0).1),
        (Health::Healthy, false)
    );
    // Neither was an ejection.
    assert_eq!(
        engine.set(&BackendKey::new("web", "b9"), SetHealth::Healthy, s(9)),
        None
    );
}

#[test]
fn what_is_set_ends_a_hold_down_and_is_none() {
    let policy = HealthPolicy {
        hold_down: Some(crate::model::HoldDown {
            base: s(600),
            most: s(6000),
        }),
        ..policy()
    };
    let mut engine = healthy(&service(1, &policy));
    engine.set(&key(0), SetHealth::Unhealthy, s(2)).unwrap();
    assert_eq!(engine.get(&key(0)).unwrap().ejections.count(), 0);
    feed(&mut engine, &[Pass, Pass]);
    assert_eq!(state(&engine, 0).0, Health::Healthy);
    feed(&mut engine, &[Refused; 3]);
    assert!(engine.get(&key(0)).unwrap().held_until.is_some());
    engine.set(&key(0), SetHealth::Healthy, s(60)).unwrap();
    assert_eq!(engine.get(&key(0)).unwrap().held_until, None);
}

#[test]
fn both_outlive_the_agent_and_a_reload() {
    let policy = HealthPolicy {
        assume: Assume::Down,
        ..policy()
    };
    let service = service(1, &policy);
    let mut first = healthy(&service);
    first.pause(paused(&[0]), s(2));
    first.set(&key(0), SetHealth::Unhealthy, s(3));
    let saved = first.snapshot(s(4));
    let mut next = Engine::new(7);
    next.pause(paused(&[0]), s(0));
    next.configure(std::slice::from_ref(&service), &saved, s(0));
    let set = (Health::Unhealthy, false, "set to unhealthy by the operator");
    assert_eq!(state(&next, 0), set);
    // It is no assumption: nobody is going to confirm it.
    assert!(!next.get(&key(0)).unwrap().assumed);
    assert!(next.start_due(s(600)).is_empty());
    // Another question by a reload.
    let mut other = service.clone();
    let probe = Arc::make_mut(&mut other.backends[0].probes[0]);
    probe.target.set_port(9999);
    next.configure(&[other], &BTreeMap::new(), s(601));
    assert_eq!(state(&next, 0), set);
    assert!(!next.get(&key(0)).unwrap().assumed);
    assert!(next.start_due(s(900)).is_empty());
}
