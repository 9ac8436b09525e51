//! What the agent knows and decides. No sockets and no maps: what happens comes in as calls, what
//! is to be done goes out as probes to start and contents for the maps.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lb_common::abi::{BackendState, Forwarding};
use lb_common::flow::TCP_IDLE;
use lb_common::slot::BackendIndex;
use tracing::{error, info, warn};

use super::clock::Clock;
use super::events::Pending;
use super::fence::Handover;
use super::names::Discovery;
use super::passive::Watched;
use super::primaries::{SavedPrimary, known};
use super::probes::Finished;
use super::restore::restore;
use super::saved::{Saved, Word};
use super::saver::{Done, Saver};
use crate::api::event::{Change, Evidence, Kind, Origin};
use crate::api::status::Prober;
use crate::api::{Event, Journal};
use crate::datapath::{Counters, Notice, Sweep};
use crate::discovery::Names;
use crate::health::passive::Passive;
use crate::health::{self, Engine, Health, Overload, Start};
use crate::model::{BackendKey, Model, ProbeSpec, Service};
use crate::neighbor::{Paths, Problem, Ways};
use crate::plan::{Builder, Contents, Duty};
use crate::probe::{Outcome, Verdict};
use crate::routing::{self, Admin, Input, Orders, Routing, RoutingState};

/// How often the state file is written anew when nothing changes, so that its age shows when the
/// agent was last alive.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// Verdicts of an earlier agent are believed for this many of the longest interval.
const BELIEVED_INTERVALS: u32 = 10;
/// And at least this long: a restart takes its time.
const BELIEVED: Duration = Duration::from_secs(60);

/// Probes that become due within this time after others were started are started together: to wake
/// up for each would cost as much as a part of the probe.
const GATHER: Duration = Duration::from_millis(8);
/// After a decision, so many times as long as it took is left to the probes, which share the thread:
/// with thousands of backends a decision takes many milliseconds, and in their first round each has
/// a verdict that asks for one.
const DECIDE_REST: u32 = 4;
/// And no more than this, or than as long again, so that an ejection does not wait.
const DECIDE_WAIT: Duration = Duration::from_millis(200);

/// After the state was put together for the file, so many times as long as that took passes before it
/// is again: in the first round each outcome is news.
const SAVE_REST: u32 = 50;

pub struct Core {
    pub clock: Clock,
    /// With the backends that names stand for.
    pub model: Arc<Model>,
    pub(super) discovery: Discovery,
    pub(super) journal: Journal,
    pub(super) saver: Saver,
    pub(super) engine: Engine,
    pub(super) passive: Passive,
    pub(super) watched: Watched,
    pub(super) routing: RoutingState,
    pub(super) words: BTreeMap<BackendKey, Word>,
    /// The services with the operator's weights.
    pub(super) weighed: Vec<Service>,
    /// The same words with their deadlines on the agent's clock.
    pub(super) admin: BTreeMap<BackendKey, Admin>,
    /// Who was active at the start, how fences ended, and whom the operator wants.
    pub(super) orders: Orders,
    pub(super) primaries: BTreeMap<Arc<str>, SavedPrimary>,
    pub(super) handovers: BTreeMap<Arc<str>, Handover>,
    pub(super) builder: Builder,
    pub(super) ways: Ways,
    pub(super) built: Arc<Contents>,
    pub(super) generation: u64,
    /// Tables published, by service.
    pub(super) generations: BTreeMap<u16, u64>,
    /// Something has changed since the contents were built.
    pub(super) dirty: bool,
    pub(super) next_decision: Option<Duration>,
    /// No probe starts before: see [`GATHER`].
    pub(super) start_after: Duration,
    /// No decision before: see [`DECIDE_REST`].
    pub(super) decide_after: Duration,
    /// What waits for the datapath before it is told.
    pub(super) pending: Vec<Pending>,
    /// When the probes of the last change of verdict began, by backend.
    pub(super) turns: BTreeMap<BackendKey, Duration>,
    pub(super) applied: u64,
    pub(super) applied_at: Duration,
    pub(super) sweep: Sweep,
    /// For each backend its packets by previous ownership, and since when there were no more.
    pub(super) quiet: BTreeMap<BackendIndex, (u64, Duration)>,
    pub(super) prober: Prober,
    pub(super) overload: Overload,
    pub(super) reload_error: Option<String>,
    pub(super) datapath_error: Option<String>,
    pub(super) ending: bool,
    pub(super) agent_id: u64,
    /// When it began to decide.
    pub(super) started: Duration,
    pub(super) save_at: Duration,
    /// Not before, unless somebody waits for it: see [`SAVE_REST`].
    pub(super) save_after: Duration,
}

