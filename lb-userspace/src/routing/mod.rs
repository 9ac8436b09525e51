//! What the data plane does with each backend, and why.
//!
//! A pure function of the configuration, the verdicts, the operator's words, the time and what was
//! decided before ([`decide`]). Every axis has one owner; what a backend gets follows from a fixed
//! precedence: disabled > drained by the operator > unhealthy > tier not needed > active. Only panic
//! overrides the probes, and nothing overrides the operator.
//!
//! - *Unknown* backends get no new flows and do not count in any percentage, unless they are assumed
//!   to be up. If nobody in a service is healthy for one probe round (interval + timeout, or
//!   `fail_open_after`), the unknown ones get traffic: the prober itself may be broken.
//! - *Unhealthy* ones that answered badly drain: established flows only, until `drain_deadline`.
//!   Those that are gone are out at once. One that was out is not drained again: its flows are
//!   given up already. How many may be out at a time, see `floor`.
//! - Healthy ones that ask to be drained drain likewise. They count in no percentage, so a rolling
//!   restart is no reason to panic; but if all ask for it they count as unhealthy. In panic they get
//!   traffic like any other.
//! - *Panic*, see [`panic`](mod@panic); *tiers*, see [`tiers`]; *slow start*, see `slow_start`.
//! - Of a service with one *active* backend only that one gets anything, see [`active_passive`].

pub mod active_passive;
mod decide;
mod floor;
pub mod panic;
mod slow_start;
mod subject;
pub mod tiers;
mod weight;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use active_passive::{Orders, Primary};
pub use decide::{Input, decide};

use crate::model::BackendKey;

/// The operator's word about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admin {
    #[default]
    Enabled,
    /// No new flows; established ones until this point in time.
    Drain { until: Duration },
    /// No flows at all.
    Disabled,
}

impl Admin {
    /// Name in JSON, events and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Drain { .. } => "drain",
            Self::Disabled => "disabled",
        }
    }
}

/// What the data plane does with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// New and established flows.
    Active,
    /// Established flows only, until this point in time.
    Draining { until: Duration },
    /// Nothing.
    Out,
    /// Ready, but its tier is not needed: established flows only, without a deadline.
    Standby,
    /// As active, though the probes are against it.
    Panic,
}

impl Routing {
    /// Name in JSON, events and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining { .. } => "draining",
            Self::Out => "out",
            Self::Standby => "standby",
            Self::Panic => "panic",
        }
    }

    /// Whether it owns slots.
    pub const fn takes_new_flows(self) -> bool {
        match self {
            Self::Active | Self::Panic => true,
            Self::Draining { .. } | Self::Out | Self::Standby => false,
        }
    }

    /// Whether flows it has go on.
    pub const fn serves_established(self) -> bool {
        match self {
            Self::Active | Self::Panic | Self::Draining { .. } | Self::Standby => true,
            Self::Out => false,
        }
    }

    /// The same state, whatever the deadline.
    pub const fn same_kind(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Active, Self::Active)
                | (Self::Draining { .. }, Self::Draining { .. })
                | (Self::Out, Self::Out)
                | (Self::Standby, Self::Standby)
                | (Self::Panic, Self::Panic)
        )
    }
}

/// Which rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The operator took it out.
    Disabled,
    /// The operator drains it, or has.
    Drained,
    /// No longer in the configuration.
    Removed,
    /// Not yet probed.
    Undecided,
    /// Not yet decided, and taken for healthy until then.
    Assumed,
    /// Not yet decided, and nobody has been healthy for too long.
    FailOpen,
    /// Unhealthy, and as many are out as may be.
    EjectionRefused,
    /// It answers badly.
    Unhealthy,
    /// It asks to be drained.
    Leaving,
    /// It does not answer.
    Gone,
    /// There is panic, but its own port refuses connections.
    Refused,
    /// Too many are unhealthy.
    Panic,
    /// Healthy, and there for panic only.
    Fallback,
    /// Healthy, but its tier is not needed.
    TierNotNeeded,
    /// Healthy, but another one is the active one.
    StandingBy,
    /// The active one until now, which is to get nothing while another takes over.
    CutOff,
    Healthy,
}

