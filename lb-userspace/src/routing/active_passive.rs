//! One backend at a time.
//!
//! A service in this mode has one *active* backend, which has all of its traffic; the others stand
//! by and get no packet, whatever flows they once had. Who is active is remembered, over restarts
//! too, and changes by a *handover* only:
//!
//! 1. A reason: the active backend has been unhealthy for `promote_after`; or the operator disabled
//!    it, drained it to its end, took it out of the configuration or asked for another one; or, with
//!    `failback`, one that comes earlier in the order has been healthy for `promote_after`. There is
//!    no handover while nobody could take over, and no verdict that is merely remembered leads to
//!    one: an agent that starts promotes nobody for what its predecessor saw.
//! 2. The active backend is *cut off*: from now on it gets nothing, and nor does any other.
//! 3. When the data plane has confirmed that, and the fence command, if there is one, has succeeded
//!    ([`Orders::fenced`]), the first healthy backend of the order is active: by tier, then as they
//!    stand in the file.
//!
//! If the fence fails nobody is promoted. It is tried again until it succeeds, after 1 s and then
//! ever longer up to 30 s, or until the backend that was cut off can serve again: then it goes on as
//! the active one. Once a fence has succeeded it is not believed any more that it can, unless it is
//! the only one left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::decide::Earliest;
use super::{Admin, Cause, EventKind, Routing};
use crate::health::Health;
use crate::model::{ActivePassive, Backend, BackendKey};

/// Pause after the first failure of a fence; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the agent knows beside the verdicts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Who was active when this agent began, or when the service came to be in this mode. Counts
    /// only where nothing was decided before.
    pub known: BTreeMap<Arc<str>, Known>,
    /// How the fence of a handover has ended. Without a command it succeeds when the data plane
    /// has confirmed the cut.
    pub fenced: BTreeMap<Arc<str>, Fenced>,
    /// Who the operator wants to be active now.
    pub promote: BTreeMap<Arc<str>, Arc<str>>,
    /// The backends that got new flows when this agent began, or under another name. Counts only
    /// where nothing was decided before.
    pub served: BTreeSet<BackendKey>,
}

/// The active backend as an earlier agent left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub backend: Arc<str>,
    pub address: SocketAddr,
    /// Why it is the active one.
    pub reason: String,
}

/// The end of a fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// The [`Phase::Fencing`] that it answers.
    pub turn: u32,
    /// Why it failed, if it did.
    pub result: Result<(), String>,
}

/// The active backend, and what is about to become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Primary {
    pub backend: Arc<str>,
    pub address: SocketAddr,
    /// Why it is the active one.
    pub reason: String,
    pub phase: Phase,
    /// Handovers and attempts so far, so that each has a number of its own.
    turns: u32,
    /// One earlier in the order that can serve, and since when.
    better: Option<(Arc<str>, Duration)>,
}

/// Where a service stands on the way to another active backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nowhere.
    Serving,
    /// The active one cannot serve. Another is promoted at `until`, or as soon as one can be.
    Failing { until: Duration, reason: String },
    /// It is cut off and being fenced.
    Fencing {
        turn: u32,
        attempt: u32,
        handover: Handover,
    },
    /// It is cut off, and the fence has failed.
    FenceFailed {
        attempt: u32,
        again: Duration,
        error: String,
        handover: Handover,
    },
    /// It is fenced, and nobody can take over.
    Fenced { handover: Handover },
}

impl Phase {
    /// Name in JSON and on the terminal.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Failing { .. } => "failing",
            Self::Fencing { .. } => "fencing",
            Self::FenceFailed { .. } => "fence_failed",
            Self::Fenced { .. } => "fenced",
        }
    }

    /// The handover under way, in which the active backend is cut off.
    pub const fn handover(&self) -> Option<&Handover> {
        match self {
            Self::Serving | Self::Failing { .. } => None,
            Self::Fencing { handover, .. }
            | Self::FenceFailed { handover, .. }
            | Self::Fenced { handover } => Some(handover),
        }
    }
}

/// Why another backend is to be active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    pub why: Why,
    /// For people: `db-1 is unhealthy: 3 consecutive failures`.
    pub reason: String,
    /// Who is to take over, if it can; else the first who can.
    to: Option<Arc<str>>,
}

