//! Traces of whole pools: who gets new flows when some are down, and how many passive checks may
//! eject.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_userspace::health::passive::{PERIOD, Passive, Reading};
use lb_userspace::health::{Engine, Health};
use lb_userspace::model::{
    Backend, BackendKey, Forwarding, PanicAction, PassiveHttp, PassiveRules, Service,
};
use lb_userspace::probe::Class;
use lb_userspace::routing::{Admin, Cause, Input, Orders, Routing, RoutingState, decide};
use serde_json::Value;

use super::{backend, outcome, policy, restored, service, traces};

/// The traces that this module replays beside those of Envoy's priorities.
pub const REPLAYED: [&str; 12] = [
    "aws-fail-open-1",
    "aws-fail-open-2",
    "haproxy-all-down",
    "haproxy-runtime-api",
    "keepalived-quorum-3",
    "envoy-outlier-14",
    "envoy-outlier-18",
    "envoy-outlier-19",
    "envoy-outlier-22",
    "envoy-outlier-23",
    "envoy-outlier-24",
    "nginx-single_server_never_ejected",
];

fn trace(id: &str) -> Value {
    assert!(REPLAYED.contains(&id), "{id} is not in the list");
    let found = traces().into_iter().find(|trace| trace["id"] == id);
    found.unwrap_or_else(|| panic!("no trace {id}"))
}

fn number(value: &Value) -> u16 {
    u16::try_from(value.as_u64().unwrap()).unwrap()
}

/// A service whose first backends are down, routed from one moment to the next.
struct Pool {
    service: Service,
    admin: BTreeMap<BackendKey, Admin>,
    state: RoutingState,
    now: Duration,
}

impl Pool {
    fn new(tiers: &[u8]) -> Self {
        let backends: Vec<Backend> = (1..)
            .zip(tiers)
            .map(|(n, tier)| backend(n, *tier))
            .collect();
        Self {
            service: service(policy(3, 2), backends),
            admin: BTreeMap::new(),
            state: RoutingState::default(),
            now: Duration::ZERO,
        }
    }

    fn key(&self, n: usize) -> BackendKey {
        self.service.key(&self.service.backends[n])
    }

    /// Who takes new flows when the first `down` are.
    fn with_down(&mut self, down: usize) -> Vec<bool> {
        let verdict = |(n, backend): (usize, &Backend)| {
            let health = if n < down {
                Health::Unhealthy
            } else {
                Health::Healthy
            };
            (self.service.key(backend), restored(health, backend))
        };
        let known = self.service.backends.iter().enumerate().map(verdict);
        let mut engine = Engine::new(1);
        let services = std::slice::from_ref(&self.service);
        engine.configure(services, &known.collect(), self.now);
        let input = Input {
            services,
            health: &|key| engine.get(key),
            passive: &BTreeMap::new(),
            admin: &self.admin,
            removed: &BTreeMap::new(),
            orders: &Orders::default(),
        };
        self.state = decide(&input, &self.state, self.now).state;
        let routing = |n| {
            self.state
                .get(&self.key(n))
                .map(|decision| decision.routing)
        };
        let takes = |n| routing(n).is_some_and(Routing::takes_new_flows);
        (0..self.service.backends.len()).map(takes).collect()
    }

    fn panics(&self) -> bool {
        self.state.services["web"].panic
    }
}

/// AWS' fail-open, by its threshold for routing. A zone that routes for itself is a service here.
#[test]
fn too_few_healthy_targets_as_aws_has_it() {
    for id in ["aws-fail-open-1", "aws-fail-open-2"] {
        let trace = trace(id);
        let config = &trace["config"];
        let (zones, each) = (
            number(&config["zones"]),
            number(&config["targets_per_zone"]),
        );
        let failed = usize::from(number(&trace["input"]["failed_in_zone_B"]));
        let pool = |targets: u16| {
            let mut pool = Pool::new(&vec![0; usize::from(targets)]);
            pool.service.panic_threshold =
                u8::try_from(number(&config["unhealthy_state_routing_percent"])).unwrap();
            pool
        };
        if config["cross_zone"] == true {
            let mut all = pool(zones * each);
            let takes = all.with_down(failed);
            assert_eq!(
                trace["expect"]["all"],
                "70 % >= 50 %: routes to the 14 healthy"
            );
            assert_eq!(takes.iter().filter(|takes| **takes).count(), 14);
            assert!(!all.panics());
            continue;
        }
        let (mut a, mut b) = (pool(each), pool(each));
        assert_eq!(a.with_down(0).iter().filter(|takes| **takes).count(), 10);
        let expected = trace["expect"]["zone_B"].as_str().unwrap();
        assert!(expected.ends_with("goes to all 10 targets"), "{expected}");
        assert_eq!(b.with_down(failed), vec![true; usize::from(each)]);
        assert!(b.panics() && !a.panics());
    }
}

