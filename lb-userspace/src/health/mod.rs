//! What the probes' outcomes mean: the health engine.
//!
//! A pure function `(state, event, now) → (state, effects)`: no clock, socket or randomness. The
//! agent asks [`Engine::start_due`] which probes to start, and hands each outcome to
//! [`Engine::finish`]; what comes back is a [`Change`] if the verdict changed. The same events at
//! the same times always give the same decisions, so recorded traces can be replayed.
//!
//! # Verdicts
//!
//! Consecutive outcomes decide (`CheckView::record`): `unhealthy_threshold` failures in a row
//! eject, `healthy_threshold` successes in a row readmit, and an opposite outcome starts the count
//! anew. A backend never probed is [`Health::Unknown`], and its first outcome decides alone. What
//! the prober itself could not do (`Internal`) is shown but never counted.
//!
//! An unhealthy backend is also `gone` or not. It is gone when the last `unhealthy_threshold`
//! failures in a row came without an answer (refused, unreachable, timed out, reset, …): the same
//! evidence that ejects it. A single answer such as 503 among them says that something is alive
//! there, so its flows are drained; if it then falls silent for as many probes it becomes gone, and
//! its flows are given up. For a backend whose first outcome is a failure that one decides. Gone
//! lasts until it is healthy: flows that were given up do not come back.
//!
//! A healthy backend may ask to be drained (`leaving`), by an answer that is not a failure. That counts
//! at once, and so does that it does not ask any more.
//!
//! Two more things eject a healthy backend, if the configuration asks for them: so many failures among
//! the last outcomes (`unhealthy_window`), for one that fails every other time and never often enough
//! in a row, and one failure of certain classes (`immediate_on`). Ejected by the window it is not
//! gone: it answers now and then.
//!
//! With `hold_down` an ejection lasts a while whatever the probes say, the n-th n times as long, so
//! that a flapping backend does not drag its share of the traffic to and fro. Time in good health
//! makes ejections forgotten ([`Ejections`]). Those by the packets of its flows ([`passive`]) are
//! counted with them.
//!
//! # Rhythm
//!
//! See [`schedule`]; the worst cases that follow from it are in [`Budget`].

pub mod agent;
mod budget;
mod check;
mod ejections;
mod engine;
mod overload;
pub mod passive;
mod probes;
pub mod schedule;
mod target;

pub use budget::Budget;
pub use check::{CheckView, HISTORY, Record, RestoredCheck};
pub use ejections::{Ejections, Past, Term};
pub use engine::{Change, Ended, Engine, SetHealth, Tally};
pub use overload::Overload;
pub use probes::Start;
pub use target::{Health, Restored, RestoredChecks, TargetView};

#[cfg(test)]
mod tests;
