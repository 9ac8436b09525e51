//! The probes of all backends: when each is due, and who waits for it.
//!
//! Backends that ask the same of the same address, in the same rhythm, share a probe, however many
//! services they belong to: it starts once, and its outcome counts for each of them, by each one's
//! own thresholds. It is asked as often as the one who wants it most often.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::schedule::{Grid, Rhythm, whole_intervals_late};
use crate::model::{BackendKey, HealthPolicy, ProbeSpec};

/// How long after its timeout a probe may still answer at the least before it is taken for lost.
const LOST_GRACE: Duration = Duration::from_secs(1);

/// A probe to start now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first of the backends that wait for it.
    pub key: BackendKey,
    pub spec: Arc<ProbeSpec>,
    /// To be given back to [`super::Engine::finish`].
    pub seq: u64,
    /// When it was due: what it is late by is the agent's own lateness.
    pub due: Duration,
}

/// Who waits for a probe: a backend, by its place, and which of its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub target: usize,
    pub check: usize,
}

/// A [`Start`] whose backend is not named yet.
pub(super) struct Due {
    pub asker: Asker,
    spec: Arc<ProbeSpec>,
    seq: u64,
    due: Duration,
}

impl Due {
    /// `key`: the name of [`Due::asker`].
    pub fn start(self, key: BackendKey) -> Start {
        Start {
            key,
            spec: self.spec,
            seq: self.seq,
            due: self.due,
        }
    }
}

/// The askers' side.
pub(super) trait Rhythms {
    /// How often the asker wants to know; `None`: not at all, for now.
    fn rhythm(&self, asker: &Asker) -> Option<Rhythm>;
    /// Tells it when its next probe is due, if none is in flight, and how many were left out.
    fn planned(&mut self, asker: &Asker, next: Option<Duration>, skipped: u64);
}

/// The times of a policy; thresholds may differ among those who share a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Times {
    interval: Duration,
    fast_interval: Duration,
    down_interval: Duration,
    jitter: u8,
}

impl Times {
    const fn of(policy: &HealthPolicy) -> Self {
        Self {
            interval: policy.interval,
            fast_interval: policy.fast_interval,
            down_interval: policy.down_interval,
            jitter: policy.jitter,
        }
    }
}

struct Probe {
    spec: Arc<ProbeSpec>,
    times: Times,
    grid: Grid,
    state: State,
    /// Never empty.
    askers: Vec<Asker>,
}

const _: () = assert!(size_of::<Probe>() <= 160);

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
    /// Where the probe stands in the queue.
    const fn wakes(self) -> Duration {
        match self {
            Self::Waiting { due, .. } => due,
            Self::InFlight { lost, .. } => lost,
        }
    }
}

impl Probe {
    /// Whether anybody wants to know.
    fn is_wanted(&self, askers: &impl Rhythms) -> bool {
        let mut rhythms = self.askers.iter().map(|asker| askers.rhythm(asker));
        rhythms.any(|rhythm| rhythm.is_some())
    }

    /// The shortest of its askers' rhythms.
    fn rhythm(&self, askers: &impl Rhythms) -> Rhythm {
        let rhythms = self.askers.iter().filter_map(|asker| askers.rhythm(asker));
        rhythms
            .min_by_key(|rhythm| rhythm.interval())
            .unwrap_or(Rhythm::Steady(self.times.interval))
    }

    fn tell(&self, askers: &mut impl Rhythms, skipped: u64) {
        let next = match self.state {
            State::Waiting { due, .. } => Some(due),
            State::InFlight { .. } => None,
        };
        for asker in &self.askers {
            askers.planned(asker, next, skipped);
        }
    }
}

/// See the module's documentation.
pub(super) struct Probes {
    agent: u64,
    probes: Vec<Probe>,
    /// Every probe, by its place, by the time something is to be done for it.
    queue: BTreeSet<(Duration, usize)>,
    /// Places of those in flight.
    flying: BTreeMap<u64, usize>,
    seq: u64,
}

/// The probes of a new configuration while it is read.
pub(super) struct Plan {
    agent: u64,
    wanted: Vec<Wanted>,
    /// Places in `wanted`.
    known: HashMap<(Arc<ProbeSpec>, Times), usize>,
}

struct Wanted {
    spec: Arc<ProbeSpec>,
    times: Times,
    grid: Grid,
    askers: Vec<Asker>,
}

