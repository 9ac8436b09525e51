//! Who asks: `lb run` as it is installed, and HAProxy.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::process::Process;
use lb_tests::wait::{pause, wait_for};
use lb_tests::{Agent, Backend, Config, Lab, Service};

use super::responder::{HTTP, HTTPS, address};

/// Backends of one service.
const SERVICE: u16 = 500;

/// How a check is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// A connection and a request.
    Plain,
    /// A request on a connection that stays.
    Kept,
    /// A connection, a TLS handshake that may resume a session, and a request.
    Tls,
}

/// How many are asked how often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub backends: u16,
    pub interval: Duration,
    pub timeout: Duration,
}

impl Check {
    const fn port(self) -> u16 {
        match self {
            Self::Plain | Self::Kept => HTTP,
            Self::Tls => HTTPS,
        }
    }

    fn lines(self, pace: Pace) -> String {
        let probe = match self {
            Self::Plain => "probe = \"http\"",
            Self::Kept => "probe = \"http\"\nreuse = \"10m\"\nreuse_limit = 1000000",
            Self::Tls => "probe = \"https\"",
        };
        format!(
            "{probe}\npath = \"/readyz\"\nhost = \"responder\"\ninterval = \"{}ms\"\n\
             timeout = \"{}ms\"\n",
            pace.interval.as_millis(),
            pace.timeout.as_millis()
        )
    }
}

/// The agent's configuration. Its program is on an interface of its own, so that the packets of
/// probes go the same way for everybody.
pub fn lb_config(check: Check, pace: Pace) -> Config {
    let services = (0..pace.backends.div_ceil(SERVICE)).map(|number| {
        let first = number * SERVICE;
        let backends = first..pace.backends.min(first + SERVICE);
        let vip = Ipv4Addr::new(203, 0, 113, 1 + number as u8);
        Service {
            name: format!("s{number}"),
            address: SocketAddr::new(IpAddr::V4(vip), 80),
            ports: None,
            protocol: "tcp",
            forwarding: "nat",
            options: String::new(),
            health: check.lines(pace),
            backends: backends
                .map(|number| Backend {
                    name: format!("b{number}"),
                    address: SocketAddr::new(IpAddr::V4(address(number)), check.port()),
                    options: String::new(),
                })
                .collect(),
        }
    });
    Config {
        xdp_mode: "generic",
        interfaces: &["traffic"],
        // The default; told here since its sweeps are part of what is measured.
        node: "flow_entries = 262144".to_owned(),
        services: services.collect(),
    }
}

/// Starts `lb run` and waits until every backend has its verdict.
pub fn lb<'lab>(lab: &'lab Lab, check: Check, pace: Pace) -> Result<Agent<'lab>> {
    Agent::start(lab, &lb_config(check, pace))
}

/// The same, but seldom asked: a status of thousands of backends is work of its own.
pub fn lb_at_rest<'lab>(lab: &'lab Lab, check: Check, pace: Pace) -> Result<Agent<'lab>> {
    const PATIENCE: Duration = Duration::from_secs(90);
    let mut agent = Agent::prepare(lab, &lb_config(check, pace))?;
    agent.run(&[], &[])?;
    wait_for("every backend to be healthy", PATIENCE, || {
        pause(Duration::from_secs(3))?;
        ensure!(agent.runs()?, "lb ended; its log:\n{}", agent.log());
        // Not yet answering is no error.
        let Ok(status) = agent.status() else {
            return Ok(false);
        };
        let mut backends = status.services.iter().flat_map(|service| &service.backends);
        Ok(backends.all(|backend| backend.health == "healthy"))
    })?;
    Ok(agent)
}

/// Ends it, and leaves nothing behind for the next.
pub fn end_lb(mut agent: Agent<'_>) -> Result<()> {
    agent.tell_log = false;
    agent.terminate()?;
    agent.lb(&["detach"])?.ok()?;
    Ok(())
}

/// HAProxy with one thread and the same question to the same backends.
pub fn haproxy(lab: &Lab, check: Check, resume: bool, pace: Pace) -> Result<Process> {
    let file = lab.folder().join("haproxy.cfg");
    std::fs::write(&file, haproxy_config(lab.folder(), check, resume, pace))
        .with_context(|| format!("cannot write {}", file.display()))?;
    let mut command = lab.lb.namespace.command("haproxy");
    command.args(["-db", "-q", "-f"]).arg(&file);
    Process::spawn(&mut command, "haproxy")
}

fn haproxy_config(folder: &Path, check: Check, resume: bool, pace: Pace) -> String {
    let tls = match (check, resume) {
        (Check::Plain | Check::Kept, _) => "",
        (Check::Tls, true) => " check-ssl",
        (Check::Tls, false) => " check-ssl no-ssl-reuse",
    };
    let mut text = format!(
        "global\n  nbthread 1\n  maxconn 4096\n  spread-checks 5\n  ssl-server-verify none\n  \
         stats socket {}/haproxy.sock\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n  \
         timeout check {}ms\n  option httpchk\n  \
         http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host responder hdr Connection close\n  \
         http-check expect status 200\n  default-server inter {}ms fall 3 rise 2\n",
        folder.display(),
        pace.timeout.as_millis(),
        pace.interval.as_millis()
    );
    for number in 0..pace.backends {
        if number % SERVICE == 0 {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "backend s{}", number / SERVICE);
        }
        let to = SocketAddr::new(IpAddr::V4(address(number)), check.port());
        let _ = writeln!(text, "  server b{number} {to} check{tls}");
    }
    text
}
