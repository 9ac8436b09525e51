//! The decision itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Announce, Backend, Service};
use crate::routing::active_passive::Phase;
use crate::routing::{Cause, RoutingState, ServiceRouting};

/// What a decision rests on.
pub struct Input<'a> {
    /// With the weights in force.
    pub services: &'a [Service],
    pub routing: &'a RoutingState,
    /// What is known of a backend beside that.
    pub known: &'a dyn Fn(&Service, &Backend) -> Known,
    /// Whether packets are forwarded by what was decided.
    pub ready: bool,
}

/// How sure the verdict on a backend is, and whether packets reach it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its verdict is an earlier agent's.
    pub remembered: bool,
    /// The data plane has a way to it.
    pub reached: bool,
}

/// What was decided, and what must be remembered to decide again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Services that ask for an announcement.
    pub services: BTreeMap<Arc<str>, Quorum>,
    /// Their VIPs.
    pub vips: BTreeMap<IpAddr, Vip>,
}

/// Whether enough of a service can serve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quorum {
    pub held: bool,
    /// Percent of the weight that can serve for sure.
    pub percent: f64,
    /// While it is not held: since when enough of it can serve.
    enough_since: Option<Duration>,
}

/// What is said of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    pub announced: bool,
    /// For people.
    pub reason: String,
}

/// A change of what is announced.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    pub vip: IpAddr,
    pub announced: bool,
    /// The service that it is due to; `None`: no service asks for it any more.
    pub service: Option<Arc<str>>,
    pub reason: String,
    /// Percent of the service's weight that can serve.
    pub percent: Option<f64>,
}

/// Result of [`decide`].
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    pub state: State,
    /// By VIP.
    pub turns: Vec<Turn>,
    /// When time alone changes the result.
    pub next_deadline: Option<Duration>,
}

impl State {
    /// The state of an agent that finds these VIPs announced.
    pub fn adopt(vips: impl IntoIterator<Item = IpAddr>) -> Self {
        let adopted = |vip| {
            let vip_as_found = Vip {
                announced: true,
                reason: "as an earlier agent had it".to_owned(),
            };
            (vip, vip_as_found)
        };
        Self {
            services: BTreeMap::new(),
            vips: vips.into_iter().map(adopted).collect(),
        }
    }

    /// The VIPs that are to be announced.
    pub fn announced(&self) -> impl Iterator<Item = IpAddr> {
        let announced = self.vips.iter().filter(|(_, vip)| vip.announced);
        announced.map(|(address, _)| *address)
    }

    fn is_announced(&self, vip: IpAddr) -> bool {
        self.vips.get(&vip).is_some_and(|vip| vip.announced)
    }
}

/// Decides for all services, given what was decided before.
pub fn decide(input: &Input<'_>, previous: &State, now: Duration) -> Decided {
    let mut decided = Decided {
        state: State::default(),
        turns: Vec::new(),
        next_deadline: None,
    };
    let mut by_vip = BTreeMap::<IpAddr, Vec<(&Service, &Announce, Quorum)>>::new();
    for service in input.services {
        let Some(rules) = &service.announce else {
            continue;
        };
        let vip = service.address.ip();
        let before = previous.services.get(&service.name).copied();
        // One that is new speaks neither for nor against, until there are verdicts.
        let before = before.unwrap_or(Quorum {
            held: previous.is_announced(vip),
            percent: 0.0,
            enough_since: None,
        });
        let routing = input.routing.services.get(&service.name);
        let capacity = Capacity::of(service, routing, input.known);
        let (quorum, look_again) = judge(rules, &capacity, before, now);
        let earliest = [decided.next_deadline, look_again];
        decided.next_deadline = earliest.into_iter().flatten().min();
        decided.state.services.insert(service.name.clone(), quorum);
        by_vip
            .entry(vip)
            .or_default()
            .push((service, rules, quorum));
    }
    for (vip, services) in by_vip {
        let was = previous.is_announced(vip);
        let lacking = services.iter().find(|(_, _, quorum)| !quorum.held);
        let announced = lacking.is_none() && (was || input.ready);
        // Any of them has quorum; the first stands for all.
        let Some((service, rules, quorum)) = lacking.or(services.first()) else {
            continue;
        };
        let share = format!(
            "{:.1} % of the weight of {} can serve",
            quorum.percent, service.name
        );
        let why = format!("{share}, quorum {} %", rules.quorum);
        let reason = match (lacking.is_some(), announced) {
            (true, _) if quorum.enough_since.is_some() => {
                format!("{share}, for less than announce_after")
            }
            (true, _) => format!("{share}, announced from {} % on", rules.regained_at()),
            (false, true) => why.clone(),
            (false, false) => "the data plane does not yet follow the verdicts".to_owned(),
        };
        if announced != was {
            decided.turns.push(Turn {
                vip,
                announced,
                service: Some(service.name.clone()),
                reason: why,
                percent: Some(quorum.percent),
            });
        }
        decided.state.vips.insert(vip, Vip { announced, reason });
    }
    let left = previous.announced();
    for vip in left.filter(|vip| !decided.state.vips.contains_key(vip)) {
        decided.turns.push(Turn {
            vip,
            announced: false,
            service: None,
            reason: "no service asks for it any more".to_owned(),
            percent: None,
        });
    }
    decided.turns.sort_by_key(|turn| turn.vip);
    decided
}

