//! Ejections: what leads to them, how many and how long, and what becomes of them.

use super::*;

#[test]
fn probes_clear_or_confirm() {
    let mut pool = Pool::nat(3);
    pool.ways[0] = Way::Silent;
    let (suspicion, _) = pool.suspicion();
    // No second one while probes are under way.
    assert_eq!(pool.run(ms(3000)), []);
    assert!(!pool.probed(&suspicion, true, Some(true), "connected"));
    let (passive, now) = (&pool.passive, pool.now);
    assert!(passive.doubts().is_empty());
    assert_eq!(passive.disagreement(&key(0), now), Some(&*suspicion.what));
    assert_eq!(passive.disagreement(&key(1), now), None);
    // Suspected again after a while that grows.
    let mut waits = Vec::new();
    for _ in 0..8 {
        let (suspicion, took) = pool.suspicion();
        waits.push(took.as_secs());
        pool.probed(&suspicion, true, Some(true), "connected");
    }
    assert_eq!(waits[..4], [2, 4, 8, 16].map(|s| s));
    assert_eq!(waits.last(), Some(&60));
    pool.ways[0] = Way::Answers;
    assert_eq!(pool.run(ms(120_000)), []);
    assert_eq!(pool.passive.disagreement(&key(0), pool.now), None);

    pool.ways[0] = Way::Silent;
    let (suspicion, _) = pool.suspicion();
    let now = pool.now;
    assert!(pool.probed(&suspicion, false, Some(false), "timed out"));
    let doubt = &pool.passive.doubts()[&key(0)];
    assert!(doubt.gone);
    assert_eq!(doubt.until, now + ms(30_000));
    assert!(doubt.reason.contains("without an answer") && doubt.reason.contains("timed out"));
}

fn eject(pool: &mut Pool, n: usize, probe: Option<bool>) -> Duration {
    pool.ways[n] = Way::Refuses;
    let (suspicion, _) = pool.suspicion();
    assert_eq!(suspicion.key, key(n));
    let now = pool.now;
    assert!(pool.probed(&suspicion, false, probe, "refused"));
    // What is out gets no connections.
    pool.ways[n] = Way::Answers;
    pool.passive.doubts()[&key(n)].until - now
}

#[test]
fn ejections_grow_and_are_forgotten() {
    let mut pool = Pool::nat(3);
    for expected in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300] {
        assert_eq!(eject(&mut pool, 1, Some(true)).as_secs(), expected);
        while !pool.ejected().is_empty() {
            pool.turn();
        }
    }
    // Twenty minutes without one: four are forgotten of eleven.
    pool.run(ms(1_200_500));
    assert_eq!(eject(&mut pool, 1, Some(true)).as_secs(), 240);
}

/// Probes and packets: one count, and a death that both notice is one.
#[test]
fn whoever_ejects_adds_to_one_count() {
    let held = HealthPolicy {
        unhealthy_threshold: 1,
        healthy_threshold: 1,
        hold_down: Some(HoldDown {
            base: ms(20_000),
            most: ms(1_000_000),
        }),
        ..policy()
    };
    for policy in [
        held.clone(),
        HealthPolicy {
            hold_down: None,
            ..held
        },
    ] {
        let configured = policy.hold_down.is_some();
        let base = policy.hold_down.unwrap_or(HoldDown::USUAL).base;
        let mut pool = Pool::of(3, &policy, Forwarding::Nat, PassiveHttp::Off);
        let see = |pool: &mut Pool, class| {
            pool.engine.observe(&key(1), 0, &outcome(class), pool.now);
        };
        let count = |pool: &Pool| pool.engine.get(&key(1)).unwrap().ejections.count();
        assert_eq!(eject(&mut pool, 1, Some(false)), base);
        // The probes notice the same death later.
        pool.now += ms(500);
        see(&mut pool, Class::Refused);
        assert_eq!(count(&pool), 1);
        // Neither is back alone.
        pool.now += ms(500);
        see(&mut pool, Class::Ok);
        assert_eq!(pool.observe(1, true), !configured, "a hold-down is kept");
        pool.now += base;
        see(&mut pool, Class::Ok);
        pool.turn();
        assert!(pool.ejected().is_empty());
        // The next two, by the probes and then by the packets.
        see(&mut pool, Class::Status);
        assert_eq!(count(&pool), 2);
        pool.now += 2 * base;
        see(&mut pool, Class::Ok);
        assert_eq!(eject(&mut pool, 1, Some(true)), 3 * base);
        let reason = &pool.passive.doubts()[&key(1)].reason;
        assert!(reason.contains("; ejection 3, held down for "), "{reason}");
        // And the probes' again, while it is out: the third still.
        see(&mut pool, Class::Refused);
        assert_eq!(count(&pool), 3);
    }
}

