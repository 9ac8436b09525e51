//! One backend's verdict: that of all its probes together.
//!
//! A backend is healthy when every probe of it says so, and undecided while one has no verdict and
//! none is against it. What is down is named in the reason.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::check::{CheckView, Record, RestoredCheck, Turn};
use super::ejections::{Ejections, Past};
use super::engine::SetHealth;
use crate::probe::{Class, Verdict};

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

/// A verdict of an earlier agent, for the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    pub health: Health,
    /// See [`TargetView::gone`].
    pub gone: bool,
    pub reason: String,
    /// Address of the backend it was said of; of another address it says nothing.
    pub address: SocketAddr,
    /// Its ejections, by its probes or by what its packets say.
    #[serde(default, skip_serializing_if = "Past::is_clean")]
    pub past: Past,
    /// By probe; none if it is not known by which.
    #[serde(default, skip_serializing_if = "RestoredChecks::is_empty")]
    pub checks: RestoredChecks,
}

/// What was known by each probe, by its name; in the file a map. Here a list, since a backend has
/// one probe or two, and the smallest tree has room for eleven.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "BTreeMap<Arc<str>, RestoredCheck>")]
pub struct RestoredChecks(Vec<(Arc<str>, RestoredCheck)>);

impl RestoredChecks {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// By the probe of this name.
    pub fn get(&self, name: &str) -> Option<&RestoredCheck> {
        let mut named = self.0.iter().filter(|(known, _)| **known == *name);
        named.next().map(|(_, check)| check)
    }
}

impl From<BTreeMap<Arc<str>, RestoredCheck>> for RestoredChecks {
    fn from(checks: BTreeMap<Arc<str>, RestoredCheck>) -> Self {
        checks.into_iter().collect()
    }
}

impl FromIterator<(Arc<str>, RestoredCheck)> for RestoredChecks {
    fn from_iter<T: IntoIterator<Item = (Arc<str>, RestoredCheck)>>(checks: T) -> Self {
        Self(checks.into_iter().collect())
    }
}

impl Serialize for RestoredChecks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, check)| (name, check)))
    }
}

/// What is known of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetView {
    pub health: Health,
    /// Unhealthy, and silent rather than answering badly: its flows are given up. Of several probes
    /// those count that ask the port its flows go to, or else all together: a helper that is silent
    /// is no proof that the backend is.
    pub gone: bool,
    /// Healthy, but it asks to be drained: one of its probes says so.
    pub leaving: bool,
    /// Not decided, and to get traffic until it is.
    pub presumed: bool,
    /// The verdict was not reached by the present probes: it is that of an earlier agent or of
    /// another configuration, and stands until an outcome is counted.
    pub assumed: bool,
    /// Since when `health` is what it is.
    pub since: Duration,
    /// Why, for people: `3 consecutive failures: HTTP 503`.
    pub reason: String,
    /// Class of the outcome that decided; `None` if none has.
    pub class: Option<Class>,
    /// Percent of the configured weight that the backend says it is good for, or that it gets for
    /// being degraded: the least of its probes'.
    pub weight: u8,
    /// Until when it is out whatever the probes say; may be in the past.
    pub held_until: Option<Duration>,
    /// Ejections not forgotten yet, whoever ejected it.
    pub ejections: Ejections,
    /// What its packets say has ejected it.
    pub doubted: bool,
    /// By probe, in the order of the configuration; none if it is not probed.
    pub checks: Vec<CheckView>,
}

impl TargetView {
    /// Healthy because nobody asks.
    pub(super) fn unprobed(now: Duration) -> Self {
        Self {
            health: Health::Healthy,
            gone: false,
            leaving: false,
            presumed: false,
            assumed: false,
            since: now,
            reason: "no probe".to_owned(),
            class: None,
            weight: 100,
            held_until: None,
            ejections: Ejections::default(),
            doubted: false,
            checks: Vec::new(),
        }
    }

    /// Of these probes, from the start.
    pub(super) fn new(checks: Vec<CheckView>, now: Duration) -> Self {
        let mut view = Self {
            checks,
            ..Self::unprobed(now)
        };
        if !view.checks.is_empty() {
            view.settle();
            view.reason = view.told();
        }
        view
    }

    /// Puts the probes together again after the outcome of one, which may have turned its verdict.
    /// Tells if that changes anything for the backend: its verdict, whether it is gone, its weight,
    /// or which of its probes are against it.
    pub(super) fn turned(
        &mut self,
        check: usize,
        turn: Option<Turn>,
        now: Duration,
    ) -> Option<Turn> {
        let (gone, leaving) = (self.gone, self.leaving);
        let (weight, from) = (self.weight, self.health);
        self.settle();
        let turn = match turn {
            Some(turn) => turn,
            None if weight != self.weight => Turn::default(),
            None => return None,
        };
        let reason = self.told();
        let news = from != self.health
            || gone != self.gone
            || leaving != self.leaving
            || weight != self.weight
            || (self.health == Health::Unhealthy && reason != self.reason);
        self.reason = reason;
        if from != self.health {
            self.since = now;
            if self.health == Health::Healthy && !self.doubted {
                self.ejections.readmitted(now);
            }
        }
        if let (Some(class), true) = (self.checks.get(check).and_then(|check| check.class), news) {
            self.class = Some(class);
        }
        news.then_some(turn)
    }

    fn verdict(&self) -> Health {
        let any = |health| {
            let mut checks = self.checks.iter();
            checks.any(|check| {
                check.health == health && !(health == Health::Unknown && check.advisory)
            })
        };
        if any(Health::Unhealthy) {
            Health::Unhealthy
        } else if any(Health::Unknown) {
            Health::Unknown
        } else {
            Health::Healthy
        }
    }

