//! What is done to the balancer and its backends, and in which order.

use std::fmt;

/// Backends that are always in the configuration.
pub const USUAL: [&str; 3] = ["b1", "b2", "b3"];
/// The one that reloads add and remove.
pub const SPARE: &str = "b4";

/// One change; a number is an index of [`USUAL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `lb weight` to so many.
    Weigh(usize, u32),
    /// SIGKILL for all of its applications.
    Kill(usize),
    /// Ends [`Change::Kill`].
    Revive(usize),
    /// `lb drain`.
    Drain(usize),
    /// `lb enable`.
    Enable(usize),
    /// Its probes are answered with "not ready".
    Fail(usize),
    /// Ends [`Change::Fail`].
    Mend(usize),
    /// A reload with the spare backend.
    Add,
    /// A reload without it.
    Remove,
    /// SIGKILL for `lb run`.
    KillAgent,
    /// Ends [`Change::KillAgent`].
    StartAgent,
}

impl Change {
    /// Each kind once, some while others last; at the end all is as before. Every round has other
    /// backends for the same changes.
    pub fn round(number: u32) -> [Self; 12] {
        let turn = |offset| (number as usize + offset) % USUAL.len();
        let (drained, failing, killed) = (turn(0), turn(1), turn(2));
        [
            Self::Weigh(drained, 300),
            Self::Kill(killed),
            Self::Drain(drained),
            Self::Revive(killed),
            Self::Enable(drained),
            Self::Fail(failing),
            Self::Add,
            Self::KillAgent,
            Self::StartAgent,
            Self::Mend(failing),
            Self::Weigh(drained, 100),
            Self::Remove,
        ]
    }

    /// What the report counts it as.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Weigh(..) => "weight changed",
            Self::Kill(_) => "backend killed",
            Self::Revive(_) => "backend started",
            Self::Drain(_) => "backend drained",
            Self::Enable(_) => "backend enabled",
            Self::Fail(_) => "probes failing",
            Self::Mend(_) => "probes mended",
            Self::Add => "backend added",
            Self::Remove => "backend removed",
            Self::KillAgent => "agent killed",
            Self::StartAgent => "agent started",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Weigh(backend, weight) => write!(f, "lb weight {} {weight}", USUAL[backend]),
            Self::Kill(backend) => write!(f, "{} is killed", USUAL[backend]),
            Self::Revive(backend) => write!(f, "{} is started again", USUAL[backend]),
            Self::Drain(backend) => write!(f, "lb drain {}", USUAL[backend]),
            Self::Enable(backend) => write!(f, "lb enable {}", USUAL[backend]),
            Self::Fail(backend) => write!(f, "{} fails its probes", USUAL[backend]),
            Self::Mend(backend) => write!(f, "{} answers its probes again", USUAL[backend]),
            Self::Add => write!(f, "lb reload, with {SPARE}"),
            Self::Remove => write!(f, "lb reload, without {SPARE}"),
            Self::KillAgent => write!(f, "the agent is killed"),
            Self::StartAgent => write!(f, "the agent is started again"),
        }
    }
}
