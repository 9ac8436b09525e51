//! Which probes are to start, and what their outcomes lead to.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tracing::{info, warn};

use super::core::Core;
use super::probes::Finished;
use crate::api::event::{Change, Evidence, Kind, Origin};
use crate::health::{self, Health, Start};
use crate::model::ProbeSpec;
use crate::probe::{Outcome, Verdict};

/// Probes that become due within this time after others were started are started together: to wake
/// up for each would cost as much as a part of the probe.
const GATHER: Duration = Duration::from_millis(8);

impl Core {
    /// The probes to start now.
    pub fn probes_due(&mut self, room: usize) -> Vec<Start> {
        let now = self.clock.now();
        if now < self.start_after {
            return Vec::new();
        }
        let starts = self.engine.start_due_up_to(now, room);
        if !starts.is_empty() {
            self.start_after = now + GATHER;
        }
        starts
    }

    /// The addresses of the backends that a probe in flight is of.
    pub fn asked_of(&self, seq: u64) -> BTreeSet<IpAddr> {
        let asked = self.engine.asked_by(seq);
        asked
            .filter_map(|(key, _)| Some(self.model.backend(key)?.1.address.ip()))
            .collect()
    }

    /// A server has said that something has changed: the probe is due now.
    pub fn hurry(&mut self, spec: &ProbeSpec) {
        self.engine.hurry(spec, self.clock.now());
    }

    /// A probe has ended.
    pub fn finished(&mut self, finished: &Finished) {
        let Finished {
            seq,
            outcome,
            late,
            lagging,
        } = finished;
        self.prober.lag_seconds = late.as_secs_f64();
        self.prober.lateness.count(*late);
        let outcome = &*self.judge(*seq, outcome, *lagging);
        // One probe counts once for the prober, and for each backend that asked for it.
        match outcome.verdict {
            Verdict::Success => self.prober.success += 1,
            Verdict::Failure => self.prober.failure += 1,
            Verdict::Internal => self.prober.internal += 1,
        }
        self.observe(*seq, outcome);
        let now = self.clock.now();
        self.log_failure(*seq, outcome, now);
        let ended = self.engine.finish(*seq, outcome, now);
        for change in ended.changes {
            self.turned(change, outcome, now);
        }
        // A verdict of an earlier agent that is confirmed may lead to what it could not before.
        self.dirty |= ended.confirmed;
    }

    /// Something has changed for a backend by the outcome of a probe.
    fn turned(&mut self, change: health::Change, outcome: &Outcome, now: Duration) {
        let key = &change.key;
        info!(backend = %key, from = change.from.name(), to = change.to.name(), "{}", change.reason);
        if change.from != change.to || change.gone || change.leaving {
            self.turns
                .insert(key.clone(), now.saturating_sub(change.took));
        }
        self.dirty = true;
        self.gap.turned(now);
        let told = |kind| {
            let told = Change::backend(kind, key, Origin::Probe, change.reason.clone());
            told.on(Evidence::probe(outcome))
        };
        if (change.from, change.to) == (Health::Unknown, Health::Unhealthy) {
            let event = told(Kind::FirstVerdict);
            self.record(event.states(change.from.name(), change.to.name()));
        } else if (change.from, change.to) == (Health::Healthy, Health::Healthy) && change.reweighed
        {
            self.record(told(Kind::Weight));
        }
        self.save_soon();
    }

    /// What a probe's outcome is to count as, and whether the prober keeps up.
    fn judge<'a>(&mut self, seq: u64, outcome: &'a Outcome, lagging: bool) -> Cow<'a, Outcome> {
        // One that is not waited for any more says nothing of the present probes.
        let Some(probe) = self.engine.place(seq) else {
            return Cow::Borrowed(outcome);
        };
        let before = self.overload.active();
        let outcome = self.overload.judge(probe, outcome, lagging);
        if before != self.overload.active() {
            let (short, all) = self.overload.round();
            let what = if before {
                "the prober keeps up again".to_owned()
            } else {
                format!(
                    "the prober is overloaded: {short} of the last {all} probes were late or lacked \
                     CPU, descriptors, ports or memory; timeouts eject nobody until that has passed"
                )
            };
            warn!("{what}");
            self.record(Change::node(Kind::Prober, Origin::Agent, what));
        }
        outcome
    }
}
