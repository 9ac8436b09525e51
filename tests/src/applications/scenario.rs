//! Changes of every kind, one after the other, while the applications' connections are in use.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::backend::{Applications, GRPC, HAPROXY, NGINX, iperf_log};
use super::change::{Change, SPARE, USUAL};
use super::excuse::Excuses;
use super::report::Report;
use super::service::{DRAIN_DEADLINE, Mode, services};
use super::session::{Session, Use};
use super::{iperf, talk};
use crate::agent::{Agent, SOON};
use crate::config::Config;
use crate::decap::Decap;
use crate::lab::Lab;
use crate::skip;
use crate::wait::{pause, wait_for};

/// Backends of the laboratory that the scenario needs.
pub const BACKENDS: u8 = 4;

/// Rest between the exchanges of a connection.
const PAUSE: Duration = Duration::from_millis(50);

/// Long connections, one of each to every backend.
const LONG: [(Use, u16); 4] = [
    (long("nginx download", talk::nginx), NGINX),
    (long("HAProxy download", talk::haproxy), HAPROXY),
    (long("WebSocket by nginx", talk::websocket), NGINX),
    (long("gRPC stream", talk::grpc), GRPC),
];
/// New connections all the time.
const SHORT: Use = Use {
    once: true,
    ..long("nginx new connections", talk::request)
};
const IPERF: &str = "iperf3 both ways";

const fn long(name: &'static str, open: talk::Open) -> Use {
    Use {
        name,
        open,
        once: false,
        pause: PAUSE,
    }
}

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// So many rounds, each with a change of every kind.
    Rounds(u32),
    /// Whole rounds until this time is over.
    Time(Duration),
}

/// Why the applications cannot run here, if they cannot.
pub fn missing() -> Option<String> {
    if let Some(reason) = skip::reason() {
        return Some(reason);
    }
    let tools = ["nginx", "haproxy", "iperf3"];
    let tool = tools.into_iter().find(|tool| !skip::installed(tool))?;
    Some(format!(
        "`{tool}` is not installed (`cargo xtask setup --ci` installs it)"
    ))
}

/// Backends, balancer and connections.
#[derive(Debug)]
pub struct Scenario<'lab> {
    // In the order of dropping: clients before servers.
    sessions: Vec<Session>,
    agent: Agent<'lab>,
    applications: Vec<Applications>,
    /// On every backend, where a mode is a tunnel.
    _decaps: Vec<Decap>,
    lab: &'lab Lab,
    modes: Vec<Mode>,
    excuses: Excuses,
    changes: BTreeMap<&'static str, u64>,
    started: Instant,
}

impl<'lab> Scenario<'lab> {
    /// Starts everything in a laboratory of [`BACKENDS`] backends, and waits until every
    /// connection is in use.
    pub fn start(lab: &'lab Lab, modes: &[Mode]) -> Result<Self> {
        let applications = lab
            .backends
            .iter()
            .map(|host| Applications::start(lab, host, modes))
            .collect::<Result<_>>()?;
        let decaps = if modes.iter().any(|mode| mode.is_tunnel()) {
            let hosts = lab.backends.iter();
            hosts.map(|host| Decap::start(host, "native")).collect()
        } else {
            Ok(Vec::new())
        };
        let agent = Agent::start(lab, &config(lab, modes, false))?;
        let mut scenario = Self {
            sessions: Vec::new(),
            agent,
            applications,
            _decaps: decaps?,
            lab,
            modes: modes.to_vec(),
            excuses: Excuses::default(),
            changes: BTreeMap::new(),
            started: Instant::now(),
        };
        for mode in modes {
            for backend in USUAL {
                scenario.open(*mode, backend)?;
            }
            for _ in 0..2 {
                let name = format!("{} {}", mode.word(), SHORT.name);
                scenario.session(name, *mode, NGINX, SHORT, None)?;
            }
            scenario.iperf(*mode)?;
        }
        scenario.progress()?;
        Ok(scenario)
    }

    /// Whether the agent's log is printed at the end.
    pub fn tell_log(&mut self, tell: bool) {
        self.agent.tell_log = tell;
    }

