//! Passive detection at work: reads the counters, and runs the probes that a suspicion provokes.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::Traffic;
use lb_common::slot::BackendIndex;
use tracing::{info, warn};

use super::core::Core;
use super::run::Agent;
use crate::api::event::{Change, Kind, Origin};
use crate::datapath::{AccessError, Signs};
use crate::health::passive::{self, Kind as SuspicionKind, Reading, Suspicion};
use crate::health::{Record, TargetView};
use crate::model::{BackendKey, Egress, Model, ProbeKind, ProbeSpec};
use crate::probe::{Outcome, Prober, Verdict};

/// Connections tried to the address of the traffic.
const CONNECTS: u32 = 2;
/// Time between them.
const BETWEEN: Duration = Duration::from_millis(50);
/// How long each may take at the least.
const LEAST: Duration = Duration::from_millis(150);
/// How long the configured probe may take at the least where it alone decides.
const LEAST_FOR_ANSWERS: Duration = Duration::from_millis(500);
/// How many times the time that its last successful probe took a backend is given to answer.
const TIMES: u32 = 3;

/// Backends that are read or left out together.
const GROUP: usize = 64;
/// A group without traffic is only read every so many times, which is often enough to see it begin.
const SELDOM: usize = 4;

/// What the backends' counters were when they were last read. By the numbers of the backends.
#[derive(Default)]
pub(super) struct Watched {
    seen: Vec<Reading>,
    /// For each [`GROUP`] the time after which it is read seldom.
    busy: Vec<Duration>,
    turn: usize,
    names: Vec<Option<BackendKey>>,
    /// The generation and the model that the names are of.
    names_of: Option<(u64, Arc<Model>)>,
}

impl Watched {
    /// The counters that have changed, of those of the backends up to `end`.
    fn news(
        &mut self,
        signs: &mut Signs,
        end: usize,
        now: Duration,
    ) -> Result<Vec<(BackendIndex, Reading)>, AccessError> {
        self.seen.resize(end, Reading::default());
        self.busy.resize(end.div_ceil(GROUP), Duration::ZERO);
        let mut news = Vec::new();
        for range in self.due(end, now) {
            signs.read(range, |index, traffic| {
                let reading = reading(&traffic);
                let place = usize::from(index);
                if self.seen[place] != reading {
                    self.seen[place] = reading;
                    self.busy[place / GROUP] = now + passive::WINDOW;
                    news.push((index, reading));
                }
            })?;
        }
        Ok(news)
    }

    /// The backends to be read now: all, if none has traffic.
    fn due(&mut self, end: usize, now: Duration) -> Vec<Range<usize>> {
        if self.are_idle(now) {
            return std::iter::once(0..end).collect();
        }
        self.turn = (self.turn + 1) % SELDOM;
        let groups = self.busy.iter().enumerate();
        let due = groups.filter(|(group, busy)| now < **busy || group % SELDOM == self.turn);
        due.map(|(group, _)| group * GROUP..end.min((group + 1) * GROUP))
            .collect()
    }

    fn are_idle(&self, now: Duration) -> bool {
        self.busy.iter().all(|busy| now >= *busy)
    }
}

/// What the probes of a suspicion have found.
pub struct Burst {
    suspicion: Suspicion,
    connects: Vec<Outcome>,
    /// Of the configured probe.
    probe: Option<Outcome>,
}

/// What a suspicion has probed.
#[derive(Clone)]
pub struct Questions {
    connect: Option<ProbeSpec>,
    probe: Option<ProbeSpec>,
}

impl Questions {
    /// Asks them; the configured probe first and the connections beside it.
    pub async fn ask(self, prober: &Prober, suspicion: Suspicion) -> Burst {
        let connects = async {
            let Some(spec) = &self.connect else {
                return Vec::new();
            };
            let tries = (0..CONNECTS).map(|n| async move {
                tokio::time::sleep(BETWEEN * n).await;
                prober.run(spec).await
            });
            futures::future::join_all(tries).await
        };
        let probe = async {
            match &self.probe {
                Some(spec) => Some(prober.run(spec).await),
                None => None,
            }
        };
        let (connects, probe) = tokio::join!(connects, probe);
        Burst {
            suspicion,
            connects,
            probe,
        }
    }
}

