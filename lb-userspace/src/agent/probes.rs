//! The probes in flight.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::clock::Clock;
use super::passive::{Burst, Questions};
use crate::health::Start;
use crate::health::passive::Suspicion;
use crate::model::BackendKey;
use crate::probe::{Outcome, Prober};

/// Probes in flight at a time; what is due beyond that waits, those longest due first.
const IN_FLIGHT: usize = 2048;

/// A probe's end.
pub struct Finished {
    pub key: BackendKey,
    pub seq: u64,
    pub outcome: Outcome,
    /// How long after it was due it really started.
    pub late: Duration,
}

/// Starts probes, each in a task of its own, and reports their ends.
pub struct Probes {
    prober: Arc<Prober>,
    report: mpsc::UnboundedSender<Finished>,
    in_flight: usize,
    bursts: mpsc::UnboundedSender<Burst>,
}

impl Probes {
    /// Also gives where ended probes and ended bursts are told.
    pub fn new() -> (
        Self,
        mpsc::UnboundedReceiver<Finished>,
        mpsc::UnboundedReceiver<Burst>,
    ) {
        let (report, finished) = mpsc::unbounded_channel();
        let (bursts, ended) = mpsc::unbounded_channel();
        (
            Self {
                prober: Arc::new(Prober::new()),
                report,
                in_flight: 0,
                bursts,
            },
            finished,
            ended,
        )
    }

    /// How many more may be started.
    pub const fn room(&self) -> usize {
        IN_FLIGHT.saturating_sub(self.in_flight)
    }

    /// Starts what a suspicion asks. Suspicions are few: they do not count among those in flight.
    pub fn start_burst(&self, questions: Questions, suspicion: Suspicion) {
        let (prober, ended) = (self.prober.clone(), self.bursts.clone());
        tokio::spawn(async move {
            // Nobody listens any more when the agent ends.
            let _ = ended.send(questions.ask(&prober, suspicion).await);
        });
    }

    /// Starts a probe; `clock` is the one that its due time is of.
    pub fn start(&mut self, start: Start, clock: Clock) {
        self.in_flight += 1;
        let prober = self.prober.clone();
        let report = self.report.clone();
        tokio::spawn(async move {
            let late = clock.now().saturating_sub(start.due);
            let outcome = prober.run(&start.spec).await;
            let finished = Finished {
                key: start.key,
                seq: start.seq,
                outcome,
                late,
            };
            if report.send(finished).is_err() {
                tracing::debug!("a probe ended after the agent");
            }
        });
    }

    /// Notes that one has ended.
    pub const fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// For a probe beside the schedule.
    pub fn prober(&self) -> Arc<Prober> {
        self.prober.clone()
    }
}
