//! What the status of one service says of its backends beyond that of all services: who says what of
//! each, since when and why.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Who has a say about a backend. Each takes back only what it has said itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// `lb drain`, `lb disable`.
    Operator,
    /// `lb probes`: whether it is probed.
    Probing,
    /// All probes together, agents among them.
    Probes,
    /// Passive detection.
    Packets,
    /// What follows from all of them and from the service's other backends.
    Routing,
}

impl Axis {
    /// Name in JSON and on the terminal.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Probing => "probing",
            Self::Probes => "probes",
            Self::Packets => "packets",
            Self::Routing => "routing",
        }
    }
}

/// What one of them says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AxisStatus {
    pub axis: Axis,
    /// `enabled`, `drain`, `disabled`; `running`, `paused`; `unknown`, `healthy`, `unhealthy`; `trusted`, `suspected`,
    /// `ejected`; as `routing`.
    pub state: String,
    /// Since when; absent if it has always been so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Why, as a word for programs: the class of the deciding outcome, the kind of sign, the rule.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub code: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub reason: String,
    /// When that ends, as far as time ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}
