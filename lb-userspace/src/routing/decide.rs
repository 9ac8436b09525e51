//! The decision itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::active_passive::{self, Candidate};
use super::panic::{Situation, judge};
use super::slow_start;
use super::tiers::{Share, in_service, one_is_whole};
use super::weight;
use super::{Admin, Cause, Decided, Decision, Event, EventKind, Orders, Routing, RoutingState};
use super::{RoutingState as Previous, ServiceRouting};
use crate::health::passive::Doubt;
use crate::health::{Health, TargetView};
use crate::model::{Backend, BackendKey, PanicAction, Service};
use crate::probe::{Class, Verdict};

/// What a decision rests on.
pub struct Input<'a> {
    pub services: &'a [Service],
    /// The probes' verdict: `&|key| engine.get(key)`. None for a backend: unknown.
    pub health: &'a dyn Fn(&BackendKey) -> Option<&'a TargetView>,
    /// What the packets say, where that ejects.
    pub passive: &'a BTreeMap<BackendKey, Doubt>,
    /// Backends without an entry are enabled.
    pub admin: &'a BTreeMap<BackendKey, Admin>,
    /// Backends no longer in the configuration, and until when their established flows may stay.
    /// Once out, an entry may be dropped.
    pub removed: &'a BTreeMap<BackendKey, Duration>,
    /// For services with one active backend.
    pub orders: &'a Orders,
}

/// Decides for all services, given what was decided before.
pub fn decide(input: &Input<'_>, previous: &Previous, now: Duration) -> Decided {
    let mut state = RoutingState::default();
    let mut events = BTreeMap::<Arc<str>, Vec<Event>>::new();
    let mut next = Earliest(None);
    for service in input.services {
        let before = previous.services.get(&service.name);
        let mut told = Vec::new();
        let routing = decide_service(input, service, before, now, &mut next, &mut told);
        events.entry(service.name.clone()).or_default().extend(told);
        if let Some(before) = before {
            let changes = service_events(&service.name, before, &routing, now);
            events
                .entry(service.name.clone())
                .or_default()
                .extend(changes);
        }
        state.services.insert(service.name.clone(), routing);
    }
    for (key, &until) in input.removed {
        if state.get(key).is_some() {
            continue;
        }
        let before = previous.get(key);
        let alive = before.is_some_and(|decision| decision.routing.serves_established());
        let routing = drain(alive, until, now, &mut next);
        let reason = "removed from the configuration".to_owned();
        let service = state.services.entry(key.service.clone()).or_default();
        let decision = decision(routing, Cause::Removed, reason, before, now);
        service.backends.insert(key.clone(), decision);
    }
    for (name, service) in &state.services {
        let Some(before) = previous.services.get(name) else {
            continue;
        };
        let changes = service.backends.iter().filter_map(|(key, decision)| {
            let before = before.backends.get(key)?;
            let kind = backend_event(before, decision)?;
            Some(Event {
                at: now,
                service: name.clone(),
                backend: Some(key.clone()),
                kind,
                reason: decision.reason.clone(),
            })
        });
        events.entry(name.clone()).or_default().extend(changes);
    }
    Decided {
        state,
        events: events.into_values().flatten().collect(),
        next_deadline: next.0,
    }
}

/// The earliest time at which something changes by itself.
pub(super) struct Earliest(Option<Duration>);

impl Earliest {
    pub(super) fn consider(&mut self, at: Duration) {
        self.0 = Some(self.0.map_or(at, |earliest| earliest.min(at)));
    }
}

/// A configured backend with all that is said of it.
struct Subject<'a> {
    key: BackendKey,
    backend: &'a Backend,
    view: Option<&'a TargetView>,
    /// Only of one that the probes call healthy.
    doubt: Option<&'a Doubt>,
    admin: Admin,
}

