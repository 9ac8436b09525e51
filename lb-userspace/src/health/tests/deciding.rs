//! The rules beside the plain thresholds: window, classes that eject at once, hold-down.

use super::*;
use crate::model::{HoldDown, Window};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The states after outcomes of a lone backend: `H`ealthy, `B`ad answers, `G`one.
fn states(policy: &HealthPolicy, outcomes: &[Class]) -> String {
    let mut engine = engine(&[service(1, policy)]);
    let letter = |state| match state {
        (Health::Healthy, _) => 'H',
        (Health::Unhealthy, false) => 'B',
        (Health::Unhealthy, true) => 'G',
        (Health::Unknown, _) => 'U',
    };
    feed(&mut engine, outcomes)
        .into_iter()
        .map(letter)
        .collect()
}

fn window(failures: u32, outcomes: u32) -> HealthPolicy {
    HealthPolicy {
        unhealthy_window: Some(Window { failures, outcomes }),
        ..policy()
    }
}

#[test]
fn a_window_ejects_what_never_fails_often_enough_in_a_row() {
    let flapping = [Pass, Status, Pass, Status, Pass, Status];
    assert_eq!(states(&policy(), &flapping), "HHHHHH");
    assert_eq!(states(&window(3, 5), &flapping), "HHHHHB");
    // Silence now and then is not death.
    let silent = [Pass, Timeout, Pass, Timeout, Pass, Timeout];
    assert_eq!(states(&window(3, 5), &silent), "HHHHHB");
    // Too far apart, and by the prober's fault.
    let rare = [Pass, Status, Pass, Pass, Status, Pass, Pass, Status];
    assert_eq!(states(&window(3, 6), &rare), "HHHHHHHH");
    assert_eq!(states(&window(3, 7), &rare), "HHHHHHHB");
    let internal = [
        Pass, Status, Internal, Status, Internal, Internal, Internal, Pass, Status,
    ];
    assert_eq!(states(&window(3, 5), &internal), "HHHHHHHHB");
    // In a row it is still the threshold that ejects.
    assert_eq!(
        states(&window(4, 5), &[Pass, Refused, Refused, Refused]),
        "HHHG"
    );
    // Readmitted, it has a clean slate.
    let again = [
        Pass, Status, Pass, Status, Pass, Status, Pass, Pass, Status, Status,
    ];
    assert_eq!(states(&window(3, 5), &again), "HHHHHBBHHH");
    // The longest one.
    let mut long = vec![Pass, Status];
    long.extend([Pass; 62]);
    long.push(Status);
    assert!(states(&window(2, 64), &long).ends_with("HB"));
    long.insert(2, Pass);
    assert!(states(&window(2, 64), &long).ends_with("HH"));
}

#[test]
fn some_classes_eject_at_once() {
    let policy = HealthPolicy {
        immediate_on: vec![Class::Application, Class::Refused],
        ..policy()
    };
    assert_eq!(states(&policy, &[Pass, Refused]), "HG");
    assert_eq!(states(&policy, &[Pass, Class::Application]), "HB");
    assert_eq!(states(&policy, &[Pass, Timeout, Timeout, Timeout]), "HHHG");
    assert_eq!(states(&policy, &[Pass, Status, Refused]), "HHG");
    // They readmit no sooner.
    assert_eq!(states(&policy, &[Pass, Refused, Pass, Pass]), "HGGH");
}

#[test]
fn reasons_name_the_rule() {
    let reason = |policy: &HealthPolicy, outcomes: &[Class]| {
        let mut engine = engine(&[service(1, policy)]);
        feed(&mut engine, outcomes);
        engine.get(&key(0)).unwrap().reason.clone()
    };
    assert_eq!(
        reason(&window(2, 4), &[Pass, Status, Pass, Status]),
        "2 failures in the last 4 probes: status"
    );
    let immediate = HealthPolicy {
        immediate_on: vec![Class::Refused],
        ..policy()
    };
    assert_eq!(
        reason(&immediate, &[Pass, Refused]),
        "1 failure of a kind in immediate_on: refused"
    );
    assert_eq!(
        reason(&held(), &[Pass, Refused]),
        "1 failure: refused; ejection 1, held down for 30s"
    );
}

/// Ejected by one failure, back after one success and 30 s for each ejection.
fn held() -> HealthPolicy {
    HealthPolicy {
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        hold_down: Some(HoldDown {
            base: s(30),
            most: s(100),
        }),
        ..policy()
    }
}

/// Runs a backend that fails at `deaths` and is well otherwise; tells when it was ejected and when
/// readmitted, in seconds.
fn flaps(policy: &HealthPolicy, deaths: &[u64], until: u64) -> Vec<(u64, Health)> {
    let mut engine = engine(&[service(1, policy)]);
    let mut deaths = deaths.iter().map(|at| s(*at)).peekable();
    let mut turns = Vec::new();
    while let Some(now) = engine.next_due().filter(|now| *now < s(until)) {
        let start = engine.start_due(now).pop().unwrap();
        let class = if deaths.next_if(|at| *at <= now).is_some() {
            Refused
        } else {
            Pass
        };
        let ended = engine.finish(start.seq, &outcome(class), now + ms(1));
        if let [change] = &*ended.changes {
            turns.push((now.as_secs(), change.to));
        }
    }
    turns
}