/// HAProxy knows no panic: without a server that is up only a backup serves, if there is one. A
/// backup is a higher tier here.
#[test]
fn all_down_as_haproxy_has_it() {
    let trace = trace("haproxy-all-down");
    let observed = &trace["observed"];
    let status = |takes: Vec<bool>| if takes.contains(&true) { 500 } else { 503 };
    for (key, tiers) in [
        ("no_backup_client_status", &[0][..]),
        ("with_backup_client_status", &[0, 1]),
    ] {
        let mut pool = Pool::new(tiers);
        pool.service.panic_threshold = 0;
        assert_eq!(observed[key], status(pool.with_down(1)), "{key}");
    }
}

/// HAProxy's words for a server's state and weight. Those for its health are not offered: only probes
/// say that.
#[test]
fn the_operators_words_as_haproxy_has_them() {
    let trace = trace("haproxy-runtime-api");
    let mut pool = Pool::new(&[0]);
    let key = pool.key(0);
    let mut replayed = 0;
    for step in trace["steps"].as_array().unwrap() {
        let command = step["command"].as_str().unwrap();
        match command.strip_prefix("set server adm/a ") {
            Some("state drain") => {
                let until = pool.now + Duration::from_secs(30);
                pool.admin.insert(key.clone(), Admin::Drain { until });
            }
            Some("state maint") => {
                pool.admin.insert(key.clone(), Admin::Disabled);
            }
            Some("state ready") => {
                pool.admin.remove(&key);
            }
            Some("weight 0") => pool.service.backends[0].weight = 0,
            Some("weight 100%") => pool.service.backends[0].weight = 1,
            // From here on it is about health.
            _ => break,
        }
        let takes = pool.with_down(0)[0] && pool.service.backends[0].weight > 0;
        assert_eq!(takes, step["client"] == 500, "{command}");
        let routing = pool.state.get(&key).unwrap().routing.name();
        let expected = match step["status"].as_str().unwrap() {
            "DRAIN" => "draining",
            "MAINT" => "out",
            _ => "active",
        };
        assert_eq!(routing, expected, "{command}");
        replayed += 1;
    }
    assert_eq!(replayed, 6);
}

/// keepalived's quorum without hysteresis is a number of backends that must be healthy, with
/// `panic_action = "fail"`: here it is met after one probe interval.
#[test]
fn a_quorum_as_keepalived_has_it() {
    let trace = trace("keepalived-quorum-3");
    assert_eq!(trace["config"]["hysteresis"], 0);
    let mut pool = Pool::new(&[0, 0, 0]);
    pool.service.panic_threshold = 0;
    pool.service.panic.min_healthy = number(&trace["config"]["quorum"]).into();
    pool.service.panic.action = PanicAction::Fail;
    let live = trace["live_weight"].as_array().unwrap();
    let expected = trace["expect_quorum_up"].as_array().unwrap();
    for (live, up) in live.iter().zip(expected) {
        let down = 3 - usize::from(number(live));
        pool.with_down(down);
        pool.now += pool.service.health[0].interval;
        let takes = pool.with_down(down).contains(&true);
        assert_eq!(
            (takes, !pool.panics()),
            (*up == true, *up == true),
            "{live}"
        );
    }
}

/// Envoy's consecutive errors, five as here, and how many of a pool they may eject. The other hosts
/// answer well meanwhile: here errors must be a backend's own.
#[test]
fn passive_ejections_as_envoy_limits_them() {
    let ids = REPLAYED.iter().filter(|id| id.starts_with("envoy-outlier"));
    for id in ids {
        let trace = trace(id);
        let mut errors = Errors::of(&trace);
        let enforced = trace["config"]["enforcing_consecutive_5xx"] == 100;
        for step in trace["steps"].as_array().unwrap() {
            let (host, expect) = (step["host"].as_u64(), &step["expect"]);
            match host {
                None => {
                    assert_eq!(expect["ejected"], serde_json::json!([]), "{id}");
                    errors.judge();
                    assert!(errors.passive.doubts().is_empty(), "{id}");
                }
                Some(host) => {
                    let host = usize::try_from(host).unwrap();
                    for _ in 0..step["requests"].as_u64().unwrap() {
                        errors.error_of(host);
                    }
                    assert_eq!(
                        errors.ejected(host),
                        expect["ejected"] == true,
                        "{id}: {step}"
                    );
                    if !enforced {
                        let key = errors.keys[host].clone();
                        let said = errors.passive.disagreement(&key, errors.now);
                        assert!(said.is_some(), "{id}: it is detected");
                    }
                }
            }
        }
    }
}