#[test]
fn another_agent_takes_ejections_over() {
    let mut pool = Pool::nat(4);
    eject(&mut pool, 1, Some(true));
    eject(&mut pool, 2, Some(false));
    let later = ms(10_000);
    let (doubts, verdicts) = (pool.passive.save(pool.now), pool.engine.snapshot(pool.now));
    let moved = |doubts: &BTreeMap<BackendKey, SavedDoubt>| -> BTreeMap<_, _> {
        let doubts = doubts.clone().into_iter();
        doubts
            .map(|(key, doubt)| (key, doubt.later(later)))
            .collect()
    };
    let start = ms(7_000_000);
    let next = |doubts, change: fn(&mut Service)| {
        let mut service = service(4, &policy());
        service.passive.connections = true;
        change(&mut service);
        let services = [service];
        let (mut passive, mut engine) = (Passive::default(), Engine::new(1));
        engine.configure(&services, &verdicts, start);
        passive.configure(&services);
        passive.restore(doubts, start);
        engine.follow(passive.doubts(), start);
        (passive, engine)
    };
    let (mut passive, mut engine) = next(moved(&doubts), |_| {});
    let mut said: Vec<_> = pool.passive.doubts().iter().collect();
    let found: Vec<_> = passive.doubts().iter().collect();
    assert_eq!(found.len(), 2);
    for ((key, old), (same, new)) in said.drain(..).zip(&found) {
        assert_eq!((key, old.gone, &old.reason), (*same, new.gone, &new.reason));
        assert_eq!(new.until - start, old.until - pool.now - later);
        assert_eq!(start - new.since, pool.now - old.since + later);
    }
    // It is the ejection that it was, and the next one is the second.
    assert_eq!(engine.ejected(&key(1), start).number, 1);
    for (success, ends) in [(true, false), (true, true)] {
        assert_eq!(passive.observe(&key(2), success), ends);
        assert!(!passive.observe(&key(1), success));
    }
    engine.follow(passive.doubts(), start);
    assert_eq!(engine.ejected(&key(2), start + ms(1)).number, 2);

    // Over by now, of another address, not watched any more: none of it, and nobody stays out.
    let over = doubts.clone().into_iter();
    let over = over
        .map(|(key, doubt)| (key, doubt.later(ms(400_000))))
        .collect();
    let (passive, mut engine) = next(over, |_| {});
    assert!(passive.doubts().is_empty());
    assert_eq!(engine.ejected(&key(1), start).number, 2);
    let (passive, _) = next(moved(&doubts), |service| {
        service.backends[1].address.set_port(8081);
    });
    assert_eq!(passive.doubts().keys().collect::<Vec<_>>(), [&key(2)]);
    let (passive, _) = next(moved(&doubts), |s| s.passive.connections = false);
    assert!(passive.doubts().is_empty());
}

#[test]
fn the_probe_that_failed_too_ends_an_ejection() {
    let mut pool = Pool::nat(3);
    eject(&mut pool, 1, Some(false));
    for (success, ends) in [(true, false), (false, false), (true, false), (true, true)] {
        assert_eq!(pool.observe(1, success), ends);
    }
    assert!(pool.passive.doubts().is_empty());
    // One that did not fail says nothing.
    eject(&mut pool, 1, Some(true));
    for _ in 0..5 {
        assert!(!pool.observe(1, true));
    }
    assert_eq!(pool.ejected(), [&key(1)]);
}

