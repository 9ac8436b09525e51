//! All targets together: configuration, due times, probes in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::schedule::{Grid, Rhythm, whole_intervals_late};
use super::target::{Health, Restored, TargetView, Turn};
use crate::model::{BackendKey, HealthPolicy, ProbeSpec, Service};
use crate::probe::{Class, Outcome, Verdict};

/// A probe to start now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub key: BackendKey,
    pub spec: ProbeSpec,
    /// To be given back to [`Engine::finish`].
    pub seq: u64,
    /// When it was due: what it is late by is the agent's own lateness.
    pub due: Duration,
}

/// A verdict changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: BackendKey,
    pub from: Health,
    /// Equal to `from` (unhealthy) if all that changed is that the backend is now gone.
    pub to: Health,
    /// See [`TargetView::gone`].
    pub gone: bool,
    pub reason: String,
    /// Class of the outcome that decided; `None` if the configuration did.
    pub class: Option<Class>,
    pub at: Duration,
    /// From the start of the first probe of the run that decided to the verdict.
    pub took: Duration,
}

impl Change {
    /// What a turn at `now` has made of a backend.
    fn new(key: &BackendKey, turn: Turn, view: &TargetView, now: Duration) -> Self {
        Self {
            key: key.clone(),
            from: turn.from,
            to: view.health,
            gone: view.gone,
            reason: view.reason.clone(),
            class: view.class,
            at: now,
            took: turn.took,
        }
    }
}

struct Target {
    address: SocketAddr,
    /// `None`: no probe.
    plan: Option<Plan>,
    view: TargetView,
}

/// How a target is probed.
struct Plan {
    spec: ProbeSpec,
    policy: HealthPolicy,
    grid: Grid,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Waiting {
        nominal: Duration,
        due: Duration,
    },
    InFlight {
        seq: u64,
        nominal: Duration,
        started: Duration,
        /// When it is taken for lost.
        lost: Duration,
    },
}

impl State {
    /// Where the target stands in the queue.
    const fn wakes(self) -> Duration {
        match self {
            Self::Waiting { due, .. } => due,
            Self::InFlight { lost, .. } => lost,
        }
    }
}

/// The health of all backends. See the module's documentation.
pub struct Engine {
    agent: u64,
    targets: BTreeMap<BackendKey, Target>,
    /// Every probed target by the time something is to be done for it.
    queue: BTreeSet<(Duration, BackendKey)>,
    seq: u64,
}

impl Engine {
    /// `agent_id` tells agents that probe the same backends apart, so that they do not do so at the
    /// same moment. It should outlive a restart.
    pub const fn new(agent_id: u64) -> Self {
        Self {
            agent: agent_id,
            targets: BTreeMap::new(),
            queue: BTreeSet::new(),
            seq: 0,
        }
    }

    /// Takes over a configuration.
    ///
    /// - A backend whose probe and thresholds are unchanged keeps its state untouched.
    /// - One with another probe keeps its verdict as an assumption and is checked anew.
    /// - One with another address is another backend: unknown.
    /// - A new one takes what `restored` has for it, as an assumption, or else is unknown.
    ///
    /// Returns the verdicts that the configuration itself changed (a backend that has lost its
    /// probe is healthy).
    pub fn configure(
        &mut self,
        services: &[Service],
        restored: &BTreeMap<BackendKey, Restored>,
        now: Duration,
    ) -> Vec<Change> {
        let mut old = std::mem::take(&mut self.targets);
        self.queue.clear();
        let mut changes = Vec::new();
        for service in services {
            for backend in &service.backends {
                let key = service.key(backend);
                let probe = service.health.as_ref().zip(backend.probe.as_ref());
                let before = old
                    .remove(&key)
                    .filter(|target| target.address == backend.address);
                let restored = restored
                    .get(&key)
                    .filter(|restored| restored.address == backend.address);
                let (view, old_plan) = match before {
                    Some(target) => (Some(target.view), target.plan),
                    None => (restored.map(|r| TargetView::restored(r, now)), None),
                };
                let (view, plan) = match probe {
                    None => (self.unprobed(&key, view, now, &mut changes), None),
                    Some((policy, spec)) => {
                        let mut view = view.unwrap_or_else(|| TargetView::unknown(now));
                        let plan = self.plan(&key, spec, policy, old_plan, &mut view, now);
                        self.queue.insert((plan.state.wakes(), key.clone()));
                        (view, Some(plan))
                    }
                };
                let target = Target {
                    address: backend.address,
                    plan,
                    view,
                };
                self.targets.insert(key, target);
            }
        }
        changes
    }

