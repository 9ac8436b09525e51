//! Passive detection: what the packets of the flows say of the backends.
//!
//! The agent reads the counters that the packet path keeps for each backend every
//! [`PERIOD`] and gives them to [`Passive::read`]; [`Passive::judge`] then says whom to
//! suspect. A suspicion alone takes nobody's traffic: it provokes probes at once, and
//! only if those fail too is the backend ejected ([`Passive::probed`]). HTTP errors are the
//! exception, where the operator asks for it, since a probe that lies cannot confirm them.
//!
//! # Suspicions
//!
//! - *Silent* (NAT): [`RUN`] new connections in a row were not answered.
//! - *Refused*, *unreachable* (NAT): [`FEW`] in a row were answered by a RST or an ICMP error. By a
//!   tunnel, *unreachable*: within [`WINDOW`] as many ICMP errors about its outer headers.
//! - *Silent* (the other modes): within [`WINDOW`] a third of its SYNs came again, and a tenth of the
//!   others' at the most.
//! - *Failing* (NAT): within [`WINDOW`], half of at least [`VOLUME`] new connections were not
//!   answered, while four fifths were by the others.
//! - *One-sided* (the other modes, where answers do not come by this host): SYNs without the packets
//!   that follow an answer, while others, or the same backend before, had them. Connections that were
//!   busy repeat their packets, so it is also one-sided if SYNs go on as before while all else falls
//!   to a fifth within 0.4 s, and that of the others does not.
//! - *Mute* (NAT with `passive_http`): within half a second several connections were accepted and no
//!   request was answered, while the others answered theirs. Only the configured probe can confirm
//!   that: the kernel of a process that hangs accepts connections.
//! - *HTTP errors*: [`ERRORS`] in a row, or half of the answers within [`WINDOW`], while the others
//!   give at most a fifth.
//!
//! What depresses all alike (a SYN flood, the network on this side) says nothing of any: if more
//! than half of a service's backends with traffic are suspect, none is.
//!
//! # Ejections
//!
//! They count together with those by the probes ([`Ejections`](super::Ejections)): the n-th lasts n
//! times the configured `hold_down`, or n times 30 s without one. In that case it ends early by as many
//! successes in a row of the configured probe as readmit any backend, if that probe had failed as
//! well. At most half of a service's backends (`passive_max_ejection_percent`) are ejected so, but
//! always one if there are two; of further ones it is told that they would be. Another agent takes them over ([`Passive::save`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ejections::Term;
use crate::model::{Backend, BackendKey, Forwarding, PassiveHttp, Service};
pub use target::WINDOW;
use target::{SHOWN, Target};

mod target;
#[cfg(test)]
mod tests;

/// How often the counters are read.
pub const PERIOD: Duration = Duration::from_millis(50);

/// A backend's counters since it was added; see `lb_common::abi::Traffic`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub packets: u64,
    pub opened: u64,
    pub answered: u64,
    pub refused: u64,
    pub repeated: u64,
    pub unreachable: u64,
    pub http_ok: u64,
    pub http_errors: u64,
}

impl Reading {
    /// What was added since `before`; `None` if the counters began anew meanwhile.
    fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            packets: self.packets.checked_sub(before.packets)?,
            opened: self.opened.checked_sub(before.opened)?,
            answered: self.answered.checked_sub(before.answered)?,
            refused: self.refused.checked_sub(before.refused)?,
            repeated: self.repeated.checked_sub(before.repeated)?,
            unreachable: self.unreachable.checked_sub(before.unreachable)?,
            http_ok: self.http_ok.checked_sub(before.http_ok)?,
            http_errors: self.http_errors.checked_sub(before.http_errors)?,
        })
    }

    /// Answers other than a RST.
    const fn accepted(&self) -> u64 {
        self.answered.saturating_sub(self.refused)
    }

    /// Packets that open nothing.
    const fn others(&self) -> u64 {
        self.packets.saturating_sub(self.opened)
    }
}

/// Why a backend is suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Silent,
    Refused,
    Unreachable,
    Failing,
    OneSided,
    Mute,
    HttpErrors,
}

impl Kind {
    /// Name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Failing => "failing",
            Self::OneSided => "one_sided",
            Self::Mute => "mute",
            Self::HttpErrors => "http_errors",
        }
    }
}

