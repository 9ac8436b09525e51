//! What `lb status --json` shows. Names and meanings are a contract: fields may be added, none may
//! change.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::detail::AxisStatus;
use super::lateness::Lateness;
pub use super::primary::{PrimaryState, PrimaryStatus};
pub use super::quorum::QuorumStatus;
use super::request::ApiError;
pub use crate::health::Health;

/// The whole load balancer at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub node: Node,
    pub services: Vec<ServiceStatus>,
}

/// This host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub version: String,
    pub interfaces: Vec<Interface>,
    /// Since the agent started.
    pub uptime_seconds: f64,
    /// The agent is shutting down and fails its readiness check.
    pub draining: bool,
    /// When this status was put together.
    pub at: Timestamp,
    /// Process id of the agent.
    pub pid: u32,
    /// The configuration file it runs.
    #[serde(default)]
    pub config: String,
    /// Since the data plane last was confirmed to hold the wanted verdicts. Grows when the agent
    /// cannot write.
    #[serde(default)]
    pub verdict_age_seconds: f64,
    /// How long the data plane took to follow verdicts, since the agent started.
    #[serde(default)]
    pub verdict_gap: Lateness,
    /// Whether the program is on every configured interface.
    #[serde(default)]
    pub attached: bool,
    /// Whether every backend with a probe has had its first verdict, or time enough for it.
    #[serde(default)]
    pub first_round_done: bool,
    /// Why the last reload was refused; gone with the next one that succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_error: Option<String>,
    /// Why the data plane does not follow the verdicts, while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath_error: Option<String>,
    /// Why the routes of announced VIPs are not as they should be, while they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce_error: Option<String>,
    /// Why the state file is not as it should be: what it lacks would not outlive the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_error: Option<String>,
    /// Host names of backends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<NameStatus>,
    /// Packets by verdict that belong to no service, by [`lb_common::verdict::Verdict::label`].
    #[serde(default)]
    pub verdicts: BTreeMap<String, u64>,
    /// Whether the data plane captures packets, for `lb capture`.
    #[serde(default)]
    pub capturing: bool,
    #[serde(default)]
    pub flows: FlowTable,
    #[serde(default)]
    pub prober: Prober,
    /// A certificate with less time than this before it expires is worth a word.
    #[serde(default)]
    pub certificate_warning_seconds: u64,
}

/// A host name that stands for backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameStatus {
    pub name: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// As last resolved.
    pub addresses: Vec<String>,
    /// Why the last attempt to resolve it failed, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTable {
    pub used: u64,
    pub capacity: u64,
}

/// How well the prober keeps up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prober {
    /// Probes finished since the start, by what they found.
    pub success: u64,
    pub failure: u64,
    /// Results that the prober itself spoiled, counted for nobody.
    pub internal: u64,
    /// Probes left out because they would have been late.
    pub skipped: u64,
    /// How late the last probe started, seconds.
    pub lag_seconds: f64,
    /// Too much of the last round was late or lacked something on this host; timeouts are then not
    /// counted.
    #[serde(default)]
    pub overloaded: bool,
    /// Backends whose last probe was late or lacked something on this host.
    #[serde(default)]
    pub short: u64,
    /// Timeouts that were not counted for that.
    #[serde(default)]
    pub held: u64,
    /// How late all of them started.
    #[serde(default)]
    pub lateness: Lateness,
}

/// An interface with the program on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub mode: Mode,
    /// Why no packet passes it, as the kernel sees it; absent if it is up, or unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<String>,
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Native,
    Generic,
    /// Not attached.
    Off,
}

/// A service and its backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    /// VIP and port.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `nat`, `dsr`, `ipip` or `gue`.
    pub forwarding: String,
    /// Too few are healthy, so health is ignored.
    pub panic: bool,
    /// Counts the tables published for this service.
    pub generation: u64,
    /// Healthy share of the enabled weight whose health is decided.
    pub healthy_percent: f64,
    /// Percent under which the service panics; 0: never.
    #[serde(default)]
    pub panic_threshold: u8,
    /// Fewer healthy backends than this are panic, too; 0: their number does not matter.
    #[serde(default)]
    pub panic_min_healthy: u32,
    /// Who gets new flows in panic: `all`, `fail` (nobody) or `fallback`.
    #[serde(default)]
    pub panic_action: String,
    /// The tier that takes new flows.
    #[serde(default)]
    pub active_tier: u8,
    /// Slots in the service's table.
    #[serde(default)]
    pub table_size: u32,
    /// Packets that were not forwarded to a backend, by verdict.
    #[serde(default)]
    pub verdicts: BTreeMap<String, u64>,
    /// Ejections that would have been one too many, since the agent started.
    #[serde(default)]
    pub ejections_refused: EjectionsRefused,
    /// `mode = "active_passive"`: the active backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<PrimaryStatus>,
    /// `announce = "route"`: whether enough can serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<QuorumStatus>,
    /// `announce = "route"`: whether the VIP's route stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<bool>,
    /// Why it does, or does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced_reason: Option<String>,
    pub backends: Vec<BackendStatus>,
}

