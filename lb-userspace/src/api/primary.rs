//! The active backend of a service that has one at a time, in `lb status`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Who is active, and what is about to become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryStatus {
    /// Name of the active backend. While `state` is neither `serving` nor `failing` it is cut off,
    /// and no backend gets anything.
    pub backend: String,
    pub state: PrimaryState,
    /// Since when it is the active one.
    pub since: Timestamp,
    /// Why it is.
    pub reason: String,
    /// Why another is to take over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// `failing`: when another is promoted, if one can be; `fence_failed`: when the fence is tried
    /// again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// How many times the fence was run in this handover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Why the fence failed the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence_error: Option<String>,
}

/// Where a service stands on the way to another active backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrimaryState {
    /// Nowhere.
    Serving,
    /// The active one cannot serve, and nobody is promoted yet.
    Failing,
    /// It is cut off and being fenced.
    Fencing,
    /// It is cut off, and the fence has failed.
    FenceFailed,
    /// It is fenced, and nobody can take over.
    Fenced,
}

impl PrimaryState {
    /// Every value.
    pub const ALL: &'static [Self] = &[
        Self::Serving,
        Self::Failing,
        Self::Fencing,
        Self::FenceFailed,
        Self::Fenced,
    ];

    /// Name in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Failing => "failing",
            Self::Fencing => "fencing",
            Self::FenceFailed => "fence_failed",
            Self::Fenced => "fenced",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_serde_writes() {
        for state in PrimaryState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}