/// A backend to probe at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspicion {
    pub key: BackendKey,
    pub kind: Kind,
    /// For people: `4 new connections in a row without an answer`.
    pub what: String,
    /// When the first of what is suspicious was seen, if that is known.
    pub since: Duration,
}

/// A backend that is ejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    pub kind: Kind,
    pub since: Duration,
    /// It does not answer, so its flows are given up; else it is drained.
    pub gone: bool,
    /// For people.
    pub reason: String,
    /// When it ends at the latest.
    pub until: Duration,
}

/// The same for the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDoubt {
    /// Address of the backend it is about; of another address it says nothing.
    pub address: SocketAddr,
    pub kind: Kind,
    /// How long it has lasted.
    pub age_ms: u64,
    pub gone: bool,
    pub reason: String,
    /// How long it lasts at the most.
    pub left_ms: u64,
    /// Good probes end it sooner.
    pub ends_early: bool,
}

impl SavedDoubt {
    /// The same some time later.
    #[must_use]
    pub fn later(self, by: Duration) -> Self {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Self {
            age_ms: self.age_ms.saturating_add(by),
            left_ms: self.left_ms.saturating_sub(by),
            ..self
        }
    }
}

/// What has changed by a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// To be probed at once.
    pub suspicions: Vec<Suspicion>,
    /// Neither probed nor ejected, since enough of the service are out for what their packets say.
    pub refused: Vec<Suspicion>,
    /// Whether [`Passive::doubts`] has changed.
    pub changed: bool,
}

/// What is known of a service.
struct Watched {
    both_ways: bool,
    connections: bool,
    http: PassiveHttp,
    max_ejection_percent: u8,
    healthy_threshold: u32,
    /// When anything new was last read.
    last_news: Duration,
    targets: BTreeMap<BackendKey, Target>,
}

/// The passive verdicts on all backends. See the module's documentation.
#[derive(Default)]
pub struct Passive {
    services: BTreeMap<Arc<str>, Watched>,
    doubts: BTreeMap<BackendKey, Doubt>,
}

impl Passive {
    /// Takes over a configuration; what is known of backends that stay, by name and address, is kept.
    pub fn configure(&mut self, services: &[Service]) {
        let mut old = std::mem::take(&mut self.services);
        for service in services {
            let settings = service.passive;
            if !settings.connections && settings.http == PassiveHttp::Off {
                continue;
            }
            let before = old.remove(&service.name);
            let (mut known, last_news) = before
                .map(|watched| (watched.targets, watched.last_news))
                .unwrap_or_default();
            let target = |backend: &Backend| {
                let key = service.key(backend);
                let address = backend.address;
                let old = known.remove(&key).filter(|old| old.address == address);
                if old.is_none() {
                    self.doubts.remove(&key);
                }
                (key, old.unwrap_or_else(|| Target::new(address)))
            };
            let watched = Watched {
                both_ways: service.forwarding == Forwarding::Nat,
                connections: settings.connections,
                http: settings.http,
                max_ejection_percent: settings.max_ejection_percent,
                healthy_threshold: service.health.first().map_or(1, |p| p.healthy_threshold),
                last_news,
                targets: service.backends.iter().map(target).collect(),
            };
            self.services.insert(service.name.clone(), watched);
        }
        let services = &self.services;
        self.doubts.retain(|key, _| {
            let watched = services.get(&key.service);
            watched.is_some_and(|watched| watched.targets.contains_key(key))
        });
    }

    /// Whether there is anything to read.
    pub fn watches(&self) -> bool {
        !self.services.is_empty()
    }

    /// The backends whose counters are to be read.
    pub fn keys(&self) -> impl Iterator<Item = &BackendKey> {
        self.services
            .values()
            .flat_map(|watched| watched.targets.keys())
    }

    /// A backend's counters as they are now. An answer may take `patience`.
    pub fn read(&mut self, key: &BackendKey, reading: Reading, patience: Duration, now: Duration) {
        let Some(watched) = self.services.get_mut(&key.service) else {
            return;
        };
        if let Some(target) = watched.targets.get_mut(key) {
            target.read(reading, patience, now);
            watched.last_news = now;
        }
    }

