//! Traces recorded from other health checkers, replayed through the engine and the routing.
//!
//! `cases/traces.json` holds sequences of outcomes and what Envoy, HAProxy, keepalived and others
//! made of them. Those whose semantics are the engine's must come out the same; each of the others
//! is printed with the reason why it is left out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_userspace::health::agent::parse;
use lb_userspace::health::{Change, Engine, Health, Restored};
use lb_userspace::model::{
    Affinity, Backend, BackendKey, Endpoint, Forwarding, HealthPolicy, HoldDown, Mode, PanicRules,
    PassiveRules, ProbeKind, ProbeSpec, Protocol, Service,
};
use lb_userspace::probe::{Class, Outcome, Verdict};
use lb_userspace::routing::{Input, Orders, RoutingState, decide};
use serde_json::Value;

mod pools;

const TIMEOUT: Duration = Duration::from_millis(50);

fn traces() -> Vec<Value> {
    let file: Value = serde_json::from_str(include_str!("../cases/traces.json")).unwrap();
    file["traces"].as_array().unwrap().clone()
}

fn policy(unhealthy: u64, healthy: u64) -> HealthPolicy {
    HealthPolicy {
        interval: Duration::from_millis(600),
        timeout: TIMEOUT,
        unhealthy_threshold: u32::try_from(unhealthy).unwrap(),
        healthy_threshold: u32::try_from(healthy).unwrap(),
        fast_interval: Duration::from_millis(100),
        down_interval: Duration::from_millis(300),
        jitter: 0,
        ..HealthPolicy::default()
    }
}

fn service(policy: HealthPolicy, backends: Vec<Backend>) -> Service {
    Service {
        name: "web".into(),
        address: Endpoint::from("203.0.113.10:80".parse::<SocketAddr>().unwrap()),
        protocol: Protocol::Tcp,
        forwarding: Forwarding::Dsr,
        affinity: Affinity::Flow,
        mode: Mode::Balance,
        panic: PanicRules::default(),
        on_death: lb_userspace::model::OnDeath::Reset,
        syn_rescue: true,
        passive: PassiveRules::default(),
        server_id_length: 0,
        panic_threshold: 50,
        drain_deadline: Duration::from_secs(30),
        announce: None,
        slow_start: Default::default(),
        pool: Default::default(),
        health: vec![policy],
        backends,
    }
}

fn backend(n: u16, tier: u8) -> Backend {
    let address = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 80));
    Backend {
        name: format!("b{n}").into(),
        address,
        server_id: None,
        weight: 1,
        tier,
        fallback: false,
        probes: vec![Arc::new(ProbeSpec {
            target: address,
            timeout: TIMEOUT,
            kind: ProbeKind::Tcp.into(),
            egress: Default::default(),
        })],
    }
}

fn restored(health: Health, backend: &Backend) -> Restored {
    Restored {
        health,
        gone: health == Health::Unhealthy,
        reason: "before".to_owned(),
        address: backend.address,
        past: Default::default(),
        checks: Default::default(),
    }
}

fn outcome(class: Class) -> Outcome {
    Outcome {
        verdict: match class {
            Class::Ok | Class::Degraded | Class::Drain => Verdict::Success,
            _ => Verdict::Failure,
        },
        class,
        detail: class.name().to_owned(),
        latency: Duration::from_millis(1),
        steps: Vec::new(),
        agent: None,
        certificate_not_after: None,
    }
}

/// A lone backend.
struct Single {
    engine: Engine,
    key: BackendKey,
}

impl Single {
    fn new(policy: HealthPolicy, initial: Health) -> Self {
        let backend = backend(1, 0);
        let key = BackendKey::new("web", "b1");
        let restored = [(key.clone(), restored(initial, &backend))].into();
        let mut engine = Engine::new(1);
        engine.configure(&[service(policy, vec![backend])], &restored, Duration::ZERO);
        Self { engine, key }
    }

