//! One backend's verdict: thresholds over consecutive outcomes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::HealthPolicy;
use crate::probe::{Class, Outcome, Verdict};

/// Outcomes kept for each backend.
pub const HISTORY: usize = 10;

/// The probes' verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not yet decided.
    Unknown,
    Healthy,
    Unhealthy,
}

impl Health {
    /// Every value.
    pub const ALL: &'static [Self] = &[Self::Unknown, Self::Healthy, Self::Unhealthy];

    /// Name in JSON, events and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One outcome, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the probe ended.
    pub at: Duration,
    pub verdict: Verdict,
    pub class: Class,
    /// One line for people.
    pub detail: String,
    pub latency: Duration,
}

/// A verdict of an earlier agent, for the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    pub health: Health,
    /// See [`TargetView::gone`].
    pub gone: bool,
    pub reason: String,
    /// Address of the backend it was said of; of another address it says nothing.
    pub address: SocketAddr,
}

/// What is known of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetView {
    pub health: Health,
    /// Unhealthy, and silent rather than answering badly: its flows are given up.
    pub gone: bool,
    /// The verdict was not reached by the present probe: it is that of an earlier agent or of
    /// another configuration, and stands until an outcome is counted.
    pub assumed: bool,
    /// Since when `health` is what it is.
    pub since: Duration,
    /// Why, for people: `3 consecutive failures: HTTP 503`.
    pub reason: String,
    /// Class of the outcome that decided; `None` if none has.
    pub class: Option<Class>,
    /// Successes in a row.
    pub successes: u32,
    /// Failures in a row.
    pub failures: u32,
    /// Failures in a row without an answer.
    pub silent: u32,
    /// The last [`HISTORY`] outcomes, oldest first, those never counted included.
    pub history: VecDeque<Record>,
    /// When the next probe is due; `None`: one is in flight, or there is no probe.
    pub next_probe: Option<Duration>,
    /// Outcomes that were the prober's own fault.
    pub internal: u64,
    /// Probes left out because the one before was still in flight, or the agent was late.
    pub skipped: u64,
    /// When the first probe of the present run of equal outcomes started.
    run_started: Duration,
}

/// What an outcome changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub from: Health,
    pub took: Duration,
}

impl TargetView {
    /// Not yet probed.
    pub(super) fn unknown(now: Duration) -> Self {
        Self {
            health: Health::Unknown,
            gone: false,
            assumed: false,
            since: now,
            reason: "not yet probed".to_owned(),
            class: None,
            successes: 0,
            failures: 0,
            silent: 0,
            history: VecDeque::with_capacity(HISTORY),
            next_probe: None,
            internal: 0,
            skipped: 0,
            run_started: now,
        }
    }

    /// Healthy because nobody asks.
    pub(super) fn unprobed(now: Duration) -> Self {
        Self {
            health: Health::Healthy,
            reason: "no probe".to_owned(),
            ..Self::unknown(now)
        }
    }

    /// With the verdict of an earlier agent, as an assumption.
    pub(super) fn restored(restored: &Restored, now: Duration) -> Self {
        Self {
            health: restored.health,
            gone: restored.gone && restored.health == Health::Unhealthy,
            assumed: restored.health != Health::Unknown,
            reason: restored.reason.clone(),
            ..Self::unknown(now)
        }
    }

    /// Keeps the verdict as an assumption, for another probe than the one that reached it.
    pub(super) fn assume(&mut self) {
        self.assumed = self.health != Health::Unknown;
        (self.successes, self.failures, self.silent) = (0, 0, 0);
    }

    /// The last outcome.
    pub fn last(&self) -> Option<&Record> {
        self.history.back()
    }

    /// Whether outcomes are being counted towards another verdict.
    pub fn is_pending(&self) -> bool {
        match self.health {
            Health::Unknown => true,
            Health::Healthy => self.assumed || self.failures > 0,
            Health::Unhealthy => self.assumed || self.successes > 0,
        }
    }

    /// Counts an outcome of a probe that began at `started` and ended at `now`. Tells if the
    /// verdict changed; that an unhealthy backend is now gone is such a change too.
    pub(super) fn record(
        &mut self,
        outcome: &Outcome,
        policy: &HealthPolicy,
        started: Duration,
        now: Duration,
    ) -> Option<Turn> {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Record {
            at: now,
            verdict: outcome.verdict,
            class: outcome.class,
            detail: outcome.detail.clone(),
            latency: outcome.latency,
        });
        match outcome.verdict {
            Verdict::Internal => {
                self.internal += 1;
                None
            }
            Verdict::Success => self.success(outcome, policy, started, now),
            Verdict::Failure => self.failure(outcome, policy, started, now),
        }
    }

    fn success(
        &mut self,
        outcome: &Outcome,
        policy: &HealthPolicy,
        started: Duration,
        now: Duration,
    ) -> Option<Turn> {
        if self.successes == 0 {
            self.run_started = started;
        }
        (self.failures, self.silent) = (0, 0);
        self.successes = self.successes.saturating_add(1);
        let needed = match self.health {
            Health::Healthy => {
                self.assumed = false;
                return None;
            }
            Health::Unknown => 1,
            Health::Unhealthy => policy.healthy_threshold,
        };
        self.assumed = false;
        if self.successes < needed {
            return None;
        }
        self.gone = false;
        Some(self.turn(Health::Healthy, self.successes, "success", outcome, now))
    }

    fn failure(
        &mut self,
        outcome: &Outcome,
        policy: &HealthPolicy,
        started: Duration,
        now: Duration,
    ) -> Option<Turn> {
        if self.failures == 0 {
            self.run_started = started;
        }
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        self.silent = if outcome.class.is_answer() {
            0
        } else {
            self.silent.saturating_add(1)
        };
        self.assumed = false;
        match self.health {
            Health::Unknown => {
                self.gone = self.silent > 0;
                Some(self.turn(Health::Unhealthy, 1, "failure", outcome, now))
            }
            Health::Healthy if self.failures < policy.unhealthy_threshold => None,
            Health::Healthy => {
                self.gone = self.silent >= policy.unhealthy_threshold;
                Some(self.turn(Health::Unhealthy, self.failures, "failure", outcome, now))
            }
            Health::Unhealthy if self.gone || self.silent < policy.unhealthy_threshold => None,
            Health::Unhealthy => {
                self.gone = true;
                self.class = Some(outcome.class);
                self.reason = format!(
                    "gone: {} consecutive failures without an answer: {}",
                    self.silent, outcome.detail
                );
                Some(Turn {
                    from: Health::Unhealthy,
                    took: now.saturating_sub(self.run_started),
                })
            }
        }
    }

    fn turn(
        &mut self,
        to: Health,
        count: u32,
        what: &str,
        outcome: &Outcome,
        now: Duration,
    ) -> Turn {
        let from = self.health;
        self.reason = match (from, to) {
            (Health::Unknown, _) => format!("first probe: {}", outcome.detail),
            (_, Health::Healthy) if count == 1 => format!("1 {what}"),
            (_, Health::Healthy) => format!("{count} consecutive {what}es"),
            (_, _) if count == 1 => format!("1 {what}: {}", outcome.detail),
            (_, _) => format!("{count} consecutive {what}s: {}", outcome.detail),
        };
        self.health = to;
        self.since = now;
        self.class = Some(outcome.class);
        Turn {
            from,
            took: now.saturating_sub(self.run_started),
        }
    }
}
