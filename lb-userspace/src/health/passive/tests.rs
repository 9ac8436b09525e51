use super::*;
use crate::model::PassiveRules as Settings;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn key(n: usize) -> BackendKey {
    BackendKey::new("web", Arc::<str>::from(format!("b{n}")))
}

/// What becomes of the connections to a backend.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Answers,
    Silent,
    Refuses,
    Unreachable,
    /// This share is answered, in percent.
    Answered(u64),
    /// HTTP errors in this share of answers, in percent.
    Fails(u64),
}

/// A pool under load, read as the agent reads it.
struct Pool {
    passive: Passive,
    now: Duration,
    readings: Vec<Reading>,
    ways: Vec<Way>,
    /// New connections in a period, for each backend.
    load: u64,
    turns: u64,
}

impl Pool {
    fn new(backends: usize, forwarding: Forwarding, http: PassiveHttp) -> Self {
        let mut service = super::super::tests::service(backends, &super::super::tests::policy());
        service.forwarding = forwarding;
        service.passive = Settings {
            connections: true,
            http,
        };
        let mut passive = Passive::default();
        passive.configure(&[service]);
        assert!(passive.watches());
        assert_eq!(passive.keys().count(), backends);
        let mut pool = Self {
            passive,
            now: Duration::ZERO,
            readings: vec![Reading::default(); backends],
            ways: vec![Way::Answers; backends],
            load: 3,
            turns: 0,
        };
        assert_eq!(pool.run(ms(5000)), []);
        pool
    }

    fn nat(backends: usize) -> Self {
        Self::new(backends, Forwarding::Nat, PassiveHttp::Off)
    }

    /// One reading.
    fn turn(&mut self) -> Judged {
        self.now += PERIOD;
        self.turns += 1;
        for n in 0..self.readings.len() {
            let reading = &mut self.readings[n];
            for connection in 0..self.load {
                // Spread evenly over a hundred.
                let lot = (self.turns * self.load + connection) * 37 % 100;
                reading.opened += 1;
                reading.packets += 1;
                match self.ways[n] {
                    Way::Silent => continue,
                    Way::Answered(share) if lot >= share => continue,
                    Way::Refuses => {
                        reading.answered += 1;
                        reading.refused += 1;
                        continue;
                    }
                    Way::Unreachable => {
                        reading.unreachable += 1;
                        continue;
                    }
                    Way::Fails(share) if lot < share => reading.http_errors += 1,
                    Way::Answers | Way::Answered(_) | Way::Fails(_) => reading.http_ok += 1,
                }
                reading.answered += 1;
                reading.packets += 4;
            }
            let reading = *reading;
            self.passive.read(&key(n), reading, ms(2), self.now);
        }
        self.passive.judge(self.now)
    }

    /// Runs that long, answers suspicions of backends that answer with a clear probe, and gives the
    /// others as they were raised, by backend and kind.
    fn run(&mut self, time: Duration) -> Vec<(BackendKey, Kind)> {
        let end = self.now + time;
        let mut raised = Vec::new();
        while self.now < end {
            for suspicion in self.turn().suspicions {
                raised.push((suspicion.key.clone(), suspicion.kind));
                self.passive
                    .probed(&suspicion, true, Some(true), "connected", self.now);
            }
        }
        raised
    }

    /// The first suspicion, and how long it took.
    fn suspicion(&mut self) -> (Suspicion, Duration) {
        let start = self.now;
        while self.now < start + ms(100_000) {
            if let Some(first) = self.turn().suspicions.into_iter().next() {
                return (first, self.now - start);
            }
        }
        panic!("nobody is suspected");
    }

    fn ejected(&self) -> Vec<&BackendKey> {
        self.passive.doubts().keys().collect()
    }
}