/// Kinds of [`Handover`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The active one is unhealthy.
    Failed,
    /// The operator's word.
    Operator,
    /// A better one is back.
    Failback,
}

impl Why {
    /// Name for the fence command (`LB_REASON`).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Operator => "operator",
            Self::Failback => "failback",
        }
    }
}

/// A configured backend.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub backend: &'a Backend,
    pub admin: Admin,
    pub health: Health,
    /// Unhealthy and silent.
    pub gone: bool,
    /// The verdict is that of an earlier agent and not confirmed yet.
    pub remembered: bool,
    /// Why it is healthy or not.
    pub said: &'a str,
}

/// Why the active backend is to be so no longer.
struct Trouble {
    why: Why,
    reason: String,
    at_once: bool,
}

impl Candidate<'_> {
    /// Whether it could be the active one.
    pub(super) fn can_serve(&self) -> bool {
        self.admin == Admin::Enabled && self.health == Health::Healthy && self.backend.weight > 0
    }

    fn trouble(&self, now: Duration) -> Option<Trouble> {
        let name = &self.backend.name;
        let is_unhealthy = self.health == Health::Unhealthy && !self.remembered;
        let operator = |what: &str| Trouble {
            why: Why::Operator,
            reason: format!("{name} was {what} by the operator"),
            at_once: true,
        };
        match self.admin {
            Admin::Disabled => Some(operator("disabled")),
            Admin::Drain { until } if now >= until || (is_unhealthy && self.gone) => {
                Some(operator("drained"))
            }
            Admin::Drain { .. } => None,
            Admin::Enabled => is_unhealthy.then(|| Trouble {
                why: Why::Failed,
                reason: format!("{name} is unhealthy: {}", self.said),
                at_once: false,
            }),
        }
    }
}

/// What a step of a service rests on.
pub(super) struct Situation<'a> {
    pub rules: &'a ActivePassive,
    pub service: &'a Arc<str>,
    /// Of all backends, in the order in which they are preferred.
    pub order: &'a [Candidate<'a>],
    pub orders: &'a Orders,
    pub now: Duration,
}

/// What happened in a step.
pub(super) struct Told {
    pub kind: EventKind,
    /// The backend that it is about.
    pub backend: Option<Arc<str>>,
    pub reason: String,
}

/// The order in which backends become active.
pub(super) fn in_order<'a>(candidates: impl Iterator<Item = Candidate<'a>>) -> Vec<Candidate<'a>> {
    let mut order: Vec<_> = candidates.collect();
    order.sort_by_key(|candidate| candidate.backend.tier);
    order
}

/// Who is active now; `None` for a service without backends.
pub(super) fn step(
    situation: &Situation<'_>,
    before: Option<&Primary>,
    next: &mut Earliest,
    told: &mut Vec<Told>,
) -> Option<Primary> {
    let mut primary = before.cloned().or_else(|| situation.begin())?;
    situation.follow_name(&mut primary);
    let mut turn = Turn {
        situation,
        primary,
        told,
    };
    turn.go();
    let Turn { primary, .. } = turn;
    if let Some(Admin::Drain { until }) = situation
        .candidate(&primary.backend)
        .map(|active| active.admin)
        && until > situation.now
    {
        next.consider(until);
    }
    match &primary.phase {
        Phase::Failing { until: at, .. } | Phase::FenceFailed { again: at, .. }
            if *at > situation.now =>
        {
            next.consider(*at);
        }
        Phase::Serving => {
            if let Some((_, since)) = &primary.better {
                next.consider(*since + situation.rules.promote_after);
            }
        }
        Phase::Failing { .. }
        | Phase::FenceFailed { .. }
        | Phase::Fencing { .. }
        | Phase::Fenced { .. } => {}
    }
    Some(primary)
}

