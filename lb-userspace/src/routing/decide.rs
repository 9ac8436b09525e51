//! The decision itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::active_passive;
use super::floor::{Floor, Unhealthy};
use super::panic::{Situation, judge};
use super::slow_start::ease_in;
use super::subject::Subject;
use super::tiers::{Holding, Share, in_service, one_is_whole};
use super::weight;
use super::{Admin, Cause, Decided, Decision, Event, EventKind, Orders, Routing, RoutingState};
use super::{RoutingState as Previous, ServiceRouting};
use crate::health::passive::{Doubt, Kind};
use crate::health::{Health, TargetView};
use crate::model::{BackendKey, PanicAction, Service};

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
    /// What the agent knows beside that.
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
                reason: told(before, decision),
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
            let doubt = input.passive.get(&key);
            Subject {
                view,
                doubt: doubt.filter(|_| healthy),
                refusing_since: doubt
                    .filter(|doubt| doubt.kind == Kind::Refused)
                    .map(|doubt| doubt.since),
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
        } else if subject.is_presumed() {
            // It carries load, and says nothing about the service's health.
            tier.add(subject.backend.weight, true);
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
    let nobody_since = match regular().any(|subject| subject.health() == Health::Healthy) {
        true => None,
        false => Some(before.and_then(|b| b.nobody_since).unwrap_or(now)),
    };
    let opens = nobody_since.map(|since| since + service.fail_open_after());
    let waited = opens.is_some_and(|opens| now >= opens);
    if let Some(opens) = opens.filter(|_| undecided && !waited) {
        next.consider(opens);
    }

    let overprovisioning = service.pool.overprovisioning.into();
    let situation = Situation {
        threshold: service.panic_threshold,
        min_healthy: service.panic.min_healthy,
        interval,
        share: all,
        spared: one_is_whole(&tiers, overprovisioning),
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
    let action = match service.panic.action {
        PanicAction::Fallback if !subjects.iter().any(Subject::can_fall_back) => PanicAction::All,
        action => action,
    };
    let panic = mood.panic.then_some(action);
    let waiting = regular().any(|s| s.health() == Health::Unknown && !s.is_presumed());
    let fail_open = waited && waiting && matches!(panic, None | Some(PanicAction::All));
    let mut released_since = None;
    let tiers = if let Some(primary) = &primary {
        let active = subjects
            .iter()
            .find(|s| s.backend.name == primary.backend)
            .map(|active| active.backend.tier);
        active.into_iter().collect()
    } else if mood.panic || fail_open {
        tiers.keys().copied().collect()
    } else {
        let wanted = in_service(&tiers, overprovisioning);
        // In the first round all tiers wait, which is no service.
        let before = before.filter(|_| now >= round_ends);
        let holding = Holding {
            before: before.map_or(&[], |before| &before.tiers),
            since: before.and_then(|before| before.released_since),
            longest: service.pool.failback_after,
        };
        let (tiers, since) = holding.hold(wanted, tiers.keys().copied(), now);
        released_since = since;
        if let Some(since) = since {
            next.consider(since + service.pool.failback_after);
        }
        tiers
    };
    let floor = Floor {
        most: service.pool.max_ejection_percent,
        count: regular().filter(|s| s.holds_load()).count() as u32,
    };
    let refused = match panic {
        None if floor.is_any() => {
            let unhealthy = regular().filter(|s| s.holds_load());
            let unhealthy = unhealthy.filter(|s| s.health() == Health::Unhealthy);
            let unhealthy = unhealthy.map(|subject| Unhealthy {
                key: &subject.key,
                out: subject.is_out(before, input.orders),
                since: subject.unhealthy_since(),
            });
            floor.refused(unhealthy.collect())
        }
        None | Some(_) => BTreeSet::new(),
    };
    // Whom panic has traffic for, closed ports left out.
    let open = |s: &Subject<'_>| {
        let before = before.and_then(|before| before.backends.get(&s.key));
        let opened = fail_open || before.is_some_and(|b| b.cause == Cause::FailOpen);
        let serves = s.health() != Health::Unknown || opened || s.is_presumed();
        serves && s.admin == Admin::Enabled && s.backend.weight > 0 && !s.is_refused()
    };
    let closed = match panic {
        Some(PanicAction::All) if !service.panic.exclude_refused => Closed::Ignored,
        Some(PanicAction::All) if !subjects.iter().any(open) => Closed::All,
        Some(PanicAction::All) => Closed::Excluded,
        Some(PanicAction::Fail | PanicAction::Fallback) | None => Closed::Ignored,
    };
    let rules = Rules {
        panic,
        refused: &refused,
        closed,
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
        released_since,
        nobody_since,
        round_started,
        decided,
    }
}

