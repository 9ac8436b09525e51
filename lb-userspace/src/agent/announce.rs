//! Which VIPs are announced, and what is told of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tracing::{error, info, warn};

use super::core::Core;
use crate::announce::routes::{Report, Wanted};
use crate::announce::{self, Known, State, Turn};
use crate::api::event::{Change, Evidence, Kind, Origin};
use crate::api::status::QuorumStatus;
use crate::model::{Backend, Service};

/// What the agent knows of the VIPs that are announced.
#[derive(Debug, Default)]
pub(super) struct Announced {
    state: State,
    /// What the kernel has of it.
    report: Report,
    /// Changes that the kernel has not confirmed yet; the last for each VIP.
    turns: Vec<Turn>,
    /// Something has changed since it was decided.
    pub(super) dirty: bool,
    next_deadline: Option<Duration>,
    was_attached: bool,
}

impl Announced {
    /// Of an agent that finds routes to these VIPs.
    pub(super) fn adopt(vips: BTreeSet<IpAddr>) -> Self {
        for vip in &vips {
            info!(%vip, "found announced");
        }
        Self {
            state: State::adopt(vips.iter().copied()),
            report: Report {
                standing: vips,
                ..Report::default()
            },
            dirty: true,
            ..Self::default()
        }
    }

    /// When time alone changes what is announced.
    pub(super) const fn next_deadline(&self) -> Option<Duration> {
        self.next_deadline
    }

    /// Why the routes are not as they should be.
    pub(super) fn error(&self) -> Option<String> {
        self.report.error.clone()
    }
}

impl Core {
    /// The routes that are to stand now; `attached`: the program is on all interfaces.
    pub fn announcements(&mut self, attached: bool) -> Wanted {
        let now = self.clock.now();
        let passed = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        if attached != self.announced.was_attached
            || self.announced.dirty
            || passed(self.announced.next_deadline)
        {
            self.announced.was_attached = attached;
            self.announced.dirty = false;
            self.decide_announcements(now);
        }
        Wanted {
            table: self.model.node.announce_table,
            vips: self.announced.state.announced().collect(),
        }
    }

    fn decide_announcements(&mut self, now: Duration) {
        let ready = self.announced.was_attached
            && self.applied > 0
            && self.applied == self.generation
            && self.datapath_error.is_none();
        let input = announce::Input {
            services: self.services(),
            routing: &self.routing,
            known: &|service, backend| self.known(service, backend),
            ready,
        };
        let decided = announce::decide(&input, &self.announced.state, now);
        self.announced.state = decided.state;
        self.announced.next_deadline = decided.next_deadline;
        for turn in decided.turns {
            self.announced.turns.retain(|old| old.vip != turn.vip);
            self.announced.turns.push(turn);
        }
    }

    fn known(&self, service: &Service, backend: &Backend) -> Known {
        let index = self.builder.index(service, backend);
        let entry = index.and_then(|index| self.built.backends.get(&index));
        let view = self.engine.get(&service.key(backend));
        Known {
            remembered: view.is_some_and(|view| view.assumed),
            reached: entry.is_some_and(|entry| entry.path.is_some()),
        }
    }

    /// The kernel has routes other than before.
    pub fn routes_changed(&mut self, report: Report) {
        if let Some(why) = &report.error
            && self.announced.report.error.as_ref() != Some(why)
        {
            error!("announcing: {why}");
        }
        for vip in &report.put_back {
            let what = format!("somebody else had removed or changed the route to {vip}: put back");
            warn!("{what}");
            self.record(Change::node(Kind::Announced, Origin::Agent, what));
        }
        let standing = &report.standing;
        let turns = std::mem::take(&mut self.announced.turns);
        let (done, wait): (Vec<_>, Vec<_>) = turns
            .into_iter()
            .partition(|turn| turn.announced == standing.contains(&turn.vip));
        self.announced.turns = wait;
        for turn in done {
            self.tell_turn(turn);
        }
        // Withdrawn for a detach that has failed.
        for vip in &report.standing {
            if !self.withdrawals.contains_key(vip) {
                self.hook(*vip, true, "its route stands again");
            }
        }
        self.announced.report = report;
    }

    /// All VIPs were withdrawn, since the data plane is taken off.
    pub fn withdrawn(&mut self) {
        for vip in std::mem::take(&mut self.announced.report.standing) {
            let reason = "the data plane is about to be taken off";
            self.hook(vip, false, reason);
            let what = format!("{vip}: {reason}");
            let change = Change::node(Kind::Withdrawn, Origin::Agent, what);
            self.record(change.states("announced", "withdrawn"));
        }
    }

    fn tell_turn(&mut self, turn: Turn) {
        let Turn {
            vip,
            announced,
            service,
            reason,
            percent,
        } = turn;
        let (kind, states) = if announced {
            (Kind::Announced, ["withdrawn", "announced"])
        } else {
            (Kind::Withdrawn, ["announced", "withdrawn"])
        };
        self.hook(vip, announced, &reason);
        let what = format!("{vip}: {reason}");
        info!("{}: {what}", kind.name());
        let [from, to] = states;
        let change = match service {
            Some(service) => Change::service(kind, &service, Origin::Probe, what),
            None => Change::node(kind, Origin::Config, what),
        };
        let evidence = Evidence {
            serving_percent: percent,
            ..Evidence::default()
        };
        self.record(change.states(from, to).on(evidence));
    }

    /// What `lb status` shows of a service's quorum.
    pub(super) fn quorum_status(&self, service: &Service) -> Option<QuorumStatus> {
        let rules = service.announce.as_ref()?;
        let state = &self.announced.state;
        let quorum = state.services.get(&service.name)?;
        Some(QuorumStatus {
            held: quorum.held,
            percent: quorum.percent,
            needed: rules.quorum,
            regained_at: rules.regained_at(),
        })
    }

    /// Whether the VIP of a service that asks for it is announced, and why, or why not.
    pub(super) fn announced_status(&self, service: &Service) -> (Option<bool>, Option<String>) {
        if service.announce.is_none() {
            return (None, None);
        }
        let vip = service.address.ip();
        let wanted = self.announced.state.vips.get(&vip);
        let stands = self.announced.report.standing.contains(&vip);
        (Some(stands), wanted.map(|vip| vip.reason.clone()))
    }
}