impl Core {
    /// The state of an agent that takes over what the maps hold and what an earlier one saved.
    pub fn new(
        clock: Clock,
        configured: Arc<Model>,
        journal: Journal,
        saver: Saver,
        saved: Option<Saved>,
        contents: Contents,
    ) -> Self {
        let wall = Timestamp::now();
        let agent_id = match &saved {
            Some(saved) => saved.agent_id,
            None => {
                lb_common::hash::mix(wall.as_nanosecond() as u64 ^ u64::from(std::process::id()))
            }
        };
        let names = saved.as_ref().map(|saved| Names::restore(&saved.names));
        let mut discovery = Discovery::new(configured, names.unwrap_or_default());
        let model = discovery.model();
        let words = saved.as_ref().map(Saved::words).unwrap_or_default();
        let longest = model.services.iter().flat_map(|service| &service.health);
        let longest = longest
            .map(|policy| policy.interval)
            .max()
            .unwrap_or_default();
        let age = BELIEVED.max(longest * BELIEVED_INTERVALS);
        let verdicts = saved
            .as_ref()
            .map(|saved| saved.verdicts(wall, age))
            .unwrap_or_default();
        let restored = restore(&model, &contents, verdicts);
        let primaries = saved.as_ref().map(Saved::primaries).unwrap_or_default();
        let orders = Orders {
            known: known(&model, &contents, &primaries),
            ..Orders::default()
        };
        let mut core = Self {
            clock,
            model: model.clone(),
            discovery,
            journal,
            saver,
            engine: Engine::new(agent_id),
            passive: Passive::default(),
            watched: Watched::default(),
            routing: RoutingState::default(),
            words,
            weighed: Vec::new(),
            admin: BTreeMap::new(),
            orders,
            primaries,
            handovers: BTreeMap::new(),
            built: Arc::new(contents.clone()),
            builder: Builder::new(contents),
            ways: Ways::default(),
            generation: 1,
            generations: BTreeMap::new(),
            dirty: true,
            next_decision: None,
            start_after: Duration::ZERO,
            decide_after: Duration::ZERO,
            pending: Vec::new(),
            turns: BTreeMap::new(),
            applied: 0,
            applied_at: clock.now(),
            sweep: Sweep::default(),
            quiet: BTreeMap::new(),
            prober: Prober::default(),
            overload: Overload::default(),
            reload_error: None,
            datapath_error: None,
            ending: false,
            agent_id,
            started: clock.now(),
            save_at: Duration::ZERO,
            save_after: Duration::ZERO,
        };
        core.engine
            .configure(&model.services, &restored, clock.now());
        core.passive.configure(&model.services);
        core.forget_words();
        core
    }