impl Situation<'_> {
    /// Where nothing was decided before: as it was, else the first of the order.
    fn begin(&self) -> Option<Primary> {
        let (backend, address, reason) = match self.orders.known.get(self.service) {
            Some(known) => (known.backend.clone(), known.address, known.reason.clone()),
            None => {
                let first = self.order.first()?.backend;
                let reason = "the first in the configuration".to_owned();
                (first.name.clone(), first.address, reason)
            }
        };
        Some(Primary {
            backend,
            address,
            reason,
            phase: Phase::Serving,
            turns: 0,
            better: None,
        })
    }

    /// The active backend may have got another name, or another address.
    fn follow_name(&self, primary: &mut Primary) {
        let named = self
            .order
            .iter()
            .find(|candidate| candidate.backend.name == primary.backend);
        let same = || {
            let at = |candidate: &&Candidate<'_>| candidate.backend.address == primary.address;
            self.order.iter().find(at)
        };
        if let Some(found) = named.or_else(same) {
            primary.backend = found.backend.name.clone();
            primary.address = found.backend.address;
        }
    }

    fn candidate(&self, name: &str) -> Option<&Candidate<'_>> {
        self.order
            .iter()
            .find(|candidate| &*candidate.backend.name == name)
    }
}

/// A step of one service.
struct Turn<'a> {
    situation: &'a Situation<'a>,
    primary: Primary,
    told: &'a mut Vec<Told>,
}

impl Turn<'_> {
    fn go(&mut self) {
        if let Some(to) = self.wish() {
            let reason = format!("{to} was promoted by the operator");
            return self.hand_over(Why::Operator, reason, Some(to));
        }
        match self.primary.phase.clone() {
            Phase::Serving | Phase::Failing { .. } => self.watch(),
            Phase::Fencing {
                turn,
                attempt,
                handover,
            } => {
                let ended = self.situation.orders.fenced.get(self.situation.service);
                match ended.filter(|ended| ended.turn == turn) {
                    None => {}
                    Some(Fenced { result: Ok(()), .. }) => self.succeed(handover),
                    Some(Fenced {
                        result: Err(error), ..
                    }) => self.fail(attempt, error, handover),
                }
            }
            Phase::FenceFailed {
                attempt,
                again,
                handover,
                ..
            } => {
                if self.active_can_serve() {
                    self.serve();
                } else if self.situation.now >= again {
                    self.fence(attempt + 1, handover);
                }
            }
            Phase::Fenced { handover } => self.succeed(handover),
        }
    }

    /// Whom the operator wants, if it can be had and is not being fenced for already.
    fn wish(&self) -> Option<Arc<str>> {
        let wish = self.situation.orders.promote.get(self.situation.service)?;
        let under_way = match &self.primary.phase {
            Phase::Fencing { .. } => true,
            Phase::Serving
            | Phase::Failing { .. }
            | Phase::FenceFailed { .. }
            | Phase::Fenced { .. } => false,
        };
        let can = self.situation.candidate(wish)?.can_serve();
        (can && !under_way && *wish != self.primary.backend).then(|| wish.clone())
    }

    fn active_can_serve(&self) -> bool {
        let active = self.situation.candidate(&self.primary.backend);
        active.is_some_and(Candidate::can_serve)
    }

    /// The first other one that could be active.
    fn standby(&self) -> Option<&Candidate<'_>> {
        self.situation.order.iter().find(|candidate| {
            candidate.can_serve() && candidate.backend.name != self.primary.backend
        })
    }

    fn watch(&mut self) {
        let now = self.situation.now;
        let trouble = match self.situation.candidate(&self.primary.backend) {
            Some(active) => active.trouble(now),
            None => Some(Trouble {
                why: Why::Operator,
                reason: format!("{} left the configuration", self.primary.backend),
                at_once: true,
            }),
        };
        let Some(trouble) = trouble else {
            return self.serve();
        };
        self.primary.better = None;
        let until = match &self.primary.phase {
            Phase::Failing { until, .. } if trouble.at_once => now.min(*until),
            Phase::Failing { until, .. } => *until,
            _ if trouble.at_once => now,
            _ => now + self.situation.rules.promote_after,
        };
        if now >= until && self.standby().is_some() {
            return self.hand_over(trouble.why, trouble.reason, None);
        }
        self.primary.phase = Phase::Failing {
            until,
            reason: trouble.reason,
        };
    }

    /// Nothing is wrong with the active one; there may be a better one.
    fn serve(&mut self) {
        self.primary.phase = Phase::Serving;
        let (rules, now) = (self.situation.rules, self.situation.now);
        let best = self.situation.order.iter().find(|candidate| {
            candidate.can_serve() || candidate.backend.name == self.primary.backend
        });
        let better = best
            .map(|best| best.backend.name.clone())
            .filter(|best| rules.failback && *best != self.primary.backend);
        self.primary.better = better.map(|better| match self.primary.better.take() {
            Some((same, since)) if same == better => (same, since),
            _ => (better, now),
        });
        if let Some((better, since)) = self.primary.better.clone()
            && now >= since + rules.promote_after
        {
            let reason = format!("{better} comes first and is back");
            self.hand_over(Why::Failback, reason, Some(better));
        }
    }

    fn hand_over(&mut self, why: Why, reason: String, to: Option<Arc<str>>) {
        self.primary.better = None;
        if self.situation.rules.fence.is_some() {
            self.told.push(Told {
                kind: EventKind::Fencing,
                backend: Some(self.primary.backend.clone()),
                reason: reason.clone(),
            });
        }
        self.fence(1, Handover { why, reason, to });
    }

    fn fence(&mut self, attempt: u32, handover: Handover) {
        self.primary.turns += 1;
        self.primary.phase = Phase::Fencing {
            turn: self.primary.turns,
            attempt,
            handover,
        };
    }

    fn fail(&mut self, attempt: u32, error: &str, handover: Handover) {
        // The first tells; more of them would fill the journal.
        if attempt == 1 {
            self.told.push(Told {
                kind: EventKind::FenceFailed,
                backend: Some(self.primary.backend.clone()),
                reason: format!("nobody is promoted: {error}"),
            });
        }
        if self.active_can_serve() {
            return self.serve();
        }
        let doubled = FIRST_PAUSE * (1 << (attempt - 1).min(5));
        self.primary.phase = Phase::FenceFailed {
            attempt,
            again: self.situation.now + doubled.min(LONGEST_PAUSE),
            error: error.to_owned(),
            handover,
        };
    }

    /// The old one is cut off and fenced.
    fn succeed(&mut self, handover: Handover) {
        let wanted = handover.to.as_ref();
        let wanted = wanted.and_then(|to| self.situation.candidate(to));
        let successor = wanted
            .filter(|candidate| candidate.can_serve())
            .or_else(|| self.standby())
            .map(|candidate| (candidate.backend.name.clone(), candidate.backend.address));
        match successor {
            Some((backend, address)) => {
                self.told.push(Told {
                    kind: EventKind::Promoted,
                    backend: Some(backend.clone()),
                    reason: handover.reason.clone(),
                });
                self.primary.backend = backend;
                self.primary.address = address;
                self.primary.reason = handover.reason;
                self.serve();
            }
            None if self.active_can_serve() => self.serve(),
            None => self.primary.phase = Phase::Fenced { handover },
        }
    }
}

