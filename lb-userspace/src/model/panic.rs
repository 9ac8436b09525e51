//! What becomes of a service of which too few backends are healthy.

/// When a service panics beside `panic_threshold`, and what it does then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanicRules {
    /// Fewer healthy backends than this are panic, too; 0: their number does not matter.
    pub min_healthy: u32,
    pub action: PanicAction,
    /// Whether a backend whose own port refuses connections gets no traffic even then, as long as
    /// another one can get it: a closed port is no fault of the probes.
    pub exclude_refused: bool,
}

/// Who gets the new flows of a service in panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicAction {
    /// All backends, whatever their health.
    All,
    /// Nobody, so that clients go elsewhere at once.
    Fail,
    /// The backends that are there for it.
    Fallback,
}

impl Default for PanicRules {
    fn default() -> Self {
        Self {
            min_healthy: 0,
            action: PanicAction::All,
            exclude_refused: true,
        }
    }
}

impl PanicAction {
    /// Name in configuration and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Fail => "fail",
            Self::Fallback => "fallback",
        }
    }
}