/// Ejections that did not happen, since as many backends were out as may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectionsRefused {
    /// Where the probes had ejected (`max_ejection_percent`).
    pub probes: u64,
    /// Where the packets had (`passive_max_ejection_percent`, too).
    pub packets: u64,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendStatus {
    pub name: Arc<str>,
    pub address: String,
    /// In force: the operator's if there is one, else the configured one.
    pub weight: u32,
    pub tier: u8,
    pub health: Health,
    pub admin: Admin,
    pub routing: Routing,
    /// Slots of the service's table that it owns now.
    pub slots: u32,
    pub active_flows: u64,
    pub packets: u64,
    pub bytes: u64,
    /// When `routing` last changed.
    pub since: Timestamp,
    /// Why it is routed so.
    pub reason: String,
    /// The same as a word: [`crate::routing::Cause`].
    #[serde(default)]
    pub cause: Cow<'static, str>,
    /// Absent before the first probe, and without probes.
    pub last_probe: Option<LastProbe>,
    /// Kind of its (first) probe: `tcp`, `http`, …; absent if it is not probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Cow<'static, str>>,
    /// New flows since the agent adopted or made the data plane.
    #[serde(default)]
    pub new_flows: u64,
    /// When a drain ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_until: Option<Timestamp>,
    /// The weight in the configuration, if the operator set another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured_weight: Option<u32>,
    /// Its next hop is not resolved: packets to it are dropped.
    #[serde(default)]
    pub unresolved: bool,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unresolved_reason: Option<String>,
    /// What the packets of its flows say of it that its probes do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagreement: Option<String>,
    /// What the packet path has counted of its behaviour.
    #[serde(default)]
    pub signs: Signs,
    #[serde(default)]
    pub probes: ProbeCounts,
    /// Percent of its slots that it takes new flows for. Less than 100 while it is eased in, and for
    /// one that says it is degraded or whose agent gives it less weight.
    #[serde(default = "whole")]
    pub share: u8,
    /// It stays out until then, whatever its probes say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Timestamp>,
    /// When it is probed next; absent while it is probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_probe: Option<Timestamp>,
    /// Since when the operator has its probes paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_since: Option<Timestamp>,
    /// Ejections not forgotten yet, by its probes or its packets.
    #[serde(default)]
    pub ejections: u32,
    /// Each of its probes, if there are several, if one was shown a certificate, or if this service
    /// was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckStatus>,
    /// If this service was asked for: what each axis says of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub axes: Vec<AxisStatus>,
}

const _: () = assert!(size_of::<BackendStatus>() <= 568);

const fn whole() -> u8 {
    100
}

/// One of the probes of a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckStatus {
    pub name: String,
    pub health: Health,
    /// When `health` last changed.
    pub since: Timestamp,
    /// Why it is what it is.
    pub reason: String,
    /// Absent before the first.
    pub last_probe: Option<LastProbe>,
    /// See [`BackendStatus::next_probe`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_probe: Option<Timestamp>,
    /// When the certificate expires that the probe was shown last; absent without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_not_after: Option<Timestamp>,
    /// If this service was asked for: its last outcomes, the latest first, those that were not
    /// counted included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<LastProbe>,
}

/// Signs of how a backend does, counted in the packet path; by NAT only, but for `repeated` and
/// `unreachable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signs {
    /// Flows that it has answered.
    pub answered: u64,
    /// Those of them whose first answer was a RST.
    pub refused: u64,
    /// SYNs that came again before any answer.
    pub repeated: u64,
    /// ICMP errors that say that it, or its port, cannot be reached.
    pub unreachable: u64,
    /// HTTP answers with a status below 500, where they are watched.
    pub http_ok: u64,
    /// Those with another one.
    pub http_errors: u64,
    /// Answers to SYNs that were timed.
    #[serde(default)]
    pub timed: u64,
    /// Seconds that those took in all.
    #[serde(default)]
    pub timed_seconds: f64,
}

/// Probes of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCounts {
    pub success: u64,
    pub failure: u64,
    pub internal: u64,
    /// Verdicts turned: ejections and readmissions.
    pub flaps: u64,
}

/// What the operator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    Enabled,
    Drain,
    Disabled,
}

