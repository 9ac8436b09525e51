//! What becomes of a verdict at a reload and at a restart: from every state, for every difference.

use super::*;
use crate::model::{Assume, HoldDown, Window};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A backend with every rule in force.
fn before() -> Service {
    let policy = HealthPolicy {
        hold_down: Some(HoldDown {
            base: s(30),
            most: s(300),
        }),
        unhealthy_window: Some(Window {
            failures: 4,
            outcomes: 8,
        }),
        ..policy()
    };
    service(1, &policy)
}

/// How a backend got where it is.
const STATES: &[(&str, &[Class])] = &[
    ("unknown", &[]),
    ("healthy", &[Pass]),
    ("healthy, one failure", &[Pass, Status]),
    ("healthy, two silent failures", &[Pass, Timeout, Timeout]),
    ("degraded", &[Pass, Class::Degraded]),
    ("never healthy", &[Status]),
    ("never healthy, gone", &[Refused]),
    ("ejected", &[Pass, Status, Status, Status]),
    ("ejected, gone", &[Pass, Refused, Refused, Refused]),
    (
        "held down",
        &[Pass, Status, Status, Status, Pass, Pass, Pass],
    ),
    ("coming back", &[Status, Pass]),
];

/// What a difference leaves of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    /// Everything, counts included.
    All,
    /// The verdict, as an assumption.
    Verdict,
    /// It is healthy, since nobody asks.
    Unprobed,
    /// Nothing.
    Nothing,
}