#[test]
fn each_ejection_holds_down_longer_and_good_health_forgives() {
    use Health::{Healthy, Unhealthy};
    let times = |turns: &[(u64, Health)]| -> Vec<u64> {
        let down = turns.iter().filter(|(_, to)| *to == Unhealthy);
        down.map(|(at, _)| {
            let back = turns.iter().find(|(b, to)| b > at && *to == Healthy);
            back.unwrap().0 - at
        })
        .collect()
    };
    // Soon after each return: 30, 60, 90 and then no more than 100 seconds.
    let turns = flaps(&held(), &[10, 50, 120, 220, 330], 1000);
    let lengths = times(&turns);
    assert_eq!(lengths.len(), 5, "{turns:?}");
    for (length, expected) in lengths.iter().zip([30, 60, 90, 100, 100]) {
        assert!((expected..=expected + 2).contains(length), "{turns:?}");
    }
    // 200 s of good health forgive two.
    let lengths = times(&flaps(&held(), &[10, 50, 340], 1000));
    for (length, expected) in lengths.iter().zip([30, 60, 30]) {
        assert!((expected..=expected + 2).contains(length), "{lengths:?}");
    }
    // Without the rule it is back with the next probe.
    let plain = HealthPolicy {
        hold_down: None,
        ..held()
    };
    assert!(
        times(&flaps(&plain, &[10, 50], 200))
            .iter()
            .all(|t| *t <= 1)
    );
}

#[test]
fn a_hold_down_outlives_the_agent_and_follows_the_configuration() {
    let services = [service(1, &held())];
    let mut engine = engine(&services);
    feed(&mut engine, &[Pass, Refused]);
    let ejected = engine.get(&key(0)).unwrap().since;
    let saved = engine.snapshot(ejected + s(10));
    assert_eq!(saved[&key(0)].past.ejections, 1);
    assert_eq!(saved[&key(0)].past.ejected_ago_ms, 10_000);

    // Another agent, with a clock of its own, five seconds later.
    let later: BTreeMap<_, _> = saved
        .into_iter()
        .map(|(key, verdict)| (key, verdict.later(s(5))))
        .collect();
    let (mut next, start) = (Engine::new(7), s(5000));
    next.configure(&services, &later, start);
    let readmitted = |engine: &mut Engine| loop {
        let now = engine.next_due().unwrap();
        let probe = engine.start_due(now).pop().unwrap();
        let change = engine
            .finish(probe.seq, &outcome(Pass), now + ms(1))
            .changes;
        if let [change] = &*change {
            return change.at;
        }
    };
    let back = readmitted(&mut next);
    assert!((start + s(15)..start + s(17)).contains(&back), "{back:?}");

    // A reload that asks for no hold-down ends it.
    let mut free = Engine::new(7);
    free.configure(&services, &later, start);
    let plain = HealthPolicy {
        hold_down: None,
        ..held()
    };
    free.configure(&[service(1, &plain)], &BTreeMap::new(), start);
    assert!(readmitted(&mut free) <= start + s(1) + ms(1));
}

/// What a backend says of itself counts at once, and is neither a failure nor a success to come back
/// by.
#[test]
fn a_backend_that_asks_to_be_drained_is_well() {
    use Class::Drain;
    let states = |outcomes: &[Class]| -> String {
        let mut engine = engine(&[service(1, &policy())]);
        let mut states = String::new();
        for class in outcomes {
            feed(&mut engine, &[*class]);
            let view = engine.get(&key(0)).unwrap();
            states.push(match (view.health, view.leaving, view.gone) {
                (Health::Healthy, true, _) => 'L',
                (Health::Healthy, false, _) => 'H',
                (Health::Unhealthy, false, false) => 'B',
                (Health::Unhealthy, false, true) => 'G',
                _ => '?',
            });
            assert_eq!(view.ejections.count() > 0, states.contains(['B', 'G']));
        }
        states
    };
    assert_eq!(states(&[Pass, Drain, Pass, Drain, Drain]), "HLHLL");
    assert_eq!(states(&[Drain, Pass]), "LH");
    // It is alive for the thresholds, and dies by them.
    assert_eq!(
        states(&[Pass, Refused, Refused, Drain, Refused, Refused]),
        "HHHLLL"
    );
    assert_eq!(
        states(&[Pass, Drain, Refused, Refused, Refused, Refused]),
        "HLLLGG"
    );
    assert_eq!(
        states(&[Pass, Drain, Status, Internal, Status, Status]),
        "HLLLLB"
    );
    // Down, it has to succeed, and not to ask to be drained, to be back.
    let back = [
        Pass, Status, Status, Status, Pass, Drain, Pass, Drain, Pass, Pass,
    ];
    assert_eq!(states(&back), "HHHBBBBBBH");

    let mut engine = engine(&[service(1, &policy())]);
    feed(&mut engine, &[Pass, Drain]);
    let view = engine.get(&key(0)).unwrap();
    assert_eq!((view.reason.as_str(), view.class), ("drain", Some(Drain)));
    // A restart and a reload know it until the next answer.
    let saved = engine.snapshot(s(100));
    let mut next = Engine::new(7);
    next.configure(&[service(1, &policy())], &saved, s(100));
    let leaving = |engine: &Engine| engine.get(&key(0)).unwrap().leaving;
    assert!(leaving(&next));
    let mut other = service(1, &policy());
    Arc::make_mut(&mut other.backends[0].probes[0])
        .target
        .set_port(81);
    engine.configure(&[other], &BTreeMap::new(), s(100));
    assert!(leaving(&engine));
    let change = engine.observe(&key(0), 0, &outcome(Pass), s(101)).unwrap();
    assert_eq!((change.leaving, change.reweighed), (false, false));
    assert!(!leaving(&engine));
}
