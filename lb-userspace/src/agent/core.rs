//! What the agent knows and decides. No sockets and no maps: what happens comes in as calls, what
//! is to be done goes out as probes to start and contents for the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lb_common::flow::TCP_IDLE;
use lb_common::slot::BackendIndex;
use tracing::error;

use super::announce::Announced;
use super::clock::Clock;
use super::events::Pending;
use super::failures::Bound;
use super::fence::Handover;
use super::gap::Gap;
use super::hooks::Hook;
use super::names::Discovery;
use super::passive::Watched;
use super::primaries::{SavedPrimary, known};
use super::restore::{restore, served};
use super::saved::{Saved, Word};
use super::saver::{Done, Saver};
use crate::api::event::{Change, Kind, Origin};
use crate::api::status::{EjectionsRefused, Prober};
use crate::api::{Event, Journal};
use crate::datapath::{Counters, Notice, Sweep};
use crate::discovery::Names;
use crate::health::passive::Passive;
use crate::health::{Engine, Overload};
use crate::model::{BackendKey, Model, Service};
use crate::neighbor::{Paths, Problem, Ways};
use crate::plan::{Builder, Contents};
use crate::routing::{Admin, Orders, RoutingState};

/// How often the state file is written anew when nothing changes, so that its age shows when the
/// agent was last alive.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// Verdicts of an earlier agent are believed for this many of the longest interval.
const BELIEVED_INTERVALS: u32 = 10;
/// And at least this long: a restart takes its time.
const BELIEVED: Duration = Duration::from_secs(60);
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
    /// The services with the operator's weights, if there are any.
    pub(super) weighed: Option<Vec<Service>>,
    /// The same words with their deadlines on the agent's clock.
    pub(super) admin: BTreeMap<BackendKey, Admin>,
    /// Who was active at the start, how fences ended, and whom the operator wants.
    pub(super) orders: Orders,
    pub(super) primaries: BTreeMap<Arc<str>, SavedPrimary>,
    pub(super) handovers: BTreeMap<Arc<str>, Handover>,
    pub(super) builder: Builder,
    pub(super) announced: Announced,
    /// Commands to run because of it.
    pub(super) hooks: Vec<Hook>,
    /// What is to be run when a VIP that is announced leaves the configuration.
    pub(super) withdrawals: BTreeMap<IpAddr, Vec<Hook>>,
    pub(super) ways: Ways,
    pub(super) built: Arc<Contents>,
    pub(super) generation: u64,
    /// Tables published, by service.
    pub(super) generations: BTreeMap<u16, u64>,
    /// Something has changed since the contents were built.
    pub(super) dirty: bool,
    pub(super) next_decision: Option<Duration>,
    /// No probe starts before, so that several start together.
    pub(super) start_after: Duration,
    /// No decision before, so that the probes have their share of the thread.
    pub(super) decide_after: Duration,
    /// What waits for the datapath before it is told.
    pub(super) pending: Vec<Pending>,
    /// When the probes of the last change of verdict began, by backend.
    pub(super) turns: BTreeMap<BackendKey, Duration>,
    /// How long the data plane took to follow verdicts.
    pub(super) gap: Gap,
    /// For failed probes that are told of.
    pub(super) failures: Bound,
    pub(super) applied: u64,
    pub(super) applied_at: Duration,
    pub(super) sweep: Sweep,
    /// For each backend its packets by previous ownership, and since when there were no more.
    pub(super) quiet: BTreeMap<BackendIndex, (u64, Duration)>,
    /// Ejections that would have been one too many, by service.
    pub(super) refused: BTreeMap<Arc<str>, EjectionsRefused>,
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
        contents: Arc<Contents>,
        announced: BTreeSet<IpAddr>,
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
        let doubts = saved.as_ref().map(|saved| saved.doubts(wall));
        let doubts = doubts.unwrap_or_default();
        let restored = restore(&model, &contents, verdicts);
        let primaries = saved.as_ref().map(Saved::primaries).unwrap_or_default();
        let orders = Orders {
            known: known(&model, &contents, &primaries),
            served: served(&model, &contents),
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
            weighed: None,
            admin: BTreeMap::new(),
            orders,
            primaries,
            handovers: BTreeMap::new(),
            built: contents.clone(),
            builder: Builder::new(contents),
            announced: Announced::adopt(announced.clone()),
            hooks: Vec::new(),
            withdrawals: BTreeMap::new(),
            ways: Ways::default(),
            generation: 1,
            generations: BTreeMap::new(),
            dirty: true,
            next_decision: None,
            start_after: Duration::ZERO,
            decide_after: Duration::ZERO,
            pending: Vec::new(),
            turns: BTreeMap::new(),
            gap: Gap::default(),
            failures: Bound::default(),
            applied: 0,
            applied_at: clock.now(),
            sweep: Sweep::default(),
            quiet: BTreeMap::new(),
            refused: BTreeMap::new(),
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
        core.pause_probes();
        core.engine
            .configure(&model.services, &restored, clock.now());
        core.passive.configure(&model.services);
        core.passive.restore(doubts, clock.now());
        core.doubts_changed(clock.now());
        core.forget_words();
        // An agent that was killed may have owed it.
        for vip in announced {
            core.hook(vip, true, "as an earlier agent had it");
        }
        core
    }

    /// When something is to be done though nothing happens. `ready`: when a further probe may be
    /// started; `None`: when one in flight has ended, which wakes the loop.
    pub fn wake(&self, ready: Option<Duration>) -> Duration {
        let decision = [
            self.next_decision,
            self.builder.next_deadline(),
            self.dirty.then_some(Duration::ZERO),
        ];
        let decision = decision.into_iter().flatten().min();
        let save = self.save_at.max(self.save_after);
        let times = [
            self.engine
                .next_due()
                .zip(ready)
                .map(|(at, ready)| at.max(ready).max(self.start_after)),
            decision.map(|at| at.max(self.decide_after)),
            self.announced.next_deadline(),
            Some(save),
        ];
        times.into_iter().flatten().min().unwrap_or(save)
    }

    /// The ways to the backends have changed. `native`: some packets come in by native XDP.
    pub fn moved(&mut self, ways: &Ways, native: bool) {
        let mut ways = ways.clone();
        // A way that would lose packets unseen is none, so that they are counted.
        ways.problems.retain(|target, problem| match problem {
            Problem::Stacked { .. } if native => {
                Arc::make_mut(&mut ways.paths).remove(target);
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
    pub fn paths(&self) -> Arc<Paths> {
        self.ways.paths.clone()
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
                self.announced.dirty = true;
                self.applied_at = self.clock.time(at);
                self.gap.applied(generation, self.applied_at);
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
        let now = self.clock.now();
        let (verdicts, doubts) = (self.engine.snapshot(now), self.passive.save(now));
        let saved = saved.with(&self.words, verdicts, doubts);
        let primaries = self.primaries.values().cloned().collect();
        self.saver.save(saved.with_primaries(primaries), done);
        let end = self.clock.now();
        let rest = end.saturating_sub(start) * SAVE_REST;
        self.save_after = end + rest.min(SAVE_INTERVAL);
    }
}
