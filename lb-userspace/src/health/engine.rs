//! All targets together: configuration, outcomes, verdicts. When probes are due: [`super::probes`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::check::{CheckView, Turn};
use super::ejections::{Ejections, Term};
use super::passive::Doubt;
use super::probes::{Asker, Due, Probes, Rhythms, Start};
use super::schedule::Rhythm;
use super::target::{Health, Restored, TargetView};
use crate::model::{Assume, Backend, BackendKey, HealthPolicy, ProbeKind, ProbeSpec, Service};
use crate::probe::{Class, Outcome, Verdict};

mod operator;

pub use operator::SetHealth;

/// A verdict changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: BackendKey,
    pub from: Health,
    /// Equal to `from` if what changed is whether the backend is gone, which of its probes are
    /// against it, whether it asks to be drained, or its weight.
    pub to: Health,
    /// See [`TargetView::gone`].
    pub gone: bool,
    /// See [`TargetView::leaving`].
    pub leaving: bool,
    /// See [`TargetView::weight`].
    pub weight: u8,
    /// That has changed.
    pub reweighed: bool,
    pub reason: String,
    /// Class of the outcome that decided; `None` if the configuration did.
    pub class: Option<Class>,
    pub at: Duration,
    /// From the start of the first probe of the run that decided to the verdict.
    pub took: Duration,
}

impl Change {
    /// What a turn at `now` has made of a backend that was `from`.
    fn new(key: &BackendKey, from: Health, turn: Turn, view: &TargetView, now: Duration) -> Self {
        Self {
            key: key.clone(),
            from,
            to: view.health,
            gone: view.gone,
            leaving: view.leaving,
            reweighed: false,
            weight: view.weight,
            reason: view.reason.clone(),
            class: view.class,
            at: now,
            took: turn.took,
        }
    }
}

/// What the probes of a backend that have ended were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub success: u64,
    pub failure: u64,
    pub internal: u64,
    /// Verdicts turned: ejections and readmissions.
    pub flaps: u64,
}

/// What the end of a probe has led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub changes: Vec<Change>,
    /// A verdict that was an assumption is one no more.
    pub confirmed: bool,
}

struct Target {
    key: BackendKey,
    address: SocketAddr,
    /// What it is asked, in the order of the view's checks.
    checks: Vec<Check>,
    view: TargetView,
    tally: Tally,
    /// The operator wants it not to be probed.
    paused: bool,
}

const _: () = assert!(size_of::<Target>() <= 256);

/// What one probe means for one backend.
struct Check {
    spec: Arc<ProbeSpec>,
    policy: Arc<HealthPolicy>,
    /// Its place among the probes.
    probe: usize,
}

impl Target {
    /// Counts the outcome of one of its probes.
    fn count(
        &mut self,
        check: usize,
        outcome: &Outcome,
        started: Duration,
        now: Duration,
    ) -> Option<Change> {
        if !self.waits_for(check) {
            return None;
        }
        let policy = &self.checks.get(check)?.policy;
        let (from, weight) = (self.view.health, self.view.weight);
        match outcome.verdict {
            Verdict::Success => self.tally.success += 1,
            Verdict::Failure => self.tally.failure += 1,
            Verdict::Internal => self.tally.internal += 1,
        }
        let TargetView {
            checks, ejections, ..
        } = &mut self.view;
        let asked = checks.get_mut(check)?;
        let turn = asked.record(outcome, policy, ejections, started, now);
        let turn = self.view.turned(check, turn, now)?;
        if from != Health::Unknown && from != self.view.health {
            self.tally.flaps += 1;
        }
        Some(Change {
            reweighed: weight != self.view.weight,
            ..Change::new(&self.key, from, turn, &self.view, now)
        })
    }
}

/// What the probes' askers want.
struct Wishes<'a>(&'a mut [Target]);