    /// Puts together what the probes say, but for the reason.
    fn settle(&mut self) {
        self.health = self.verdict();
        let checks = || self.checks.iter();
        self.leaving = self.health == Health::Healthy && checks().any(|check| check.leaving);
        let of_flows = checks().any(|check| check.gone && check.of_flows);
        self.gone = of_flows || checks().all(|check| check.gone);
        let mut waited =
            checks().filter(|check| check.health == Health::Unknown && !check.advisory);
        self.presumed = self.health == Health::Unknown && waited.all(|check| check.presumed);
        self.assumed = checks().any(|check| check.assumed);
        self.weight = checks().map(|check| check.weight).min().unwrap_or(100);
        self.held_until = checks().filter_map(|check| check.held_until).max();
    }

    /// The reason.
    fn told(&self) -> String {
        let named = |check: &CheckView| match self.checks.len() {
            1 => check.reason.clone(),
            _ => format!("{}: {}", check.name, check.reason),
        };
        let having = |health| {
            let checks = self.checks.iter();
            checks.filter(move |check| check.health == health)
        };
        match self.health {
            Health::Unhealthy => {
                let all: Vec<String> = having(Health::Unhealthy).map(named).collect();
                all.join("; ")
            }
            Health::Unknown => {
                let waited = having(Health::Unknown).find(|check| !check.advisory);
                waited.map_or_else(String::new, named)
            }
            Health::Healthy => {
                let last = having(Health::Healthy).max_by_key(|check| (check.leaving, check.since));
                let reason = last.map_or_else(String::new, named);
                let light = self.checks.iter().find(|check| check.weight == self.weight);
                match (light, self.weight) {
                    (None, _) | (_, 100..) => reason,
                    (Some(check), weight) => {
                        let mut said = check.history.iter().rev();
                        let said = said.find(|record| record.verdict == Verdict::Success);
                        let said = said.map_or("as said before", |record| &*record.detail);
                        format!("{reason}; weight {weight} %: {said}")
                    }
                }
            }
        }
    }

    /// The last outcome: of a probe that is against the backend if there is one, else the latest.
    pub fn last(&self) -> Option<&Record> {
        let decisive = self
            .checks
            .iter()
            .filter(|check| check.health == self.health);
        decisive
            .filter_map(CheckView::last)
            .max_by_key(|record| record.at())
            .or_else(|| {
                self.checks
                    .iter()
                    .filter_map(CheckView::last)
                    .max_by_key(|record| record.at())
            })
    }

    /// The operator says so, for all its probes but the second opinions.
    pub(super) fn set(&mut self, health: SetHealth, now: Duration) {
        let from = self.health;
        let asked = self.checks.iter_mut().filter(|check| !check.advisory);
        asked.for_each(|check| check.set(health, now));
        self.settle();
        (self.reason, self.class) = (self.told(), None);
        if from != self.health {
            self.since = now;
            if self.health == Health::Healthy && !self.doubted {
                self.ejections.readmitted(now);
            }
        }
    }

    /// Nobody probes it: what it is taken for waits for nothing.
    pub(super) fn rest(&mut self) {
        for check in self.checks.iter_mut().filter(|check| !check.advisory) {
            (check.assumed, check.next_probe) = (false, None);
        }
        self.settle();
    }

    /// Whether its verdict is the operator's word.
    pub fn is_set(&self) -> bool {
        let mut checks = self.checks.iter();
        checks.any(|check| check.set && check.health == self.health)
    }

    /// Says whether what its packets say has ejected it.
    pub(super) fn doubt(&mut self, doubted: bool, now: Duration) {
        if !doubted && self.ejections.out() && self.health == Health::Healthy {
            self.ejections.readmitted(now);
        }
        self.doubted = doubted;
    }

    /// What the probe of this name knows.
    pub fn check(&self, name: &str) -> Option<&CheckView> {
        self.checks.iter().find(|check| &*check.name == name)
    }

    /// The verdict of all its probes, as of one.
    pub(super) fn verdict_of_all(&self) -> RestoredCheck {
        RestoredCheck {
            health: self.health,
            gone: self.gone,
            reason: self.reason.clone(),
            leaving: false,
        }
    }

    /// For the state file.
    pub(super) fn restorable(&self, address: SocketAddr, now: Duration) -> Restored {
        let checks = self.checks.iter();
        Restored {
            health: self.health,
            gone: self.gone,
            reason: self.reason.clone(),
            address,
            past: self.ejections.past(now),
            checks: checks
                .map(|check| (check.name.clone(), check.restorable()))
                .collect(),
        }
    }
}

impl Restored {
    /// The verdict of the probe `name`. `only`: the backend has one probe now; if it had one before,
    /// that is it, whatever its name.
    pub(super) fn check(&self, name: &str, only: bool) -> Option<&RestoredCheck> {
        match &*self.checks.0 {
            [(_, lone)] if only => Some(lone),
            _ => self.checks.get(name),
        }
    }

    /// That of all its probes, as of one.
    pub(super) fn verdict_of_all(&self) -> RestoredCheck {
        RestoredCheck {
            health: self.health,
            gone: self.gone,
            reason: self.reason.clone(),
            leaving: false,
        }
    }

    /// The same some time later.
    #[must_use]
    pub fn later(mut self, by: Duration) -> Self {
        self.past = self.past.later(by);
        self
    }
}