/// What a backend gets that is not active, or is cut off; `None` for the active one.
pub(super) fn routing_of(
    candidate: &Candidate<'_>,
    primary: &Primary,
) -> Option<(Routing, Cause, String)> {
    let said = candidate.said;
    let is_active = candidate.backend.name == primary.backend;
    match (candidate.admin, candidate.health) {
        (Admin::Disabled, _) => None,
        _ if is_active => primary.phase.handover().map(|handover| {
            let reason = format!("cut off for another to take over: {}", handover.reason);
            (Routing::Out, Cause::CutOff, reason)
        }),
        (Admin::Drain { .. }, _) => Some((
            Routing::Out,
            Cause::Drained,
            "drained by the operator's word".to_owned(),
        )),
        (Admin::Enabled, Health::Unknown) => Some((
            Routing::Out,
            Cause::Undecided,
            format!("waiting for its first verdict: {said}"),
        )),
        (Admin::Enabled, Health::Unhealthy) => {
            let cause = if candidate.gone {
                Cause::Gone
            } else {
                Cause::Unhealthy
            };
            Some((Routing::Out, cause, format!("unhealthy: {said}")))
        }
        (Admin::Enabled, Health::Healthy) => Some((
            Routing::Standby,
            Cause::StandingBy,
            format!("{} is the active one: {said}", primary.backend),
        )),
    }
}