impl Cause {
    /// Name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Drained => "drained",
            Self::Removed => "removed",
            Self::Undecided => "undecided",
            Self::Assumed => "assumed",
            Self::FailOpen => "fail_open",
            Self::EjectionRefused => "ejection_refused",
            Self::Unhealthy => "unhealthy",
            Self::Leaving => "leaving",
            Self::Gone => "gone",
            Self::Refused => "refused",
            Self::Panic => "panic",
            Self::Fallback => "fallback",
            Self::TierNotNeeded => "tier_not_needed",
            Self::StandingBy => "standing_by",
            Self::CutOff => "cut_off",
            Self::Healthy => "healthy",
        }
    }
}

/// What was decided for a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub routing: Routing,
    pub cause: Cause,
    /// For people: `unhealthy: 3 consecutive failures: HTTP 503`.
    pub reason: String,
    /// Since when `routing` is what it is.
    pub since: Duration,
    /// Percent of its slots that it takes new flows for; 100 unless it is being eased in or is good
    /// for less.
    pub share: u8,
    /// When its slow start began, while it lasts.
    eased_since: Option<Duration>,
}

/// What was decided for a service, and what must be remembered to decide again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceRouting {
    /// Whether health is ignored.
    pub panic: bool,
    /// Healthy weight in percent of the weight of the enabled and decided backends; 0 if there are
    /// none.
    pub healthy_percent: f64,
    /// Tiers that take traffic, ascending.
    pub tiers: Vec<u8>,
    pub backends: BTreeMap<BackendKey, Decision>,
    /// The active backend of a service that has one at a time.
    pub primary: Option<Primary>,
    /// In panic: since when enough have been healthy again.
    enough_since: Option<Duration>,
    /// Since when lower tiers could carry the load alone, while higher ones stay in service.
    released_since: Option<Duration>,
    /// Since when nobody has been healthy, while that is so.
    nobody_since: Option<Duration>,
    /// When the service was last without any verdict: the start of its first probe round.
    round_started: Duration,
    /// Whether any enabled backend has a verdict.
    decided: bool,
}

/// Everything decided, by service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutingState {
    pub services: BTreeMap<Arc<str>, ServiceRouting>,
}

impl RoutingState {
    /// What was decided for a backend.
    pub fn get(&self, key: &BackendKey) -> Option<&Decision> {
        self.services.get(&key.service)?.backends.get(key)
    }
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: Duration,
    pub service: Arc<str>,
    /// `None`: the service as a whole.
    pub backend: Option<BackendKey>,
    pub kind: EventKind,
    pub reason: String,
}

/// Kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    PanicEntered,
    PanicLeft,
    /// Other tiers take traffic now.
    TierSwitched,
    /// First traffic of a backend that had no verdict.
    Admitted,
    /// Back from draining, out or panic.
    Readmitted,
    /// Out at once.
    Ejected,
    /// No new flows from now on.
    Draining,
    /// Its drain is over.
    Drained,
    /// Gets traffic only because its service is in panic.
    Panicked,
    /// Unhealthy, and not ejected, since as many are out as may be.
    EjectionRefused,
    /// The active backend is cut off and fenced, so that another can take over.
    Fencing,
    /// That failed, and nobody is promoted.
    FenceFailed,
    /// It is the active one from now on.
    Promoted,
}

impl EventKind {
    /// Name in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PanicEntered => "panic_entered",
            Self::PanicLeft => "panic_left",
            Self::TierSwitched => "tier_switched",
            Self::Admitted => "admitted",
            Self::Readmitted => "readmitted",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Panicked => "panicked",
            Self::EjectionRefused => "ejection_refused",
            Self::Fencing => "fencing",
            Self::FenceFailed => "fence_failed",
            Self::Promoted => "promoted",
        }
    }
}

/// Result of [`decide`].
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    pub state: RoutingState,
    /// Differences from the state before: services by name, and for each first what concerns it as
    /// a whole.
    pub events: Vec<Event>,
    /// When time alone changes the result.
    pub next_deadline: Option<Duration>,
}

#[cfg(test)]
mod tests;
