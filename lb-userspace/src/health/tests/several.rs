//! Several probes of one backend, and probes that several backends share.

use super::*;
use crate::health::agent::parse;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A service with one backend that is asked at its own port and at another one.
fn two(first: &HealthPolicy, second: &HealthPolicy) -> Service {
    let mut service = service(1, first);
    let mut probe = ProbeSpec::clone(&service.backends[0].probes[0]);
    probe.target.set_port(5432);
    service.backends[0].probes.push(Arc::new(probe));
    service.health = vec![named("web", first), named("db", second)];
    service
}

fn named(name: &str, policy: &HealthPolicy) -> HealthPolicy {
    HealthPolicy {
        name: name.into(),
        ..policy.clone()
    }
}

fn see(engine: &mut Engine, check: usize, outcomes: &[Class]) -> Option<Change> {
    let see = |class: &Class| engine.observe(&key(0), check, &outcome(*class), s(60));
    outcomes.iter().filter_map(see).last()
}

fn state(engine: &Engine) -> (Health, bool, &str) {
    let view = engine.get(&key(0)).unwrap();
    (view.health, view.gone, &view.reason)
}

#[test]
fn all_must_pass_and_each_has_its_own_thresholds() {
    use Health::{Healthy, Unhealthy, Unknown};
    let slow = HealthPolicy {
        unhealthy_threshold: 5,
        healthy_threshold: 3,
        ..policy()
    };
    let mut engine = engine(&[two(&policy(), &slow)]);
    assert_eq!(state(&engine), (Unknown, false, "web: not yet probed"));
    assert_eq!(see(&mut engine, 0, &[Pass]), None);
    assert_eq!(state(&engine), (Unknown, false, "db: not yet probed"));
    let change = see(&mut engine, 1, &[Pass]).unwrap();
    assert_eq!((change.from, change.to), (Unknown, Healthy));

    // Four failures are none to the slow one.
    assert_eq!(see(&mut engine, 1, &[Status; 4]), None);
    let change = see(&mut engine, 1, &[Status]).unwrap();
    assert_eq!((change.from, change.to), (Healthy, Unhealthy));
    let reason = "db: 5 consecutive failures: status";
    assert_eq!(state(&engine), (Unhealthy, false, reason));
    assert_eq!(engine.get(&key(0)).unwrap().class, Some(Status));

    // The other one too: no other verdict, but told.
    let change = see(&mut engine, 0, &[Status; 3]).unwrap();
    assert_eq!((change.from, change.to), (Unhealthy, Unhealthy));
    let both = "web: 3 consecutive failures: status; db: 5 consecutive failures: status";
    assert_eq!(state(&engine).2, both);

    // Back when both are.
    let change = see(&mut engine, 0, &[Pass; 2]).unwrap();
    assert_eq!((change.to, state(&engine).2), (Unhealthy, reason));
    assert_eq!(see(&mut engine, 1, &[Pass; 2]), None);
    let change = see(&mut engine, 1, &[Pass]).unwrap();
    assert_eq!((change.from, change.to), (Unhealthy, Healthy));
    assert_eq!(state(&engine).2, "db: 3 consecutive successes");
}

#[test]
fn only_the_port_of_the_flows_tells_that_they_are_lost() {
    let gone = |first: &[Class], second: &[Class]| {
        let mut engine = engine(&[two(&policy(), &policy())]);
        see(&mut engine, 0, &[Pass]);
        see(&mut engine, 1, &[Pass]);
        see(&mut engine, 0, first);
        see(&mut engine, 1, second);
        let (health, gone, _) = state(&engine);
        assert_eq!(health, Health::Unhealthy);
        gone
    };
    assert!(gone(&[Refused; 3], &[Pass]));
    assert!(!gone(&[Pass], &[Refused; 3]), "a helper is no proof");
    assert!(!gone(&[Status; 3], &[Refused; 3]));
    assert!(gone(&[Timeout; 3], &[Refused; 3]));
}

/// One backend in two services is probed once, and both have the verdict.
#[test]
fn who_asks_the_same_shares_a_probe() {
    let quick = HealthPolicy {
        unhealthy_threshold: 2,
        ..policy()
    };
    let mut services = [service(3, &policy()), service(3, &quick)];
    services[1].name = "api".into();
    let other = BackendKey::new("api", "b0");
    let mut engine = engine(&services);
    let round = |engine: &mut Engine, n: u64, class| {
        let now = s(n);
        let starts = engine.start_due(now);
        assert_eq!(starts.len(), 3, "one for each address");
        let mut changes = Vec::new();
        for start in starts {
            let asked: Vec<_> = engine
                .asked_by(start.seq)
                .map(|(key, _)| key.clone())
                .collect();
            assert_eq!(asked.len(), 2);
            assert_eq!(asked[0].backend, asked[1].backend);
            changes.extend(
                engine
                    .finish(start.seq, &outcome(class), now + ms(1))
                    .changes,
            );
            assert_eq!(engine.asked_by(start.seq).count(), 0);
        }
        let health = [&key(0), &other].map(|key| engine.get(key).unwrap().health);
        (changes.len(), health)
    };
    use Health::{Healthy, Unhealthy};
    assert_eq!(round(&mut engine, 1, Pass), (6, [Healthy, Healthy]));
    assert_eq!(round(&mut engine, 2, Status), (0, [Healthy, Healthy]));
    // Each by its own threshold.
    assert_eq!(round(&mut engine, 3, Status), (3, [Healthy, Unhealthy]));
    assert_eq!(round(&mut engine, 4, Status), (3, [Unhealthy, Unhealthy]));

    // Another question, or another rhythm, is another probe.
    services[1].health[0].interval = s(2);
    engine.configure(&services, &BTreeMap::new(), s(5));
    assert_eq!(engine.start_due(s(9)).len(), 6);
}

