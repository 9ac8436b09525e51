mod deciding;
mod operator;
mod reload;
mod several;
mod simulated;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use std::net::SocketAddr;

use crate::model::{
    Affinity, Backend, BackendKey, Endpoint, Forwarding, HealthPolicy, Mode, PanicRules,
    PassiveRules, ProbeKind, ProbeSpec, Protocol, Service,
};
use crate::probe::{Class, Outcome};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn policy() -> HealthPolicy {
    HealthPolicy {
        interval: ms(1000),
        timeout: ms(300),
        unhealthy_threshold: 3,
        healthy_threshold: 2,
        fast_interval: ms(1000),
        down_interval: ms(1000),
        jitter: 0,
        ..HealthPolicy::default()
    }
}

pub(super) fn service(backends: usize, policy: &HealthPolicy) -> Service {
    let backend = |n: usize| {
        let address = format!("10.0.{}.{}:80", n / 250, n % 250 + 1)
            .parse()
            .unwrap();
        Backend {
            name: format!("b{n}").into(),
            address,
            server_id: None,
            weight: 100,
            tier: 0,
            fallback: false,
            probes: vec![Arc::new(ProbeSpec {
                target: address,
                timeout: policy.timeout,
                kind: ProbeKind::Tcp.into(),
                egress: Default::default(),
            })],
        }
    };
    Service {
        name: "web".into(),
        address: Endpoint::from("203.0.113.10:80".parse::<SocketAddr>().unwrap()),
        protocol: Protocol::Tcp,
        forwarding: Forwarding::Nat,
        affinity: Affinity::Flow,
        mode: Mode::Balance,
        panic: PanicRules::default(),
        on_death: crate::model::OnDeath::Reset,
        syn_rescue: true,
        passive: PassiveRules::default(),
        server_id_length: 0,
        panic_threshold: 50,
        drain_deadline: ms(30_000),
        announce: None,
        slow_start: Default::default(),
        pool: Default::default(),
        health: vec![policy.clone()],
        backends: (0..backends).map(backend).collect(),
    }
}

pub(super) fn outcome(class: Class) -> Outcome {
    Outcome {
        latency: ms(1),
        ..Outcome::of(class)
    }
}

fn key(n: usize) -> BackendKey {
    BackendKey::new("web", Arc::<str>::from(format!("b{n}")))
}

/// Feeds outcomes to a lone backend, each at its due time; gives the state after each.
fn feed(engine: &mut Engine, classes: &[Class]) -> Vec<(Health, bool)> {
    classes
        .iter()
        .map(|&class| {
            let now = engine.next_due().unwrap();
            let start = engine.start_due(now).pop().unwrap();
            engine.finish(start.seq, &outcome(class), now + ms(1));
            let view = engine.get(&start.key).unwrap();
            (view.health, view.gone)
        })
        .collect()
}

fn engine(services: &[Service]) -> Engine {
    let mut engine = Engine::new(7);
    engine.configure(services, &BTreeMap::new(), Duration::ZERO);
    engine
}

use Class::{Internal, Ok as Pass, Refused, Status, Timeout};

#[test]
fn ends_are_tallied_as_long_as_the_backend_is_configured() {
    let services = [service(2, &policy())];
    let mut engine = engine(&services);
    let mut one = |class| {
        let seen = engine.observe(&key(0), 0, &outcome(class), ms(1));
        (seen.is_some(), engine.tally(&key(0)))
    };
    let tally = |success, failure, internal, flaps| Tally {
        success,
        failure,
        internal,
        flaps,
    };
    assert_eq!(
        one(Pass),
        (true, tally(1, 0, 0, 0)),
        "a first verdict turns none"
    );
    assert_eq!(one(Internal), (false, tally(1, 0, 1, 0)));
    for failure in 1..3 {
        assert_eq!(one(Refused), (false, tally(1, failure, 1, 0)));
    }
    assert_eq!(one(Refused), (true, tally(1, 3, 1, 1)));
    assert_eq!(engine.tally(&key(1)), Tally::default());
    // At another address it is another backend of the same name.
    let mut moved = services.clone();
    moved[0].backends[0].address.set_port(81);
    engine.configure(&moved, &BTreeMap::new(), ms(2));
    assert_eq!(engine.tally(&key(0)), tally(1, 3, 1, 1));
    moved[0].backends.remove(0);
    engine.configure(&moved, &BTreeMap::new(), ms(3));
    engine.configure(&services, &BTreeMap::new(), ms(4));
    assert_eq!(engine.tally(&key(0)), Tally::default());
}