impl Subject<'_> {
    fn health(&self) -> Health {
        match (self.doubt, self.view) {
            (Some(_), _) => Health::Unhealthy,
            (None, view) => view.map_or(Health::Unknown, |view| view.health),
        }
    }

    fn reason(&self) -> &str {
        match (self.doubt, self.view) {
            (Some(doubt), _) => &doubt.reason,
            (None, view) => view.map_or("not yet probed", |view| &view.reason),
        }
    }

    fn gone(&self) -> bool {
        match (self.doubt, self.view) {
            (Some(doubt), _) => doubt.gone,
            (None, view) => view.is_some_and(|view| view.gone),
        }
    }

    /// Whether it is well, but asks to be drained.
    fn leaves(&self) -> bool {
        self.health() == Health::Healthy && self.view.is_some_and(|view| view.leaving)
    }

    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            backend: self.backend,
            admin: self.admin,
            health: if self.leaves() {
                Health::Unhealthy
            } else {
                self.health()
            },
            gone: self.gone(),
            remembered: self.doubt.is_none() && self.view.is_some_and(|view| view.assumed),
            said: self.reason(),
        }
    }

    /// Whether it is there for ordinary times, and the operator has nothing against it.
    fn is_regular(&self) -> bool {
        self.admin == Admin::Enabled && !self.backend.fallback
    }

    /// Whether it is decided, and nobody has anything against it but its health.
    fn counts(&self) -> bool {
        self.is_regular() && self.health() != Health::Unknown
    }

    /// Whether it is a fallback that can serve.
    fn can_fall_back(&self) -> bool {
        self.backend.fallback
            && self.admin == Admin::Enabled
            && self.health() == Health::Healthy
            && !self.leaves()
            && self.backend.weight > 0
    }

    /// Whether a last probe was refused at the very port that packets go to.
    fn is_refused(&self) -> bool {
        let checks = self.view.map_or(&[][..], |view| &view.checks);
        let mut asked = self.backend.probes.iter().zip(checks);
        asked.any(|(probe, check)| {
            let mut outcomes = check.history.iter().rev();
            let counted = outcomes.find(|outcome| outcome.verdict != Verdict::Internal);
            probe.target == self.backend.address
                && counted.is_some_and(|last| last.class == Class::Refused)
        })
    }
}