    /// When something is to be done though nothing happens; `room` is for how many probes there is.
    pub fn wake(&self, room: usize) -> Duration {
        let decision = [
            self.next_decision,
            self.builder.next_deadline(),
            self.dirty.then_some(Duration::ZERO),
        ];
        let decision = decision.into_iter().flatten().min();
        let save = self.save_at.max(self.save_after);
        let times = [
            // While no probe may be started, the end of one wakes the loop.
            self.engine
                .next_due()
                .filter(|_| room > 0)
                .map(|at| at.max(self.start_after)),
            decision.map(|at| at.max(self.decide_after)),
            Some(save),
        ];
        times.into_iter().flatten().min().unwrap_or(save)
    }

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
        if change.from != change.to || change.gone {
            self.turns
                .insert(key.clone(), now.saturating_sub(change.took));
        }
        self.dirty = true;
        let told = |kind| {
            let told = Change::backend(kind, key, Origin::Probe, change.reason.clone());
            told.on(Evidence::probe(outcome))
        };
        if (change.from, change.to) == (Health::Unknown, Health::Unhealthy) {
            let event = told(Kind::FirstVerdict);
            self.record(event.states(change.from.name(), change.to.name()));
        } else if (change.from, change.to) == (Health::Healthy, Health::Healthy) {
            self.record(told(Kind::Weight));
        }
        self.save_soon();
    }

    /// What a probe's outcome is to count as, and whether the prober keeps up.
    fn judge<'a>(
        &mut self,
        seq: u64,
        outcome: &'a Outcome,
        lagging: bool,
    ) -> Cow<'a, Outcome> {
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

    /// The ways to the backends have changed. `native`: some packets come in by native XDP.
    pub fn moved(&mut self, ways: &Ways, native: bool) {
        let mut ways = ways.clone();
        // A way that would lose packets unseen is none, so that they are counted.
        ways.problems.retain(|target, problem| match problem {
            Problem::Stacked { .. } if native => {
                ways.paths.remove(target);
                true
            }
            Problem::Stacked { .. } => false,
            _ => true,
        });
        for service in &self.model.services {
            for backend in &service.backends {
                let target = backend.address.ip();
                let (old, new) = (self.ways.paths.get(&target), ways.paths.get(&target));
                if old.is_some() && new.is_some() && old != new {
                    let what = "its next hop has changed";
                    let key = service.key(backend);
                    self.journal
                        .record(Change::backend(Kind::Neighbor, &key, Origin::Agent, what));
                }
            }
        }
        self.ways = ways;
        self.dirty = true;
    }

    /// The ways to the backends that the data plane uses.
    pub const fn paths(&self) -> &Paths {
        &self.ways.paths
    }

    /// The datapath reports.
    pub fn noticed(&mut self, notice: Notice) {
        match notice {
            Notice::Applied {
                generation,
                at,
                contents,
            } => {
                self.applied = generation;
                self.applied_at = self.clock.time(at);
                if self.datapath_error.take().is_some() {
                    let what = "the datapath follows the verdicts again";
                    self.record(Change::node(Kind::Datapath, Origin::Agent, what));
                }
                let services = &contents.services;
                self.generations.retain(|id, _| services.contains_key(id));
                self.tell_pending();
            }
            // Read for the status, which the agent puts together.
            Notice::Counted(_) => {}
            Notice::Failed(error) => {
                let text = error.to_string();
                error!("datapath: {text}");
                if self.datapath_error.as_ref() != Some(&text) {
                    self.record(Change::node(Kind::Datapath, Origin::Agent, text.clone()));
                }
                self.datapath_error = Some(text);
            }
            Notice::Swept { sweep, generation } => {
                let current = generation == self.generation;
                self.dirty |= self.builder.release(&sweep.gone);
                let now = self.clock.now();
                let idle = Duration::from_secs(TCP_IDLE.into());
                let quiet = &self.quiet;
                let silent = |index| {
                    quiet
                        .get(&index)
                        .is_some_and(|(_, since)| now.saturating_sub(*since) >= idle)
                };
                // What was found in other slots than the present ones proves nothing.
                if current {
                    self.dirty |= self.builder.settle(silent, &sweep.held, now);
                }
                self.sweep = sweep;
            }
        }
    }

    /// The counters were read.
    pub fn counted(&mut self, counters: &Counters) {
        let now = self.clock.now();
        self.quiet
            .retain(|index, _| counters.traffic.contains_key(index));
        for (index, traffic) in &counters.traffic {
            let quiet = self
                .quiet
                .entry(*index)
                .or_insert((traffic.by_previous, now));
            if quiet.0 != traffic.by_previous {
                *quiet = (traffic.by_previous, now);
            }
        }
    }

    /// What the maps should hold now, and a number that changes with it.
    pub fn contents(&mut self) -> (Arc<Contents>, u64) {
        let now = self.clock.now();
        let passed = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let due = self.dirty || passed(self.next_decision) || passed(self.builder.next_deadline());
        if due && now >= self.decide_after {
            self.dirty = false;
            self.decide(now);
            let end = self.clock.now();
            let took = end.saturating_sub(now);
            self.decide_after = end + (took * DECIDE_REST).min(took.max(DECIDE_WAIT));
        }
        (self.built.clone(), self.generation)
    }

    fn decide(&mut self, now: Duration) {
        let engine = &self.engine;
        let decided = routing::decide(
            &Input {
                services: &self.weighed,
                health: &|key| engine.get(key),
                passive: self.passive.doubts(),
                admin: &self.admin,
                removed: &BTreeMap::new(),
                orders: &self.orders,
            },
            &self.routing,
            now,
        );
        let before = std::mem::replace(&mut self.routing, decided.state);
        self.next_decision = decided.next_deadline;
        self.orders.promote.clear();
        let duties = self.duties();
        match self
            .builder
            .build(&self.model, &duties, &self.ways.paths, now)
        {
            Ok(contents) if *contents != *self.built => {
                for (id, service) in &contents.services {
                    let old = self.built.services.get(id);
                    if old.is_none_or(|old| !Arc::ptr_eq(&old.slots, &service.slots)) {
                        *self.generations.entry(*id).or_default() += 1;
                    }
                }
                self.built = Arc::new(contents.clone());
                self.generation += 1;
                self.note_handovers();
            }
            Ok(_) => self.note_handovers(),
            Err(error) => {
                warn!("{error}; the maps stay as they are");
                self.datapath_error = Some(error.to_string());
            }
        }
        self.note_primaries();
        for event in decided.events {
            self.pend(event, &before);
        }
        self.tell_pending();
    }

    fn duties(&self) -> BTreeMap<BackendKey, Duty> {
        let backends = self.weighed.iter().flat_map(|service| {
            let backends = service.backends.iter();
            let alone = service.mode.active_passive().is_some();
            backends.map(move |backend| (service.key(backend), backend.weight, alone))
        });
        let duty = |(key, weight, alone)| {
            let decision = self.routing.get(&key);
            let routing = decision.map_or(Routing::Out, |decision| decision.routing);
            let (state, share) = if routing.takes_new_flows() {
                (
                    BackendState::Active,
                    decision.map_or(0, |decision| decision.share),
                )
            } else if alone && routing == Routing::Standby {
                // What it has left of flows belongs to the active one now.
                (BackendState::Out, 0)
            } else if routing.serves_established() {
                (BackendState::Draining, 0)
            } else {
                (BackendState::Out, 0)
            };
            (
                key,
                Duty {
                    state,
                    weight,
                    share,
                },
            )
        };
        backends.map(duty).collect()
    }

    /// Puts an event into the journal.
    pub fn record(&mut self, change: Change) -> Arc<Event> {
        self.journal.record(change)
    }

    /// The number of the contents that the maps should hold.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// What the maps should hold, as last decided.
    pub fn built(&self) -> &Contents {
        &self.built
    }

    /// Says that the agent is about to end.
    pub const fn ending(&mut self) {
        self.ending = true;
    }

    /// Backends whose flows are to be removed.
    pub fn gone(&self) -> BTreeSet<BackendIndex> {
        self.builder.gone()
    }

    /// Takes over another model; says what is new. `why` is said of each backend that is new, and
    /// of each that is gone.
    pub(super) fn configure(
        &mut self,
        model: Arc<Model>,
        origin: Origin,
        [why_new, why_gone]: [&str; 2],
    ) -> String {
        let keys = |model: &Model| -> BTreeSet<BackendKey> {
            let services = model.services.iter();
            services
                .flat_map(|s| s.backends.iter().map(|backend| s.key(backend)))
                .collect()
        };
        let (old, new) = (keys(&self.model), keys(&model));
        let rehashed = rehashed(&self.model, &model);
        self.rename_words(&model);
        self.model = model;
        // What has another name but the same address is known by what the data plane does with it.
        let contents = self.builder.contents();
        self.orders.known = known(&self.model, contents, &self.primaries);
        let known = restore(&self.model, contents, BTreeMap::new());
        self.engine
            .configure(&self.model.services, &known, self.clock.now());
        self.passive.configure(&self.model.services);
        self.overload.forget();
        self.forget_words();
        self.dirty = true;
        let (added, removed): (Vec<_>, Vec<_>) = (
            new.difference(&old).collect(),
            old.difference(&new).collect(),
        );
        for (kind, keys, what) in [
            (Kind::Added, &added, why_new),
            (Kind::Removed, &removed, why_gone),
        ] {
            for key in keys {
                self.record(Change::backend(kind, key, origin.clone(), what));
            }
        }
        self.save_soon();
        let mut what = format!(
            "{} services, {} backends ({} added, {} removed)",
            self.model.services.len(),
            new.len(),
            added.len(),
            removed.len()
        );
        if !rehashed.is_empty() {
            what.push_str(&format!(
                "; WARNING: another affinity spreads established flows anew: {}",
                rehashed.join(", ")
            ));
        }
        what
    }

    /// A reload was done.
    pub fn reloaded(&mut self, origin: Origin, what: &str) {
        info!("configuration loaded: {what}");
        self.reload_error = None;
        self.record(Change::node(Kind::Reload, origin, what));
    }

    /// A reload was refused.
    pub fn reload_refused(&mut self, origin: Origin, why: &str) {
        self.reload_error = Some(why.to_owned());
        self.record(Change::node(Kind::ReloadRefused, origin, why));
    }

    pub(super) fn save_soon(&mut self) {
        self.save_at = Duration::ZERO;
    }

    /// Has the state file written if there is something new, or if the last one grows old.
    pub fn save_if_due(&mut self) {
        if self.clock.now() >= self.save_at.max(self.save_after) {
            self.save(None);
        }
    }

    /// Has the state file written.
    pub fn save(&mut self, done: Option<Done>) {
        let start = self.clock.now();
        self.save_at = start + SAVE_INTERVAL;
        let mut saved = Saved::new(self.agent_id, Timestamp::now());
        saved.names = self.discovery.names().save();
        let saved = saved.with(&self.words, self.engine.snapshot(self.clock.now()));
        let primaries = self.primaries.values().cloned().collect();
        self.saver.save(saved.with_primaries(primaries), done);
        let end = self.clock.now();
        let rest = end.saturating_sub(start) * SAVE_REST;
        self.save_after = end + rest.min(SAVE_INTERVAL);
    }
}

/// Services whose established flows may go to other backends, because they are found by a hash that
/// is now of something else. NAT flows have entries, which know their backends.
fn rehashed(old: &Model, new: &Model) -> Vec<String> {
    let changed = |service: &&Service| {
        service.forwarding != Forwarding::Nat
            && old.services.iter().any(|before| {
                (before.address, before.protocol) == (service.address, service.protocol)
                    && before.affinity != service.affinity
            })
    };
    let services = new.services.iter().filter(changed);
    services.map(|service| service.name.to_string()).collect()
}