#[test]
fn an_assumption_is_confirmed_once() {
    let services = [service(1, &policy())];
    let mut engine = Engine::new(7);
    let restored = Restored {
        health: Health::Healthy,
        gone: false,
        reason: "before".to_owned(),
        address: services[0].backends[0].address,
        past: Past::default(),
        checks: RestoredChecks::default(),
    };
    engine.configure(&services, &BTreeMap::from([(key(0), restored)]), ms(0));
    for confirmed in [true, false] {
        let now = engine.next_due().unwrap();
        let start = engine.start_due(now).pop().unwrap();
        let ended = engine.finish(start.seq, &outcome(Pass), now);
        assert_eq!((ended.changes.len(), ended.confirmed), (0, confirmed));
    }
}

#[test]
fn a_probe_is_brought_forward_by_what_it_asks() {
    let services = [service(2, &policy())];
    let mut engine = engine(&services);
    for _ in 0..2 {
        feed(&mut engine, &[Pass]);
    }
    let due = engine.next_due().unwrap();
    let now = due / 2;
    assert!(engine.start_due(now).is_empty());
    let mut spec = ProbeSpec::clone(&services[0].backends[1].probes[0]);
    spec.timeout /= 2;
    engine.hurry(&spec, now);
    let starts = engine.start_due(now);
    assert_eq!(
        starts.iter().map(|start| &start.key).collect::<Vec<_>>(),
        [&key(1)]
    );
    // One in flight is left alone.
    engine.hurry(&spec, now + ms(1));
    assert!(engine.start_due(now + ms(2)).is_empty());
}

#[test]
fn thresholds_table() {
    const H: (Health, bool) = (Health::Healthy, false);
    const U: (Health, bool) = (Health::Unknown, false);
    const BAD: (Health, bool) = (Health::Unhealthy, false);
    const GONE: (Health, bool) = (Health::Unhealthy, true);
    type Case<'a> = (&'a str, &'a [Class], &'a [(Health, bool)]);
    let cases: &[Case] = &[
        ("first success admits", &[Pass], &[H]),
        ("first refusal ejects", &[Refused], &[GONE]),
        ("first bad answer ejects", &[Status], &[BAD]),
        (
            "internal decides nothing",
            &[Internal, Internal, Pass],
            &[U, U, H],
        ),
        (
            "three failures eject",
            &[Pass, Refused, Refused, Timeout],
            &[H, H, H, GONE],
        ),
        (
            "a success resets",
            &[Pass, Refused, Refused, Pass, Refused, Refused],
            &[H; 6],
        ),
        (
            "internal neither counts nor resets",
            &[
                Pass, Timeout, Internal, Timeout, Internal, Internal, Timeout,
            ],
            &[H, H, H, H, H, H, GONE],
        ),
        (
            "answers drain",
            &[Pass, Status, Status, Status],
            &[H, H, H, BAD],
        ),
        (
            "one answer among them drains",
            &[Pass, Status, Refused, Refused],
            &[H, H, H, BAD],
        ),
        (
            "silence after an answer: gone by the same threshold",
            &[Pass, Status, Status, Status, Refused, Timeout, Refused],
            &[H, H, H, BAD, BAD, BAD, GONE],
        ),
        (
            "an answer breaks the silence",
            &[
                Pass, Status, Status, Status, Refused, Refused, Status, Refused,
            ],
            &[H, H, H, BAD, BAD, BAD, BAD, BAD],
        ),
        (
            "gone stays gone until healthy",
            &[Refused, Status, Pass, Pass],
            &[GONE, GONE, GONE, H],
        ),
        (
            "readmitted by two in a row",
            &[Status, Pass, Status, Pass, Pass],
            &[BAD, BAD, BAD, BAD, H],
        ),
    ];
    for (name, classes, expected) in cases {
        let mut engine = engine(&[service(1, &policy())]);
        assert_eq!(&feed(&mut engine, classes), expected, "{name}");
    }
}