impl Agent {
    /// Reads the counters of all backends, and acts on what they say.
    pub fn watch_signs(&mut self, signs: &mut Signs) {
        if let Err(error) = self.core.read_signs(signs) {
            warn!("passive detection: {error}");
            return;
        }
        for suspicion in self.core.suspicions() {
            if let Some(questions) = self.core.questions(&suspicion) {
                info!(backend = %suspicion.key, "{}; probing it at once", suspicion.what);
                self.probes.start_burst(questions, suspicion);
            } else {
                self.core.cannot_ask(&suspicion);
            }
        }
    }
}

impl Core {
    /// How long until counters are to be read again: where there is no traffic at all, as long as
    /// until a group without traffic is.
    pub fn until_signs(&self) -> Duration {
        match self.watched.are_idle(self.clock.now()) {
            true => passive::PERIOD * SELDOM as u32,
            false => passive::PERIOD,
        }
    }

    /// Whether counters are to be read.
    pub fn watches_signs(&self) -> bool {
        self.passive.watches()
    }

    fn read_signs(&mut self, signs: &mut Signs) -> Result<(), AccessError> {
        let Some((last, _)) = self.builder.contents().backends.last_key_value() else {
            return Ok(());
        };
        let (end, now) = (usize::from(*last) + 1, self.clock.now());
        self.name_watched(end);
        for (index, reading) in self.watched.news(signs, end, now)? {
            let Some(Some(key)) = self.watched.names.get(usize::from(index)) else {
                continue;
            };
            let patience = 2 * last_latency(self.engine.get(key));
            self.passive.read(key, reading, patience, now);
        }
        Ok(())
    }

    /// Makes the names in [`Watched`] those of the present contents.
    fn name_watched(&mut self, end: usize) {
        let of = Some((self.generation, self.model.clone()));
        let same = |(generation, model): &(u64, Arc<Model>)| {
            *generation == self.generation && Arc::ptr_eq(model, &self.model)
        };
        if self.watched.names_of.as_ref().is_some_and(same) {
            return;
        }
        let mut names = vec![None; end];
        for service in &self.model.services {
            for backend in &service.backends {
                let index = self.builder.index(service, backend).map(usize::from);
                if let Some(name) = index.and_then(|index| names.get_mut(index)) {
                    *name = Some(service.key(backend));
                }
            }
        }
        (self.watched.names, self.watched.names_of) = (names, of);
    }

    fn suspicions(&mut self) -> Vec<Suspicion> {
        let now = self.clock.now();
        let engine = &mut self.engine;
        let judged = (self.passive).judge(&mut |key| engine.ejected(key, now), now);
        if judged.changed {
            self.doubts_changed(now);
        }
        for Suspicion { key, what, .. } in judged.refused {
            let what = format!(
                "{what}; not ejected, since as many as may be are out by their packets \
                 (passive_max_ejection_percent)"
            );
            info!(backend = %key, "{what}");
            self.count_refusal(&key, &Origin::Traffic);
            self.record(Change::backend(
                Kind::EjectionRefused,
                &key,
                Origin::Traffic,
                what,
            ));
        }
        judged.suspicions
    }

    fn cannot_ask(&mut self, suspicion: &Suspicion) {
        self.passive.cannot_ask(suspicion, self.clock.now());
    }