/// What a closed port means in panic.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closed {
    /// Nothing.
    Ignored,
    /// No traffic.
    Excluded,
    /// Nothing, since there is no open one.
    All,
}

/// What holds for the whole service.
struct Rules<'a> {
    /// Who gets the new flows, in panic.
    panic: Option<PanicAction>,
    closed: Closed,
    /// Those for whose ejection there is no place.
    refused: &'a BTreeSet<&'a BackendKey>,
    fail_open: bool,
    tiers: &'a [u8],
    drain_deadline: Duration,
}

impl Rules<'_> {
    /// What a backend gets of which it is not known that it is healthy, and which yet is to serve.
    fn as_if_healthy(&self, subject: &Subject<'_>) -> Routing {
        let open = matches!(self.panic, None | Some(PanicAction::All));
        if open && self.tiers.contains(&subject.backend.tier) {
            Routing::Active
        } else {
            Routing::Standby
        }
    }
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
    let closed = rules.closed != Closed::Ignored && subject.is_refused();
    let excluded = closed && rules.closed == Closed::Excluded;
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
        (Admin::Enabled, Health::Unknown) if subject.is_presumed() => (
            rules.as_if_healthy(subject),
            Cause::Assumed,
            format!("taken for healthy until its first verdict: {said}"),
        ),
        (Admin::Enabled, Health::Unknown) if fail_open && !subject.backend.fallback => (
            Routing::Active,
            Cause::FailOpen,
            format!("nobody has been healthy for too long: {said}"),
        ),
        (Admin::Enabled, Health::Unknown) => (
            Routing::Out,
            Cause::Undecided,
            format!("waiting for its first verdict: {said}"),
        ),
        (Admin::Enabled, Health::Unhealthy)
            if rules.panic == Some(PanicAction::All) && !excluded =>
        {
            let reason = match closed {
                true => "panic, and all refuse connections",
                false => "panic, too few are healthy",
            };
            (Routing::Panic, Cause::Panic, format!("{reason}: {said}"))
        }
        (Admin::Enabled, Health::Unhealthy) if excluded => {
            let routing = match gone {
                true => Routing::Out,
                false => soften(subject, rules, before, now, next),
            };
            (
                routing,
                Cause::Refused,
                format!("not even in panic, since its port refuses connections: {said}"),
            )
        }
        (Admin::Enabled, Health::Unhealthy) if rules.refused.contains(&subject.key) => (
            rules.as_if_healthy(subject),
            Cause::EjectionRefused,
            format!("not ejected, since as many as may be are out (max_ejection_percent): {said}"),
        ),
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

/// Why it happened: where the operator has taken a word back, the verdict is not what is new.
fn told(before: &Decision, after: &Decision) -> String {
    let by_operator =
        |decision: &Decision| matches!(decision.cause, Cause::Disabled | Cause::Drained);
    match by_operator(before) && !by_operator(after) {
        true => format!("enabled by the operator; {}", after.reason),
        false => after.reason.clone(),
    }
}

/// What happened to a backend, if anything that is worth telling.
fn backend_event(before: &Decision, after: &Decision) -> Option<EventKind> {
    use Routing::{Active, Draining, Out, Panic, Standby};
    match (before.cause, after.cause) {
        (Cause::EjectionRefused, Cause::EjectionRefused) => {}
        (_, Cause::EjectionRefused) => return Some(EventKind::EjectionRefused),
        (Cause::EjectionRefused, Cause::Healthy) => return Some(EventKind::Readmitted),
        _ => {}
    }
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
        (Draining { .. }, Out) if matches!(after.cause, Cause::Gone | Cause::Refused) => {
            Some(EventKind::Ejected)
        }
        (Draining { .. }, Out) => Some(EventKind::Drained),
        (Out, Active | Standby) if before.cause == Cause::Undecided => Some(EventKind::Admitted),
        (Out | Draining { .. } | Panic, Active | Standby) => Some(EventKind::Readmitted),
        (_, Panic) => Some(EventKind::Panicked),
        // Only for one that has flows, and one that is out has none.
        (Out, Draining { .. }) => Some(EventKind::Draining),
    }
}
