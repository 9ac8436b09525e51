//! The demo's set-up: the laboratory's network, its servers, the agent and the requests that run
//! the whole time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::{Amount, Load, Tally, grpc, udp};
use lb_tests::server_handle::{GRPC, HTTP, UDP_ECHO};
use lb_tests::wait::pause;
use lb_tests::{Agent, Config, Lab, Server, Service};

use super::report::Report;

/// Probe settings of all services.
const INTERVAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_millis(200);
const UNHEALTHY: u32 = 3;
const HEALTHY: u32 = 2;

/// Longest time from a failure to the ejection: interval × unhealthy_threshold + timeout.
pub fn eject_budget() -> Duration {
    INTERVAL * UNHEALTHY + TIMEOUT
}

/// Longest time from the recovery to the return.
pub fn readmit_budget() -> Duration {
    INTERVAL * HEALTHY + TIMEOUT
}

/// The HTTP backends.
pub const WEB: [&str; 3] = ["b1", "b2", "b3"];

/// VIP of the service `web`.
pub fn web() -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], 80)
}

fn direct() -> SocketAddr {
    SocketAddr::new(DSR_VIP[1], HTTP)
}

fn rpc() -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], GRPC)
}

fn echo() -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], UDP_ECHO)
}

fn health(kind: &str) -> String {
    format!(
        "{kind}\ninterval = \"{}ms\"\ntimeout = \"{}ms\"\nunhealthy_threshold = {UNHEALTHY}\n\
         healthy_threshold = {HEALTHY}",
        INTERVAL.as_millis(),
        TIMEOUT.as_millis()
    )
}

/// The services, as a user would configure them.
pub fn config(lab: &Lab) -> Config {
    let http = health(&format!(
        "probe = \"http\"\npath = \"/readyz\"\nport = {HTTP}"
    ));
    let web = Service::tcp(lab, "web", web(), HTTP)
        .only(&WEB)
        .health(&http);
    let direct = Service::tcp(lab, "direct", direct(), HTTP)
        .only(&WEB)
        .health(&http)
        .dsr();
    let rpc = Service::tcp(lab, "rpc", rpc(), GRPC)
        .only(&["b4"])
        .health(&health("probe = \"grpc\""));
    let echo = Service::tcp(lab, "echo", echo(), UDP_ECHO)
        .only(&WEB)
        .health(&http)
        .udp();
    Config::new(vec![web, direct, rpc, echo])
}

/// Everything that runs.
pub struct Stage<'lab> {
    /// The network.
    pub lab: &'lab Lab,
    /// The agent.
    pub agent: Agent<'lab>,
    /// Servers of b1, b2, b3 and b4.
    pub servers: Vec<Server>,
    /// New connections to `web`, one for each request.
    pub web: Load,
    /// The other services' requests, with their names.
    pub others: Vec<(&'static str, Load)>,
    /// What the viewer reads.
    pub report: Report,
}

/// The counts at one moment, of `web` and of the others.
pub struct Mark {
    web: Tally,
    others: Vec<Tally>,
    /// When.
    pub at: Instant,
}

impl<'lab> Stage<'lab> {
    /// Starts the requests, with servers and the agent running.
    pub fn open(
        lab: &'lab Lab,
        agent: Agent<'lab>,
        servers: Vec<Server>,
        report: Report,
    ) -> Result<Self> {
        let amount = Amount {
            workers: 2,
            pause: Duration::from_millis(5),
            each: None,
        };
        let few = Amount {
            workers: 1,
            pause: Duration::from_millis(15),
            each: None,
        };
        let client = &lab.client;
        let others = vec![
            ("direct", Load::http(client, direct(), false, few)?),
            (
                "rpc",
                Load::start(client, few, || grpc::Client::new(rpc()))?,
            ),
            (
                "echo",
                Load::start(client, few, || udp::Client::new(echo(), false))?,
            ),
        ];
        let web = Load::http(client, web(), false, amount)?;
        Ok(Self {
            lab,
            agent,
            servers,
            web,
            others,
            report,
        })
    }

    /// The counts now.
    pub fn mark(&self) -> Mark {
        Mark {
            web: self.web.tally(),
            others: self.others.iter().map(|(_, load)| load.tally()).collect(),
            at: Instant::now(),
        }
    }

    /// Requests to `web` since the mark.
    pub fn web_since(&self, mark: &Mark) -> Tally {
        self.web.tally().since(&mark.web)
    }

    /// Failed requests of all services since the mark.
    pub fn failed_since(&self, mark: &Mark) -> u64 {
        let others = self.others.iter().zip(&mark.others);
        let others = others.map(|((_, load), before)| load.tally().since(before).failed);
        self.web_since(mark).failed + others.sum::<u64>()
    }

    /// Prints all requests since the mark.
    pub fn tell(&mut self, mark: &Mark) {
        self.report.tally("web", &self.web.tally().since(&mark.web));
        for ((name, load), before) in self.others.iter().zip(&mark.others) {
            self.report.tally(name, &load.tally().since(before));
        }
    }

    /// Lets the requests go on for a while, with a live count.
    pub fn watch(&mut self, time: Duration) -> Result<()> {
        let mark = self.mark();
        while mark.at.elapsed() < time {
            self.tick(&mark)?;
        }
        Ok(())
    }

    /// One step of waiting, with a live count since the mark.
    pub fn tick(&mut self, mark: &Mark) -> Result<()> {
        let web = self.web_since(mark);
        let line = format!(
            "{:>4.1} s  web: {} requests, {} failed  {:?}",
            mark.at.elapsed().as_secs_f64(),
            web.requests(),
            web.failed,
            web.answered
        );
        self.report.live(&line);
        pause(Duration::from_millis(50))
    }

    /// Waits until the status of `web` is as wanted; gives the time it took since the mark, or
    /// nothing if it did not come within `limit`.
    pub fn until(
        &mut self,
        mark: &Mark,
        limit: Duration,
        wanted: impl Fn(&lb_tests::status::Service) -> bool,
    ) -> Result<Option<Duration>> {
        while mark.at.elapsed() < limit {
            let status = self.agent.status()?;
            // Decided is not yet done: the data plane must have caught up.
            if wanted(status.service("web")?) && status.node.verdict_age_seconds == 0.0 {
                return Ok(Some(mark.at.elapsed()));
            }
            self.tick(mark)?;
        }
        Ok(None)
    }

    /// Repeats what the agent itself says of the last event of this kind.
    pub fn quote(&mut self, kind: &str) -> Result<()> {
        let events = self.agent.events()?;
        let about_web =
            |event: &&serde_json::Value| event["kind"] == kind && event["service"] == "web";
        if let Some(event) = events.iter().rev().find(about_web) {
            let name = event["backend"]
                .as_str()
                .map_or("web".into(), |name| format!("web/{name}"));
            let reason = event["reason"].as_str().unwrap_or_default();
            self.report
                .note(&format!("lb says: {name} {kind}: {reason}"));
        }
        Ok(())
    }

    /// All requests of the demo so far, in one tally.
    pub fn all_requests(&self) -> Tally {
        let mut all = self.web.tally();
        for (name, load) in &self.others {
            let tally = load.tally();
            all.failed += tally.failed;
            *all.answered.entry((*name).into()).or_default() += tally.requests() - tally.failed;
        }
        all
    }
}