impl Rhythms for Wishes<'_> {
    fn rhythm(&self, asker: &Asker) -> Option<Rhythm> {
        let target = self.0.get(asker.target)?;
        if !target.waits_for(asker.check) {
            return None;
        }
        let (check, view) = (
            target.checks.get(asker.check)?,
            target.view.checks.get(asker.check)?,
        );
        Some(Rhythm::of(view, &check.policy))
    }

    fn planned(&mut self, asker: &Asker, next: Option<Duration>, skipped: u64) {
        let Some(target) = self.0.get_mut(asker.target) else {
            return;
        };
        let waits = target.waits_for(asker.check);
        if let Some(view) = target.view.checks.get_mut(asker.check) {
            view.next_probe = next.filter(|_| waits);
            view.skipped += skipped;
        }
    }
}

/// The health of all backends. See the module's documentation.
pub struct Engine {
    /// In the order of the configuration. Whoever follows the probes goes by places here, since to
    /// look up a name among ten thousand costs more than all else that an outcome leads to.
    targets: Vec<Target>,
    places: BTreeMap<BackendKey, usize>,
    probes: Probes,
    /// By the operator; those not configured included.
    paused: BTreeSet<BackendKey>,
}

impl Engine {
    /// `agent_id` tells agents that probe the same backends apart, so that they do not do so at the
    /// same moment. It should outlive a restart.
    pub fn new(agent_id: u64) -> Self {
        Self {
            targets: Vec::new(),
            places: BTreeMap::new(),
            probes: Probes::new(agent_id),
            paused: BTreeSet::new(),
        }
    }

    /// Takes over a configuration.
    ///
    /// - A probe of a backend that is unchanged keeps its state untouched, whatever its name.
    /// - One that asks something else under the same name keeps its verdict as an assumption and
    ///   asks anew.
    /// - One that is new takes the backend's verdict as an assumption, so that it interrupts nothing.
    /// - A backend with another address is another backend: unknown.
    /// - A new one takes what `restored` has for it, as an assumption, or else is unknown; also where
    ///   its probe is to assume that it is down.
    ///
    /// Returns the verdicts that the configuration itself changed (a backend that has lost its
    /// probe is healthy).
    pub fn configure(
        &mut self,
        services: &[Service],
        restored: &BTreeMap<BackendKey, Restored>,
        now: Duration,
    ) -> Vec<Change> {
        let old = std::mem::take(&mut self.targets).into_iter();
        let mut old: BTreeMap<_, _> = old.map(|target| (target.key.clone(), target)).collect();
        self.places.clear();
        let mut plan = self.probes.replan();
        let mut changes = Vec::new();
        let count = services.iter().map(|service| service.backends.len()).sum();
        self.targets.reserve_exact(count);
        for service in services {
            let policies: Vec<_> = service.health.iter().cloned().map(Arc::new).collect();
            for backend in &service.backends {
                let key = service.key(backend);
                let place = self.targets.len();
                let before = old.remove(&key);
                let tally = before.as_ref().map(|target| target.tally);
                let before = before.filter(|target| target.address == backend.address);
                let restored = restored
                    .get(&key)
                    .filter(|restored| restored.address == backend.address);
                let paused = self.paused.contains(&key);
                let known = Known {
                    before,
                    restored,
                    paused,
                };
                let from = known.before.as_ref().map(|target| target.view.health);
                let view = known.view(service, backend, now);
                let checks = policies.iter().zip(&backend.probes).enumerate();
                let checks = checks.map(|(check, (policy, spec))| Check {
                    spec: spec.clone(),
                    policy: policy.clone(),
                    probe: plan.ask(
                        spec,
                        policy,
                        &key,
                        Asker {
                            target: place,
                            check,
                        },
                    ),
                });
                let mut target = Target {
                    checks: checks.collect(),
                    key: key.clone(),
                    address: backend.address,
                    view,
                    tally: tally.unwrap_or_default(),
                    paused,
                };
                target.rest();
                if let Some(from) = from.filter(|from| *from != target.view.health) {
                    let turn = Turn::default();
                    changes.push(Change::new(&key, from, turn, &target.view, now));
                }
                self.places.insert(key, place);
                self.targets.push(target);
            }
        }
        self.probes
            .follow(plan, &mut Wishes(&mut self.targets), now);
        changes
    }

