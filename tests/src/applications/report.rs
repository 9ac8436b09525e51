//! What became of the connections, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::session::Session;

/// One application in one mode, summed over its sessions.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Connections opened; tests, for iperf3.
    pub connections: u64,
    /// Exchanges.
    pub exchanges: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Connections that ended with a backend that was killed or whose drain was over.
    pub expected: u64,
    /// Connections that broke or failed without such a reason, in words.
    pub wrong: Vec<String>,
    /// Longest wait for data of a connection that did not break.
    pub stall: Duration,
}

/// The outcome of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By the name of the application.
    pub rows: BTreeMap<String, Row>,
    /// Changes made, by kind.
    pub changes: BTreeMap<&'static str, u64>,
    /// How long it took.
    pub time: Duration,
}

impl Report {
    pub(super) fn new(
        sessions: &[Session],
        changes: BTreeMap<&'static str, u64>,
        time: Duration,
    ) -> Self {
        let mut rows = BTreeMap::<String, Row>::new();
        for session in sessions {
            let record = session.record();
            let row = rows.entry(session.name.clone()).or_default();
            row.connections += record.connections;
            row.exchanges += record.exchanges;
            row.bytes += record.bytes;
            row.expected += record.expected;
            row.stall = row.stall.max(record.stall);
            row.wrong.extend(record.wrong);
        }
        Self {
            rows,
            changes,
            time,
        }
    }

    /// An error that names what broke, if anything did, and any application that did nothing.
    pub fn must_be_clean(&self) -> Result<()> {
        let wrong = self.rows.iter().flat_map(|(name, row)| {
            let idle = (row.exchanges == 0).then(|| format!("{name}: did nothing"));
            let wrong = row
                .wrong
                .iter()
                .map(move |wrong| format!("{name}: {wrong}"));
            wrong.chain(idle)
        });
        let wrong: Vec<String> = wrong.collect();
        if !wrong.is_empty() {
            bail!("{} things went wrong: {wrong:#?}", wrong.len());
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<28}{:>12}{:>11}{:>11}{:>10}{:>8}{:>15}",
            "application", "connections", "exchanges", "MiB", "expected", "breaks", "longest wait"
        )?;
        for (name, row) in &self.rows {
            writeln!(
                f,
                "{name:<28}{:>12}{:>11}{:>11.1}{:>10}{:>8}{:>12} ms",
                row.connections,
                row.exchanges,
                row.bytes as f64 / f64::from(1 << 20),
                row.expected,
                row.wrong.len(),
                row.stall.as_millis()
            )?;
        }
        let changes = self.changes.iter();
        let changes: Vec<String> = changes
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        writeln!(
            f,
            "Changes in {:.0} s: {}.\n\
             Expected breaks: connections that ended with a backend that was killed, or whose drain was \
             over.",
            self.time.as_secs_f64(),
            changes.join(", ")
        )
    }
}
