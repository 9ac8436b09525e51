//! What `lb status` shows, put together from what the agent knows.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_common::abi::BackendState;
use lb_common::verdict::Verdict;

use super::core::Core;
use super::run::Agent;
use super::saved;
use crate::api::status::{
    self, BackendStatus, CheckStatus, FlowTable, Interface, LastProbe, Mode, Node, ProbeCounts,
    Prober, ServiceStatus, Signs, Status,
};
use crate::health::{CheckView, Health, Record, Tally, TargetView};
use crate::model::{Backend, Service, backend_text};
use crate::probe;
use crate::routing::Routing;
use crate::table::count_current;

/// Longest wait for the ways to backends before new maps are put in force.
const WAY_PATIENCE: Duration = Duration::from_secs(10);

impl Core {
    /// The status as it is now.
    pub fn status(&self, agent: &Agent) -> Status {
        let services = self
            .model
            .services
            .iter()
            .map(|service| self.service(agent, service));
        Status {
            node: self.node(agent),
            services: services.collect(),
        }
    }

    fn node(&self, agent: &Agent) -> Node {
        let now = self.clock.now();
        let behind = self.applied != self.generation() || self.datapath_error.is_some();
        let age = if behind {
            now.saturating_sub(self.applied_at)
        } else {
            Duration::ZERO
        };
        let skipped = self.engine.view().flat_map(|(_, view)| &view.checks);
        let skipped = skipped.map(|check| check.skipped).sum();
        Node {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            interfaces: self.interfaces(agent),
            uptime_seconds: now.saturating_sub(self.started).as_secs_f64(),
            draining: self.ending,
            at: crate::api::now(),
            pid: std::process::id(),
            config: agent.options.config.display().to_string(),
            verdict_age_seconds: age.as_secs_f64(),
            verdict_gap: self.gap.total,
            attached: agent.attached.len() == self.model.node.interfaces.len(),
            first_round_done: self.first_round_done(now),
            names: self.name_statuses(),
            reload_error: self.reload_error.clone(),
            datapath_error: self.datapath_error.clone(),
            announce_error: self.announced.error(),
            state_error: self.saver.problem(),
            verdicts: verdicts(agent, 0),
            capturing: agent.counters.capturing,
            flows: FlowTable {
                used: self.sweep.entries,
                capacity: self.model.node.flow_entries.into(),
            },
            prober: Prober {
                skipped,
                overloaded: self.overload.active(),
                short: self.overload.round().0 as u64,
                held: self.overload.held(),
                ..self.prober
            },
            certificate_warning_seconds: self.model.node.certificate_warning.as_secs(),
        }
    }

    /// The configured interfaces; `off` where the program is not.
    fn interfaces(&self, agent: &Agent) -> Vec<Interface> {
        let mode = |name: &String| {
            let on = agent.attached.iter().find(|on| on.name == *name);
            on.map_or(Mode::Off, |on| match on.native {
                true => Mode::Native,
                false => Mode::Generic,
            })
        };
        let names = self.model.node.interfaces.iter();
        names
            .map(|name| Interface {
                name: name.clone(),
                mode: mode(name),
                down: agent.down(name).map(|why| why.to_string()),
            })
            .collect()
    }

    /// Whether packets may be forwarded by what the maps hold: it is what was decided last, with a
    /// first verdict and a way for every backend that takes flows, or there was time for these.
    pub fn is_filled(&self) -> bool {
        let now = self.clock.now();
        let known = |backend: &crate::plan::Backend| {
            backend.state != BackendState::Active || backend.path.is_some()
        };
        self.applied == self.generation()
            && self.first_round_done(now)
            && (self.built.backends.values().all(known) || now >= self.started + WAY_PATIENCE)
    }

    /// Whether every backend has its first verdict, or has had the time for one.
    fn first_round_done(&self, now: Duration) -> bool {
        self.applied > 0
            && self.model.services.iter().all(|service| {
                now >= self.started + service.probe_round()
                    || service.backends.iter().all(|backend| {
                        let view = self.engine.get(&service.key(backend));
                        view.is_some_and(|view| view.health != Health::Unknown)
                    })
            })
    }

    fn service(&self, agent: &Agent, service: &Service) -> ServiceStatus {
        let routing = self.routing.services.get(&service.name);
        let id = self.builder.service(service);
        let table = id.and_then(|id| self.builder.contents().services.get(&id));
        let slots = table
            .map(|table| count_current(&table.slots))
            .unwrap_or_default();
        let (announced, announced_reason) = self.announced_status(service);
        ServiceStatus {
            name: service.name.to_string(),
            address: service.address.to_string(),
            protocol: service.protocol.name().to_owned(),
            forwarding: service.forwarding.name().to_owned(),
            panic: routing.is_some_and(|routing| routing.panic),
            generation: id
                .and_then(|id| self.generations.get(&id).copied())
                .unwrap_or(0),
            healthy_percent: routing.map_or(0.0, |routing| routing.healthy_percent),
            panic_threshold: service.panic_threshold,
            panic_min_healthy: service.panic.min_healthy,
            panic_action: service.panic.action.name().to_owned(),
            active_tier: routing
                .and_then(|routing| routing.tiers.last().copied())
                .unwrap_or(0),
            table_size: table.map_or(0, |table| table.slots.len() as u32),
            verdicts: id.map(|id| verdicts(agent, id)).unwrap_or_default(),
            ejections_refused: (self.refused.get(&service.name).copied()).unwrap_or_default(),
            primary: self.primary_status(&service.name),
            quorum: self.quorum_status(service),
            announced,
            announced_reason,
            backends: service
                .backends
                .iter()
                .map(|backend| self.backend(agent, service, backend, &slots))
                .collect(),
        }
    }