    /// Probes that are started in a second while all is well.
    pub fn probes_per_second(&self) -> f64 {
        self.probes.per_second()
    }

    /// When [`Engine::start_due`] has something to do next.
    pub fn next_due(&self) -> Option<Duration> {
        self.probes.next_due()
    }

    /// The probes to start now, those longest due first. Never two in flight for one question.
    pub fn start_due(&mut self, now: Duration) -> Vec<Start> {
        self.start_due_up_to(now, usize::MAX)
    }

    /// The same, but at most `limit`: the others remain due. For a bound on probes in flight.
    pub fn start_due_up_to(&mut self, now: Duration, limit: usize) -> Vec<Start> {
        let mut wishes = Wishes(&mut self.targets);
        let (planned, lost) = self.probes.start_due(&mut wishes, now, limit);
        let targets = &self.targets;
        let start = |due: Due| {
            let key = targets.get(due.asker.target)?.key.clone();
            Some(due.start(key))
        };
        let starts = planned.into_iter().filter_map(start).collect();
        for (probe, started) in lost {
            // The prober never answered: its fault, not the backend's, and no verdict turns.
            let outcome = lost_probe(now.saturating_sub(started));
            for asker in self.probes.askers(probe) {
                if let Some(target) = self.targets.get_mut(asker.target) {
                    target.count(asker.check, &outcome, started, now);
                }
            }
            self.probes.wait(probe, &mut Wishes(&mut self.targets), now);
        }
        starts
    }

    /// The backends that wait for the outcome of a probe in flight, and which of their probes it is.
    pub fn asked_by(&self, seq: u64) -> impl Iterator<Item = (&BackendKey, usize)> {
        let askers = self.place(seq).map_or(&[][..], |p| self.probes.askers(p));
        askers.iter().filter_map(|asker| {
            let target = self.targets.get(asker.target)?;
            let waits = target.waits_for(asker.check);
            waits.then_some((&target.key, asker.check))
        })
    }

    /// Those of them that want each failure told: `always_log_failures`.
    pub fn asked_by_loud(&self, seq: u64) -> impl Iterator<Item = &BackendKey> {
        let askers = self.place(seq).map_or(&[][..], |p| self.probes.askers(p));
        askers.iter().filter_map(|asker| {
            let target = self.targets.get(asker.target)?;
            let policy = &target.checks.get(asker.check)?.policy;
            let waits = target.waits_for(asker.check);
            (policy.always_log_failures && waits).then_some(&target.key)
        })
    }

    /// The number of a probe in flight among those of this configuration, from zero.
    pub fn place(&self, seq: u64) -> Option<usize> {
        self.probes.in_flight(seq).map(|(place, _)| place)
    }

    /// Counts the outcome of a probe for every backend that asked for it. One that is no longer
    /// expected (its target was removed or configured anew, or it was taken for lost) changes
    /// nothing.
    pub fn finish(&mut self, seq: u64, outcome: &Outcome, now: Duration) -> Ended {
        let mut ended = Ended::default();
        let Some((probe, started)) = self.probes.in_flight(seq) else {
            return ended;
        };
        for asker in self.probes.askers(probe) {
            if let Some(target) = self.targets.get_mut(asker.target) {
                let assumed = target.view.assumed;
                let change = target.count(asker.check, outcome, started, now);
                ended.changes.extend(change);
                ended.confirmed |= assumed && !target.view.assumed;
            }
        }
        self.probes.wait(probe, &mut Wishes(&mut self.targets), now);
        ended
    }

    /// Counts the outcome of a probe that somebody else ran, for replays: the schedule and a probe
    /// in flight are left alone. `check`: which of the backend's probes. None too for a backend
    /// that is unknown or has no such probe.
    pub fn observe(
        &mut self,
        key: &BackendKey,
        check: usize,
        outcome: &Outcome,
        now: Duration,
    ) -> Option<Change> {
        let target = self.targets.get_mut(*self.places.get(key)?)?;
        let started = now.saturating_sub(outcome.latency);
        target.count(check, outcome, started, now)
    }