fn decide_service(
    input: &Input<'_>,
    service: &Service,
    before: Option<&ServiceRouting>,
    now: Duration,
    next: &mut Earliest,
    told: &mut Vec<Event>,
) -> ServiceRouting {
    let subjects: Vec<Subject<'_>> = service
        .backends
        .iter()
        .map(|backend| {
            let key = service.key(backend);
            let view = (input.health)(&key);
            let healthy = view.is_some_and(|view| view.health == Health::Healthy);
            Subject {
                view,
                doubt: input.passive.get(&key).filter(|_| healthy),
                admin: input.admin.get(&key).copied().unwrap_or_default(),
                key,
                backend,
            }
        })
        .collect();

    let (mut all, mut tiers) = (Share::default(), BTreeMap::<u8, Share>::new());
    let regular = || subjects.iter().filter(|subject| subject.is_regular());
    // Those that ask to be drained count nowhere, unless nobody else is left.
    let all_leave = regular().all(Subject::leaves);
    for subject in regular().filter(|subject| all_leave || !subject.leaves()) {
        let tier = tiers.entry(subject.backend.tier).or_default();
        if subject.counts() {
            let healthy = subject.health() == Health::Healthy && !subject.leaves();
            tier.add(subject.backend.weight, healthy);
            all.add(subject.backend.weight, healthy);
        }
    }

    let intervals = service.health.iter().map(|policy| policy.interval);
    let interval = intervals.max().unwrap_or_default();
    let decided = subjects.iter().any(Subject::counts);
    let round_started = match before {
        // Still without a verdict, or not any more.
        Some(before) if decided || !before.decided => before.round_started,
        Some(_) | None => now,
    };
    let round_ends = round_started + service.probe_round();
    let undecided = subjects
        .iter()
        .any(|s| s.is_regular() && s.health() == Health::Unknown);
    let fail_open = !decided && now >= round_ends;
    if !decided && undecided && !fail_open {
        next.consider(round_ends);
    }

    let situation = Situation {
        threshold: service.panic_threshold,
        min_healthy: service.panic.min_healthy,
        interval,
        share: all,
        spared: one_is_whole(&tiers),
        not_before: undecided.then_some(round_ends),
    };
    let mood = judge(
        &situation,
        before.is_some_and(|before| before.panic),
        before.and_then(|before| before.enough_since),
        now,
    );
    if let Some(at) = mood.look_again {
        next.consider(at);
    }

    let order = active_passive::in_order(subjects.iter().map(Subject::candidate));
    let primary = service.mode.active_passive().and_then(|rules| {
        let situation = active_passive::Situation {
            rules,
            service: &service.name,
            order: &order,
            orders: input.orders,
            now,
        };
        let before = before.and_then(|before| before.primary.as_ref());
        let mut happened = Vec::new();
        let primary = active_passive::step(&situation, before, next, &mut happened);
        told.extend(happened.into_iter().map(|what| {
            Event {
                at: now,
                service: service.name.clone(),
                backend: what
                    .backend
                    .map(|backend| BackendKey::new(service.name.clone(), backend)),
                kind: what.kind,
                reason: what.reason,
            }
        }));
        primary
    });
    let tiers = if let Some(primary) = &primary {
        let active = subjects
            .iter()
            .find(|s| s.backend.name == primary.backend)
            .map(|active| active.backend.tier);
        active.into_iter().collect()
    } else if mood.panic || fail_open {
        tiers.keys().copied().collect()
    } else {
        in_service(&tiers)
    };
    let action = match service.panic.action {
        PanicAction::Fallback if !subjects.iter().any(Subject::can_fall_back) => PanicAction::All,
        action => action,
    };
    let rules = Rules {
        panic: mood.panic.then_some(action),
        exclude_refused: service.panic.exclude_refused,
        fail_open,
        tiers: &tiers,
        drain_deadline: service.drain_deadline,
    };
    let mut backends = subjects
        .iter()
        .map(|subject| {
            let before = before.and_then(|before| before.backends.get(&subject.key));
            let passive = primary
                .as_ref()
                .and_then(|primary| active_passive::routing_of(&subject.candidate(), primary));
            let decision = match passive {
                Some((routing, cause, reason)) => decision(routing, cause, reason, before, now),
                None => decide_backend(subject, &rules, before, now, next),
            };
            (subject.key.clone(), decision)
        })
        .collect();
    ease_in(&mut backends, before, service, now, next);
    let weighty = subjects.iter().filter(|subject| subject.backend.weight > 0);
    let weights = weighty.map(|s| (&s.key, s.view.map_or(100, |view| view.weight)));
    weight::lower(&mut backends, &weights.collect());
    ServiceRouting {
        panic: mood.panic,
        healthy_percent: all.percent(),
        tiers,
        backends,
        primary,
        enough_since: mood.enough_since,
        round_started,
        decided,
    }
}

/// What holds for the whole service.
struct Rules<'a> {
    /// Who gets the new flows, in panic.
    panic: Option<PanicAction>,
    exclude_refused: bool,
    fail_open: bool,
    tiers: &'a [u8],
    drain_deadline: Duration,
}

