//! One backend's verdict by one probe: thresholds over consecutive outcomes.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::agent::Axis;
use super::ejections::Ejections;
use super::{Health, SetHealth};
use crate::model::{HealthPolicy, Window};
use crate::probe::{Class, Outcome, Verdict};

/// Outcomes kept for each backend.
pub const HISTORY: usize = 10;

/// One outcome, as it is remembered: small, since there are [`HISTORY`] of them for each probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    at_nanos: u64,
    latency_micros: u32,
    pub verdict: Verdict,
    pub class: Class,
    /// One line for people; the same as before most of the time, and then shared.
    pub detail: Arc<str>,
}

const _: () = assert!(size_of::<Record>() == 32);
// With its history this is most of what there is for a backend.
const _: () = assert!(size_of::<CheckView>() <= 248);

impl Record {
    fn new(outcome: &Outcome, detail: Arc<str>, at: Duration) -> Self {
        Self {
            // 584 years.
            at_nanos: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
            // 71 minutes, which is longer than any timeout that makes sense.
            latency_micros: u32::try_from(outcome.latency.as_micros()).unwrap_or(u32::MAX),
            verdict: outcome.verdict,
            class: outcome.class,
            detail,
        }
    }

    /// When the probe ended.
    pub const fn at(&self) -> Duration {
        Duration::from_nanos(self.at_nanos)
    }

    /// [`Outcome::latency`], in whole microseconds.
    pub const fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_micros as u64)
    }
}

/// What an earlier agent knew by one probe, for the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredCheck {
    pub health: Health,
    /// See [`CheckView::gone`].
    pub gone: bool,
    pub reason: String,
    /// See [`CheckView::leaving`].
    #[serde(default)]
    pub leaving: bool,
}

/// What is known of a backend by one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckView {
    /// [`HealthPolicy::name`].
    pub name: Arc<str>,
    /// Whether it asks the port that the backend's flows go to.
    pub of_flows: bool,
    /// Not decided, it does not hold the backend back, and that it cannot be reached says nothing.
    pub advisory: bool,
    /// Not decided, it does not keep traffic from the backend either (`assume = "up"`).
    pub presumed: bool,
    pub health: Health,
    /// Unhealthy, and silent rather than answering badly: its flows are given up.
    pub gone: bool,
    /// Healthy, but the backend asks to be drained (`Class::Drain`). Its word counts at once, both ways,
    /// and is no failure.
    pub leaving: bool,
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
    /// Percent of the configured weight that it is good for.
    pub weight: u8,
    /// What the agent beside the backend has said, for probes that ask one.
    pub axis: Axis,
    /// When the certificate expires that the probe was shown last.
    pub certificate_not_after: Option<Timestamp>,
    /// Until when it is out whatever the probe says; may be in the past.
    pub held_until: Option<Duration>,
    /// It would be healthy but for its hold-down.
    pub held: bool,
    /// The verdict is the operator's word.
    pub set: bool,
    /// The outcomes counted since the last verdict, the last one lowest: a bit for each, set for a
    /// failure.
    pub(super) recent: u64,
    /// When the first probe of the present run of equal outcomes started.
    pub(super) run_started: Duration,
}

/// An outcome that changed a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// From the start of the first probe of the run that decided.
    pub took: Duration,
}

impl CheckView {
    /// Not yet probed.
    pub(super) fn unknown(name: &Arc<str>, now: Duration) -> Self {
        Self {
            name: name.clone(),
            of_flows: true,
            advisory: false,
            presumed: false,
            health: Health::Unknown,
            gone: false,
            leaving: false,
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
            weight: 100,
            axis: Axis::default(),
            certificate_not_after: None,
            held_until: None,
            held: false,
            set: false,
            recent: 0,
            run_started: now,
        }
    }

    /// With a verdict that another probe or an earlier agent has reached, as an assumption.
    pub(super) fn assumed(name: &Arc<str>, verdict: &RestoredCheck, now: Duration) -> Self {
        Self {
            health: verdict.health,
            gone: verdict.gone && verdict.health == Health::Unhealthy,
            leaving: verdict.leaving && verdict.health == Health::Healthy,
            assumed: verdict.health != Health::Unknown,
            reason: verdict.reason.clone(),
            ..Self::unknown(name, now)
        }
    }