type Difference = (&'static str, Left, fn(&mut Service));

const DIFFERENCES: &[Difference] = &[
    ("none", Left::All, |_| {}),
    ("thresholds", Left::All, |s| {
        s.health[0].unhealthy_threshold = 9;
        s.health[0].healthy_threshold = 9;
    }),
    ("interval", Left::All, |s| s.health[0].interval = ms(2000)),
    ("other intervals", Left::All, |s| {
        s.health[0].fast_interval = ms(500);
        s.health[0].down_interval = ms(9000);
        s.health[0].jitter = 50;
    }),
    ("window", Left::All, |s| s.health[0].unhealthy_window = None),
    ("immediate_on", Left::All, |s| {
        s.health[0].immediate_on = vec![Status, Timeout]
    }),
    ("hold_down", Left::All, |s| s.health[0].hold_down = None),
    ("degraded_weight", Left::All, |s| {
        s.health[0].degraded_weight = 10
    }),
    ("always_log_failures", Left::All, |s| {
        s.health[0].always_log_failures = true
    }),
    ("name of the probe", Left::All, |s| {
        s.health[0].name = "other".into()
    }),
    ("weight and tier", Left::All, |s| {
        s.backends[0].weight = 7;
        s.backends[0].tier = 2;
    }),
    ("port of the probe", Left::Verdict, |s| {
        Arc::make_mut(&mut s.backends[0].probes[0])
            .target
            .set_port(81);
    }),
    ("timeout", Left::Verdict, |s| {
        Arc::make_mut(&mut s.backends[0].probes[0]).timeout = ms(200)
    }),
    ("kind", Left::Verdict, |s| {
        Arc::make_mut(&mut s.backends[0].probes[0]).kind = ProbeKind::TcpHalfOpen.into()
    }),
    ("kind and name", Left::Verdict, |s| {
        Arc::make_mut(&mut s.backends[0].probes[0]).kind = ProbeKind::TcpHalfOpen.into();
        s.health[0].name = "other".into();
    }),
    ("no probe", Left::Unprobed, |s| {
        s.health.clear();
        s.backends[0].probes.clear();
    }),
    ("address", Left::Nothing, |s| {
        s.backends[0].address.set_port(8080);
    }),
    ("name", Left::Nothing, |s| {
        s.backends[0].name = "other".into()
    }),
    ("name of the service", Left::Nothing, |s| {
        s.name = "other".into()
    }),
];

fn only(engine: &Engine) -> TargetView {
    let mut views = engine.view();
    let (_, view) = views.next().unwrap();
    assert!(views.next().is_none(), "the old one is forgotten");
    view.clone()
}

fn in_state(outcomes: &[Class]) -> Engine {
    let mut engine = engine(&[before()]);
    for class in outcomes {
        let now = engine.next_due().unwrap();
        let start = engine.start_due(now).pop().unwrap();
        engine.finish(start.seq, &outcome(*class), now + ms(1));
    }
    engine
}

/// What a reload or a restart is held to.
fn check(old: &TargetView, new: &TargetView, left: Left, place: &str) {
    let said = |view: &TargetView| (view.health, view.gone, view.reason.clone());
    match left {
        Left::All => {
            assert_eq!(said(new), said(old), "{place}");
            assert_eq!((new.since, new.class), (old.since, old.class), "{place}");
            assert_eq!(
                (new.assumed, new.weight),
                (old.assumed, old.weight),
                "{place}"
            );
            assert_eq!(new.ejections, old.ejections, "{place}");
            let (new, old) = (&new.checks[0], &old.checks[0]);
            let counts = |check: &CheckView| (check.successes, check.failures, check.silent);
            assert_eq!(counts(new), counts(old), "{place}");
            assert_eq!(new.history, old.history, "{place}");
        }
        Left::Verdict => {
            assert_eq!((new.health, new.gone), (old.health, old.gone), "{place}");
            assert_eq!(new.assumed, old.health != Health::Unknown, "{place}");
            let check = &new.checks[0];
            assert_eq!((check.successes, check.failures), (0, 0), "{place}");
            assert_eq!(new.ejections.count(), old.ejections.count(), "{place}");
        }
        Left::Unprobed => {
            assert_eq!(new.health, Health::Healthy, "{place}");
            assert_eq!(new.checks, [], "{place}");
        }
        Left::Nothing => {
            assert_eq!(new.health, Health::Unknown, "{place}");
            assert_eq!(new.ejections.count(), 0, "{place}");
        }
    }
}

#[test]
fn a_reload_from_every_state_for_every_difference() {
    for in_flight in [false, true] {
        for (state, outcomes) in STATES {
            for (difference, left, change) in DIFFERENCES {
                let place = format!("{state}; {difference}; probe in flight: {in_flight}");
                let mut engine = in_state(outcomes);
                let due = engine.next_due().unwrap();
                let started = in_flight.then(|| engine.start_due(due).pop().unwrap());
                let now = if in_flight { due + ms(1) } else { due - ms(1) };
                let old = only(&engine);
                let mut service = before();
                change(&mut service);
                let asks = |service: &Service| service.backends[0].probes.clone();
                let same = asks(&service) == asks(&before());
                let changes = engine.configure(&[service], &BTreeMap::new(), now);
                let new = only(&engine);
                let mut left = *left;
                // There was no verdict to be left.
                if old.health == Health::Unknown && left == Left::Verdict {
                    left = Left::Nothing;
                }
                check(&old, &new, left, &place);
                let told = old.health != new.health && left == Left::Unprobed;
                assert_eq!(changes.len(), usize::from(told), "{place}");

                // What was asked before counts if it is still the question, and else not.
                if let Some(start) = started {
                    let counted = engine.asked_by(start.seq).count();
                    assert_eq!(counted, usize::from(same), "{place}");
                    engine.finish(start.seq, &outcome(Internal), now);
                    let after = only(&engine);
                    assert_eq!(after.health, new.health, "{place}");
                }
                // And it goes on being probed, soon.
                match left {
                    Left::Unprobed => assert_eq!(engine.next_due(), None, "{place}"),
                    _ => assert!(engine.next_due().unwrap() <= now + s(14), "{place}"),
                }
            }
        }
    }
}

#[test]
fn a_restart_from_every_state_for_every_difference() {
    for (state, outcomes) in STATES {
        for (difference, left, change) in DIFFERENCES {
            let place = format!("{state}; {difference}");
            let engine = in_state(outcomes);
            let now = engine.next_due().unwrap();
            let (old, saved) = (only(&engine), engine.snapshot(now));
            let mut service = before();
            change(&mut service);
            let mut next = Engine::new(7);
            assert_eq!(next.configure(&[service], &saved, now), [], "{place}");
            let new = only(&next);
            // The counts are the earlier agent's.
            let left = match left {
                _ if old.health == Health::Unknown && *left != Left::Unprobed => Left::Nothing,
                Left::All => Left::Verdict,
                other => *other,
            };
            check(&old, &new, left, &place);
        }
    }
}

/// A probe that is added interrupts nothing, one that is taken away frees what only it was against.
#[test]
fn probes_come_and_go() {
    let with_second = || {
        let mut service = before();
        let mut second = ProbeSpec::clone(&service.backends[0].probes[0]);
        second.target.set_port(5432);
        service.backends[0].probes.push(Arc::new(second));
        service.health.push(HealthPolicy {
            name: "db".into(),
            ..policy()
        });
        service
    };
    for (state, outcomes) in STATES {
        let mut engine = in_state(outcomes);
        let now = engine.next_due().unwrap();
        let old = only(&engine);
        assert_eq!(
            engine.configure(&[with_second()], &BTreeMap::new(), now),
            [],
            "{state}"
        );
        let new = only(&engine);
        assert_eq!((new.health, new.gone), (old.health, old.gone), "{state}");
        assert_eq!(new.checks[0].failures, old.checks[0].failures, "{state}");
        // The new one does not repeat what only the old one has found.
        let expected = match old.health {
            Health::Healthy => Health::Healthy,
            Health::Unhealthy | Health::Unknown => Health::Unknown,
        };
        assert_eq!(new.checks[1].health, expected, "{state}");

        // It turns against the backend, is saved, and is taken away.
        for _ in 0..3 {
            engine.observe(&key(0), 1, &outcome(Status), now);
        }
        assert_eq!(only(&engine).health, Health::Unhealthy, "{state}");
        let saved = engine.snapshot(now);
        let mut restarted = Engine::new(7);
        restarted.configure(&[with_second()], &saved, now);
        let healths = |engine: &Engine| -> Vec<Health> {
            let view = only(engine);
            view.checks.iter().map(|check| check.health).collect()
        };
        assert_eq!(healths(&restarted), healths(&engine), "{state}");
        engine.configure(&[before()], &BTreeMap::new(), now);
        let last = only(&engine);
        assert_eq!(
            (last.health, &last.checks[0].name),
            (old.health, &old.checks[0].name)
        );
    }
}

/// What an earlier agent knew is believed unless the probe is to assume the worst; what a probe is to
/// assume is no verdict.
#[test]
fn what_is_assumed_before_the_first_verdict() {
    let assuming = |assume| {
        let mut service = before();
        service.health[0].assume = assume;
        service
    };
    for (outcomes, assume, health, presumed) in [
        (&[Pass][..], Assume::Restore, Health::Healthy, false),
        (&[Pass], Assume::Up, Health::Healthy, false),
        (&[Pass], Assume::Down, Health::Unknown, false),
        (&[Status], Assume::Restore, Health::Unhealthy, false),
        (&[Status], Assume::Up, Health::Unhealthy, false),
        (&[Status], Assume::Down, Health::Unknown, false),
        (&[], Assume::Restore, Health::Unknown, false),
        (&[], Assume::Up, Health::Unknown, true),
        (&[], Assume::Down, Health::Unknown, false),
    ] {
        let engine = in_state(outcomes);
        let mut saved = engine.snapshot(engine.next_due().unwrap());
        saved.retain(|_, restored| restored.health != Health::Unknown);
        let mut next = Engine::new(7);
        next.configure(&[assuming(assume)], &saved, ms(0));
        let view = only(&next);
        let place = format!("{outcomes:?}, {assume:?}");
        assert_eq!((view.health, view.presumed), (health, presumed), "{place}");
        if health == Health::Unknown {
            let due = next.next_due().unwrap();
            let start = next.start_due(due).pop().unwrap();
            next.finish(start.seq, &outcome(Status), due);
            let view = only(&next);
            let decided = (view.health, view.presumed);
            assert_eq!(decided, (Health::Unhealthy, false), "one decides: {place}");
        }
        // A reload is no start.
        let mut same = in_state(outcomes);
        let old = only(&same);
        let now = same.next_due().unwrap();
        same.configure(&[assuming(assume)], &BTreeMap::new(), now);
        assert_eq!(only(&same).health, old.health, "{place}");
    }
}

/// Of several probes each has its own; one that is not decided and assumes nothing keeps the backend
/// back.
#[test]
fn all_undecided_probes_must_assume_it() {
    let probes = |first, second| {
        let mut service = before();
        let mut asked = ProbeSpec::clone(&service.backends[0].probes[0]);
        asked.target.set_port(5432);
        service.backends[0].probes.push(Arc::new(asked));
        service.health[0].assume = first;
        service.health.push(HealthPolicy {
            name: "db".into(),
            assume: second,
            ..policy()
        });
        let mut engine = Engine::new(7);
        engine.configure(&[service], &BTreeMap::new(), ms(0));
        engine
    };
    let presumed = |engine: &Engine| only(engine).presumed;
    assert!(presumed(&probes(Assume::Up, Assume::Up)));
    let mut mixed = probes(Assume::Up, Assume::Restore);
    assert!(!presumed(&mixed));
    mixed.observe(&key(0), 1, &outcome(Pass), ms(1));
    assert!(presumed(&mixed));
    assert_eq!(only(&mixed).health, Health::Unknown);
}