    /// Makes a backend's probes due at once. Returns whether any will be: false if it is unknown, or
    /// if all its probes, if it has any, are in flight already.
    pub fn probe_now(&mut self, key: &BackendKey, now: Duration) -> bool {
        let Some(target) = self.target(key) else {
            return false;
        };
        let places: Vec<usize> = target.checks.iter().map(|check| check.probe).collect();
        let mut wishes = Wishes(&mut self.targets);
        let hurry = |any, probe| self.probes.hurry(probe, &mut wishes, now) || any;
        places.into_iter().fold(false, hurry)
    }

    /// Brings the next probes of what `spec` asks forward to `now`, whatever their deadline. One that
    /// is in flight is left alone.
    pub fn hurry(&mut self, spec: &ProbeSpec, now: Duration) {
        let mut wishes = Wishes(&mut self.targets);
        for place in self.probes.later(spec, now) {
            self.probes.hurry(place, &mut wishes, now);
        }
    }

    /// What the packets of a backend's flows say ejects it. That counts like an ejection by its probes,
    /// or is the same one if they have ejected it already. Tells what it comes to: by the first
    /// hold-down of its probes, or as usual if they have none.
    pub fn ejected(&mut self, key: &BackendKey, now: Duration) -> Term {
        let place = self.places.get(key);
        match place.and_then(|place| self.targets.get_mut(*place)) {
            Some(target) => {
                let mut policies = target.checks.iter().map(|check| &check.policy);
                let rule = policies.find_map(|policy| policy.hold_down);
                target.view.doubt(true, now);
                target.view.ejections.ejected(rule, now)
            }
            None => Ejections::default().ejected(None, now),
        }
    }

    /// Takes over who is out by what the packets say: only those who are not, and whose probes have
    /// nothing against them, are back.
    pub fn follow(&mut self, doubts: &BTreeMap<BackendKey, Doubt>, now: Duration) {
        for target in &mut self.targets {
            target.view.doubt(doubts.contains_key(&target.key), now);
        }
    }

    /// What is known of all backends, by key.
    pub fn view(&self) -> impl Iterator<Item = (&BackendKey, &TargetView)> {
        let targets = self.places.values().filter_map(|n| self.targets.get(*n));
        targets.map(|target| (&target.key, &target.view))
    }

    /// What is known of one backend.
    pub fn get(&self, key: &BackendKey) -> Option<&TargetView> {
        self.target(key).map(|target| &target.view)
    }

    /// How its probes have ended. Goes on while the backend is configured, whatever it is asked.
    pub fn tally(&self, key: &BackendKey) -> Tally {
        self.target(key)
            .map(|target| target.tally)
            .unwrap_or_default()
    }

    fn target(&self, key: &BackendKey) -> Option<&Target> {
        self.targets.get(*self.places.get(key)?)
    }

    /// The verdicts for the state file.
    pub fn snapshot(&self, now: Duration) -> BTreeMap<BackendKey, Restored> {
        let worth =
            |target: &&Target| !target.checks.is_empty() || target.view.ejections.count() > 0;
        let restorable = |target: &Target| {
            let view = target.view.restorable(target.address, now);
            (target.key.clone(), view)
        };
        self.targets.iter().filter(worth).map(restorable).collect()
    }
}

/// What was known of a backend before a configuration.
struct Known<'a> {
    before: Option<Target>,
    restored: Option<&'a Restored>,
    paused: bool,
}

