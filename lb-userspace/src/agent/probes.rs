//! The probes in flight.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::passive::{Burst, Questions};
use crate::health::Start;
use crate::health::passive::Suspicion;
use crate::model::ProbeSpec;
use crate::probe::via::Carrier;
use crate::probe::{Outcome, Prober};

/// Probes in flight at a time; what is due beyond that waits, those longest due first.
const IN_FLIGHT: usize = 2048;

/// A probe's end.
pub struct Finished {
    /// [`Start::seq`].
    pub seq: u64,
    pub outcome: Outcome,
}

/// Starts probes, each in a task of its own, and reports their ends.
pub struct Probes {
    prober: Arc<Prober>,
    report: mpsc::UnboundedSender<Finished>,
    in_flight: usize,
    bursts: mpsc::UnboundedSender<Burst>,
}

impl Probes {
    /// Also gives where ended probes, ended bursts and what servers say unasked are told.
    pub fn new(
        carrier: Arc<Carrier>,
    ) -> (
        Self,
        mpsc::UnboundedReceiver<Finished>,
        mpsc::UnboundedReceiver<Burst>,
        mpsc::UnboundedReceiver<ProbeSpec>,
    ) {
        let (report, finished) = mpsc::unbounded_channel();
        let (bursts, ended) = mpsc::unbounded_channel();
        let (changes, changed) = mpsc::unbounded_channel();
        (
            Self {
                prober: Arc::new(Prober::with_carrier(carrier).reporting(changes)),
                report,
                in_flight: 0,
                bursts,
            },
            finished,
            ended,
            changed,
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

    pub fn start(&mut self, start: Start) {
        self.in_flight += 1;
        let prober = self.prober.clone();
        let report = self.report.clone();
        tokio::spawn(async move {
            let outcome = prober.run(&start.spec).await;
            let finished = Finished {
                seq: start.seq,
                outcome,
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