    /// Makes changes until it is enough; `tell` hears of each before it is made. What broke is in
    /// the report.
    ///
    /// # Errors
    /// If the balancer or a server did not do what it was told, or a connection stood still.
    pub fn play(mut self, until: Until, mut tell: impl FnMut(&str)) -> Result<Report> {
        self.started = Instant::now();
        let mut result = Ok(());
        for round in 0.. {
            let enough = match until {
                Until::Rounds(rounds) => round >= rounds,
                Until::Time(time) => self.started.elapsed() >= time,
            };
            if enough || result.is_err() {
                break;
            }
            result = self.round(round, &mut tell);
        }
        let result = result.and_then(|()| self.iperf_was_used());
        for session in &self.sessions {
            session.stop();
        }
        let report = Report::new(&self.sessions, self.changes.clone(), self.started.elapsed());
        match result.and_then(|()| report.must_be_clean()) {
            Ok(()) => Ok(report),
            Err(error) => {
                let events = self.agent.lb(&["events"]).map(|output| output.out);
                let events = events.unwrap_or_default();
                let tail: Vec<&str> = events.lines().rev().take(60).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                Err(error.context(format!("{report}\nlb events:\n{}", tail.join("\n"))))
            }
        }
    }

    fn round(&mut self, number: u32, tell: &mut impl FnMut(&str)) -> Result<()> {
        for change in Change::round(number) {
            tell(&change.to_string());
            self.make(change).with_context(|| change.to_string())?;
            let after = || format!("after: {change}");
            self.progress().with_context(after)?;
        }
        Ok(())
    }