/// A stalled agent starts each probe once, not as often as it was due.
#[test]
fn late_probes_are_skipped_not_queued() {
    let mut engine = engine(&[service(10, &policy())]);
    let late = ms(57_300);
    let starts = engine.start_due(late);
    assert_eq!(starts.len(), 10);
    assert!(engine.start_due(late).is_empty(), "never two in flight");
    for start in &starts {
        assert!(start.due < ms(1000), "due in the first interval");
        let ended = engine.finish(start.seq, &outcome(Pass), late);
        assert!(!ended.changes.is_empty());
        let view = engine.get(&start.key).unwrap();
        assert!(
            (56..=57).contains(&view.checks[0].skipped),
            "{}",
            view.checks[0].skipped
        );
        let next = view.checks[0].next_probe.unwrap();
        assert!(next > late && next <= late + ms(1000));
        // Still on the grid.
        assert_eq!(next.subsec_nanos(), start.due.subsec_nanos());
    }
    // A bound on those in flight leaves the others due.
    let now = late + ms(1000);
    assert_eq!(engine.start_due_up_to(now, 4).len(), 4);
    assert!(engine.next_due().unwrap() <= now);
    assert_eq!(engine.start_due_up_to(now, 100).len(), 6);
}

/// A probe whose outcome never comes is the prober's fault; what comes too late is ignored.
#[test]
fn lost_probes_are_internal() {
    let mut engine = engine(&[service(1, &policy())]);
    let start = engine.start_due(engine.next_due().unwrap()).pop().unwrap();
    let wakes = engine.next_due().unwrap();
    assert!(wakes >= start.due + ms(300 + 1000));
    assert!(engine.start_due(wakes).is_empty());
    let view = engine.get(&start.key).unwrap();
    assert_eq!((view.health, view.checks[0].internal), (Health::Unknown, 1));
    assert!(
        engine
            .finish(start.seq, &outcome(Refused), wakes)
            .changes
            .is_empty()
    );
    assert_eq!(engine.get(&start.key).unwrap().health, Health::Unknown);
    assert_eq!(engine.start_due(engine.next_due().unwrap()).len(), 1);
}

#[test]
fn reasons_are_what_an_operator_reads() {
    let mut engine = engine(&[service(1, &policy())]);
    let key = key(0);
    let reason = |engine: &Engine| engine.get(&key).unwrap().reason.clone();
    assert_eq!(reason(&engine), "not yet probed");
    feed(&mut engine, &[Pass]);
    assert_eq!(reason(&engine), "first probe: ok");
    feed(&mut engine, &[Status, Status, Status]);
    assert_eq!(reason(&engine), "3 consecutive failures: status");
    feed(&mut engine, &[Refused, Refused, Refused]);
    assert_eq!(
        reason(&engine),
        "gone: 3 consecutive failures without an answer: refused"
    );
    feed(&mut engine, &[Pass, Pass]);
    assert_eq!(reason(&engine), "2 consecutive successes");
    feed(&mut engine, &[Pass; 20]);
    let view = engine.get(&key).unwrap();
    assert_eq!(
        (view.checks[0].history.len(), view.checks[0].successes),
        (HISTORY, 22)
    );
    assert!(
        view.checks[0]
            .history
            .iter()
            .zip(view.checks[0].history.iter().skip(1))
            .all(|(a, b)| a.at() < b.at())
    );
}