/// nginx never takes the only server of an upstream out; packets eject no lone backend here.
#[test]
fn the_only_server_stays_as_nginx_has_it() {
    let trace = trace("nginx-single_server_never_ejected");
    let mut errors = Errors::new(1, true, 50);
    for request in trace["requests"].as_array().unwrap() {
        assert!(request["log"].as_str().unwrap().ends_with("500 [A] [500]"));
        errors.error_of(0);
        assert!(!errors.ejected(0), "{request}");
    }
}

/// The same limit for the probes: three failures in a row in the place of five errors. That one may
/// always be ejected is an option there.
#[test]
fn ejections_by_probes_as_envoy_limits_them() {
    for id in ["envoy-outlier-18", "envoy-outlier-22", "envoy-outlier-23"] {
        let trace = trace(id);
        let config = &trace["config"];
        let mut pool = Pool::new(&vec![0; usize::from(number(&config["hosts"]))]);
        pool.service.panic_threshold = 0;
        pool.service.pool.max_ejection_percent =
            u8::try_from(number(&config["max_ejection_percent"])).unwrap();
        pool.with_down(0);
        for (n, step) in trace["steps"].as_array().unwrap().iter().enumerate() {
            assert_eq!(
                usize::from(number(&step["host"])),
                n,
                "they fail in their order"
            );
            let takes = pool.with_down(n + 1);
            let ejected = step["expect"]["ejected"] == true;
            assert_eq!(takes[n], !ejected, "{id}: {step}");
            let cause = pool.state.get(&pool.key(n)).unwrap().cause;
            let refused = cause == Cause::EjectionRefused;
            assert_eq!(refused, !ejected, "{id}: {step}");
        }
    }
}

/// A pool that is asked over HTTP.
struct Errors {
    passive: Passive,
    engine: Engine,
    keys: Vec<BackendKey>,
    readings: Vec<Reading>,
    now: Duration,
}

impl Errors {
    /// As a trace of Envoy's has it.
    fn of(trace: &Value) -> Self {
        let config = &trace["config"];
        let percent = u8::try_from(number(&config["max_ejection_percent"])).unwrap();
        let enforced = config["enforcing_consecutive_5xx"] == 100;
        Self::new(number(&config["hosts"]), enforced, percent)
    }

    fn new(hosts: u16, enforced: bool, max_ejection_percent: u8) -> Self {
        let mut service = service(policy(3, 2), (1..=hosts).map(|n| backend(n, 0)).collect());
        service.forwarding = Forwarding::Nat;
        service.passive = PassiveRules {
            connections: false,
            http: if enforced {
                PassiveHttp::Eject
            } else {
                PassiveHttp::Report
            },
            max_ejection_percent,
        };
        let keys: Vec<_> = (service.backends.iter())
            .map(|backend| service.key(backend))
            .collect();
        let (mut passive, mut engine) = (Passive::default(), Engine::new(1));
        engine.configure(
            std::slice::from_ref(&service),
            &BTreeMap::new(),
            Duration::ZERO,
        );
        for key in &keys {
            engine.observe(key, 0, &outcome(Class::Ok), Duration::ZERO);
        }
        passive.configure(&[service]);
        let mut errors = Self {
            passive,
            engine,
            readings: vec![Reading::default(); keys.len()],
            keys,
            now: Duration::ZERO,
        };
        errors.read();
        errors
    }

    /// `host` answers with an error, the others well unless they are out.
    fn error_of(&mut self, host: usize) {
        for n in 0..self.readings.len() {
            let out = self.ejected(n);
            let reading = &mut self.readings[n];
            match n == host {
                true => reading.http_errors += 1,
                false if !out => reading.http_ok += 1,
                false => {}
            }
            let sum = reading.http_ok + reading.http_errors;
            (reading.opened, reading.answered, reading.packets) = (sum, sum, 5 * sum);
        }
        self.read();
        self.judge();
    }

    fn read(&mut self) {
        self.now += PERIOD;
        for (key, reading) in self.keys.iter().zip(&self.readings) {
            self.passive.read(key, *reading, Duration::ZERO, self.now);
        }
    }

    fn judge(&mut self) {
        let (engine, now) = (&mut self.engine, self.now);
        let judged = (self.passive).judge(&mut |key| engine.ejected(key, now), now);
        assert!(judged.suspicions.is_empty());
        engine.follow(self.passive.doubts(), now);
    }

    fn ejected(&self, host: usize) -> bool {
        let key = &self.keys[host];
        self.passive.doubts().contains_key(key)
    }
}