    fn backend(
        &self,
        agent: &Agent,
        service: &Service,
        backend: &Backend,
        slots: &[u32],
    ) -> BackendStatus {
        let key = service.key(backend);
        let index = self.builder.index(service, backend);
        let view = self.engine.get(&key);
        let checks = view.map_or(&[][..], |view| &view.checks);
        let decision = self.routing.get(&key);
        let word = self.words.get(&key);
        let entry = index.and_then(|index| self.builder.contents().backends.get(&index));
        let unresolved = entry.is_some_and(|entry| entry.path.is_none());
        let traffic = index.and_then(|index| agent.counters.traffic.get(&index));
        let traffic = traffic.copied().unwrap_or_default();
        let weight = word.and_then(|word| word.weight);
        let routing = decision.map_or(Routing::Out, |decision| decision.routing);
        BackendStatus {
            name: backend.name.clone(),
            address: backend_text(backend.address),
            weight: weight.unwrap_or(backend.weight),
            tier: backend.tier,
            health: view.map_or(Health::Unknown, |view| view.health),
            admin: match word.map(|word| word.admin) {
                None | Some(saved::Admin::Enabled) => status::Admin::Enabled,
                Some(saved::Admin::Drain { .. }) => status::Admin::Drain,
                Some(saved::Admin::Disabled { .. }) => status::Admin::Disabled,
            },
            routing: match routing {
                Routing::Active => status::Routing::Active,
                Routing::Draining { .. } => status::Routing::Draining,
                Routing::Out => status::Routing::Out,
                Routing::Standby => status::Routing::Standby,
                Routing::Panic => status::Routing::Panic,
            },
            slots: index
                .and_then(|index| slots.get(usize::from(index)).copied())
                .unwrap_or(0),
            active_flows: index
                .and_then(|index| self.sweep.active.get(&index).copied())
                .unwrap_or(0),
            packets: traffic.packets,
            bytes: traffic.bytes,
            since: self
                .clock
                .wall(decision.map_or(self.started, |decision| decision.since)),
            reason: decision.map_or("", |decision| &decision.reason).to_owned(),
            cause: decision.map_or("", |decision| decision.cause.name()).into(),
            last_probe: view
                .and_then(TargetView::last)
                .map(|last| self.last_probe(last)),
            probe: backend.probes.first().map(|probe| probe.kind.name().into()),
            new_flows: traffic.flows,
            drain_until: match routing {
                Routing::Draining { until } => Some(self.clock.wall(until)),
                _ => None,
            },
            configured_weight: weight.map(|_| backend.weight),
            unresolved,
            unresolved_reason: unresolved
                .then(|| self.ways.problems.get(&backend.address.ip()))
                .flatten()
                .map(ToString::to_string),
            disagreement: self
                .passive
                .disagreement(&key, self.clock.now())
                .map(str::to_owned),
            signs: Signs {
                answered: traffic.answered,
                refused: traffic.refused,
                repeated: traffic.repeated,
                unreachable: traffic.unreachable,
                http_ok: traffic.http_ok,
                http_errors: traffic.http_errors,
                timed: traffic.timed,
                timed_seconds: Duration::from_nanos(traffic.timed_nanos).as_secs_f64(),
            },
            probes: probe_counts(self.engine.tally(&key)),
            share: decision.map_or(100, |decision| decision.share),
            held_until: view
                .filter(|view| view.health == Health::Unhealthy)
                .and_then(|view| view.held_until)
                .max(self.passive.doubts().get(&key).map(|doubt| doubt.until))
                .filter(|until| *until > self.clock.now())
                .map(|until| self.clock.wall(until)),
            next_probe: checks
                .iter()
                .filter_map(|check| check.next_probe)
                .min()
                .map(|next| self.clock.wall(next)),
            paused_since: word.and_then(|word| word.paused),
            ejections: view.map_or(0, |view| view.ejections.count()),
            axes: Vec::new(),
            checks: match checks {
                [] => Vec::new(),
                [one] if one.certificate_not_after.is_none() => Vec::new(),
                several => several.iter().map(|check| self.check(check)).collect(),
            },
        }
    }

    pub(super) fn check(&self, check: &CheckView) -> CheckStatus {
        CheckStatus {
            name: check.name.to_string(),
            health: check.health,
            since: self.clock.wall(check.since),
            reason: check.reason.clone(),
            last_probe: check.last().map(|last| self.last_probe(last)),
            next_probe: check.next_probe.map(|next| self.clock.wall(next)),
            certificate_not_after: check.certificate_not_after,
            history: Vec::new(),
        }
    }

    pub(super) fn last_probe(&self, last: &Record) -> LastProbe {
        LastProbe {
            outcome: match last.verdict {
                probe::Verdict::Success => "success",
                probe::Verdict::Failure => "failure",
                probe::Verdict::Internal => "internal",
            }
            .into(),
            detail: last.detail.clone(),
            latency_ms: last.latency().as_secs_f64() * 1e3,
            at: self.clock.wall(last.at()),
            class: last.class.name().into(),
        }
    }
}

const fn probe_counts(tally: Tally) -> ProbeCounts {
    let Tally {
        success,
        failure,
        internal,
        flaps,
    } = tally;
    ProbeCounts {
        success,
        failure,
        internal,
        flaps,
    }
}

/// A service's verdict counters that are not zero.
fn verdicts(agent: &Agent, service: u16) -> BTreeMap<String, u64> {
    let counted = agent.counters.verdicts.get(&service).into_iter().flatten();
    let label = |(verdict, count): &(Verdict, u64)| (verdict.label().to_owned(), *count);
    counted.filter(|(_, count)| *count > 0).map(label).collect()
}
