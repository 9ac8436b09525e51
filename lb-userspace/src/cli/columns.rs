//! What `lb status` and `lb top` show alike: columns, and words on how old things are.

use std::ops::Range;

use jiff::Timestamp;

use super::output::{span, tame};
use crate::api::status::{BackendStatus, Node};

/// A status or verdict older than this is worth a warning, seconds.
pub const STALE: f64 = 5.0;

/// Columns under a header.
pub struct Columns<const N: usize> {
    widths: [usize; N],
    /// Those of numbers, aligned to the right.
    numbers: Range<usize>,
}

impl<const N: usize> Columns<N> {
    /// Wide enough for all these rows.
    pub fn new<'r>(
        header: &[&str; N],
        rows: impl Iterator<Item = &'r [String; N]> + Clone,
        numbers: Range<usize>,
    ) -> Self {
        let width = |column: usize| {
            let cells = rows.clone().map(|row| row[column].chars().count());
            cells.chain([header[column].len()]).max().unwrap_or(0)
        };
        Self {
            widths: std::array::from_fn(width),
            numbers,
        }
    }

    /// A row's cells, each filled up to its column but for the last.
    pub fn fill(&self, cells: &[String; N]) -> [String; N] {
        std::array::from_fn(|column| {
            let (cell, width) = (&cells[column], self.widths[column]);
            if self.numbers.contains(&column) {
                format!("{cell:>width$}")
            } else if column == N - 1 {
                cell.clone()
            } else {
                format!("{cell:<width$}")
            }
        })
    }
}

/// From one time to another, seconds.
pub fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// What a backend's last probe found.
pub fn last_probe(backend: &BackendStatus, now: Timestamp) -> String {
    match &backend.last_probe {
        None => "none yet".to_owned(),
        Some(probe) => format!(
            "{} in {:.1} ms, {} ago",
            tame(&probe.detail),
            probe.latency_ms,
            span(seconds(probe.at, now))
        ),
    }
}

/// A warning if the status is too old to be live.
pub fn old(node: &Node, now: Timestamp) -> Option<String> {
    let age = seconds(node.at, now);
    (age > STALE).then(|| {
        format!(
            "this status is {} old: the agent's loop does not answer",
            span(age)
        )
    })
}

/// A warning if the maps do not hold what was decided.
pub fn not_followed(node: &Node) -> Option<String> {
    let error = node.datapath_error.as_ref()?;
    Some(format!(
        "the data plane does not follow the verdicts: {}",
        tame(error)
    ))
}