#[test]
fn at_most_so_many_are_ejected_but_one_of_two() {
    for (percent, backends, most) in [
        (50, 2, 1),
        (50, 3, 1),
        (50, 4, 2),
        (50, 5, 2),
        (0, 4, 1),
        (75, 4, 3),
        (100, 3, 3),
    ] {
        let mut pool = Pool::nat(backends);
        let mut service = service(backends, &policy());
        service.forwarding = Forwarding::Nat;
        service.passive = Settings {
            connections: true,
            max_ejection_percent: percent,
            ..Settings::default()
        };
        pool.passive.configure(&[service]);
        assert_eq!(pool.passive.services["web"].places(), most);
        if most == backends {
            continue;
        }
        for n in 0..most {
            eject(&mut pool, n, None);
        }
        pool.ways[most] = Way::Refuses;
        let (mut suspicions, mut refused) = (Vec::new(), Vec::new());
        for _ in 0..30 {
            let judged = pool.turn();
            suspicions.extend(judged.suspicions);
            refused.extend(judged.refused);
        }
        assert_eq!(suspicions, [], "of {backends}");
        // It is told, once for a while, unless what all have in common explains it.
        if backends > 2 {
            let refused: Vec<_> = refused.iter().map(|refused| &refused.key).collect();
            assert_eq!(refused, [&key(most)], "of {backends}");
            assert!(pool.passive.disagreement(&key(most), pool.now).is_some());
        }
        assert_eq!(pool.ejected().len(), most);
    }
}

#[test]
fn another_configuration_keeps_what_is_known() {
    let mut pool = Pool::nat(3);
    eject(&mut pool, 1, None);
    let service = |backends, connections| {
        let mut service = service(backends, &policy());
        service.passive.connections = connections;
        service
    };
    pool.passive.configure(&[service(4, true)]);
    assert_eq!(pool.ejected(), [&key(1)]);
    // Another backend under the same name.
    let mut other = Pool::nat(3);
    eject(&mut other, 1, None);
    let mut moved = service(3, true);
    moved.backends[1].address.set_port(8081);
    other.passive.configure(&[moved]);
    assert!(other.ejected().is_empty());
    pool.passive.configure(&[service(1, true)]);
    assert!(pool.ejected().is_empty());
    pool.passive.configure(&[service(4, false)]);
    assert!(!pool.passive.watches());
}

#[test]
fn backends_suspected_at_once_share_the_places() {
    let mut pool = Pool::nat(8);
    let mut service = service(8, &policy());
    service.forwarding = Forwarding::Nat;
    service.passive = Settings {
        connections: true,
        max_ejection_percent: 25,
        ..Settings::default()
    };
    pool.passive.configure(&[service]);
    for way in &mut pool.ways[..3] {
        *way = Way::Refuses;
    }
    let mut asked = Vec::new();
    for _ in 0..10 {
        asked.extend(pool.turn().suspicions);
    }
    let keys = |of: &[Suspicion]| -> Vec<_> { of.iter().map(|s| s.key.clone()).collect() };
    assert_eq!(keys(&asked), [key(0), key(1)], "two places of eight");
    // The one is well after all, so the third gets its place.
    assert!(pool.probed(&asked[0], false, None, "refused"));
    assert!(!pool.probed(&asked[1], true, None, "connected"));
    let next = pool.turn().suspicions;
    assert_eq!(keys(&next), [key(2)]);
    assert!(pool.probed(&next[0], false, None, "refused"));
    assert_eq!(pool.ejected(), [&key(0), &key(2)]);
}

#[test]
fn probes_of_another_backends_say_nothing_of_its_successor() {
    let mut pool = Pool::nat(3);
    pool.ways[1] = Way::Refuses;
    let (suspicion, _) = pool.suspicion();
    assert!(pool.passive.awaits(&suspicion.key));
    let mut moved = service(3, &policy());
    moved.passive.connections = true;
    moved.backends[1].address.set_port(8081);
    pool.passive.configure(&[moved]);
    assert!(!pool.passive.awaits(&suspicion.key));
    assert!(!pool.probed(&suspicion, false, None, "refused"));
    assert!(pool.ejected().is_empty());
}

#[test]
fn whoever_could_not_be_asked_is_suspected_again() {
    let mut pool = Pool::nat(3);
    pool.ways[1] = Way::Refuses;
    let (first, _) = pool.suspicion();
    pool.passive.cannot_ask(&first, pool.now);
    let (again, _) = pool.suspicion();
    assert_eq!(again.key, first.key);
}
