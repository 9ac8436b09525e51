//! What changed, when, by whom, and on what evidence.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::BackendKey;
use crate::probe::Outcome;

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up over the life of the state directory; given by the journal.
    pub id: u64,
    pub at: Timestamp,
    #[serde(flatten)]
    pub change: Change,
}

/// An event before the journal has given it a number and a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The state left and the state entered, in the words of `lb status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    pub reason: String,
    pub origin: Origin,
    #[serde(default, skip_serializing_if = "Evidence::is_empty")]
    pub evidence: Evidence,
}

/// Sorts of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Started,
    /// Told to end: readiness fails, and all else goes on until the end of `node.shutdown_grace`.
    Stopping,
    Stopped,
    /// A service or backend appeared in the configuration.
    Added,
    Removed,
    /// The first verdict of a backend.
    FirstVerdict,
    Ejected,
    Readmitted,
    Draining,
    /// A drain is over.
    Drained,
    PanicEntered,
    PanicLeft,
    /// A backend that would be out gets new flows because of panic.
    Panicked,
    /// An unhealthy backend keeps its new flows, since as many are out as may be.
    EjectionRefused,
    /// Another tier takes the new flows.
    Tier,
    /// A healthy backend gets another share for being degraded or at its agent's word.
    Weight,
    /// The active backend is cut off and fenced, so that another can take over.
    Fencing,
    /// That failed, and nobody is promoted.
    FenceFailed,
    /// A backend that stood by is the active one.
    Promoted,
    /// A probe that failed, told though it may change nothing: `always_log_failures`.
    ProbeFailed,
    /// The operator's word.
    Admin,
    Reload,
    ReloadRefused,
    /// The packets say something else of a backend than its probes.
    Suspected,
    /// The next hop of a backend was found, changed or lost.
    Neighbor,
    /// A host name cannot be resolved, or can be again.
    Name,
    /// The data plane could not be written, or can be again.
    Datapath,
    /// An interface is back, with the program on it.
    Attached,
    /// An interface is gone, and the program with it.
    Detached,
    /// The prober is overloaded, or keeps up again.
    Prober,
    /// A VIP is announced: all of its services that ask for it have quorum.
    Announced,
    /// It no longer is.
    Withdrawn,
    /// `on_announce` or `on_withdraw` could not be run, or has failed.
    CommandFailed,
}

impl Kind {
    /// Name in JSON and on the terminal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::FirstVerdict => "first_verdict",
            Self::Ejected => "ejected",
            Self::Readmitted => "readmitted",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::PanicEntered => "panic_entered",
            Self::PanicLeft => "panic_left",
            Self::Panicked => "panicked",
            Self::EjectionRefused => "ejection_refused",
            Self::Tier => "tier",
            Self::Weight => "weight",
            Self::Fencing => "fencing",
            Self::FenceFailed => "fence_failed",
            Self::Promoted => "promoted",
            Self::ProbeFailed => "probe_failed",
            Self::Admin => "admin",
            Self::Reload => "reload",
            Self::ReloadRefused => "reload_refused",
            Self::Suspected => "suspected",
            Self::Neighbor => "neighbor",
            Self::Name => "name",
            Self::Datapath => "datapath",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Prober => "prober",
            Self::Announced => "announced",
            Self::Withdrawn => "withdrawn",
            Self::CommandFailed => "command_failed",
        }
    }
}

/// Who caused it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Origin {
    Probe,
    /// What the packets of the flows say.
    Traffic,
    Config,
    Agent,
    Operator {
        uid: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
        command: String,
        /// By which other way than the control socket.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        via: Option<Via>,
    },
}

/// A way to the agent beside the control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// `node.haproxy_socket`.
    HaproxySocket,
}

/// What it rests on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Class, detail and latency of the deciding probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_class: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// From the start of the first probe that failed (or, for a return, succeeded) to the data
    /// plane's change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<f64>,
    /// What it may take at worst by the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_ms: Option<f64>,
    /// Slots that changed owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots_moved: Option<u32>,
    /// Established flows at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<u64>,
    /// Healthy percent of the service at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_percent: Option<f64>,
    /// Percent of the service's weight that can serve, by which its VIP is announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_percent: Option<f64>,
}

impl Evidence {
    /// A probe's answer.
    pub fn probe(outcome: &Outcome) -> Self {
        Self {
            probe_class: Some(outcome.class.name().to_owned()),
            probe_detail: Some(outcome.detail.clone()),
            latency_ms: Some(outcome.latency.as_secs_f64() * 1e3),
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Change {
    /// Something about the node as a whole.
    pub fn node(kind: Kind, origin: Origin, reason: impl Into<String>) -> Self {
        Self {
            kind,
            service: None,
            backend: None,
            from: None,
            to: None,
            reason: reason.into(),
            origin,
            evidence: Evidence::default(),
        }
    }

    /// Something about a service.
    pub fn service(kind: Kind, service: &str, origin: Origin, reason: impl Into<String>) -> Self {
        Self {
            service: Some(service.to_owned()),
            ..Self::node(kind, origin, reason)
        }
    }

    /// Something about a backend.
    pub fn backend(
        kind: Kind,
        key: &BackendKey,
        origin: Origin,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            backend: Some(key.backend.to_string()),
            ..Self::service(kind, &key.service, origin, reason)
        }
    }

    /// From one state to another.
    pub fn states(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.from = Some(from.into());
        self.to = Some(to.into());
        self
    }

    /// On this evidence.
    pub fn on(mut self, evidence: Evidence) -> Self {
        self.evidence = evidence;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object_without_empty_fields() {
        let key = BackendKey::new("web", "web-1");
        let event = Event {
            id: 7,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            change: Change::backend(Kind::Ejected, &key, Origin::Probe, "3 failures")
                .states("active", "out"),
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            r#"{"id":7,"at":"2026-01-01T00:00:00Z","kind":"ejected","service":"web","backend":"web-1","from":"active","to":"out","reason":"3 failures","origin":{"by":"probe"}}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }

    #[test]
    fn names_are_those_that_serde_writes() {
        for kind in [Kind::FirstVerdict, Kind::PanicEntered, Kind::ReloadRefused] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
