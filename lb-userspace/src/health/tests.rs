use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::model::{
    Affinity, Backend, BackendKey, Forwarding, HealthPolicy, ProbeKind, ProbeSpec, Protocol,
    Service,
};
use crate::probe::{Class, Outcome, Verdict};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn policy() -> HealthPolicy {
    HealthPolicy {
        interval: ms(1000),
        timeout: ms(300),
        unhealthy_threshold: 3,
        healthy_threshold: 2,
        fast_interval: ms(1000),
        down_interval: ms(1000),
        jitter: 0,
    }
}

fn service(backends: usize, policy: &HealthPolicy) -> Service {
    let backend = |n: usize| {
        let address = format!("10.0.{}.{}:80", n / 250, n % 250 + 1)
            .parse()
            .unwrap();
        Backend {
            name: format!("b{n}").into(),
            address,
            weight: 100,
            tier: 0,
            probe: Some(ProbeSpec {
                target: address,
                timeout: policy.timeout,
                kind: ProbeKind::Tcp,
            }),
        }
    };
    Service {
        name: "web".into(),
        address: "203.0.113.10:80".parse().unwrap(),
        protocol: Protocol::Tcp,
        forwarding: Forwarding::Nat,
        affinity: Affinity::Flow,
        panic_threshold: 50,
        drain_deadline: ms(30_000),
        slow_start: Duration::ZERO,
        health: Some(policy.clone()),
        backends: (0..backends).map(backend).collect(),
    }
}