    /// The next probe ends like this. Tells when it began, and what it changed.
    fn step(&mut self, class: Class) -> (Duration, Option<Change>) {
        let at = self.engine.next_due().unwrap();
        let start = self.engine.start_due(at).pop().unwrap();
        let ended = at + Duration::from_millis(1);
        let ended = self.engine.finish(start.seq, &outcome(class), ended);
        let change = ended.changes.first().cloned();
        (at, change)
    }

    fn is_up(&self) -> bool {
        self.engine.get(&self.key).unwrap().health == Health::Healthy
    }
}

fn letter(letter: char) -> Class {
    match letter {
        'P' => Class::Ok,
        'F' => Class::Status,
        'R' => Class::Reset,
        'T' => Class::Timeout,
        // 404 with `http-check disable-on-404`.
        'N' => Class::Drain,
        other => panic!("outcome {other}"),
    }
}

/// HAProxy starts a server UP and one failure from DOWN: the first check decides, as it does for an
/// unknown backend. `states` has the state before each check, and after the last.
fn haproxy(trace: &Value) -> Result<(), &'static str> {
    let config = &trace["config"];
    let policy = policy(
        config["fall"].as_u64().unwrap(),
        config["rise"].as_u64().unwrap(),
    );
    let mut single = Single::new(policy, Health::Unknown);
    let states = trace["states"].as_array().unwrap();
    let outcomes = trace["outcomes"].as_str().unwrap();
    assert_eq!(states.len(), outcomes.len() + 1);
    for (n, (outcome, after)) in outcomes.chars().zip(&states[1..]).enumerate() {
        single.step(letter(outcome));
        let view = single.engine.get(&single.key).unwrap();
        let state = match (view.health, view.leaving) {
            (Health::Healthy, true) => "DRAIN",
            (Health::Healthy, false) => "UP",
            (Health::Unhealthy | Health::Unknown, _) => "DOWN",
        };
        assert_eq!(state, after, "{}: after outcome {n}", trace["id"]);
    }
    Ok(())
}

/// keepalived: N retries after the first failure, one success brings it back, initially up.
fn keepalived(trace: &Value) -> Result<(), &'static str> {
    let retry = trace["config"]["retry"].as_u64().unwrap();
    let mut single = Single::new(policy(retry + 1, 1), Health::Healthy);
    let expected = trace["expect_up"].as_array().unwrap();
    let outcomes = trace["outcomes"].as_str().unwrap();
    assert_eq!(expected.len(), outcomes.len());
    for (n, (outcome, up)) in outcomes.chars().zip(expected).enumerate() {
        single.step(letter(outcome));
        let id = &trace["id"];
        assert_eq!(single.is_up(), *up == true, "{id}: after outcome {n}");
    }
    Ok(())
}

/// Envoy: a host that starts failed is admitted by its first success, as an unknown one is. A bad
/// answer ejects at once there, which `immediate_on` asks for.
fn envoy(trace: &Value) -> Result<(), &'static str> {
    let config = &trace["config"];
    let unhealthy = config["unhealthy_threshold"].as_u64().unwrap();
    let policy = HealthPolicy {
        immediate_on: vec![Class::Application],
        ..policy(unhealthy, config["healthy_threshold"].as_u64().unwrap())
    };
    let initial = &trace["initial"];
    assert_eq!(initial["first_check"], true);
    let initial = match initial["state"].as_str().unwrap() {
        "healthy" => Health::Healthy,
        "unhealthy" | "pending" => Health::Unknown,
        other => panic!("state {other}"),
    };
    let mut single = Single::new(policy, initial);
    for (n, step) in trace["steps"].as_array().unwrap().iter().enumerate() {
        let class = match step["event"].as_str().unwrap() {
            "pass" => Class::Ok,
            "fail_network" => Class::Reset,
            "fail_timeout" => Class::Timeout,
            "fail_retriable" => Class::Status,
            "fail_application" | "fail_application_immediate" => Class::Application,
            "pass_degraded" => Class::Degraded,
            "first_traffic_seen" => continue,
            other => panic!("event {other}"),
        };
        let was_unknown = single.engine.get(&single.key).unwrap().health == Health::Unknown;
        let (_, change) = single.step(class);
        let (id, expect) = (&trace["id"], &step["expect"]);
        let state = match single.engine.get(&single.key).unwrap() {
            view if view.health != Health::Healthy => "unhealthy",
            view if view.weight < 100 => "degraded",
            _ => "healthy",
        };
        let expected = expect["state"]
            .as_str()
            .unwrap()
            .replace("pending", "unhealthy");
        assert_eq!(state, expected, "{id}: step {n}");
        if !was_unknown {
            // That it is now gone is none of Envoy's.
            let changed = change
                .is_some_and(|change| change.from != change.to || change.to == Health::Healthy);
            assert_eq!(changed, expect["transition"] == "changed", "{id}: step {n}");
        }
    }
    Ok(())
}