    /// What a suspicion has asked: connections to where the traffic goes, and the configured probe.
    fn questions(&self, suspicion: &Suspicion) -> Option<Questions> {
        let (_, backend) = self.model.backend(&suspicion.key)?;
        let probe = backend.probes.first()?;
        let is_mute = suspicion.kind == SuspicionKind::Mute;
        let least = if is_mute { LEAST_FOR_ANSWERS } else { LEAST };
        let timeout = least.max(TIMES * last_latency(self.engine.get(&suspicion.key)));
        let timeout = timeout.min(probe.timeout);
        let ip = match probe.egress.via {
            // The VIP, for probes that go the way of the traffic.
            Some(_) => probe.target.ip(),
            None => backend.address.ip(),
        };
        let connect = ProbeSpec {
            target: SocketAddr::new(ip, backend.address.port()),
            timeout,
            kind: Arc::new(ProbeKind::Tcp),
            egress: Egress {
                // Another port may speak plainly.
                proxy_protocol: probe
                    .egress
                    .proxy_protocol
                    .filter(|_| probe.target.port() == backend.address.port()),
                ..probe.egress.clone()
            },
        };
        let is_command = matches!(*probe.kind, ProbeKind::Exec(_));
        let word = self.words.get(&suspicion.key);
        let is_paused = word.is_some_and(|word| word.paused.is_some());
        Some(Questions {
            // Of several ports, none is known to be in use. Of one that is mute it is known that it
            // can be connected to.
            connect: (backend.address.port() != 0 && !is_mute).then_some(connect),
            probe: (!is_command && !is_paused).then(|| ProbeSpec {
                timeout,
                ..ProbeSpec::clone(probe)
            }),
        })
    }

    /// The probes of a suspicion have ended.
    pub fn probed(&mut self, burst: &Burst) {
        let Burst {
            suspicion,
            connects,
            probe,
        } = burst;
        if !self.passive.awaits(&suspicion.key) {
            // It was about a backend that has gone, or had another address.
            return;
        }
        let now = self.clock.now();
        let deciding = if connects.is_empty() {
            probe.as_slice()
        } else {
            connects
        };
        // What this host could not ask says nothing of the backend.
        let reached = deciding.iter().any(|o| o.verdict != Verdict::Failure) || deciding.is_empty();
        let detail = deciding.last().map_or("", |outcome| &outcome.detail);
        let of_probe = probe
            .as_ref()
            .map(|outcome| outcome.verdict == Verdict::Success);
        let key = &suspicion.key;
        let engine = &mut self.engine;
        let mut ejected = |key: &BackendKey| engine.ejected(key, now);
        let passive = &mut self.passive;
        if passive.probed(suspicion, reached, of_probe, detail, &mut ejected, now) {
            info!(backend = %key, "{}; {detail}: ejected", suspicion.what);
            self.turns.insert(key.clone(), suspicion.since);
            self.gap.turned(now);
            self.doubts_changed(now);
        } else {
            let what = format!("{}, yet its probes succeed", suspicion.what);
            info!(backend = %key, "{what}");
            self.record(Change::backend(Kind::Suspected, key, Origin::Traffic, what));
        }
    }

    /// A probe that is about to be counted has ended.
    pub(super) fn observe(&mut self, seq: u64, outcome: &Outcome) {
        let success = match outcome.verdict {
            Verdict::Success => true,
            Verdict::Failure => false,
            Verdict::Internal => return,
        };
        // Most of the time none is ejected, and nobody needs to be told.
        if self.passive.doubts().is_empty() {
            return;
        }
        let mut over = false;
        // The first of a backend's probes is the one that a suspicion asks, too.
        for (key, _) in self.engine.asked_by(seq).filter(|(_, check)| *check == 0) {
            over |= self.passive.observe(key, success);
        }
        if over {
            let now = self.clock.now();
            self.gap.turned(now);
            self.doubts_changed(now);
        }
    }

    /// Somebody is out by what the packets say, or is not any more.
    pub(super) fn doubts_changed(&mut self, now: Duration) {
        self.engine.follow(self.passive.doubts(), now);
        self.dirty = true;
        self.save_soon();
    }
}

/// How long the last successful probe took.
fn last_latency(view: Option<&TargetView>) -> Duration {
    let first = view.and_then(|view| view.checks.first());
    let history = first
        .into_iter()
        .flat_map(|check| check.history.iter().rev());
    let mut successes = history.filter(|record| record.verdict == Verdict::Success);
    successes.next().map_or(Duration::ZERO, Record::latency)
}

const fn reading(traffic: &Traffic) -> Reading {
    Reading {
        packets: traffic.packets,
        opened: traffic.flows,
        answered: traffic.answered,
        refused: traffic.refused,
        repeated: traffic.repeated,
        unreachable: traffic.unreachable,
        http_ok: traffic.http_ok,
        http_errors: traffic.http_errors,
    }
}