fn outcome(class: Class) -> Outcome {
    Outcome {
        verdict: match class {
            Class::Ok => Verdict::Success,
            Class::Internal => Verdict::Internal,
            _ => Verdict::Failure,
        },
        class,
        detail: class.name().to_owned(),
        latency: ms(1),
        steps: Vec::new(),
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
            engine.finish(&start.key, start.seq, &outcome(class), now + ms(1));
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

/// A backend in simulated time. Tells of each probe: when it was planned, and when it may end.
struct Sim {
    engine: Engine,
    /// Probes in flight: when they end, and with what.
    flying: BTreeMap<(Duration, BackendKey), (u64, Outcome)>,
    starts: Vec<(BackendKey, Duration)>,
    changes: Vec<Change>,
    now: Duration,
}

impl Sim {
    fn new(agent: u64, service: &Service) -> Self {
        let mut engine = Engine::new(agent);
        engine.configure(
            std::slice::from_ref(service),
            &BTreeMap::new(),
            Duration::ZERO,
        );
        Self {
            engine,
            flying: BTreeMap::new(),
            starts: Vec::new(),
            changes: Vec::new(),
            now: Duration::ZERO,
        }
    }

    /// Runs until then. `answer` gives what a probe that starts now will find, and after how long.
    fn run(
        &mut self,
        until: Duration,
        mut answer: impl FnMut(&BackendKey, Duration) -> (Class, Duration),
    ) {
        loop {
            let due = self.engine.next_due();
            let end = self.flying.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = due.into_iter().chain(end).min().filter(|at| *at <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            while let Some(entry) = self.flying.first_entry()
                && entry.key().0 <= self.now
            {
                let ((at, key), (seq, outcome)) = entry.remove_entry();
                self.changes
                    .extend(self.engine.finish(&key, seq, &outcome, at));
            }
            for start in self.engine.start_due(self.now) {
                let (class, latency) = answer(&start.key, self.now);
                let flying = |(_, key): &(Duration, BackendKey)| *key == start.key;
                assert!(
                    !self.flying.keys().any(flying),
                    "two in flight: {}",
                    start.key
                );
                self.starts.push((start.key.clone(), self.now));
                let mut outcome = outcome(class);
                outcome.latency = latency;
                self.flying
                    .insert((self.now + latency, start.key), (start.seq, outcome));
            }
        }
    }
}

/// Policies over which the budgets are tried: plain, fast and slow edges, with jitter, and with a
/// fast interval that is shorter than the timeout.
fn policies() -> Vec<HealthPolicy> {
    let mut policies = Vec::new();
    for (interval, fast, down, timeout) in [
        (1000, 1000, 1000, 300),
        (1000, 350, 2000, 300),
        (1000, 1000, 500, 999),
        (1000, 200, 3000, 300),
    ] {
        for (unhealthy, healthy) in [(1, 1), (3, 2), (2, 5)] {
            for jitter in [0, 5, 50] {
                policies.push(HealthPolicy {
                    interval: ms(interval),
                    timeout: ms(timeout),
                    unhealthy_threshold: unhealthy,
                    healthy_threshold: healthy,
                    fast_interval: ms(fast),
                    down_interval: ms(down),
                    jitter,
                });
            }
        }
    }
    policies
}

/// A backend that dies, and then recovers, at every moment of an interval: never later than the
/// budget, and as late as the budget in the worst case without jitter.
#[test]
fn verdicts_keep_their_budget() {
    for policy in policies() {
        let budget = Budget::of(&policy);
        let service = service(1, &policy);
        let (mut worst_eject, mut worst_readmit) = (Duration::ZERO, Duration::ZERO);
        for moment in 0..100 {
            let dies = ms(20_000) + policy.interval * moment / 100;
            let recovers = dies + ms(30_000) + policy.down_interval * moment / 100;
            let mut sim = Sim::new(u64::from(moment), &service);
            // Dead from the next nanosecond on: the probe of that very moment succeeds.
            sim.run(ms(100_000), |_, now| {
                if now > dies && now <= recovers {
                    (Timeout, policy.timeout)
                } else {
                    (
                        Pass,
                        if now > recovers {
                            policy.timeout
                        } else {
                            Duration::ZERO
                        },
                    )
                }
            });
            let kinds: Vec<Health> = sim.changes.iter().map(|change| change.to).collect();
            assert_eq!(kinds, [Health::Healthy, Health::Unhealthy, Health::Healthy]);
            worst_eject = worst_eject.max(sim.changes[1].at - dies);
            worst_readmit = worst_readmit.max(sim.changes[2].at - recovers);
        }
        assert!(
            worst_eject <= budget.worst_eject,
            "{policy:?}: {worst_eject:?} {budget:?}"
        );
        assert!(
            worst_readmit <= budget.worst_readmit,
            "{policy:?}: {worst_readmit:?} {budget:?}"
        );
        if policy.jitter == 0 {
            // 100 moments: within a hundredth of the interval, and that for the random phase.
            let near = |worst: Duration, interval: Duration| worst + interval / 50;
            assert!(
                near(worst_eject, policy.interval) >= budget.worst_eject,
                "{policy:?}: {worst_eject:?}"
            );
            assert!(
                near(worst_readmit, policy.down_interval) >= budget.worst_readmit,
                "{policy:?}: {worst_readmit:?} {budget:?}"
            );
        }
    }
}

#[test]
fn the_formulas_of_the_budget() {
    let budget = Budget::of(&HealthPolicy {
        interval: ms(5000),
        timeout: ms(2000),
        fast_interval: ms(5000),
        down_interval: ms(5000),
        ..policy()
    });
    assert_eq!(budget.worst_eject, ms(17_000));
    assert_eq!(budget.worst_readmit, ms(12_000));
    let budget = Budget::of(&HealthPolicy {
        fast_interval: ms(400),
        down_interval: ms(3000),
        ..policy()
    });
    assert_eq!(budget.worst_eject, ms(1000 + 2 * 400 + 300));
    assert_eq!(budget.worst_readmit, ms(3000 + 400 + 300));
    assert_eq!(budget.expected_eject, ms(500 + 2 * 400));
}

/// Whatever flaps below the threshold never ejects, and below the other never readmits.
#[test]
fn flapping_inside_the_thresholds_changes_nothing() {
    let pattern = [Pass, Timeout, Timeout, Pass, Refused, Pass, Status, Timeout];
    let mut sim = Sim::new(1, &service(20, &policy()));
    let mut counts = BTreeMap::<BackendKey, usize>::new();
    sim.run(ms(1_000_000), |key, _| {
        let n = counts.entry(key.clone()).or_default();
        *n += 1;
        (pattern[(*n - 1) % pattern.len()], ms(1))
    });
    assert_eq!(sim.changes.len(), 20, "the first verdicts only");
    let pattern = [Refused, Pass, Timeout, Refused, Pass];
    let mut sim = Sim::new(1, &service(1, &policy()));
    let mut n = 0;
    sim.run(ms(1_000_000), |_, _| {
        n += 1;
        (pattern[(n - 1) % pattern.len()], ms(1))
    });
    assert_eq!(sim.changes.len(), 1);
}

/// The grid: exact, whatever the latency, and spread evenly from the first moment.
#[test]
fn probes_are_at_a_fixed_rate_and_spread() {
    let policy = policy();
    let mut sim = Sim::new(3, &service(1000, &policy));
    sim.run(ms(9_999) + Duration::from_micros(999), |_, now| {
        (Pass, ms(now.subsec_nanos() as u64 % 290))
    });
    assert_eq!(sim.starts.len(), 10_000);
    let mut by_key = BTreeMap::<&BackendKey, Vec<Duration>>::new();
    for (key, at) in &sim.starts {
        by_key.entry(key).or_default().push(*at);
    }
    for starts in by_key.values() {
        assert_eq!(starts.len(), 10);
        assert!(
            starts
                .windows(2)
                .all(|pair| pair[1] - pair[0] == policy.interval)
        );
    }
    // Chi-squared of the first starts over 50 parts of the interval: 49 degrees of freedom.
    let mut parts = [0u32; 50];
    for starts in by_key.values() {
        parts[(starts[0].as_millis() / 20) as usize] += 1;
    }
    let chi2: f64 = parts
        .iter()
        .map(|&n| (f64::from(n) - 20.0).powi(2) / 20.0)
        .sum();
    assert!(chi2 < 100.0, "{chi2}: {parts:?}");
}

#[test]
fn a_restart_keeps_the_phases_and_another_agent_has_its_own() {
    let service = service(50, &policy());
    let starts = |agent, configured: Duration| {
        let mut engine = Engine::new(agent);
        engine.configure(std::slice::from_ref(&service), &BTreeMap::new(), configured);
        engine
            .view()
            .map(|(_, view)| view.next_probe.unwrap().subsec_nanos())
            .collect::<Vec<_>>()
    };
    assert_eq!(starts(1, Duration::ZERO), starts(1, ms(123_456)));
    let (one, two) = (starts(1, Duration::ZERO), starts(2, Duration::ZERO));
    assert!(one.iter().zip(&two).all(|(a, b)| a != b));
}

#[test]
fn jitter_is_late_bounded_and_does_not_drift() {
    let policy = HealthPolicy {
        jitter: 10,
        ..policy()
    };
    let mut sim = Sim::new(3, &service(1, &policy));
    sim.run(ms(1_000_000), |_, _| (Pass, ms(1)));
    let plain = {
        let mut sim = Sim::new(
            3,
            &service(
                1,
                &HealthPolicy {
                    jitter: 0,
                    ..policy
                },
            ),
        );
        sim.run(ms(1_000_000), |_, _| (Pass, ms(1)));
        sim.starts
    };
    let late: Vec<Duration> = sim
        .starts
        .iter()
        .zip(&plain)
        .map(|(a, b)| a.1.checked_sub(b.1).unwrap())
        .collect();
    assert!(late.iter().all(|late| *late < ms(100)));
    assert!(late.iter().any(|late| *late > ms(90)) && late.iter().any(|late| *late < ms(10)));
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
        assert!(
            engine
                .finish(&start.key, start.seq, &outcome(Pass), late)
                .is_some()
        );
        let view = engine.get(&start.key).unwrap();
        assert!((56..=57).contains(&view.skipped), "{}", view.skipped);
        let next = view.next_probe.unwrap();
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
    assert_eq!((view.health, view.internal), (Health::Unknown, 1));
    assert!(
        engine
            .finish(&start.key, start.seq, &outcome(Refused), wakes)
            .is_none()
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
    assert_eq!((view.history.len(), view.successes), (HISTORY, 22));
    assert!(
        view.history
            .iter()
            .zip(view.history.iter().skip(1))
            .all(|(a, b)| a.at < b.at)
    );
}

/// Three failures a second apart: what it took is measured from the start of the first.
#[test]
fn a_change_tells_how_long_it_took() {
    let mut sim = Sim::new(1, &service(1, &policy()));
    sim.run(ms(3_500), |_, _| (Pass, ms(1)));
    sim.run(ms(20_000), |_, _| (Timeout, ms(300)));
    assert_eq!(sim.changes.len(), 2);
    assert_eq!(sim.changes[1].took, ms(2 * 1000 + 300));
    assert_eq!(sim.changes[1].class, Some(Timeout));
    assert!(sim.changes[1].gone);
}

#[test]
fn a_reload_touches_only_what_it_changes() {
    let mut services = vec![service(5, &policy())];
    let mut engine = engine(&services);
    for start in engine.start_due(ms(1000)) {
        engine.finish(&start.key, start.seq, &outcome(Pass), ms(1000));
    }
    let before: BTreeMap<_, _> = engine.view().map(|(k, v)| (k.clone(), v.clone())).collect();
    let address = "10.9.9.9:80".parse().unwrap();
    services[0].backends[1].address = address; // another backend under the same name
    services[0].backends[2]
        .probe
        .as_mut()
        .unwrap()
        .target
        .set_port(81); // another probe
    services[0].backends[3].probe = None;
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
    assert_eq!(unprobed.next_probe, None);
    assert_eq!(engine.get(&key(4)), None);
    let view = engine.get(&new).unwrap();
    assert_eq!(
        (view.health, view.gone, view.assumed),
        (Health::Unhealthy, true, true)
    );
    assert_eq!(view.reason, "3 consecutive failures: refused");
    // An assumption counts as a verdict: the thresholds hold, and an outcome ends it.
    assert_eq!(engine.snapshot()[&new].health, Health::Unhealthy);
    let mut seen = Vec::new();
    for _ in 0..2 {
        assert!(engine.probe_now(&new, ms(5000)));
        for start in engine
            .start_due(ms(5000))
            .iter()
            .filter(|start| start.key == new)
        {
            engine.finish(&new, start.seq, &outcome(Pass), ms(5001));
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
    services[0].health = None;
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
    services[0].health.as_mut().unwrap().unhealthy_threshold = 4;
    engine.configure(&services, &BTreeMap::new(), now);
    assert!(engine.start_due(now + ms(1000)).is_empty());
    assert_eq!(
        engine.finish(&start.key, start.seq, &outcome(Refused), now),
        None
    );
    assert_eq!(engine.get(&start.key).unwrap().failures, 3);
    assert_eq!(feed(&mut engine, &[Refused]), [(Health::Unhealthy, true)]);
}

#[test]
fn the_same_trace_gives_the_same_decisions() {
    let run = || {
        let mut sim = Sim::new(9, &service(30, &policy()));
        let mut state = 1u64;
        sim.run(ms(200_000), |_, _| {
            state = lb_common::hash::mix(state.wrapping_add(1));
            let class = [Pass, Pass, Status, Refused, Timeout, Internal][(state % 6) as usize];
            (class, ms(state >> 32 & 0xff))
        });
        (sim.starts, sim.changes)
    };
    let (first, second) = (run(), run());
    assert!(first.1.len() > 50);
    assert_eq!(first, second);
}