#[test]
fn each_kind_of_death_is_suspected_soon() {
    let cases = [
        (Way::Refuses, Kind::Refused, 100),
        (Way::Unreachable, Kind::Unreachable, 100),
        (Way::Silent, Kind::Silent, 150),
        (Way::Answered(30), Kind::Failing, 2000),
    ];
    for (way, kind, limit) in cases {
        let mut pool = Pool::nat(3);
        pool.ways[1] = way;
        let (suspicion, took) = pool.suspicion();
        assert_eq!((&suspicion.key, suspicion.kind), (&key(1), kind));
        assert!(took <= ms(limit), "{way:?} took {took:?}");
        assert!(suspicion.since <= pool.now);
    }
}

#[test]
fn without_the_replies_what_follows_is_missed() {
    for way in [Way::Silent, Way::Refuses] {
        let mut pool = Pool::new(3, Forwarding::Dsr, PassiveHttp::Off);
        pool.ways[2] = way;
        let (suspicion, took) = pool.suspicion();
        assert_eq!((&suspicion.key, suspicion.kind), (&key(2), Kind::OneSided));
        assert!(took <= ms(250), "{took:?}");
    }
}

#[test]
fn losses_and_slow_answers_suspect_nobody() {
    let mut pool = Pool::nat(3);
    pool.ways = vec![Way::Answered(98), Way::Answered(95), Way::Answers];
    assert_eq!(pool.run(ms(600_000)), []);
    // Nobody answers for as long as an answer may take.
    let mut pool = Pool::nat(2);
    pool.ways[0] = Way::Silent;
    let before = pool.now;
    for _ in 0..8 {
        pool.now += PERIOD;
        pool.readings[0].opened += 3;
        let reading = pool.readings[0];
        pool.passive.read(&key(0), reading, ms(500), pool.now);
        assert_eq!(pool.passive.judge(pool.now), Judged::default());
    }
    assert!(pool.now - before < ms(500));
    pool.now += ms(150);
    assert_eq!(pool.passive.judge(pool.now).suspicions.len(), 1);
}

#[test]
fn what_all_have_in_common_says_nothing() {
    for forwarding in [Forwarding::Nat, Forwarding::Ipip] {
        for backends in [2, 3, 5] {
            for way in [Way::Silent, Way::Refuses, Way::Answered(20)] {
                let mut pool = Pool::new(backends, forwarding, PassiveHttp::Eject);
                pool.ways = vec![way; backends];
                assert_eq!(pool.run(ms(10_000)), [], "{backends} {way:?}");
                assert!(pool.ejected().is_empty());
            }
        }
    }
}

#[test]
fn a_flood_of_syns_by_dsr_ejects_nobody() {
    let mut pool = Pool::new(4, Forwarding::Dsr, PassiveHttp::Off);
    for _ in 0..400 {
        for reading in &mut pool.readings {
            reading.opened += 5000;
            reading.packets += 5000;
        }
        assert_eq!(pool.turn(), Judged::default());
    }
}

#[test]
fn probes_clear_or_confirm() {
    let mut pool = Pool::nat(3);
    pool.ways[0] = Way::Silent;
    let (suspicion, _) = pool.suspicion();
    // No second one while probes are under way.
    assert_eq!(pool.run(ms(3000)), []);
    let now = pool.now;
    let passive = &mut pool.passive;
    assert!(!passive.probed(&suspicion, true, Some(true), "connected", now));
    assert!(passive.doubts().is_empty());
    assert_eq!(passive.disagreement(&key(0), now), Some(&*suspicion.what));
    assert_eq!(passive.disagreement(&key(1), now), None);
    // Suspected again after a while that grows.
    let mut waits = Vec::new();
    for _ in 0..8 {
        let (suspicion, took) = pool.suspicion();
        waits.push(took.as_secs());
        let now = pool.now;
        pool.passive
            .probed(&suspicion, true, Some(true), "connected", now);
    }
    assert_eq!(waits[..4], [2, 4, 8, 16].map(|s| s));
    assert_eq!(waits.last(), Some(&60));
    pool.ways[0] = Way::Answers;
    assert_eq!(pool.run(ms(120_000)), []);
    assert_eq!(pool.passive.disagreement(&key(0), pool.now), None);

    pool.ways[0] = Way::Silent;
    let (suspicion, _) = pool.suspicion();
    let now = pool.now;
    assert!(
        pool.passive
            .probed(&suspicion, false, Some(false), "timed out", now)
    );
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
    assert!(
        pool.passive
            .probed(&suspicion, false, probe, "refused", now)
    );
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
    // Four minutes without one.
    pool.run(ms(240_500));
    assert_eq!(eject(&mut pool, 1, Some(true)).as_secs(), 240);
}