/// What the data plane does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// Gets new flows.
    Active,
    /// Established flows only, until the deadline.
    Draining,
    /// Gets nothing.
    Out,
    /// Ready, and not needed: of a higher tier, or another one is the active one.
    Standby,
    /// Would be out; gets new flows because its service panics.
    Panic,
}

/// The last probe of a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastProbe {
    /// `success`, `failure` or `internal`.
    pub outcome: Cow<'static, str>,
    /// For people: `HTTP 200`.
    pub detail: Arc<str>,
    pub latency_ms: f64,
    pub at: Timestamp,
    /// Name of the [`crate::probe::Class`].
    #[serde(default)]
    pub class: Cow<'static, str>,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            interfaces: Vec::new(),
            uptime_seconds: 0.0,
            draining: false,
            at: Timestamp::UNIX_EPOCH,
            pid: std::process::id(),
            config: String::new(),
            verdict_age_seconds: 0.0,
            verdict_gap: Lateness::default(),
            attached: false,
            first_round_done: false,
            names: Vec::new(),
            reload_error: None,
            datapath_error: None,
            announce_error: None,
            state_error: None,
            verdicts: BTreeMap::new(),
            capturing: false,
            flows: FlowTable::default(),
            prober: Prober::default(),
            certificate_warning_seconds: 0,
        }
    }
}

impl BackendStatus {
    /// Whether new flows may come to it: not without a slot, as one with weight 0.
    pub const fn takes_new_flows(&self) -> bool {
        self.slots > 0 && matches!(self.routing, Routing::Active | Routing::Panic)
    }
}

impl Node {
    /// Attached and first probe round done.
    pub fn started(&self) -> bool {
        self.attached && self.first_round_done
    }

    /// Started, the tables written and not shutting down.
    pub fn ready(&self) -> bool {
        self.started() && self.datapath_error.is_none() && !self.draining
    }
}

impl Status {
    /// This status with one service only.
    pub fn only(mut self, service: &str) -> Result<Self, ApiError> {
        if !self.services.iter().any(|known| known.name == service) {
            let known = self.services.iter().map(|known| known.name.as_str());
            return Err(ApiError::unknown_service(service, known));
        }
        self.services.retain(|known| known.name == service);
        Ok(self)
    }
}