#[test]
fn consecutive_counting_as_others_do_it() {
    let mut replayed = BTreeMap::<String, usize>::new();
    for trace in traces().iter().filter(|trace| trace["family"] == "active") {
        let semantics = trace["semantics"].as_str().unwrap();
        let result = match semantics {
            "haproxy" => haproxy(trace),
            "keepalived" => keepalived(trace),
            "envoy" => envoy(trace),
            other => panic!("semantics {other}"),
        };
        match result {
            Ok(()) => *replayed.entry(semantics.to_owned()).or_default() += 1,
            Err(why) => println!("{} left out: {why}", trace["id"]),
        }
    }
    println!("replayed: {replayed:?}");
    assert_eq!(replayed["haproxy"], 19);
    assert_eq!(replayed["keepalived"], 3);
    assert_eq!(replayed["envoy"], 45, "{replayed:?}");
}

/// Every family of the file is replayed above, or named here with the reason why it is not.
#[test]
fn no_family_is_forgotten() {
    for trace in &traces() {
        let why = match trace["family"].as_str().unwrap() {
            "active" | "schedule" | "agent" => continue,
            _ if pools::REPLAYED.iter().any(|id| trace["id"] == *id) => continue,
            "outlier" if trace["id"] == MAX_EJECT_TIME => continue,
            "panic" if trace["semantics"] == "envoy" => continue,
            "outlier" => outlier(trace),
            "passive" => {
                "it counts requests of a proxy that retries, or takes another number of them"
            }
            "quorum" => "a hysteresis of its own for a quorum is not offered",
            other => panic!("unknown family {other}"),
        };
        println!("{} left out: {why}", trace["id"]);
    }
}

/// Why one of Envoy's passive checks is not replayed.
fn outlier(trace: &Value) -> &'static str {
    match trace["id"].as_str().unwrap() {
        "envoy-outlier-02" | "envoy-outlier-03" => {
            "good probes never end an ejection for HTTP errors: those probes lie"
        }
        "envoy-outlier-05" | "envoy-outlier-10" | "envoy-outlier-20" | "envoy-outlier-21" => {
            "how a proxy reports results from several threads, or maps its own failures"
        }
        "envoy-outlier-06" => "no status counts apart (502, 503, 504)",
        "envoy-outlier-11" | "envoy-outlier-12" => "shares are compared plainly, not by deviation",
        "envoy-outlier-13" => "errors in half of the answers eject here, by their share",
        "envoy-outlier-16" | "envoy-outlier-27" => "another share and volume",
        "envoy-outlier-17" | "envoy-outlier-25" => "a lone backend is never ejected by its packets",
        "envoy-outlier-26" => "ejections are forgotten by good health, not by sweeps",
        other => panic!("{other} is neither replayed nor explained"),
    }
}

/// Envoy's ejections that last longer each time, up to a limit: the same rule for active checks.
const MAX_EJECT_TIME: &str = "envoy-outlier-28";