/// The precedence, from the top.
fn decide_backend(
    subject: &Subject<'_>,
    rules: &Rules<'_>,
    before: Option<&Decision>,
    now: Duration,
    next: &mut Earliest,
) -> Decision {
    let (said, gone) = (subject.reason(), subject.gone());
    // Whoever got traffic undecided keeps it until its own verdict: the first verdict on another
    // must not cut its flows.
    let fail_open = rules.fail_open || before.is_some_and(|b| b.cause == Cause::FailOpen);
    let (routing, cause, reason) = match (subject.admin, subject.health()) {
        (Admin::Disabled, _) => (
            Routing::Out,
            Cause::Disabled,
            "disabled by the operator".to_owned(),
        ),
        (Admin::Drain { until }, _) => {
            // Without a past (the agent is new) it may well have flows.
            let alive = before.is_none_or(|b| b.routing.serves_established()) && !gone;
            let routing = drain(alive, until, now, next);
            let reason = match routing {
                Routing::Draining { .. } => "draining by the operator's word",
                _ => "drained by the operator's word",
            };
            (routing, Cause::Drained, reason.to_owned())
        }
        (Admin::Enabled, Health::Unknown) if fail_open && !subject.backend.fallback => (
            Routing::Active,
            Cause::FailOpen,
            format!("no verdict on any backend after a probe round: {said}"),
        ),
        (Admin::Enabled, Health::Unknown) => (
            Routing::Out,
            Cause::Undecided,
            format!("waiting for its first verdict: {said}"),
        ),
        (Admin::Enabled, Health::Unhealthy)
            if rules.panic == Some(PanicAction::All)
                && !(rules.exclude_refused && subject.is_refused()) =>
        {
            (
                Routing::Panic,
                Cause::Panic,
                format!("panic, too few are healthy: {said}"),
            )
        }
        (Admin::Enabled, Health::Unhealthy) if gone => {
            (Routing::Out, Cause::Gone, format!("unhealthy: {said}"))
        }
        (Admin::Enabled, Health::Unhealthy) => {
            let routing = soften(subject, rules, before, now, next);
            (routing, Cause::Unhealthy, format!("unhealthy: {said}"))
        }
        (Admin::Enabled, Health::Healthy)
            if subject.leaves() && rules.panic == Some(PanicAction::All) =>
        {
            (
                Routing::Panic,
                Cause::Panic,
                format!("panic, too few are healthy: {said}"),
            )
        }
        (Admin::Enabled, Health::Healthy) if subject.leaves() => {
            let routing = soften(subject, rules, before, now, next);
            (routing, Cause::Leaving, format!("by its own word: {said}"))
        }
        (Admin::Enabled, Health::Healthy) if subject.backend.fallback => match rules.panic {
            Some(PanicAction::Fallback | PanicAction::All) => (
                Routing::Active,
                Cause::Fallback,
                format!("panic, too few are healthy: {said}"),
            ),
            Some(PanicAction::Fail) | None => (
                Routing::Standby,
                Cause::Fallback,
                format!("for panic only: {said}"),
            ),
        },
        (Admin::Enabled, Health::Healthy)
            if matches!(rules.panic, Some(PanicAction::Fail | PanicAction::Fallback)) =>
        {
            let reason = match rules.panic {
                Some(PanicAction::Fail) => "panic, too few are healthy, new flows are dropped",
                _ => "panic, too few are healthy, new flows go to the fallback",
            };
            (Routing::Standby, Cause::Panic, format!("{reason}: {said}"))
        }
        (Admin::Enabled, Health::Healthy) if rules.tiers.contains(&subject.backend.tier) => {
            (Routing::Active, Cause::Healthy, said.to_owned())
        }
        (Admin::Enabled, Health::Healthy) => (
            Routing::Standby,
            Cause::TierNotNeeded,
            format!("tier {} is not needed: {said}", subject.backend.tier),
        ),
    };
    decision(routing, cause, reason, before, now)
}

/// What becomes of a backend that is to get no new flows, and whose established ones may stay.
fn soften(
    subject: &Subject<'_>,
    rules: &Rules<'_>,
    before: Option<&Decision>,
    now: Duration,
    next: &mut Earliest,
) -> Routing {
    let (alive, until) = match before.map(|before| before.routing) {
        Some(Routing::Draining { until }) => (true, until),
        Some(before) => (before.serves_established(), now + rules.drain_deadline),
        // An agent that takes over does not know how long the drain has lasted.
        None => (
            subject.view.is_some_and(|view| view.assumed),
            now + rules.drain_deadline,
        ),
    };
    drain(alive, until, now, next)
}