    /// When [`Engine::start_due`] has something to do next.
    pub fn next_due(&self) -> Option<Duration> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// The probes to start now, those longest due first. Never two in flight for one target.
    pub fn start_due(&mut self, now: Duration) -> Vec<Start> {
        self.start_due_up_to(now, usize::MAX)
    }

    /// The same, but at most `limit`: the others remain due. For a bound on probes in flight.
    pub fn start_due_up_to(&mut self, now: Duration, limit: usize) -> Vec<Start> {
        let mut starts = Vec::new();
        while starts.len() < limit
            && self.queue.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, key)) = self.queue.pop_first()
        {
            let Some(Target {
                plan: Some(plan),
                view,
                ..
            }) = self.targets.get_mut(&key)
            else {
                continue;
            };
            let rhythm = Rhythm::of(view, &plan.policy);
            let (nominal, due) = match plan.state {
                State::Waiting { nominal, due } => (nominal, due),
                State::InFlight {
                    nominal, started, ..
                } => {
                    // The prober never answered: its fault, not the backend's.
                    view.record(
                        &lost(now.saturating_sub(started)),
                        &plan.policy,
                        started,
                        now,
                    );
                    let planned = plan.grid.next(rhythm, nominal, now);
                    view.skipped += planned.skipped;
                    plan.wait(planned.nominal, planned.due, view);
                    self.queue.insert((planned.due, key));
                    continue;
                }
            };
            let missed = whole_intervals_late(nominal, rhythm.interval(), now);
            view.skipped += u64::from(missed);
            view.next_probe = None;
            self.seq += 1;
            plan.state = State::InFlight {
                seq: self.seq,
                nominal: nominal + rhythm.interval() * missed,
                started: now,
                lost: now + plan.spec.timeout + plan.policy.interval.max(LOST_GRACE),
            };
            self.queue.insert((plan.state.wakes(), key.clone()));
            starts.push(Start {
                key,
                spec: plan.spec.clone(),
                seq: self.seq,
                due,
            });
        }
        starts
    }

    /// Brings the next probes of what `spec` asks forward to `now`, whatever their deadline. One that is
    /// in flight is left alone.
    pub fn hurry(&mut self, spec: &ProbeSpec, now: Duration) {
        let asks = |own: &ProbeSpec| {
            (own.target, &own.kind, &own.egress) == (spec.target, &spec.kind, &spec.egress)
        };
        for (key, target) in &mut self.targets {
            if let Some(plan) = target.plan.as_mut()
                && let State::Waiting { due, .. } = plan.state
                && due > now
                && asks(&plan.spec)
            {
                self.queue.remove(&(due, key.clone()));
                plan.wait(now, now, &mut target.view);
                self.queue.insert((now, key.clone()));
            }
        }
    }

    /// Counts the outcome of a probe. One that is no longer expected (its target was removed or
    /// configured anew, or it was taken for lost) changes nothing.
    pub fn finish(
        &mut self,
        key: &BackendKey,
        seq: u64,
        outcome: &Outcome,
        now: Duration,
    ) -> Option<Change> {
        let target = self.targets.get_mut(key)?;
        let (plan, view) = (target.plan.as_mut()?, &mut target.view);
        let State::InFlight {
            seq: expected,
            nominal,
            started,
            lost,
        } = plan.state
        else {
            return None;
        };
        if seq != expected {
            return None;
        }
        let turn = view.record(outcome, &plan.policy, started, now);
        let planned = plan.grid.next(Rhythm::of(view, &plan.policy), nominal, now);
        view.skipped += planned.skipped;
        plan.wait(planned.nominal, planned.due, view);
        self.queue.remove(&(lost, key.clone()));
        self.queue.insert((planned.due, key.clone()));
        turn.map(|turn| Change::new(key, turn, view, now))
    }

    /// Counts the outcome of a probe that somebody else ran, for replays: the schedule and a probe
    /// in flight are left alone. None too for a backend that is unknown or has no probe.
    pub fn observe(
        &mut self,
        key: &BackendKey,
        outcome: &Outcome,
        now: Duration,
    ) -> Option<Change> {
        let target = self.targets.get_mut(key)?;
        let (plan, view) = (target.plan.as_ref()?, &mut target.view);
        let started = now.saturating_sub(outcome.latency);
        let turn = view.record(outcome, &plan.policy, started, now)?;
        Some(Change::new(key, turn, view, now))
    }

    /// Makes a backend due at once. Returns whether it will be: false if it is unknown, has no
    /// probe, or has one in flight already.
    pub fn probe_now(&mut self, key: &BackendKey, now: Duration) -> bool {
        let Some(target) = self.targets.get_mut(key) else {
            return false;
        };
        let Some(plan) = target.plan.as_mut() else {
            return false;
        };
        let State::Waiting { due, .. } = plan.state else {
            return false;
        };
        self.queue.remove(&(due, key.clone()));
        plan.wait(now, now, &mut target.view);
        self.queue.insert((now, key.clone()));
        true
    }

    /// What is known of all backends, by key.
    pub fn view(&self) -> impl Iterator<Item = (&BackendKey, &TargetView)> {
        self.targets.iter().map(|(key, target)| (key, &target.view))
    }

    /// What is known of one backend.
    pub fn get(&self, key: &BackendKey) -> Option<&TargetView> {
        self.targets.get(key).map(|target| &target.view)
    }

    /// The verdicts for the state file; `since` on the wall clock is the agent's to add.
    pub fn snapshot(&self) -> BTreeMap<BackendKey, Restored> {
        let probed = self.targets.iter().filter(|(_, t)| t.plan.is_some());
        probed
            .map(|(key, target)| {
                let restored = Restored {
                    health: target.view.health,
                    gone: target.view.gone,
                    reason: target.view.reason.clone(),
                    address: target.address,
                };
                (key.clone(), restored)
            })
            .collect()
    }

    /// A backend nobody asks: keeps `since` if it was one before.
    fn unprobed(
        &self,
        key: &BackendKey,
        before: Option<TargetView>,
        now: Duration,
        changes: &mut Vec<Change>,
    ) -> TargetView {
        let fresh = TargetView::unprobed(now);
        match before {
            Some(view) if view.health == Health::Healthy => {
                let mut fresh = fresh;
                fresh.since = view.since;
                fresh
            }
            Some(view) => {
                changes.push(Change {
                    key: key.clone(),
                    from: view.health,
                    to: fresh.health,
                    gone: false,
                    reason: fresh.reason.clone(),
                    class: None,
                    at: now,
                    took: Duration::ZERO,
                });
                fresh
            }
            None => fresh,
        }
    }

    fn plan(
        &self,
        key: &BackendKey,
        spec: &ProbeSpec,
        policy: &HealthPolicy,
        old: Option<Plan>,
        view: &mut TargetView,
        now: Duration,
    ) -> Plan {
        let identity = format!("{key} {}", spec.target);
        let grid = Grid::new(&identity, self.agent, policy.jitter);
        match old {
            Some(plan) if plan.spec == *spec && plan.policy == *policy => return plan,
            // Other thresholds or rhythm for the same question: the counts stand, and an answer
            // that is on its way is waited for.
            Some(plan) if plan.spec == *spec => {
                if matches!(plan.state, State::InFlight { .. }) {
                    return Plan {
                        policy: policy.clone(),
                        grid,
                        ..plan
                    };
                }
            }
            Some(_) | None => view.assume(),
        }
        let planned = grid.first(Rhythm::of(view, policy), now);
        let mut plan = Plan {
            spec: spec.clone(),
            policy: policy.clone(),
            grid,
            state: State::Waiting {
                nominal: planned.nominal,
                due: planned.due,
            },
        };
        plan.wait(planned.nominal, planned.due, view);
        plan
    }
}

impl Plan {
    const fn wait(&mut self, nominal: Duration, due: Duration, view: &mut TargetView) {
        self.state = State::Waiting { nominal, due };
        view.next_probe = Some(due);
    }
}

/// How long after its timeout a probe may still answer at the least before it is taken for lost.
const LOST_GRACE: Duration = Duration::from_secs(1);

fn lost(after: Duration) -> Outcome {
    Outcome {
        verdict: Verdict::Internal,
        class: Class::Internal,
        detail: "the prober gave no answer".to_owned(),
        latency: after,
        steps: Vec::new(),
    }
}