/// Who joins a shared probe that is far from due does not wait for it.
#[test]
fn who_joins_is_asked_for_soon() {
    let patient = HealthPolicy {
        interval: s(60),
        fast_interval: ms(500),
        ..policy()
    };
    let mut services = vec![service(1, &patient)];
    let mut engine = engine(&services);
    feed(&mut engine, &[Pass]);
    let now = engine.get(&key(0)).unwrap().since + s(1);
    assert!(engine.next_due().unwrap() > now + s(5));
    services.push(service(1, &patient));
    services[1].name = "api".into();
    let restored = BTreeMap::new();
    engine.configure(&services, &restored, now);
    let due = engine.next_due().unwrap();
    assert!(due <= now + ms(500), "{due:?} after {now:?}");
    let health = |engine: &Engine, name: &str| {
        let key = BackendKey::new(name, "b0");
        engine.get(&key).unwrap().health
    };
    assert_eq!(health(&engine, "api"), Health::Unknown);
    feed(&mut engine, &[Pass]);
    assert_eq!(health(&engine, "api"), Health::Healthy);
    assert_eq!(health(&engine, "web"), Health::Healthy);
    // Alone again, with what is known.
    services.remove(0);
    engine.configure(&services, &restored, due);
    assert_eq!(health(&engine, "api"), Health::Healthy);
}

#[test]
fn degraded_answers_lower_the_weight_and_nothing_else() {
    let lower = HealthPolicy {
        degraded_weight: 30,
        ..policy()
    };
    let mut engine = engine(&[two(&lower, &policy())]);
    let degraded = |engine: &mut Engine, check| {
        let mut outcome = outcome(Class::Degraded);
        outcome.verdict = crate::probe::Verdict::Success;
        engine.observe(&key(0), check, &outcome, s(60))
    };
    see(&mut engine, 0, &[Pass]);
    see(&mut engine, 1, &[Pass]);
    let change = degraded(&mut engine, 0).unwrap();
    assert_eq!(
        (change.from, change.to, change.weight),
        (Health::Healthy, Health::Healthy, 30)
    );
    let reason = "db: first probe: ok; weight 30 %: degraded";
    assert_eq!(state(&engine), (Health::Healthy, false, reason));
    assert_eq!(degraded(&mut engine, 0), None, "no news");
    // The lowest counts.
    assert_eq!(degraded(&mut engine, 1), None);
    assert_eq!(see(&mut engine, 0, &[Pass]).unwrap().weight, 50);
    // A failure below the threshold says nothing of it.
    assert_eq!(see(&mut engine, 1, &[Status]), None);
    assert_eq!(see(&mut engine, 1, &[Pass]).unwrap().weight, 100);
}

/// What an agent says, line by line, beside another probe.
#[test]
fn an_agent_advises() {
    let mut service = two(&policy(), &policy());
    Arc::make_mut(&mut service.backends[0].probes[1]).kind = ProbeKind::Agent.into();
    service.health[1].unhealthy_threshold = 1;
    service.health[1].healthy_threshold = 1;
    let services = [service];
    let mut engine = engine(&services);
    let say = |engine: &mut Engine, line: &str| {
        let mut said = outcome(Pass);
        said.agent = Some(parse(line.as_bytes()).unwrap());
        said.detail = format!("the agent says \"{line}\"");
        engine.observe(&key(0), 1, &said, s(60));
        let view = engine.get(&key(0)).unwrap();
        (view.health, view.weight)
    };
    use Health::{Healthy, Unhealthy};
    // It has no vote until it has said something, and silence is nothing said.
    see(&mut engine, 0, &[Pass]);
    assert_eq!(state(&engine).0, Healthy);
    assert_eq!(see(&mut engine, 1, &[Refused; 5]), None);
    assert_eq!(state(&engine).0, Healthy);

    assert_eq!(say(&mut engine, "up 75%"), (Healthy, 75));
    assert!(
        state(&engine)
            .2
            .ends_with("weight 75 %: the agent says \"up 75%\"")
    );
    assert_eq!(say(&mut engine, "drain"), (Unhealthy, 75));
    // Only `ready` takes it back; silence does not, and the other probe neither.
    assert_eq!(say(&mut engine, "up 100%"), (Unhealthy, 100));
    see(&mut engine, 1, &[Timeout]);
    see(&mut engine, 0, &[Pass; 3]);
    assert_eq!(state(&engine).0, Unhealthy);
    assert_eq!(say(&mut engine, "ready"), (Healthy, 100));
    // Nor does it take back what the other one says.
    see(&mut engine, 0, &[Refused; 3]);
    assert_eq!(say(&mut engine, "ready up"), (Unhealthy, 100));
}

/// Alone it is a probe like any other.
#[test]
fn an_agent_that_is_the_only_probe_must_answer() {
    let mut service = service(1, &policy());
    Arc::make_mut(&mut service.backends[0].probes[0]).kind = ProbeKind::Agent.into();
    let mut engine = engine(&[service]);
    let seen = feed(&mut engine, &[Pass, Refused, Refused, Refused]);
    assert_eq!(seen.last(), Some(&(Health::Unhealthy, true)));
}