impl Known<'_> {
    /// What is known of it by its new probes.
    fn view(mut self, service: &Service, backend: &Backend, now: Duration) -> TargetView {
        let before = self.before.as_ref().map(|target| &target.view);
        let old = before.map(|view| (view.health, view.since, view.class));
        let (ejections, doubted) = match (before, self.restored) {
            (Some(view), _) => (view.ejections, view.doubted),
            (None, Some(restored)) => {
                // Out, and not by its probes.
                let doubted = restored.past.out && restored.health == Health::Healthy;
                (Ejections::restored(restored.past, now), doubted)
            }
            (None, None) => (Ejections::default(), false),
        };
        let checks: Vec<(&HealthPolicy, &ProbeSpec)> = service.probes_of(backend).collect();
        // Before any is taken over under its name, those that ask the same are.
        let views: Vec<Option<CheckView>> =
            checks.iter().map(|(_, spec)| self.same(spec)).collect();
        let kept = views.iter().any(Option::is_some);
        let only = checks.len() == 1;
        let is_agent = |spec: &ProbeSpec| *spec.kind == ProbeKind::Agent;
        let alone = checks.iter().all(|(_, spec)| is_agent(spec));
        let views = views
            .into_iter()
            .zip(&checks)
            .map(|(view, (policy, spec))| {
                let advisory = is_agent(spec) && !alone;
                let name = &policy.name;
                let view = view
                    .or_else(|| self.named(policy, only, now))
                    .or_else(|| self.backends(policy, kept, now).filter(|_| !advisory));
                CheckView {
                    name: name.clone(),
                    advisory,
                    presumed: policy.assume == Assume::Up,
                    of_flows: spec.asks_port_of(service, backend),
                    ..view.unwrap_or_else(|| CheckView::unknown(name, now))
                }
                .held_by(policy, &ejections)
            });
        let mut view = TargetView {
            ejections,
            ..TargetView::new(views.collect(), now)
        };
        view.doubt(doubted, now);
        if let Some((health, since, class)) = old
            && health == view.health
        {
            (view.since, view.class) = (since, class);
        }
        view
    }

    /// The probe that asked the very same, as it is.
    fn same(&mut self, spec: &ProbeSpec) -> Option<CheckView> {
        let before = self.before.as_mut()?;
        let place = before
            .checks
            .iter()
            .position(|check| *check.spec == *spec)?;
        before.checks.remove(place);
        Some(before.view.checks.remove(place))
    }

    /// The one of the same name, which asked something else or belonged to an earlier agent; its
    /// verdict is an assumption. `only`: the backend has one probe now; if it had one before, that
    /// is it, since its name by default changes with what it asks.
    fn named(&mut self, policy: &HealthPolicy, only: bool, now: Duration) -> Option<CheckView> {
        let name = &policy.name;
        let Some(before) = &mut self.before else {
            let verdict = self.believed(policy)?.check(name, only)?;
            return Some(CheckView::assumed(name, verdict, now));
        };
        let only = only && before.view.checks.len() == 1;
        let mut checks = before.view.checks.iter();
        let place = checks.position(|check| only || check.name == *name)?;
        before.checks.remove(place);
        let mut view = before.view.checks.remove(place);
        view.assume();
        Some(view)
    }

    /// The backend's own verdict as an assumption, for a probe that it did not have. Not if it is
    /// unhealthy and others of its probes go on (`kept`): they know what is wrong.
    fn backends(&self, policy: &HealthPolicy, kept: bool, now: Duration) -> Option<CheckView> {
        let (verdict, since) = match (&self.before, self.believed(policy)) {
            (Some(Target { view, .. }), _) => (view.verdict_of_all(), view.since),
            (None, Some(restored)) => (restored.verdict_of_all(), now),
            (None, None) => return None,
        };
        if kept && verdict.health != Health::Healthy {
            return None;
        }
        Some(CheckView {
            since,
            ..CheckView::assumed(&policy.name, &verdict, now)
        })
    }

    /// What an earlier agent knew, where that is to be believed.
    fn believed(&self, policy: &HealthPolicy) -> Option<&Restored> {
        // A verdict that the operator keeps is to be believed.
        self.restored
            .filter(|_| policy.assume != Assume::Down || self.paused)
    }
}

fn lost_probe(after: Duration) -> Outcome {
    Outcome {
        verdict: Verdict::Internal,
        class: Class::Internal,
        detail: "the prober gave no answer".to_owned(),
        latency: after,
        steps: Vec::new(),
        agent: None,
        certificate_not_after: None,
    }
}