    fn make(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Weigh(backend, weight) => self.weigh(backend, weight),
            Change::Kill(backend) => self.kill(backend),
            Change::Revive(backend) => self.revive(backend),
            Change::Drain(backend) => self.drain(backend),
            Change::Enable(backend) => self.enable(backend),
            Change::Fail(backend) => self.fail(backend),
            Change::Mend(backend) => self.mend(backend),
            Change::Add => self.add(),
            Change::Remove => self.remove(),
            Change::KillAgent => self.kill_agent(),
            Change::StartAgent => self.start_agent(),
        }?;
        *self.changes.entry(change.kind()).or_default() += 1;
        Ok(())
    }

    fn weigh(&mut self, backend: usize, weight: u32) -> Result<()> {
        self.operate("weight", USUAL[backend], &[&weight.to_string()])?;
        self.agent.wait_status("the weight", |status| {
            let mut services = status.services.iter();
            Ok(services.all(|service| {
                let mut backends = service.backends.iter();
                backends.any(|found| found.name == USUAL[backend] && found.weight == weight)
            }))
        })
    }

    fn kill(&mut self, backend: usize) -> Result<()> {
        self.excuses.dies(USUAL[backend]);
        self.applications[backend].kill()?;
        self.wait(USUAL[backend], "out")?;
        self.excuses.gone(USUAL[backend]);
        Ok(())
    }

    fn revive(&mut self, backend: usize) -> Result<()> {
        let host = &self.lab.backends[backend];
        self.applications[backend] = Applications::start(self.lab, host, &self.modes)?;
        self.wait(USUAL[backend], "active")
    }

    fn drain(&mut self, backend: usize) -> Result<()> {
        self.leaves(USUAL[backend]);
        self.operate("drain", USUAL[backend], &[])?;
        self.wait(USUAL[backend], "draining")
    }

    fn enable(&mut self, backend: usize) -> Result<()> {
        self.operate("enable", USUAL[backend], &[])?;
        self.wait(USUAL[backend], "active")?;
        self.excuses.returns(USUAL[backend]);
        Ok(())
    }

    fn fail(&mut self, backend: usize) -> Result<()> {
        self.leaves(USUAL[backend]);
        self.applications[backend].ready(false)?;
        self.wait(USUAL[backend], "draining")
    }

    fn mend(&mut self, backend: usize) -> Result<()> {
        self.applications[backend].ready(true)?;
        self.wait(USUAL[backend], "active")?;
        self.excuses.returns(USUAL[backend]);
        Ok(())
    }

    fn add(&mut self) -> Result<()> {
        self.reload(true)?;
        self.wait(SPARE, "active")?;
        self.excuses.returns(SPARE);
        // Connections that the removal must leave alone for a while; they go on with others after.
        if !self.changes.contains_key(Change::Add.kind()) {
            for mode in self.modes.clone() {
                self.open(mode, SPARE)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        self.leaves(SPARE);
        self.reload(false)
    }

    fn kill_agent(&mut self) -> Result<()> {
        self.agent.kill()?;
        // Packets go on without one, and not only for a moment.
        pause(Duration::from_secs(1))
    }

    fn start_agent(&mut self) -> Result<()> {
        self.agent.run(&[], &[])?;
        self.wait(SPARE, "active")
    }

    fn leaves(&self, backend: &str) {
        let deadline = Instant::now() + Duration::from_secs(DRAIN_DEADLINE);
        self.excuses.leaves(backend, deadline);
    }

    fn reload(&mut self, spare: bool) -> Result<()> {
        self.agent
            .configure(&config(self.lab, &self.modes, spare))?;
        self.agent.lb(&["reload"])?.ok().map(drop)
    }

    /// Runs a command for a backend in each of the services.
    fn operate(&self, command: &str, backend: &str, arguments: &[&str]) -> Result<()> {
        for service in self.agent.status()?.services {
            let path = format!("{}/{backend}", service.name);
            let words: Vec<&str> = [&[command, &path], arguments].concat();
            self.agent.lb(&words)?.ok()?;
        }
        Ok(())
    }

    /// Waits until a backend has this routing in all services.
    fn wait(&mut self, backend: &str, routing: &str) -> Result<()> {
        let what = format!("{backend} to be {routing} in all services");
        self.agent.wait_status(&what, |status| {
            Ok(status.services.iter().all(|service| {
                let mut backends = service.backends.iter();
                backends.any(|found| found.name == backend && found.routing == routing)
            }))
        })
    }

    /// Waits until every session has exchanged something more.
    fn progress(&self) -> Result<()> {
        let count = |session: &Session| session.record().exchanges;
        let before: Vec<u64> = self.sessions.iter().map(count).collect();
        let late = || {
            let sessions = self.sessions.iter().zip(&before);
            // A test of iperf3 takes longer than most changes.
            let late = sessions
                .filter(|(session, _)| !session.name.ends_with(IPERF))
                .find(|(session, before)| count(session) < **before + 3);
            late.map(|(session, _)| (session.name.clone(), session.record()))
        };
        wait_for("every connection to be used", SOON, || Ok(late().is_none()))
            .with_context(|| format!("not used: {:?}", late()))?;
        // A break is noticed within the time that a wait may take; a RST at once.
        pause(2 * PAUSE)
    }

    fn iperf_was_used(&self) -> Result<()> {
        wait_for("a whole test of iperf3", SOON, || {
            let sessions = self.sessions.iter();
            let mut tests = sessions.filter(|session| session.name.ends_with(IPERF));
            Ok(tests.all(|session| session.record().exchanges > 0))
        })
    }

    /// Opens a long connection of each application to a backend.
    fn open(&mut self, mode: Mode, backend: &str) -> Result<()> {
        for (how, port) in LONG {
            let name = format!("{} {}", mode.word(), how.name);
            self.session(name, mode, port, how, Some(backend.to_owned()))?;
        }
        Ok(())
    }

    fn session(
        &mut self,
        name: String,
        mode: Mode,
        port: u16,
        how: Use,
        first: Option<String>,
    ) -> Result<()> {
        let (client, to) = (&self.lab.client, mode.at(port));
        let session = Session::start(client, name, to, how, first, &self.excuses)?;
        self.sessions.push(session);
        Ok(())
    }

    fn iperf(&mut self, mode: Mode) -> Result<()> {
        let port = mode.iperf_port();
        let hosts = self.lab.backends.iter();
        let logs: Vec<_> = hosts
            .map(|host| (host.name.clone(), iperf_log(self.lab, &host.name, port)))
            .collect();
        let excuses = self.excuses.clone();
        let name = format!("{} {IPERF}", mode.word());
        let session = Session::spawn(&self.lab.client, name, move |record, stop| {
            iperf::repeat(mode.at(port), &logs, &excuses, record, stop);
        })?;
        self.sessions.push(session);
        Ok(())
    }
}

fn config(lab: &Lab, modes: &[Mode], spare: bool) -> Config {
    let mut backends = USUAL.to_vec();
    backends.extend(spare.then_some(SPARE));
    let all = modes.iter();
    Config::new(
        all.flat_map(|mode| services(lab, *mode, &backends))
            .collect(),
    )
}