/// Draining until then, unless there is nothing to drain or the time is over.
fn drain(alive: bool, until: Duration, now: Duration, next: &mut Earliest) -> Routing {
    if alive && now < until {
        next.consider(until);
        Routing::Draining { until }
    } else {
        Routing::Out
    }
}

fn decision(
    routing: Routing,
    cause: Cause,
    reason: String,
    before: Option<&Decision>,
    now: Duration,
) -> Decision {
    let since = before
        .filter(|before| before.routing.same_kind(routing))
        .map_or(now, |before| before.since);
    Decision {
        routing,
        cause,
        reason,
        since,
        share: 100,
        eased_since: None,
    }
}

/// Gives the shares of those that come back, if others are there to carry the load.
fn ease_in(
    backends: &mut BTreeMap<BackendKey, Decision>,
    before: Option<&ServiceRouting>,
    service: &Service,
    now: Duration,
    next: &mut Earliest,
) {
    let window = service.slow_start;
    for (key, decision) in backends.iter_mut() {
        if decision.routing == Routing::Active {
            let before = before.and_then(|before| before.backends.get(key));
            decision.eased_since = slow_start::began(before, window, now);
        }
    }
    let others = service.backends.iter().any(|backend| {
        let decision = backends.get(&service.key(backend));
        let full = decision.is_some_and(|d| d.routing.takes_new_flows() && d.eased_since.is_none());
        full && backend.weight > 0
    });
    for decision in backends.values_mut() {
        if let Some(began) = decision.eased_since {
            let (share, until) = slow_start::share(began, window, now);
            next.consider(until);
            if others {
                decision.share = share;
            }
        }
    }
}

fn service_events(
    name: &Arc<str>,
    before: &ServiceRouting,
    after: &ServiceRouting,
    now: Duration,
) -> Vec<Event> {
    let event = |kind, reason| Event {
        at: now,
        service: name.clone(),
        backend: None,
        kind,
        reason,
    };
    let percent = format!("{:.1} % of the weight is healthy", after.healthy_percent);
    let mut events = Vec::new();
    match (before.panic, after.panic) {
        (false, true) => events.push(event(EventKind::PanicEntered, percent)),
        (true, false) => events.push(event(EventKind::PanicLeft, percent)),
        (false, false) | (true, true) => {}
    }
    // Before the first verdict all tiers are waiting, which is no switch.
    if before.decided && before.tiers != after.tiers && after.primary.is_none() {
        let reason = format!(
            "tiers in service: {:?}, before: {:?}",
            after.tiers, before.tiers
        );
        events.push(event(EventKind::TierSwitched, reason));
    }
    events
}

/// What happened to a backend, if anything that is worth telling.
fn backend_event(before: &Decision, after: &Decision) -> Option<EventKind> {
    use Routing::{Active, Draining, Out, Panic, Standby};
    match (before.routing, after.routing) {
        (Active, Active)
        | (Panic, Panic)
        | (Out, Out)
        | (Standby, Standby)
        | (Draining { .. }, Draining { .. })
        // The tier's event tells.
        | (Active, Standby)
        | (Standby, Active) => None,
        (Active | Standby | Panic, Draining { .. }) => Some(EventKind::Draining),
        (Active | Standby | Panic, Out) => Some(EventKind::Ejected),
        (Draining { .. }, Out) if after.cause == Cause::Gone => Some(EventKind::Ejected),
        (Draining { .. }, Out) => Some(EventKind::Drained),
        (Out, Active | Standby) if before.cause == Cause::Undecided => Some(EventKind::Admitted),
        (Out | Draining { .. } | Panic, Active | Standby) => Some(EventKind::Readmitted),
        (_, Panic) => Some(EventKind::Panicked),
        // Only for one that has flows, and one that is out has none.
        (Out, Draining { .. }) => Some(EventKind::Draining),
    }
}