#[test]
fn the_probe_that_failed_too_ends_an_ejection() {
    let mut pool = Pool::nat(3);
    eject(&mut pool, 1, Some(false));
    let now = pool.now;
    let passive = &mut pool.passive;
    for (success, ends) in [(true, false), (false, false), (true, false), (true, true)] {
        assert_eq!(passive.observe(&key(1), success, now), ends);
    }
    assert!(passive.doubts().is_empty());
    // One that did not fail says nothing.
    eject(&mut pool, 1, Some(true));
    let now = pool.now;
    for _ in 0..5 {
        assert!(!pool.passive.observe(&key(1), true, now));
    }
    assert_eq!(pool.ejected(), [&key(1)]);
}

#[test]
fn at_most_half_are_ejected_but_one_of_two() {
    for (backends, most) in [(2, 1), (3, 1), (4, 2), (5, 2)] {
        let mut pool = Pool::nat(backends);
        for n in 0..most {
            eject(&mut pool, n, None);
        }
        pool.ways[most] = Way::Refuses;
        let mut suspicions = Vec::new();
        for _ in 0..100 {
            suspicions.extend(pool.turn().suspicions);
        }
        assert_eq!(suspicions, [], "of {backends}");
        assert_eq!(pool.ejected().len(), most);
    }
}

#[test]
fn http_errors_are_shown_or_eject() {
    let mut pool = Pool::new(3, Forwarding::Nat, PassiveHttp::Report);
    pool.ways[1] = Way::Fails(100);
    pool.run(ms(500));
    assert!(pool.ejected().is_empty());
    let said = pool.passive.disagreement(&key(1), pool.now).unwrap();
    assert!(said.contains("HTTP answers"), "{said}");
    pool.ways[1] = Way::Answers;
    pool.run(ms(10_000));
    assert_eq!(pool.passive.disagreement(&key(1), pool.now), None);

    for (share, within) in [(100, 250), (70, 2500)] {
        let mut pool = Pool::new(3, Forwarding::Nat, PassiveHttp::Eject);
        pool.ways[1] = Way::Fails(share);
        let start = pool.now;
        while pool.ejected().is_empty() {
            assert!(pool.now - start < ms(within), "{share} %");
            pool.turn();
        }
        let doubt = &pool.passive.doubts()[&key(1)];
        assert!(!doubt.gone, "its flows end by themselves");
    }
    // Few errors, or as many by all, eject nobody.
    for ways in [[5, 30, 5], [60, 50, 60], [100, 100, 100]] {
        let mut pool = Pool::new(3, Forwarding::Nat, PassiveHttp::Eject);
        pool.ways = ways.map(Way::Fails).to_vec();
        pool.run(ms(60_000));
        assert!(pool.ejected().is_empty(), "{ways:?}");
    }
}

#[test]
fn another_configuration_keeps_what_is_known() {
    let mut pool = Pool::nat(3);
    eject(&mut pool, 1, None);
    let service = |backends, connections| {
        let tests = super::super::tests::policy();
        let mut service = super::super::tests::service(backends, &tests);
        service.passive.connections = connections;
        service
    };
    pool.passive.configure(&[service(4, true)]);
    assert_eq!(pool.ejected(), [&key(1)]);
    pool.passive.configure(&[service(1, true)]);
    assert!(pool.ejected().is_empty());
    pool.passive.configure(&[service(4, false)]);
    assert!(!pool.passive.watches());
}

#[test]
fn counters_that_begin_anew_say_nothing() {
    let mut pool = Pool::nat(2);
    pool.readings[0] = Reading {
        opened: 100,
        ..Reading::default()
    };
    assert_eq!(pool.turn(), Judged::default());
}
