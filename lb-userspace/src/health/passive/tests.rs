use super::*;
use crate::health::Engine;
use crate::health::tests::{outcome, policy, service};
use crate::model::PassiveRules as Settings;
use crate::model::{Class, HealthPolicy, HoldDown};

mod ejections;

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
    /// Accepts connections, and answers no request.
    Mute,
}

/// A pool under load, read as the agent reads it.
struct Pool {
    passive: Passive,
    /// Counts the ejections.
    engine: Engine,
    now: Duration,
    readings: Vec<Reading>,
    ways: Vec<Way>,
    /// New connections in a period, for each backend.
    load: u64,
    /// Packets of old connections in a period, for each backend; and how much of them clients go on
    /// sending when it is dead, in percent.
    busy: (u64, u64),
    turns: u64,
}

impl Pool {
    fn new(backends: usize, forwarding: Forwarding, http: PassiveHttp) -> Self {
        Self::of(backends, &policy(), forwarding, http)
    }

    fn of(
        backends: usize,
        policy: &HealthPolicy,
        forwarding: Forwarding,
        http: PassiveHttp,
    ) -> Self {
        let mut service = service(backends, policy);
        service.forwarding = forwarding;
        service.passive = Settings {
            connections: true,
            http,
            ..Settings::default()
        };
        let mut passive = Passive::default();
        let mut engine = Engine::new(1);
        engine.configure(std::slice::from_ref(&service), &BTreeMap::new(), ms(0));
        for n in 0..backends {
            engine.observe(&key(n), 0, &outcome(Class::Ok), ms(1));
        }
        passive.configure(&[service]);
        assert!(passive.watches());
        assert_eq!(passive.keys().count(), backends);
        let mut pool = Self {
            passive,
            engine,
            now: Duration::ZERO,
            readings: vec![Reading::default(); backends],
            ways: vec![Way::Answers; backends],
            load: 3,
            busy: (0, 0),
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
            let (busy, repeated) = self.busy;
            reading.packets += match self.ways[n] {
                Way::Silent | Way::Refuses => busy * repeated / 100,
                _ => busy,
            };
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
                    Way::Mute => {}
                    Way::Answers | Way::Answered(_) | Way::Fails(_) => reading.http_ok += 1,
                }
                reading.answered += 1;
                reading.packets += 4;
            }
            let reading = *reading;
            self.passive.read(&key(n), reading, ms(2), self.now);
        }
        self.judge()
    }

    fn judge(&mut self) -> Judged {
        let (engine, now) = (&mut self.engine, self.now);
        let judged = (self.passive).judge(&mut |key| engine.ejected(key, now), now);
        if judged.changed {
            engine.follow(self.passive.doubts(), now);
        }
        judged
    }

    fn probed(
        &mut self,
        suspicion: &Suspicion,
        reached: bool,
        probe: Option<bool>,
        detail: &str,
    ) -> bool {
        let (engine, now) = (&mut self.engine, self.now);
        let mut ejected = |key: &BackendKey| engine.ejected(key, now);
        (self.passive).probed(suspicion, reached, probe, detail, &mut ejected, now)
    }

    fn observe(&mut self, n: usize, success: bool) -> bool {
        let ends = self.passive.observe(&key(n), success);
        self.engine.follow(self.passive.doubts(), self.now);
        ends
    }

    /// Runs that long, answers suspicions of backends that answer with a clear probe, and gives the
    /// others as they were raised, by backend and kind.
    fn run(&mut self, time: Duration) -> Vec<(BackendKey, Kind)> {
        let end = self.now + time;
        let mut raised = Vec::new();
        while self.now < end {
            for suspicion in self.turn().suspicions {
                raised.push((suspicion.key.clone(), suspicion.kind));
                self.probed(&suspicion, true, Some(true), "connected");
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

/// Old connections that send a little hide a death until its SYNs come again.
#[test]
fn repeated_syns_find_what_old_connections_hide() {
    let pool = || {
        let mut pool = Pool::new(3, Forwarding::Dsr, PassiveHttp::Off);
        pool.busy = (4, 100);
        assert_eq!(pool.run(ms(5000)), []);
        pool
    };
    let again = |pool: &mut Pool, n: usize| {
        let reading = &mut pool.readings[n];
        reading.packets += 3;
        reading.opened += 3;
        reading.repeated += 3;
    };
    let mut dying = pool();
    dying.ways[2] = Way::Silent;
    assert_eq!(dying.run(ms(1000)), []);
    let (start, mut raised) = (dying.now, Vec::new());
    while raised.is_empty() {
        again(&mut dying, 2);
        raised = dying.turn().suspicions;
        assert!(dying.now < start + ms(1500), "not suspected");
    }
    assert_eq!((&raised[0].key, raised[0].kind), (&key(2), Kind::Silent));
    assert!(raised[0].what.contains("came again"), "{raised:?}");
    // What all have in common is the network's, and a few are losses.
    let mut all = pool();
    for _ in 0..100 {
        for n in 0..3 {
            again(&mut all, n);
        }
        assert_eq!(all.turn().suspicions, []);
    }
    let mut few = pool();
    for turn in 0..100 {
        if turn % 5 == 0 {
            again(&mut few, 1);
        }
        assert_eq!(few.turn().suspicions, []);
    }
}

/// By a tunnel nothing tells whether others get through, so it is the number that counts.
#[test]
fn errors_about_a_tunnel_are_a_sign() {
    let mut pool = Pool::new(3, Forwarding::Gue, PassiveHttp::Off);
    for _ in 0..20 {
        pool.readings[1].unreachable += 2;
        assert_eq!(pool.run(ms(3000)), []);
    }
    pool.readings[1].unreachable += 3;
    let (suspicion, took) = pool.suspicion();
    assert_eq!(
        (&suspicion.key, suspicion.kind),
        (&key(1), Kind::Unreachable)
    );
    assert!(took <= PERIOD, "{took:?}");
    assert_eq!(suspicion.since, pool.now);
    // Its probes succeed: they are shown, and it is left alone for a while.
    pool.probed(&suspicion, true, Some(true), "connected");
    pool.readings[1].unreachable += 30;
    pool.turn();
    let shown = pool.passive.disagreement(&key(1), pool.now);
    assert_eq!(shown, Some(suspicion.what.as_str()));
    assert_eq!(pool.run(ms(1500)), []);
}

/// Old connections that repeat their packets do not hide a death, but a pause of theirs is none.
#[test]
fn busy_old_connections_hide_no_death() {
    for way in [Way::Silent, Way::Refuses] {
        let mut pool = Pool::new(3, Forwarding::Gue, PassiveHttp::Off);
        pool.busy = (200, 15);
        assert_eq!(pool.run(ms(5000)), []);
        pool.ways[2] = way;
        let (suspicion, took) = pool.suspicion();
        assert_eq!((&suspicion.key, suspicion.kind), (&key(2), Kind::OneSided));
        assert!(
            suspicion.what.contains("other packets fell"),
            "{suspicion:?}"
        );
        assert!(took <= ms(500), "{took:?}");
    }
    // Less than that is no sign, nor what all have in common, nor that all becomes quiet.
    let quiet = |change: fn(&mut Pool)| {
        let mut pool = Pool::new(3, Forwarding::Gue, PassiveHttp::Off);
        pool.busy = (200, 40);
        pool.run(ms(5000));
        change(&mut pool);
        assert_eq!(pool.run(ms(5000)), []);
    };
    quiet(|pool| pool.ways[2] = Way::Silent);
    quiet(|pool| pool.busy = (2, 100));
    quiet(|pool| pool.load = 0);
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
        assert_eq!(pool.judge(), Judged::default());
    }
    assert!(pool.now - before < ms(500));
    pool.now += ms(150);
    assert_eq!(pool.judge().suspicions.len(), 1);
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
fn one_that_accepts_and_does_not_answer_is_probed() {
    for http in [PassiveHttp::Report, PassiveHttp::Eject] {
        let mut pool = Pool::new(3, Forwarding::Nat, http);
        pool.ways[1] = Way::Mute;
        assert_eq!(pool.run(ms(600)), [(key(1), Kind::Mute)]);
        // Clients that say nothing, and a service whose HTTP nobody reads.
        let mut pool = Pool::new(3, Forwarding::Nat, http);
        pool.ways = vec![Way::Mute; 3];
        assert_eq!(pool.run(ms(5000)), []);
    }
    let mut pool = Pool::nat(3);
    pool.ways[1] = Way::Mute;
    assert_eq!(pool.run(ms(5000)), []);
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
    // One too many is told, once for a while.
    let mut pool = Pool::new(4, Forwarding::Nat, PassiveHttp::Eject);
    let mut told = Vec::new();
    for n in 0..3 {
        pool.ways[n] = Way::Fails(100);
        for _ in 0..20 {
            told.extend(pool.turn().refused);
        }
        // So that the next one's errors are its own.
        pool.ways[n] = Way::Answers;
        pool.run(2 * WINDOW);
    }
    assert_eq!(pool.ejected(), [&key(0), &key(1)]);
    let told: Vec<_> = told.iter().map(|told| (&told.key, told.kind)).collect();
    assert_eq!(told, [(&key(2), Kind::HttpErrors)]);
    // Few errors, or as many by all, eject nobody.
    for ways in [[5, 30, 5], [60, 50, 60], [100, 100, 100]] {
        let mut pool = Pool::new(3, Forwarding::Nat, PassiveHttp::Eject);
        pool.ways = ways.map(Way::Fails).to_vec();
        pool.run(ms(60_000));
        assert!(pool.ejected().is_empty(), "{ways:?}");
    }
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
