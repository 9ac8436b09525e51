//! A prober that lacks CPU, descriptors or ports says so, and ejects nobody.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::cgroup::Cgroup;
use lb_tests::lab::NAT_VIP;
use lb_tests::load::http::Client;
use lb_tests::server_handle::HTTP;
use lb_tests::wait::pause;
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

/// The agent's own endpoints.
const PORT: u16 = 9400;

fn start(lab: &Lab) -> Result<Agent<'_>> {
    let service = Service::tcp(lab, "web", SocketAddr::new(NAT_VIP[0], 80), HTTP);
    let mut config = Config::new(vec![service]);
    config.node = format!("http = \"{}:{PORT}\"", lab.lb.v4);
    Agent::start(lab, &config)
}

fn endpoints(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.lb.v4, PORT)
}

/// Nobody has been ejected, and nobody is.
fn nobody_was_ejected(agent: &mut Agent<'_>) -> Result<()> {
    agent.wait_event("prober", "keeps up again")?;
    agent.settled()?;
    let events = agent.events()?;
    let ejected = |event: &&serde_json::Value| {
        ["ejected", "draining", "panic_entered"]
            .iter()
            .any(|kind| event["kind"] == *kind)
    };
    let bad: Vec<_> = events.iter().filter(ejected).collect();
    ensure!(bad.is_empty(), "{bad:?}");
    Ok(())
}

#[test]
fn a_prober_that_was_stopped_ejects_nobody() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = start(lab)?;
        // Each time more than the three probes in a row that would eject.
        for _ in 0..3 {
            agent.freeze()?;
            pause(Duration::from_millis(1500))?;
            agent.thaw()?;
            pause(Duration::from_millis(200))?;
        }
        agent.wait_event("prober", "overloaded")?;
        nobody_was_ejected(&mut agent)
    })
}

#[test]
fn a_prober_without_cpu_ejects_nobody() -> Result<()> {
    with_lab(|lab, _servers| {
        let group = match Cgroup::new()? {
            Ok(group) => group,
            Err(reason) => {
                println!("SKIPPED a_prober_without_cpu_ejects_nobody: {reason}");
                return Ok(());
            }
        };
        let mut agent = start(lab)?;
        group.starve(agent.process_id().context("lb does not run")?)?;
        agent.wait_event("prober", "overloaded")?;
        pause(Duration::from_secs(4))?;
        group.release()?;
        nobody_was_ejected(&mut agent)?;
        agent.kill()
    })
}

#[test]
fn a_prober_without_descriptors_ejects_nobody() -> Result<()> {
    with_lab(|lab, servers| {
        let mut agent = start(lab)?;
        let process = agent.process_id().context("lb does not run")?.to_string();
        let limit = |descriptors: &str| {
            let words = ["--pid", &process, &format!("--nofile={descriptors}")];
            lab.lb.namespace.run("prlimit", &words).map(drop)
        };
        // Nor can the agent take another connection then: this one is kept.
        let mut client = Client::new(endpoints(lab), true);
        let mut get = |path: &str| {
            let (status, body) = lab.client.namespace.within(|| client.fetch(path))??;
            Ok::<_, anyhow::Error>((status, String::from_utf8(body)?))
        };
        ensure!(get("/healthz")?.1.contains("\"status\":\"ok\""));
        limit("8:4096")?;
        wait_for("/healthz to tell", SOON, || {
            Ok(get("/healthz")?.1.contains("\"status\":\"degraded\""))
        })?;
        // As many rounds as would eject, and one more.
        pause(Duration::from_millis(1500))?;
        let (status, health) = get("/healthz")?;
        ensure!(
            status == 200 && health.contains("\"prober_keeps_up\":false"),
            "{health}"
        );
        ensure!(get("/readyz")?.0 == 200, "packets are forwarded as before");
        let metrics = get("/metrics")?.1;
        ensure!(metrics.contains("\nlb_prober_overloaded 1\n"), "{metrics}");
        let healthy = metrics
            .lines()
            .filter(|line| line.starts_with("lb_backend_health{"))
            .filter(|line| line.contains("state=\"healthy\"} 1"));
        ensure!(healthy.count() == 3, "{metrics}");
        limit("4096:4096")?;
        nobody_was_ejected(&mut agent)?;
        // It was the shortage that held, nothing else: who dies now is out.
        servers[0].kill()?;
        agent.wait_routing("web/b1", "out")
    })
}

#[test]
fn a_prober_without_ports_ejects_nobody() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = start(lab)?;
        let host = &lab.lb.namespace;
        let range = host.run("cat", &["/proc/sys/net/ipv4/ip_local_port_range"])?;
        // Two ports, and somebody has them.
        let taken = host.within(|| {
            let listen = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
            Ok::<_, std::io::Error>([listen(61_000)?, listen(61_001)?])
        })??;
        host.sysctl(&[("ipv4/ip_local_port_range", "61000 61001")])?;
        agent.wait_status("the prober to be short of ports", |status| {
            let mut backends = status.services.iter().flat_map(|service| &service.backends);
            Ok(backends.all(|backend| {
                let last = backend.last_probe.as_ref();
                last.is_some_and(|last| {
                    last.outcome == "internal" && last.detail.contains("local port")
                }) && backend.routing == "active"
            }))
        })?;
        pause(Duration::from_millis(1500))?;
        let text = agent.lb(&["status"])?.ok()?;
        ensure!(text.contains("the prober is overloaded"), "{text}");
        let status = agent.raw_status()?;
        ensure!(status["node"]["prober"]["overloaded"] == true, "{status}");
        drop(taken);
        host.sysctl(&[("ipv4/ip_local_port_range", range.trim())])?;
        nobody_was_ejected(&mut agent)
    })
}

/// Fewer probes are allowed than are due: that is no overload, and ends with the limit.
#[test]
fn a_limited_prober_is_late_and_not_overloaded() -> Result<()> {
    with_lab(|lab, _servers| {
        let service = Service::tcp(lab, "web", SocketAddr::new(NAT_VIP[0], 80), HTTP);
        let mut config = Config::new(vec![service]);
        config.node = "probes_per_second = 2\nprobes_in_flight = 1".to_owned();
        let mut agent = Agent::start(lab, &config)?;
        let prober = |agent: &Agent<'_>| -> Result<serde_json::Value> {
            Ok(agent.raw_status()?["node"]["prober"].clone())
        };
        wait_for("probes to be left out", SOON, || {
            Ok(prober(&agent)?["skipped"].as_u64() > Some(20))
        })?;
        let status = agent.raw_status()?["node"].clone();
        let limited = &status["prober"];
        ensure!(
            limited["overloaded"] == false && limited["short"] == 0,
            "{limited}"
        );
        let (probes, seconds) = (&limited["success"], &status["uptime_seconds"]);
        println!("{probes} probes in {seconds} s");
        let most = 2.0 * seconds.as_f64().context("no time")? + 2.0;
        ensure!(
            probes.as_f64().is_some_and(|probes| probes <= most),
            "{status}"
        );
        config.node = String::new();
        agent.configure(&config)?;
        agent.lb(&["reload"])?.ok()?;
        wait_for("probes to be in time", SOON, || {
            let prober = prober(&agent)?;
            Ok(prober["success"].as_f64() > Some(most)
                && prober["lag_seconds"].as_f64().is_some_and(|lag| lag < 0.1))
        })?;
        agent.settled()?;
        let events = agent.events()?;
        let bad = events
            .iter()
            .find(|event| event["kind"] == "prober" || event["kind"] == "ejected");
        ensure!(bad.is_none(), "{bad:?}");
        Ok(())
    })
}