    /// For the state file.
    pub(super) fn restorable(&self) -> RestoredCheck {
        RestoredCheck {
            health: self.health,
            gone: self.gone,
            reason: self.reason.clone(),
            leaving: self.leaving,
        }
    }

    /// Keeps the verdict as an assumption, for another probe than the one that reached it.
    pub(super) fn assume(&mut self) {
        self.assumed = self.health != Health::Unknown;
        self.certificate_not_after = None;
        self.forget_counts();
    }

    /// The operator says so; its outcomes count from here on.
    pub(super) fn set(&mut self, health: SetHealth, now: Duration) {
        self.forget_counts();
        let to = match health {
            SetHealth::Healthy | SetHealth::Leaving => Health::Healthy,
            SetHealth::Unhealthy => Health::Unhealthy,
        };
        if self.health != to {
            self.since = now;
        }
        (self.health, self.leaving) = (to, health == SetHealth::Leaving);
        (self.gone, self.assumed, self.held_until, self.class) = (false, false, None, None);
        self.reason = format!("set to {} by the operator", health.name());
        self.set = true;
    }

    fn forget_counts(&mut self) {
        (self.successes, self.failures, self.silent) = (0, 0, 0);
        (self.recent, self.held) = (0, false);
    }

    /// With what the configuration says of the hold-down.
    pub(super) fn held_by(mut self, policy: &HealthPolicy, ejections: &Ejections) -> Self {
        let until = |rule| ejections.held_until(rule);
        self.held_until = policy.hold_down.and_then(until);
        self
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
            // While it is held down, more successes change nothing.
            Health::Unhealthy => !self.held && (self.assumed || self.successes > 0),
        }
    }

    /// Counts an outcome of a probe that began at `started` and ended at `now`. Tells if the
    /// verdict changed; that an unhealthy backend is now gone is such a change too. `ejections`: the
    /// backend's.
    pub(super) fn record(
        &mut self,
        outcome: &Outcome,
        policy: &HealthPolicy,
        ejections: &mut Ejections,
        started: Duration,
        now: Duration,
    ) -> Option<Turn> {
        let outcome = &*self.heard(outcome, policy);
        let before = self.last().map(|last| &last.detail);
        let detail = match before.filter(|before| ***before == *outcome.detail) {
            Some(same) => same.clone(),
            None => outcome.detail.as_str().into(),
        };
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Record::new(outcome, detail, now));
        self.certificate_not_after = outcome.certificate_not_after.or(self.certificate_not_after);
        if self.advisory && outcome.verdict == Verdict::Failure && outcome.agent.is_none() {
            return None;
        }
        match outcome.verdict {
            Verdict::Internal => {
                self.internal += 1;
                None
            }
            Verdict::Success => self.success(outcome, policy, started, now),
            Verdict::Failure => self.failure(outcome, policy, ejections, started, now),
        }
    }

    /// Takes over what the outcome says beside success or failure; gives it as it counts, given all
    /// that an agent has said before.
    fn heard<'o>(&mut self, outcome: &'o Outcome, policy: &HealthPolicy) -> Cow<'o, Outcome> {
        if let Some(report) = &outcome.agent {
            self.axis.apply(report);
            self.weight = self.axis.percent();
            let (verdict, class) = if self.axis.is_no() {
                (Verdict::Failure, Class::Application)
            } else {
                (Verdict::Success, Class::Ok)
            };
            return Cow::Owned(Outcome {
                verdict,
                class,
                ..outcome.clone()
            });
        }
        if outcome.verdict == Verdict::Success {
            self.weight = match outcome.class {
                Class::Degraded => policy.degraded_weight,
                _ => 100,
            };
        }
        Cow::Borrowed(outcome)
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
        self.recent <<= 1;
        let drains = outcome.class == Class::Drain;
        self.assumed = false;
        let needed = match self.health {
            Health::Healthy if self.leaving == drains => {
                self.successes = self.successes.saturating_add(1);
                return None;
            }
            Health::Healthy => {
                self.leaving = drains;
                self.run_started = started;
                let reason = if drains {
                    outcome.detail.clone()
                } else {
                    format!("does not ask to be drained any more: {}", outcome.detail)
                };
                return Some(self.turn(Health::Healthy, reason, outcome, now));
            }
            Health::Unhealthy if drains => {
                // It is alive, and does not want to be back.
                (self.successes, self.held) = (0, false);
                return None;
            }
            Health::Unknown => 1,
            Health::Unhealthy => policy.healthy_threshold,
        };
        self.successes = self.successes.saturating_add(1);
        if self.successes < needed {
            return None;
        }
        let waits = self.health == Health::Unhealthy;
        self.held = waits && self.held_until.is_some_and(|until| now < until);
        if self.held {
            // What it waits for is not evidence.
            self.run_started = started;
            return None;
        }
        self.gone = false;
        self.leaving = drains;
        self.recent = 0;
        let reason = match (self.health, self.successes) {
            (Health::Unknown, _) => first(outcome),
            (_, 1) => "1 success".to_owned(),
            (_, count) => format!("{count} consecutive successes"),
        };
        Some(self.turn(Health::Healthy, reason, outcome, now))
    }

    fn failure(
        &mut self,
        outcome: &Outcome,
        policy: &HealthPolicy,
        ejections: &mut Ejections,
        started: Duration,
        now: Duration,
    ) -> Option<Turn> {
        if self.failures == 0 {
            self.run_started = started;
        }
        self.successes = 0;
        self.held = false;
        self.recent = (self.recent << 1) | 1;
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
                Some(self.turn(Health::Unhealthy, first(outcome), outcome, now))
            }
            Health::Healthy => {
                let grounds = self.grounds(outcome.class, policy)?;
                self.gone = self.silent >= policy.unhealthy_threshold
                    || (grounds == Grounds::Immediate && self.silent > 0);
                let mut reason = format!("{grounds}: {}", outcome.detail);
                let term = ejections.ejected(policy.hold_down, now);
                if term.firm {
                    self.held_until = Some(term.until);
                    let (number, length) = (term.number, term.length);
                    reason += &format!("; ejection {number}, held down for {length:?}");
                }
                self.recent = 0;
                Some(self.turn(Health::Unhealthy, reason, outcome, now))
            }
            Health::Unhealthy if self.gone || self.silent < policy.unhealthy_threshold => None,
            Health::Unhealthy => {
                (self.gone, self.set) = (true, false);
                self.class = Some(outcome.class);
                self.reason = format!(
                    "gone: {} consecutive failures without an answer: {}",
                    self.silent, outcome.detail
                );
                Some(Turn {
                    took: now.saturating_sub(self.run_started),
                })
            }
        }
    }

    /// Why the last failure ejects, if it does.
    fn grounds(&self, class: Class, policy: &HealthPolicy) -> Option<Grounds> {
        if self.failures >= policy.unhealthy_threshold {
            return Some(Grounds::InARow(self.failures));
        }
        if policy.immediate_on.contains(&class) {
            return Some(Grounds::Immediate);
        }
        let window = policy.unhealthy_window?;
        let unused = u64::BITS.saturating_sub(window.outcomes);
        let failures = (self.recent << unused).count_ones();
        (failures >= window.failures).then_some(Grounds::Window(window))
    }

    fn turn(&mut self, to: Health, reason: String, outcome: &Outcome, now: Duration) -> Turn {
        self.reason = reason;
        self.set = false;
        self.leaving &= to == Health::Healthy;
        if self.health != to {
            self.since = now;
        }
        self.health = to;
        self.class = Some(outcome.class);
        Turn {
            took: now.saturating_sub(self.run_started),
        }
    }
}

fn first(outcome: &Outcome) -> String {
    format!("first probe: {}", outcome.detail)
}

/// Why a failure ejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grounds {
    InARow(u32),
    Immediate,
    Window(Window),
}

impl fmt::Display for Grounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InARow(1) => f.write_str("1 failure"),
            Self::InARow(count) => write!(f, "{count} consecutive failures"),
            Self::Immediate => f.write_str("1 failure of a kind in immediate_on"),
            Self::Window(Window { failures, outcomes }) => {
                write!(f, "{failures} failures in the last {outcomes} probes")
            }
        }
    }
}