#[test]
fn ejections_last_as_long_as_envoys() {
    let traces = traces();
    let trace = traces.iter().find(|t| t["id"] == MAX_EJECT_TIME).unwrap();
    let config = |key: &str| Duration::from_millis(trace["config"][key].as_u64().unwrap());
    let policy = HealthPolicy {
        hold_down: Some(HoldDown {
            base: config("base_ejection_time_ms"),
            most: config("max_ejection_time_ms"),
        }),
        ..policy(trace["config"]["consecutive_5xx"].as_u64().unwrap(), 1)
    };
    let mut single = Single::new(policy, Health::Healthy);
    let mut ejections = 0;
    for step in trace["steps"].as_array().unwrap() {
        let at = |key: &str| step[key].as_u64().map(Duration::from_millis);
        let (class, times, now) = match at("sweep_at_ms") {
            Some(now) => (Class::Ok, 1, now),
            None => (
                Class::Status,
                step["requests"].as_u64().unwrap(),
                at("at_ms").unwrap(),
            ),
        };
        for _ in 0..times {
            single.engine.observe(&single.key, 0, &outcome(class), now);
        }
        ejections += u32::from(class == Class::Status);
        assert_eq!(
            !single.is_up(),
            step["expect"]["ejected"] == true,
            "{now:?}"
        );
    }
    assert!(ejections > 30, "{ejections}");
}

/// HAProxy's agent beside a health check that passes. Three things differ on purpose: `weight:` is
/// taken (HAProxy 2.6 ignores it, newer ones do not), so is a reason without a space before it, and
/// 0 % is a no.
#[test]
fn agents_as_haproxy_has_them() {
    for trace in traces().iter().filter(|trace| trace["family"] == "agent") {
        let once = HealthPolicy {
            name: "agent".into(),
            ..policy(1, 1)
        };
        let mut backend = backend(1, 0);
        let mut asked = ProbeSpec::clone(&backend.probes[0]);
        asked.kind = ProbeKind::Agent.into();
        asked.target.set_port(9707);
        backend.probes.push(Arc::new(asked));
        let key = BackendKey::new("web", "b1");
        let mut service = service(policy(3, 2), vec![backend]);
        service.health.push(once);
        let mut engine = Engine::new(1);
        engine.configure(&[service], &BTreeMap::new(), Duration::ZERO);
        engine.observe(&key, 0, &outcome(Class::Ok), Duration::ZERO);
        let mut replayed = 0;
        for (n, step) in trace["steps"].as_array().unwrap().iter().enumerate() {
            let line = step["agent_line"].as_str().unwrap_or_default();
            if line.starts_with("weight:") || line.starts_with("stopped#") {
                continue;
            }
            let report = parse(line.as_bytes()).ok();
            let said = Outcome {
                agent: report.clone(),
                ..outcome(if report.is_some() {
                    Class::Ok
                } else {
                    Class::Malformed
                })
            };
            engine.observe(&key, 1, &said, Duration::from_secs(1));
            let view = engine.get(&key).unwrap();
            let (up, weight) = match &step["expect"] {
                Value::Null => (
                    step["status"] == "UP",
                    step["weight"].as_str().unwrap().parse(),
                ),
                expect => (
                    false,
                    Ok(u8::try_from(expect["weight"].as_u64().unwrap()).unwrap()),
                ),
            };
            let weight = weight.unwrap();
            let place = format!("{}: step {n}, {line:?}", trace["id"]);
            assert_eq!(view.weight, weight, "{place}");
            let up = up && weight > 0;
            assert_eq!(view.health == Health::Healthy, up, "{place}");
            replayed += 1;
        }
        assert!(replayed > 24 || trace["id"] == "haproxy-agent-vtc");
    }
}