macro_rules! named {
    ($($kind:ident { $($variant:ident = $name:literal),+ })+) => {$(
        impl $kind {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Name in JSON, metrics and on the terminal.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    )+};
}

named! {
    Admin { Enabled = "enabled", Drain = "drain", Disabled = "disabled" }
    Routing {
        Active = "active", Draining = "draining", Out = "out", Standby = "standby",
        Panic = "panic"
    }
    Mode { Native = "native", Generic = "generic", Off = "off" }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A service with one healthy and one ejected backend.
    pub(crate) fn sample() -> Status {
        let at: Timestamp = "2026-01-01T00:01:40Z".parse().unwrap();
        let healthy = BackendStatus {
            name: "web-1".into(),
            address: "10.0.0.11:8080".into(),
            weight: 100,
            tier: 0,
            health: Health::Healthy,
            admin: Admin::Enabled,
            routing: Routing::Active,
            slots: 65537,
            active_flows: 12,
            packets: 1234,
            bytes: 99999,
            since: "2026-01-01T00:00:00Z".parse().unwrap(),
            reason: "2 consecutive successes".into(),
            cause: "healthy".into(),
            last_probe: Some(LastProbe {
                outcome: "success".into(),
                detail: "HTTP 200".into(),
                latency_ms: 1.2,
                at: "2026-01-01T00:01:39Z".parse().unwrap(),
                class: "ok".into(),
            }),
            probe: Some("http".into()),
            new_flows: 40,
            drain_until: None,
            configured_weight: None,
            unresolved: false,
            unresolved_reason: None,
            disagreement: None,
            signs: Signs::default(),
            probes: ProbeCounts {
                success: 20,
                failure: 1,
                internal: 0,
                flaps: 1,
            },
            share: 100,
            held_until: None,
            next_probe: None,
            paused_since: None,
            ejections: 0,
            checks: Vec::new(),
            axes: Vec::new(),
        };
        let ejected = BackendStatus {
            name: "web-2".into(),
            address: "10.0.0.12:8080".into(),
            health: Health::Unhealthy,
            routing: Routing::Out,
            slots: 0,
            active_flows: 0,
            packets: 7,
            bytes: 420,
            since: "2026-01-01T00:01:30Z".parse().unwrap(),
            reason: "3 consecutive failures: connection refused".into(),
            cause: "gone".into(),
            last_probe: Some(LastProbe {
                outcome: "failure".into(),
                detail: "connection refused".into(),
                latency_ms: 0.2,
                at: "2026-01-01T00:01:38.5Z".parse().unwrap(),
                class: "refused".into(),
            }),
            ..healthy.clone()
        };
        Status {
            node: Node {
                version: "0.1.0".into(),
                interfaces: vec![Interface {
                    name: "eth0".into(),
                    mode: Mode::Native,
                    down: None,
                }],
                uptime_seconds: 100.0,
                at,
                pid: 4242,
                config: "/etc/lb/lb.toml".into(),
                attached: true,
                first_round_done: true,
                verdicts: BTreeMap::from([("pass_not_vip".to_owned(), 55)]),
                flows: FlowTable {
                    used: 12,
                    capacity: 1 << 20,
                },
                ..Node::default()
            },
            services: vec![ServiceStatus {
                name: "web".into(),
                address: "203.0.113.10:80".into(),
                protocol: "tcp".into(),
                forwarding: "nat".into(),
                panic: false,
                generation: 7,
                healthy_percent: 50.0,
                panic_threshold: 50,
                panic_min_healthy: 0,
                panic_action: "all".into(),
                active_tier: 0,
                table_size: 65537,
                verdicts: BTreeMap::from([("reset_backend_out".to_owned(), 3)]),
                ejections_refused: EjectionsRefused {
                    probes: 2,
                    packets: 1,
                },
                primary: None,
                quorum: None,
                announced: None,
                announced_reason: None,
                backends: vec![healthy, ejected],
            }],
        }
    }

    /// The sample in the contract (`lb status --json` in docs/cli.md), key by key.
    const CONTRACT: &str = r#"{"node": {"version": "…", "interfaces": [{"name": "eth0",
        "mode": "native"}], "uptime_seconds": 12.5, "draining": false},
        "services": [{"name": "web", "address": "203.0.113.10:80", "protocol": "tcp",
        "forwarding": "nat", "panic": false, "generation": 7, "healthy_percent": 66.7,
        "backends": [{"name": "web-1", "address": "10.0.0.11:8080", "weight": 100, "tier": 0,
        "health": "healthy", "admin": "enabled", "routing": "active", "slots": 21846,
        "active_flows": 12, "packets": 1234, "bytes": 99999, "since": "2026-01-01T00:00:00Z",
        "reason": "2 consecutive successes", "last_probe": {"outcome": "success",
        "detail": "HTTP 200", "latency_ms": 1.2, "at": "…"}}]}]}"#;

    /// That `found` has every key of `wanted`, with a value of the same JSON type.
    fn covers(path: &str, wanted: &serde_json::Value, found: &serde_json::Value) {
        use serde_json::Value;
        match (wanted, found) {
            (Value::Object(wanted), Value::Object(found)) => {
                for (key, value) in wanted {
                    let path = format!("{path}.{key}");
                    let found = found.get(key).unwrap_or_else(|| panic!("{path} is absent"));
                    covers(&path, value, found);
                }
            }
            (Value::Array(wanted), Value::Array(found)) => {
                covers(&format!("{path}[0]"), &wanted[0], &found[0]);
            }
            (Value::String(_), Value::String(_))
            | (Value::Number(_), Value::Number(_))
            | (Value::Bool(_), Value::Bool(_)) => {}
            _ => panic!("{path}: {wanted} and {found} differ in type"),
        }
    }

    #[test]
    fn the_contract_is_kept_key_by_key() {
        let contract = serde_json::from_str(CONTRACT).unwrap();
        let found = serde_json::to_value(sample()).unwrap();
        covers("status", &contract, &found);
        assert_eq!(
            found["services"][0]["backends"][0]["since"],
            "2026-01-01T00:00:00Z"
        );
    }

    #[test]
    fn names_are_those_that_serde_writes() {
        fn check<T: Serialize + Copy>(all: &[T], name: fn(T) -> &'static str) {
            for value in all {
                assert_eq!(serde_json::to_value(value).unwrap(), name(*value));
            }
        }
        check(Health::ALL, Health::name);
        check(Admin::ALL, Admin::name);
        check(Routing::ALL, Routing::name);
        check(Mode::ALL, Mode::name);
    }

    #[test]
    fn a_missing_probe_is_null_rather_than_absent() {
        let mut status = sample();
        status.services[0].backends[0].last_probe = None;
        let json = serde_json::to_value(&status).unwrap();
        assert!(json["services"][0]["backends"][0]["last_probe"].is_null());
        assert!(
            json["services"][0]["backends"][0]
                .as_object()
                .unwrap()
                .contains_key("last_probe")
        );
    }

    #[test]
    fn one_service_is_picked_and_a_typo_is_named() {
        assert_eq!(sample().only("web").unwrap().services.len(), 1);
        let error = sample().only("wed").unwrap_err();
        assert_eq!(error.message, "no service \"wed\"; did you mean \"web\"?");
    }
}