impl Plan {
    /// Adds one who asks this, of the backend `key`; gives the place of the probe.
    pub fn ask(
        &mut self,
        spec: &Arc<ProbeSpec>,
        policy: &HealthPolicy,
        key: &BackendKey,
        asker: Asker,
    ) -> usize {
        let times = Times::of(policy);
        let next = self.wanted.len();
        let place = *self.known.entry((spec.clone(), times)).or_insert(next);
        if place == next {
            // The phase of a backend's only probe does not depend on how it is named.
            let identity = match asker.check {
                0 => format!("{key} {}", spec.target),
                n => format!("{key} {} {n}", spec.target),
            };
            self.wanted.push(Wanted {
                spec: spec.clone(),
                times,
                grid: Grid::new(&identity, self.agent, times.jitter),
                askers: Vec::new(),
            });
        }
        self.wanted[place].askers.push(asker);
        place
    }
}

impl Probes {
    pub const fn new(agent: u64) -> Self {
        Self {
            agent,
            probes: Vec::new(),
            queue: BTreeSet::new(),
            flying: BTreeMap::new(),
            seq: 0,
        }
    }

    /// For a new configuration, to be given to [`Probes::follow`].
    pub fn replan(&self) -> Plan {
        Plan {
            agent: self.agent,
            wanted: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// Takes over a plan. What asks the same in the same rhythm goes on as it was; an answer to the
    /// same question that is on its way is waited for.
    pub fn follow(&mut self, plan: Plan, askers: &mut impl Rhythms, now: Duration) {
        self.queue.clear();
        self.flying.clear();
        let mut old = Old::new(std::mem::take(&mut self.probes));
        self.probes.reserve_exact(plan.wanted.len());
        for wanted in plan.wanted {
            let same = old.take(&wanted.spec, wanted.times);
            let (grid, state) = match same {
                Some(probe) => (probe.grid, Some(probe.state)),
                None => (wanted.grid, old.take_in_flight(&wanted.spec)),
            };
            let mut probe = Probe {
                grid,
                state: State::Waiting {
                    nominal: now,
                    due: now,
                },
                spec: wanted.spec,
                times: wanted.times,
                askers: wanted.askers,
            };
            let first = grid.first(probe.rhythm(askers), now);
            let sooner = State::Waiting {
                nominal: first.nominal,
                due: first.due,
            };
            probe.state = match state {
                Some(state @ State::InFlight { .. }) => state,
                // One who joined may want to know sooner than the others.
                Some(state @ State::Waiting { due, .. }) if due <= first.due => state,
                Some(State::Waiting { .. }) | None => sooner,
            };
            probe.tell(askers, 0);
            let place = self.probes.len();
            self.queue.insert((probe.state.wakes(), place));
            if let State::InFlight { seq, .. } = probe.state {
                self.flying.insert(seq, place);
            }
            self.probes.push(probe);
        }
    }

    /// How many are started in a second while all is well.
    pub fn per_second(&self) -> f64 {
        let intervals = self.probes.iter().map(|probe| probe.times.interval);
        intervals.map(|interval| 1.0 / interval.as_secs_f64()).sum()
    }

    /// When something is to be done next.
    pub fn next_due(&self) -> Option<Duration> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// The probes to start now, at most `limit`; and those that are lost, with their starts, which
    /// wait for [`Probes::wait`].
    pub fn start_due(
        &mut self,
        askers: &mut impl Rhythms,
        now: Duration,
        limit: usize,
    ) -> (Vec<Due>, Vec<(usize, Duration)>) {
        let (mut starts, mut lost) = (Vec::new(), Vec::new());
        while starts.len() < limit
            && self.queue.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, place)) = self.queue.pop_first()
        {
            let probe = &mut self.probes[place];
            let (nominal, due) = match probe.state {
                State::Waiting { nominal, due } => (nominal, due),
                State::InFlight { started, .. } => {
                    lost.push((place, started));
                    continue;
                }
            };
            if !probe.is_wanted(askers) {
                let planned = probe.grid.next(probe.rhythm(askers), nominal, now);
                probe.state = State::Waiting {
                    nominal: planned.nominal,
                    due: planned.due,
                };
                self.queue.insert((planned.due, place));
                continue;
            }
            let rhythm = probe.rhythm(askers);
            let missed = whole_intervals_late(nominal, rhythm.interval(), now);
            self.seq += 1;
            let patience = probe.times.interval.max(LOST_GRACE);
            probe.state = State::InFlight {
                seq: self.seq,
                nominal: nominal + rhythm.interval() * missed,
                started: now,
                lost: now + probe.spec.timeout + patience,
            };
            probe.tell(askers, missed.into());
            self.queue.insert((probe.state.wakes(), place));
            self.flying.insert(self.seq, place);
            starts.extend(probe.askers.first().map(|asker| Due {
                asker: *asker,
                spec: probe.spec.clone(),
                seq: self.seq,
                due,
            }));
        }
        (starts, lost)
    }