    /// Whom to suspect by what was read, and which ejections are over. `ejected` counts an ejection and
    /// tells what it comes to.
    pub fn judge(&mut self, ejected: &mut dyn FnMut(&BackendKey) -> Term, now: Duration) -> Judged {
        let mut judged = self.lift(now);
        for watched in self.services.values_mut() {
            let suspects = watched.suspects(now);
            if suspects.is_empty() {
                continue;
            }
            let busy = watched.targets.values().filter(|t| t.is_busy(now)).count();
            // What depresses all alike.
            if 2 * suspects.len() > busy.max(2) {
                continue;
            }
            for suspicion in suspects {
                let keys = watched.targets.keys();
                let out = keys.filter(|key| self.doubts.contains_key(key)).count();
                let is_out = self.doubts.contains_key(&suspicion.key);
                let has_room = out < watched.places() && !is_out;
                let asked = watched.targets.values().filter(|t| t.asked).count();
                if has_room && out + asked >= watched.places() {
                    // Those that are being probed may need the places. It stays suspect meanwhile.
                    continue;
                }
                let Some(target) = watched.targets.get_mut(&suspicion.key) else {
                    continue;
                };
                let ejects =
                    suspicion.kind != Kind::HttpErrors || watched.http == PassiveHttp::Eject;
                if ejects && !has_room {
                    if !is_out {
                        // Shown, and not looked at again for a while, as if its probes were good.
                        target.clear(&suspicion.what, now);
                        judged.refused.push(suspicion);
                    }
                } else if suspicion.kind != Kind::HttpErrors {
                    target.asked = true;
                    judged.suspicions.push(suspicion);
                } else if ejects {
                    let reason = format!("passive: {}", suspicion.what);
                    let term = ejected(&suspicion.key);
                    let doubt = target.eject(suspicion.kind, reason, false, term, now);
                    self.doubts.insert(suspicion.key, doubt);
                    judged.changed = true;
                } else {
                    target.disagrees = Some((suspicion.what, now + SHOWN));
                }
            }
        }
        judged
    }

    /// Whether probes of a suspicion are under way: not any more if the backend has gone or got
    /// another address since.
    pub fn awaits(&self, key: &BackendKey) -> bool {
        let watched = self.services.get(&key.service);
        let target = watched.and_then(|watched| watched.targets.get(key));
        target.is_some_and(|target| target.asked)
    }

    /// There is nothing that could be asked of a suspect.
    pub fn cannot_ask(&mut self, suspicion: &Suspicion, now: Duration) {
        let watched = self.services.get_mut(&suspicion.key.service);
        if let Some(target) = watched.and_then(|w| w.targets.get_mut(&suspicion.key)) {
            target.asked = false;
            target.clear(&suspicion.what, now);
        }
    }

    /// What the probes that a suspicion provoked have found. `reached`: whether any connection to the
    /// address of the traffic was made; `probe`: whether the configured probe succeeded, `None` if
    /// there was none. Tells whether the backend is ejected: not if it is no longer [awaited](Self::awaits).
    pub fn probed(
        &mut self,
        suspicion: &Suspicion,
        reached: bool,
        probe: Option<bool>,
        detail: &str,
        ejected: &mut dyn FnMut(&BackendKey) -> Term,
        now: Duration,
    ) -> bool {
        let watched = self.services.get_mut(&suspicion.key.service);
        let Some(target) = watched.and_then(|watched| watched.targets.get_mut(&suspicion.key))
        else {
            return false;
        };
        if !std::mem::take(&mut target.asked) {
            return false;
        }
        if reached {
            target.clear(&suspicion.what, now);
            return false;
        }
        let reason = format!("passive: {}; probed at once: {detail}", suspicion.what);
        let term = ejected(&suspicion.key);
        let doubt = target.eject(suspicion.kind, reason, probe == Some(false), term, now);
        self.doubts.insert(suspicion.key.clone(), doubt);
        true
    }

    /// The configured probe of a backend has ended. Tells whether that ends an ejection.
    pub fn observe(&mut self, key: &BackendKey, success: bool) -> bool {
        let Some(watched) = self.services.get_mut(&key.service) else {
            return false;
        };
        let needed = watched.healthy_threshold;
        let Some(target) = watched.targets.get_mut(key) else {
            return false;
        };
        let Some(passes) = &mut target.passes else {
            return false;
        };
        *passes = if success { *passes + 1 } else { 0 };
        if *passes < needed || self.doubts.remove(key).is_none() {
            return false;
        }
        target.end();
        true
    }

