//! The engine under simulated time: budgets, grid, determinism.

use super::*;

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
                let ((at, _), (seq, outcome)) = entry.remove_entry();
                self.changes
                    .extend(self.engine.finish(seq, &outcome, at).changes);
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
                    ..HealthPolicy::default()
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
            .map(|(_, view)| view.checks[0].next_probe.unwrap().subsec_nanos())
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
