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
//! - *Refused*, *unreachable* (NAT): [`FEW`] in a row were answered by a RST or an ICMP error.
//! - *Failing* (NAT): within [`WINDOW`], half of at least [`VOLUME`] new connections were not
//!   answered, while four fifths were by the others.
//! - *One-sided* (the other modes, where answers do not come by this host): SYNs without the packets
//!   that follow an answer, while others, or the same backend before, had them.
//! - *HTTP errors*: [`ERRORS`] in a row, or half of the answers within [`WINDOW`], while the others
//!   give at most a fifth.
//!
//! What depresses all alike (a SYN flood, the network on this side) says nothing of any: if more
//! than half of a service's backends with traffic are suspect, none is.
//!
//! # Ejections
//!
//! The n-th lasts n times [`EJECTION`], [`LONGEST`] at the most; each [`FORGIVEN`] without one takes
//! one off n. It ends early by as many successes in a row of the configured probe as readmit any
//! backend, if that probe had failed as well. At most half of a service's backends are ejected so, but
//! always one if there are two.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{BackendKey, Forwarding, PassiveHttp, Service};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Silent,
    Refused,
    Unreachable,
    Failing,
    OneSided,
    HttpErrors,
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
    /// It does not answer, so its flows are given up; else it is drained.
    pub gone: bool,
    /// For people.
    pub reason: String,
    /// When it ends at the latest.
    pub until: Duration,
}

/// What has changed by a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// To be probed at once.
    pub suspicions: Vec<Suspicion>,
    /// Whether [`Passive::doubts`] has changed.
    pub changed: bool,
}

/// What is known of a service.
struct Watched {
    both_ways: bool,
    connections: bool,
    http: PassiveHttp,
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
    /// Takes over a configuration; what is known of backends that stay is kept.
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
            let target = |backend| {
                let key = service.key(backend);
                let target = known.remove(&key).unwrap_or_else(Target::new);
                (key, target)
            };
            let watched = Watched {
                both_ways: service.forwarding == Forwarding::Nat,
                connections: settings.connections,
                http: settings.http,
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

    /// Whom to suspect by what was read, and which ejections are over.
    pub fn judge(&mut self, now: Duration) -> Judged {
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
                let ejected = watched
                    .targets
                    .keys()
                    .filter(|key| self.doubts.contains_key(key))
                    .count();
                let most = (watched.targets.len() / 2).max(usize::from(watched.targets.len() > 1));
                let has_room = ejected < most && !self.doubts.contains_key(&suspicion.key);
                let Some(target) = watched.targets.get_mut(&suspicion.key) else {
                    continue;
                };
                if suspicion.kind != Kind::HttpErrors {
                    if has_room {
                        target.asked = true;
                        judged.suspicions.push(suspicion);
                    }
                } else if watched.http == PassiveHttp::Eject && has_room {
                    let reason = format!("passive: {}", suspicion.what);
                    let doubt = target.eject(false, reason, false, now);
                    self.doubts.insert(suspicion.key, doubt);
                    judged.changed = true;
                } else {
                    target.disagrees = Some((suspicion.what, now + SHOWN));
                }
            }
        }
        judged
    }

    /// What the probes that a suspicion provoked have found. `reached`: whether any connection to the
    /// address of the traffic was made; `probe`: whether the configured probe succeeded, `None` if
    /// there was none. Tells whether the backend is ejected.
    pub fn probed(
        &mut self,
        suspicion: &Suspicion,
        reached: bool,
        probe: Option<bool>,
        detail: &str,
        now: Duration,
    ) -> bool {
        let watched = self.services.get_mut(&suspicion.key.service);
        let Some(target) = watched.and_then(|watched| watched.targets.get_mut(&suspicion.key))
        else {
            return false;
        };
        target.asked = false;
        if reached {
            target.clear(&suspicion.what, now);
            return false;
        }
        let reason = format!("passive: {}; probed at once: {detail}", suspicion.what);
        let doubt = target.eject(true, reason, probe == Some(false), now);
        self.doubts.insert(suspicion.key.clone(), doubt);
        true
    }

    /// The configured probe of a backend has ended. Tells whether that ends an ejection.
    pub fn observe(&mut self, key: &BackendKey, success: bool, now: Duration) -> bool {
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
        target.end(now);
        true
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
                target.end(now);
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
                    target.one_sided(others(), now)
                }
            });
            let http = || (self.http != PassiveHttp::Off).then(|| target.http(others(), now));
            let found = connections.flatten().or_else(|| http().flatten());
            if let Some((kind, what)) = found {
                let since = match kind {
                    Kind::Silent | Kind::Refused | Kind::Unreachable => target.since,
                    Kind::Failing | Kind::OneSided | Kind::HttpErrors => now,
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
