//! A backend that is decided about.

use std::time::Duration;

use super::active_passive::Candidate;
use super::{Admin, Orders, Routing, ServiceRouting};
use crate::health::passive::Doubt;
use crate::health::{Health, TargetView};
use crate::model::{Backend, BackendKey};
use crate::probe::{Class, Verdict};

/// A configured backend with all that is said of it.
pub(super) struct Subject<'a> {
    pub key: BackendKey,
    pub backend: &'a Backend,
    pub view: Option<&'a TargetView>,
    /// Only of one that the probes call healthy.
    pub doubt: Option<&'a Doubt>,
    /// Since when its packets have it ejected for refusing their connections, whatever the probes say.
    pub refusing_since: Option<Duration>,
    pub admin: Admin,
}

impl Subject<'_> {
    pub fn health(&self) -> Health {
        match (self.doubt, self.view) {
            (Some(_), _) => Health::Unhealthy,
            (None, view) => view.map_or(Health::Unknown, |view| view.health),
        }
    }

    pub fn reason(&self) -> &str {
        match (self.doubt, self.view) {
            (Some(doubt), _) => &doubt.reason,
            (None, view) => view.map_or("not yet probed", |view| &view.reason),
        }
    }

    pub fn gone(&self) -> bool {
        match (self.doubt, self.view) {
            (Some(doubt), _) => doubt.gone,
            (None, view) => view.is_some_and(|view| view.gone),
        }
    }

    /// Whether it is well, but asks to be drained.
    pub fn leaves(&self) -> bool {
        self.health() == Health::Healthy && self.view.is_some_and(|view| view.leaving)
    }

    pub fn candidate(&self) -> Candidate<'_> {
        Candidate {
            backend: self.backend,
            admin: self.admin,
            health: if self.leaves() {
                Health::Unhealthy
            } else {
                self.health()
            },
            gone: self.gone(),
            remembered: self.doubt.is_none() && self.view.is_some_and(|view| view.assumed),
            said: self.reason(),
        }
    }

    /// Whether it is there for ordinary times, and the operator has nothing against it.
    pub fn is_regular(&self) -> bool {
        self.admin == Admin::Enabled && !self.backend.fallback
    }

    /// Whether it is decided, and nobody has anything against it but its health.
    pub fn counts(&self) -> bool {
        self.is_regular() && self.health() != Health::Unknown
    }

    /// Whether its ejection leaves the others more to carry.
    pub fn holds_load(&self) -> bool {
        self.counts() && self.backend.weight > 0
    }

    /// Whether it was out before this decision.
    pub fn is_out(&self, before: Option<&ServiceRouting>, orders: &Orders) -> bool {
        match before.and_then(|before| before.backends.get(&self.key)) {
            Some(before) => match before.routing {
                Routing::Out | Routing::Draining { .. } => true,
                Routing::Active | Routing::Standby | Routing::Panic => false,
            },
            None => !orders.served.contains(&self.key),
        }
    }

    /// Whether it gets traffic before its first verdict.
    pub fn is_presumed(&self) -> bool {
        self.is_regular() && self.view.is_some_and(|view| view.presumed)
    }

    /// Since when it is unhealthy, if it is.
    pub fn unhealthy_since(&self) -> Duration {
        match (self.doubt, self.view) {
            (Some(doubt), _) => doubt.since,
            (None, view) => view.map_or(Duration::ZERO, |view| view.since),
        }
    }

    /// Whether it is a fallback that can serve.
    pub fn can_fall_back(&self) -> bool {
        self.backend.fallback
            && self.admin == Admin::Enabled
            && self.health() == Health::Healthy
            && !self.leaves()
            && self.backend.weight > 0
    }

    /// Whether the very port that packets go to refuses connections, by what was seen of it last: by a
    /// probe that asks it, or by the packets themselves. A probe of another port says nothing of it.
    pub fn is_refused(&self) -> bool {
        let checks = self.view.map_or(&[][..], |view| &view.checks);
        // Of one that asks something else now, what it found before is not of this port.
        let asked = checks
            .iter()
            .filter(|check| check.of_flows && !check.assumed);
        let counted = asked.map(|check| {
            let mut outcomes = check.history.iter().rev();
            outcomes.find(|outcome| outcome.verdict != Verdict::Internal)
        });
        let last = counted.flatten().max_by_key(|outcome| outcome.at());
        match (last, self.refusing_since) {
            (Some(last), Some(since)) if last.at() <= since => true,
            (Some(last), _) => last.class == Class::Refused,
            (None, refusing) => refusing.is_some(),
        }
    }
}