    /// The place of a probe in flight, and when it started.
    pub fn in_flight(&self, seq: u64) -> Option<(usize, Duration)> {
        let place = *self.flying.get(&seq)?;
        match self.probes.get(place)?.state {
            State::InFlight { started, .. } => Some((place, started)),
            State::Waiting { .. } => None,
        }
    }

    /// Who waits for a probe.
    pub fn askers(&self, place: usize) -> &[Asker] {
        self.probes.get(place).map_or(&[], |probe| &probe.askers)
    }

    /// A probe in flight has ended, or is taken for lost: plans the next one.
    pub fn wait(&mut self, place: usize, askers: &mut impl Rhythms, now: Duration) {
        let Some(probe) = self.probes.get_mut(place) else {
            return;
        };
        let State::InFlight {
            seq, nominal, lost, ..
        } = probe.state
        else {
            return;
        };
        let planned = probe.grid.next(probe.rhythm(askers), nominal, now);
        probe.state = State::Waiting {
            nominal: planned.nominal,
            due: planned.due,
        };
        probe.tell(askers, planned.skipped);
        self.flying.remove(&seq);
        self.queue.remove(&(lost, place));
        self.queue.insert((planned.due, place));
    }

    /// The probes that ask what `spec` does, whatever their deadline, and that would not start by `now`.
    pub fn later(&self, spec: &ProbeSpec, now: Duration) -> Vec<usize> {
        let waits = |probe: &Probe| matches!(probe.state, State::Waiting { due, .. } if due > now);
        let asks = |own: &ProbeSpec| {
            (own.target, &own.kind, &own.egress) == (spec.target, &spec.kind, &spec.egress)
        };
        let probes = self.probes.iter().enumerate();
        probes
            .filter(|(_, probe)| waits(probe) && asks(&probe.spec))
            .map(|(place, _)| place)
            .collect()
    }

    /// Makes a probe due now; false if it is in flight.
    pub fn hurry(&mut self, place: usize, askers: &mut impl Rhythms, now: Duration) -> bool {
        let Some(probe) = self.probes.get_mut(place) else {
            return false;
        };
        let State::Waiting { due, .. } = probe.state else {
            return false;
        };
        probe.state = State::Waiting {
            nominal: now,
            due: now,
        };
        probe.tell(askers, 0);
        self.queue.remove(&(due, place));
        self.queue.insert((now, place));
        true
    }
}

/// The probes of the configuration before, to be taken over one by one.
struct Old {
    probes: Vec<Option<Probe>>,
    same: HashMap<(Arc<ProbeSpec>, Times), usize>,
    /// By question alone.
    alike: HashMap<Arc<ProbeSpec>, Vec<usize>>,
}

impl Old {
    fn new(probes: Vec<Probe>) -> Self {
        let (mut same, mut alike) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        for (place, probe) in probes.iter().enumerate() {
            same.insert((probe.spec.clone(), probe.times), place);
            alike.entry(probe.spec.clone()).or_default().push(place);
        }
        Self {
            probes: probes.into_iter().map(Some).collect(),
            same,
            alike,
        }
    }

    /// The probe that asks the same in the same rhythm.
    fn take(&mut self, spec: &Arc<ProbeSpec>, times: Times) -> Option<Probe> {
        let place = *self.same.get(&(spec.clone(), times))?;
        self.probes[place].take()
    }

    /// The state of one that asks the same, if it is in flight.
    fn take_in_flight(&mut self, spec: &ProbeSpec) -> Option<State> {
        let places = self.alike.get(spec)?;
        let place = places.iter().find(|place| {
            let probe = self.probes[**place].as_ref();
            probe.is_some_and(|probe| matches!(probe.state, State::InFlight { .. }))
        })?;
        self.probes[*place].take().map(|probe| probe.state)
    }
}