/// HAProxy's inter, fastinter and downinter, as observed. Going back to the steady state the engine
/// returns to its grid, which may be sooner than a whole interval.
#[test]
fn intervals_as_haproxy_has_them() {
    let traces = traces();
    let trace = traces
        .iter()
        .find(|trace| trace["id"] == "haproxy-intervals")
        .unwrap();
    assert_eq!(
        trace["config"],
        "inter 600 fastinter 100 downinter 300 rise 3 fall 3"
    );
    let mut single = Single::new(policy(3, 3), Health::Unknown);
    let outcomes = trace["outcomes"].as_str().unwrap();
    let checks = trace["checks"].as_array().unwrap();
    let mut last: Option<Duration> = None;
    for (n, (outcome, check)) in outcomes.chars().zip(checks).enumerate() {
        let (at, _) = single.step(letter(outcome));
        if let (Some(last), Some(theirs)) = (last, check["gap_ms"].as_u64()) {
            let ours = u64::try_from((at - last).as_millis()).unwrap();
            if check["view"] == "UP" {
                assert!(ours <= theirs, "check {n}: {ours} against {theirs} ms");
            } else {
                assert!(
                    ours.abs_diff(theirs) <= 3,
                    "check {n}: {ours} against {theirs} ms"
                );
            }
        }
        last = Some(at);
    }
}

/// Envoy's priorities: which tiers get load, and whether there is panic.
#[test]
fn tiers_and_panic_as_envoy_has_them() {
    let mut replayed = 0;
    for trace in traces()
        .iter()
        .filter(|t| t["family"] == "panic" && t["semantics"] == "envoy")
    {
        match priority(trace) {
            Ok(()) => replayed += 1,
            Err(why) => println!("{} left out: {why}", trace["id"]),
        }
    }
    println!("replayed: {replayed}");
    assert!(replayed >= 23, "{replayed}");
}

fn priority(trace: &Value) -> Result<(), &'static str> {
    let (config, expect) = (&trace["config"], &trace["expect"]);
    let levels = trace["levels"].as_array().unwrap();
    if levels.iter().any(|level| level["degraded"] != 0) {
        return Err("degraded is not offered");
    }
    let panics = expect["panic"].as_array();
    if panics.is_some_and(|panics| panics.iter().any(|p| p != &panics[0])) {
        return Err("panic is of the whole service, not of a tier");
    }

    let (mut backends, mut known) = (Vec::new(), BTreeMap::new());
    for (tier, level) in (0u8..).zip(levels) {
        let of = |what: &str| level[what].as_u64().unwrap();
        for n in 0..of("hosts") {
            let backend = backend(u16::try_from(backends.len()).unwrap() + 1, tier);
            let key = BackendKey::new("web", backend.name.clone());
            // Those excluded are not yet checked.
            let health = if n < of("healthy") {
                Health::Healthy
            } else if n < of("healthy") + of("excluded") {
                Health::Unknown
            } else {
                Health::Unhealthy
            };
            known.insert(key, restored(health, &backend));
            backends.push(backend);
        }
    }
    let mut service = service(policy(3, 2), backends);
    service.panic_threshold =
        u8::try_from(config["panic_threshold_percent"].as_u64().unwrap()).unwrap();
    let factor = config["overprovisioning_factor"].as_f64().unwrap();
    service.pool.overprovisioning = (factor * 100.0).round() as u16;
    let mut engine = Engine::new(1);
    engine.configure(std::slice::from_ref(&service), &known, Duration::ZERO);
    let (admin, removed) = (BTreeMap::new(), BTreeMap::new());
    let input = Input {
        services: std::slice::from_ref(&service),
        health: &|key| engine.get(key),
        passive: &BTreeMap::new(),
        admin: &admin,
        removed: &removed,
        orders: &Orders::default(),
    };
    let decided = decide(&input, &RoutingState::default(), Duration::ZERO);
    let routing = &decided.state.services["web"];

    let id = &trace["id"];
    let mut loaded: Vec<bool> = vec![false; levels.len()];
    for backend in &service.backends {
        let decision = &routing.backends[&service.key(backend)];
        loaded[usize::from(backend.tier)] |= decision.routing.takes_new_flows();
    }
    let loads = expect["load_percent"].as_array().unwrap();
    let expected: Vec<bool> = loads.iter().map(|load| load != 0).collect();
    assert_eq!(loaded, expected, "{id}: tiers with load");
    if let Some(panics) = panics {
        assert_eq!(routing.panic, panics[0] == 1, "{id}: panic");
    }
    Ok(())
}
