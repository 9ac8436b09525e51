//! What the operator has to say about probing: pauses, and what a backend's health is until its
//! probes say otherwise. Both as HAProxy has them (`disable health`, `set server … health`).

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Change, Engine, Target, Wishes};
use crate::health::check::Turn;
use crate::model::BackendKey;

/// What the operator sets a backend's health to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetHealth {
    Healthy,
    /// Healthy, and as if it asked to be drained.
    Leaving,
    /// As if it answered badly.
    Unhealthy,
}

impl SetHealth {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Healthy, Self::Leaving, Self::Unhealthy];

    /// Name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Leaving => "leaving",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl Engine {
    /// Takes over whose probes are paused, whether or not these are configured. A paused backend is not
    /// probed and keeps its verdict, which then is the operator's; one whose pause ends is probed at
    /// once. An agent beside other probes is a second opinion, and goes on.
    pub fn pause(&mut self, paused: BTreeSet<BackendKey>, now: Duration) {
        self.paused = paused;
        let mut resumed = Vec::new();
        for target in &mut self.targets {
            let was = std::mem::replace(&mut target.paused, self.paused.contains(&target.key));
            if was && !target.paused {
                resumed.extend(target.checks.iter().map(|check| check.probe));
            }
            target.rest();
        }
        let mut wishes = Wishes(&mut self.targets);
        for place in resumed {
            self.probes.hurry(place, &mut wishes, now);
        }
    }

    /// Sets a backend's health. It stands until its probes have counted enough against it, or for as
    /// long as they are paused; that it leaves, until the next success. `None` for a backend that is
    /// unknown or not probed, else what has changed, if anything has.
    pub fn set(
        &mut self,
        key: &BackendKey,
        health: SetHealth,
        now: Duration,
    ) -> Option<Option<Change>> {
        let target = self.targets.get_mut(*self.places.get(key)?)?;
        if target.checks.is_empty() {
            return None;
        }
        let (from, leaving) = (target.view.health, target.view.leaving);
        target.view.set(health, now);
        let view = &target.view;
        let changed = (from, leaving) != (view.health, view.leaving);
        Some(changed.then(|| Change::new(key, from, Turn::default(), view, now)))
    }
}

impl Target {
    /// Whether the outcomes of one of its probes are waited for.
    pub(super) fn waits_for(&self, check: usize) -> bool {
        let check = self.view.checks.get(check);
        !self.paused || check.is_some_and(|check| check.advisory)
    }

    /// While it is paused nothing is due, and what it is taken for is no assumption any more.
    pub(super) fn rest(&mut self) {
        if self.paused {
            self.view.rest();
        }
    }
}