    /// The ejections, for another agent.
    pub fn save(&self, now: Duration) -> BTreeMap<BackendKey, SavedDoubt> {
        let save = |(key, doubt): (&BackendKey, &Doubt)| {
            let target = self.services.get(&key.service)?.targets.get(key)?;
            let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let saved = SavedDoubt {
                address: target.address,
                kind: doubt.kind,
                age_ms: milliseconds(now.saturating_sub(doubt.since)),
                gone: doubt.gone,
                reason: doubt.reason.clone(),
                left_ms: milliseconds(doubt.until.saturating_sub(now)),
                ends_early: target.passes.is_some(),
            };
            Some((key.clone(), saved))
        };
        self.doubts.iter().filter_map(save).collect()
    }

    /// Takes over the ejections of an earlier agent, of backends that are watched and have the same
    /// address.
    pub fn restore(&mut self, saved: BTreeMap<BackendKey, SavedDoubt>, now: Duration) {
        for (key, saved) in saved {
            let watched = self.services.get_mut(&key.service);
            let target = watched.and_then(|watched| watched.targets.get_mut(&key));
            let Some(target) = target.filter(|target| target.address == saved.address) else {
                continue;
            };
            if saved.left_ms == 0 {
                continue;
            }
            target.passes = saved.ends_early.then_some(0);
            let doubt = Doubt {
                kind: saved.kind,
                since: now.saturating_sub(Duration::from_millis(saved.age_ms)),
                gone: saved.gone,
                reason: saved.reason,
                until: now + Duration::from_millis(saved.left_ms),
            };
            self.doubts.insert(key, doubt);
        }
    }

    /// The backends that are ejected.
    pub const fn doubts(&self) -> &BTreeMap<BackendKey, Doubt> {
        &self.doubts
    }

    /// What the packets say of a backend that its probes do not.
    pub fn disagreement(&self, key: &BackendKey, now: Duration) -> Option<&str> {
        let target = self.services.get(&key.service)?.targets.get(key)?;
        let (what, until) = target.disagrees.as_ref()?;
        (now < *until).then_some(what)
    }

    /// Ends the ejections whose time is over.
    fn lift(&mut self, now: Duration) -> Judged {
        let before = self.doubts.len();
        let services = &mut self.services;
        self.doubts.retain(|key, doubt| {
            if now < doubt.until {
                return true;
            }
            let watched = services.get_mut(&key.service);
            if let Some(target) = watched.and_then(|watched| watched.targets.get_mut(key)) {
                target.end();
            }
            false
        });
        Judged {
            changed: self.doubts.len() != before,
            ..Judged::default()
        }
    }
}

impl Watched {
    /// How many may be out at a time.
    fn places(&self) -> usize {
        let count = self.targets.len();
        let places = count * usize::from(self.max_ejection_percent) / 100;
        places.max(usize::from(count > 1))
    }

    fn suspects(&self, now: Duration) -> Vec<Suspicion> {
        let mut suspects = Vec::new();
        if now >= self.last_news + WINDOW {
            return suspects;
        }
        for (key, target) in &self.targets {
            let others = || {
                let others = self.targets.iter().filter(|(other, _)| *other != key);
                others.map(|(_, target)| target)
            };
            let idle = target
                .recent
                .front()
                .is_none_or(|(at, _)| now >= *at + WINDOW);
            if idle || target.asked || now < target.not_before {
                continue;
            }
            let connections = self.connections.then(|| {
                if self.both_ways {
                    target
                        .unanswered(now)
                        .or_else(|| target.failing(others(), now))
                } else {
                    target
                        .refused_on_the_way(now)
                        .or_else(|| target.one_sided(others(), now))
                        .or_else(|| target.repeating(others(), now))
                        .or_else(|| target.collapsed(others(), now))
                }
            });
            let mute = || {
                self.connections
                    .then(|| target.mute(others(), now))
                    .flatten()
            };
            let http = || {
                (self.http != PassiveHttp::Off)
                    .then(|| mute().or_else(|| target.http(others(), now)))
            };
            let found = connections.flatten().or_else(|| http().flatten());
            if let Some((kind, what)) = found {
                let since = match kind {
                    Kind::Silent | Kind::Refused | Kind::Unreachable if self.both_ways => {
                        target.since
                    }
                    Kind::Silent
                    | Kind::Refused
                    | Kind::Unreachable
                    | Kind::Failing
                    | Kind::OneSided
                    | Kind::Mute
                    | Kind::HttpErrors => now,
                };
                suspects.push(Suspicion {
                    key: key.clone(),
                    kind,
                    what,
                    since,
                });
            }
        }
        suspects
    }
}