#[test]
fn a_reload_touches_only_what_it_changes() {
    let mut services = vec![service(5, &policy())];
    let mut engine = engine(&services);
    for start in engine.start_due(ms(1000)) {
        engine.finish(start.seq, &outcome(Pass), ms(1000));
    }
    let before: BTreeMap<_, _> = engine.view().map(|(k, v)| (k.clone(), v.clone())).collect();
    let address = "10.9.9.9:80".parse().unwrap();
    services[0].backends[1].address = address; // another backend under the same name
    Arc::make_mut(&mut services[0].backends[2].probes[0])
        .target
        .set_port(81); // another probe
    services[0].backends[3].probes.clear();
    services[0].backends.remove(4);
    let mut added = services[0].backends[0].clone();
    (added.name, added.address) = ("new".into(), address);
    services[0].backends.push(added);
    let new = BackendKey::new("web", "new");
    let restored = Restored {
        health: Health::Unhealthy,
        gone: true,
        reason: "3 consecutive failures: refused".to_owned(),
        address,
        past: Past::default(),
        checks: RestoredChecks::default(),
    };
    let restored = BTreeMap::from([(new.clone(), restored)]);
    assert_eq!(engine.configure(&services, &restored, ms(1500)), []);

    assert_eq!(engine.get(&key(0)), before.get(&key(0)), "untouched");
    assert_eq!(engine.get(&key(1)).unwrap().health, Health::Unknown);
    let assumed = engine.get(&key(2)).unwrap();
    assert_eq!((assumed.health, assumed.assumed), (Health::Healthy, true));
    let unprobed = engine.get(&key(3)).unwrap();
    assert_eq!(
        (unprobed.health, unprobed.reason.as_str()),
        (Health::Healthy, "no probe")
    );
    assert_eq!(unprobed.checks, []);
    assert_eq!(engine.get(&key(4)), None);
    let view = engine.get(&new).unwrap();
    assert_eq!(
        (view.health, view.gone, view.assumed),
        (Health::Unhealthy, true, true)
    );
    assert_eq!(view.reason, "3 consecutive failures: refused");
    // An assumption counts as a verdict: the thresholds hold, and an outcome ends it.
    assert_eq!(engine.snapshot(ms(1500))[&new].health, Health::Unhealthy);
    let mut seen = Vec::new();
    for _ in 0..2 {
        assert!(engine.probe_now(&new, ms(5000)));
        for start in engine.start_due(ms(5000)) {
            if engine.asked_by(start.seq).any(|(key, _)| *key == new) {
                engine.finish(start.seq, &outcome(Pass), ms(5001));
            }
        }
        let view = engine.get(&new).unwrap();
        seen.push((view.health, view.assumed));
    }
    assert_eq!(seen, [(Health::Unhealthy, false), (Health::Healthy, false)]);
}

#[test]
fn a_lost_probe_in_the_configuration_is_a_change() {
    let mut services = vec![service(1, &policy())];
    let mut engine = engine(&services);
    feed(&mut engine, &[Refused]);
    services[0].health.clear();
    let changes = engine.configure(&services, &BTreeMap::new(), ms(5000));
    assert_eq!(changes.len(), 1);
    assert_eq!(
        (changes[0].from, changes[0].to),
        (Health::Unhealthy, Health::Healthy)
    );
    assert_eq!(engine.next_due(), None);
    assert!(!engine.probe_now(&key(0), ms(6000)));
}

/// Changes of thresholds alone keep counts, and do not start a second probe beside one in flight.
#[test]
fn other_thresholds_keep_the_counts() {
    let mut services = vec![service(1, &policy())];
    let mut engine = engine(&services);
    feed(&mut engine, &[Pass, Refused, Refused]);
    let now = engine.next_due().unwrap();
    let start = engine.start_due(now).pop().unwrap();
    services[0].health[0].unhealthy_threshold = 4;
    engine.configure(&services, &BTreeMap::new(), now);
    assert!(engine.start_due(now + ms(1000)).is_empty());
    assert_eq!(engine.finish(start.seq, &outcome(Refused), now).changes, []);
    assert_eq!(engine.get(&start.key).unwrap().checks[0].failures, 3);
    assert_eq!(feed(&mut engine, &[Refused]), [(Health::Unhealthy, true)]);
}

/// What another has probed counts as what the engine asked for, and leaves its probes alone.
#[test]
fn an_observed_outcome_counts_and_leaves_the_schedule_alone() {
    let services = [service(1, &policy())];
    let mut engine = engine(&services);
    let now = engine.next_due().unwrap();
    let start = engine.start_due(now).pop().unwrap();
    let due = engine.next_due();
    let seen = engine.observe(&key(0), 0, &outcome(Pass), now).unwrap();
    assert_eq!((seen.from, seen.to), (Health::Unknown, Health::Healthy));
    for _ in 0..2 {
        assert_eq!(engine.observe(&key(0), 0, &outcome(Refused), now), None);
    }
    assert_eq!(engine.next_due(), due);
    let own = engine.finish(start.seq, &outcome(Refused), now).changes;
    let own = own.first().unwrap();
    assert_eq!((own.to, own.gone), (Health::Unhealthy, true));
    assert_eq!(engine.observe(&key(1), 0, &outcome(Pass), now), None);
}