/// Whether there is quorum now, and when to look again.
fn judge(
    rules: &Announce,
    capacity: &Capacity,
    before: Quorum,
    now: Duration,
) -> (Quorum, Option<Duration>) {
    let quorum = |held, enough_since| Quorum {
        held,
        percent: capacity.percent(),
        enough_since,
    };
    if before.held {
        return (quorum(!capacity.lacks(rules.quorum), None), None);
    }
    if !capacity.reaches(rules.regained_at()) {
        return (quorum(false, None), None);
    }
    let since = before.enough_since.unwrap_or(now);
    let until = since + rules.after;
    if now >= until {
        return (quorum(true, None), None);
    }
    (quorum(false, Some(since)), Some(until))
}

/// Weights of a service's backends.
#[derive(Debug, Default)]
struct Capacity {
    /// Of those that can serve for sure.
    sure: u64,
    /// Of these and those of whom nothing is known.
    possible: u64,
    total: u64,
    /// There are no backends yet: their host names are not resolved.
    unresolved: bool,
}

/// Whether a backend can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Can,
    Cannot,
    Unknown,
}

impl Capacity {
    fn of(
        service: &Service,
        routing: Option<&ServiceRouting>,
        known: &dyn Fn(&Service, &Backend) -> Known,
    ) -> Self {
        let regular = || service.backends.iter().filter(|backend| !backend.fallback);
        let mut capacity = Self {
            unresolved: regular().next().is_none(),
            ..Self::default()
        };
        let nobody = routing.is_some_and(fence_failed);
        for backend in regular() {
            let weight = u64::from(backend.weight);
            capacity.total += weight;
            let decision = routing.and_then(|routing| routing.backends.get(&service.key(backend)));
            match decision.map(|decision| standing(decision.cause, known(service, backend))) {
                Some(Standing::Can) if !nobody => {
                    capacity.sure += weight;
                    capacity.possible += weight;
                }
                None | Some(Standing::Unknown) if !nobody => capacity.possible += weight,
                _ => {}
            }
        }
        capacity
    }

    /// Whether enough can serve for sure.
    const fn reaches(&self, percent: u8) -> bool {
        self.sure > 0 && self.sure * 100 >= self.total * percent as u64
    }

    /// Whether for sure too few can serve.
    const fn lacks(&self, percent: u8) -> bool {
        let enough = self.possible > 0 && self.possible * 100 >= self.total * percent as u64;
        !enough && !self.unresolved
    }

    fn percent(&self) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        100.0 * self.sure as f64 / self.total as f64
    }
}

/// Whether the active backend is cut off and nobody may take over.
fn fence_failed(routing: &ServiceRouting) -> bool {
    let phase = routing.primary.as_ref().map(|primary| &primary.phase);
    matches!(phase, Some(Phase::FenceFailed { .. }))
}

fn standing(cause: Cause, known: Known) -> Standing {
    match cause {
        // The operator's word needs no probe.
        Cause::Disabled | Cause::Drained | Cause::Removed => Standing::Cannot,
        Cause::Undecided | Cause::Assumed | Cause::FailOpen => Standing::Unknown,
        _ if known.remembered => Standing::Unknown,
        // In panic the healthy ones get nothing by the name of panic, and those who get something
        // by it are not healthy; nor is one whose ejection would be one too many.
        Cause::Unhealthy
        | Cause::EjectionRefused
        | Cause::Leaving
        | Cause::Gone
        | Cause::Refused
        | Cause::Panic
        | Cause::Fallback
        | Cause::CutOff => Standing::Cannot,
        // Whatever its tier: it would take over.
        Cause::Healthy | Cause::TierNotNeeded | Cause::StandingBy => match known.reached {
            true => Standing::Can,
            false => Standing::Unknown,
        },
    }
}
