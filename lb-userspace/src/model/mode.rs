//! Whether a service's backends share its traffic, or one at a time has it all.

use std::time::Duration;

/// How a service's backends divide its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All that can serve share it.
    Balance,
    /// One has it all, the others stand by.
    ActivePassive(ActivePassive),
}

/// When another backend becomes the active one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActivePassive {
    /// For how long the active one must have been unhealthy, and a better one healthy for a
    /// fail-back.
    pub promote_after: Duration,
    /// Whether the first backend of the order becomes active again once it can.
    pub failback: bool,
    /// What must succeed before another backend becomes the active one.
    pub fence: Option<Fence>,
}

/// A command of this host that makes sure that the active backend is active no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Program by its absolute path, and its arguments.
    pub command: Vec<String>,
    /// How long it may take; then it is killed and counts as failed.
    pub timeout: Duration,
}

impl Mode {
    /// Name in configuration and JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Balance => "balance",
            Self::ActivePassive(_) => "active_passive",
        }
    }

    /// The rules by which one backend is active, if one is.
    pub const fn active_passive(&self) -> Option<&ActivePassive> {
        match self {
            Self::Balance => None,
            Self::ActivePassive(rules) => Some(rules),
        }
    }
}
