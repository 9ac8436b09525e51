//! Passive detection: a backend that dies under load is out long before its probes could say so, and
//! nobody is ejected for losses.
//!
//! `LB_DEATHS=20 LB_LOSS_SECONDS=600 cargo test -p lb-tests --test passive -- --nocapture` kills more
//! often and loses packets for longer.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use lb_tests::agent::SOON;
use lb_tests::decap::Decap;
use lb_tests::lab::{DSR_VIP, Host, NAT_VIP};
use lb_tests::load::arrivals::Arrivals;
use lb_tests::server::Order;
use lb_tests::server_handle::{HTTP, Server};
use lb_tests::{Agent, Config, Lab, Service, skip, wait_for, with_lab};

/// New connections for all three backends in a second.
const LOAD: u32 = 150;
/// How often a death is repeated that the traffic did not tell of.
const ATTEMPTS: u32 = 3;
/// The probes that would have taken 5 s x 3 + 2 s.
const PROBES: &str = "probe = \"http\"\npath = \"/readyz\"\nport = 8080\n\
                      interval = \"5s\"\ntimeout = \"2s\"\nunhealthy_threshold = 3";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    ProcessKilled,
    HostGone,
    PortFiltered,
    AcceptQueueFull,
    Errors500,
}

impl Death {
    /// Strikes b1.
    fn strike(self, lab: &Lab, server: &mut Server) -> Result<()> {
        let b1 = lab.backend(1);
        match self {
            Self::ProcessKilled => server.kill(),
            Self::HostGone => lab.plug(b1, false),
            Self::PortFiltered => filter(b1, &format!("tcp dport {HTTP} drop")),
            Self::AcceptQueueFull => server.freeze(),
            Self::Errors500 => server.order(Order::Fail),
        }
    }

    /// Undoes it.
    fn mend(self, lab: &Lab, server: &mut Server) -> Result<()> {
        let b1 = lab.backend(1);
        match self {
            Self::ProcessKilled => {
                *server = Server::start(b1)?;
                Ok(())
            }
            Self::HostGone => lab.plug(b1, true),
            Self::PortFiltered => b1
                .namespace
                .run("nft", &["delete table inet lost"])
                .map(drop),
            Self::AcceptQueueFull => server.thaw(),
            Self::Errors500 => server.order(Order::Work),
        }
    }
}

/// A rule for what comes in to a host.
fn filter(host: &Host, rule: &str) -> Result<()> {
    let table = "table inet lost {\n chain in {\n type filter hook input priority 0\n";
    let rules = format!("{table} {rule}\n }}\n}}");
    host.namespace.run("nft", &[&rules]).map(drop)
}

/// A laboratory whose servers have short accept queues.
fn laboratory() -> Result<(Lab, Vec<Server>)> {
    let lab = Lab::new(3)?;
    for host in &lab.backends {
        host.namespace
            .run("sysctl", &["-qw", "net.core.somaxconn=4"])?;
    }
    let servers = lab.serve()?;
    Ok((lab, servers))
}

fn service(lab: &Lab, forwarding: &'static str) -> Service {
    let vip = if forwarding == "nat" {
        NAT_VIP
    } else {
        DSR_VIP
    }[0];
    // By DSR packets keep the port.
    let address = SocketAddr::new(vip, HTTP);
    Service::tcp(lab, "web", address, HTTP)
        .forwarded(forwarding)
        .health(PROBES)
}

/// Seconds of the day at an event.
fn second_of(event: &serde_json::Value) -> Result<f64> {
    let at = event["at"].as_str().context("an event without a time")?;
    let (_, time) = at
        .trim_end_matches('Z')
        .split_once('T')
        .context("no time")?;
    let mut parts = time.split(':').map(str::parse::<f64>);
    let mut next = || parts.next().context("a time is too short");
    Ok(next()?? * 3600.0 + next()?? * 60.0 + next()??)
}

fn second_of_now() -> Result<f64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(now.as_secs_f64() % 86_400.0)
}

/// Kills b1 under load, and gives the seconds until it was out; `None` if its probes were quicker.
fn one_death(
    lab: &Lab,
    server: &mut Server,
    service: &Service,
    death: Death,
) -> Result<Option<f64>> {
    let mut agent = Agent::start(lab, &Config::new(vec![service.clone()]))?;
    agent.settled()?;
    let number = |event: &serde_json::Value| event["id"].as_u64();
    let seen = agent.events()?.last().and_then(number);
    let load = Arrivals::start(&lab.client, service.address, LOAD)?;
    wait_for("the load", SOON, || Ok(load.served() > u64::from(LOAD)))?;
    let struck = second_of_now()?;
    death.strike(lab, server)?;
    let mut ejected = None;
    wait_for("the ejection", SOON, || {
        let events = agent.events()?;
        let mut new = events.into_iter().filter(|event| number(event) > seen);
        ejected = new.find(|event| {
            (event["kind"] == "ejected" || event["kind"] == "draining") && event["backend"] == "b1"
        });
        Ok(ejected.is_some())
    })
    .with_context(|| format!("{death:?}: {:?}", agent.raw_status()))?;
    let ejected = ejected.context("no event")?;
    let took = (second_of(&ejected)? - struck).rem_euclid(86_400.0);
    let by_traffic = ejected["origin"]["by"] == "traffic";
    let text = agent.lb(&["status"])?.ok()?;
    ensure!(text.contains("passive: ") || !by_traffic, "{text}");
    for other in ["web/b2", "web/b3"] {
        let status = agent.status()?;
        ensure!(
            status.backend(other)?.routing == "active",
            "{other}: {text}"
        );
    }
    agent.lb(&["detach"])?.ok()?;
    drop(load);
    death.mend(lab, server)?;
    Ok(by_traffic.then_some(took))
}

fn deaths(name: &str, forwarding: &'static str, kinds: &[Death]) -> Result<()> {
    if skip::skipped(name) {
        return Ok(());
    }
    let count = std::env::var("LB_DEATHS").map_or(Ok(1), |text| text.parse())?;
    let (lab, mut servers) = laboratory()?;
    let mut service = service(&lab, forwarding);
    for &death in kinds {
        service.options = match death {
            Death::Errors500 => "passive_http = \"eject\"".into(),
            _ => "drain_deadline = \"20s\"".into(),
        };
        let mut times = Vec::new();
        for _ in 0..count {
            let Some(server) = servers.first_mut() else {
                bail!("no server");
            };
            // On a machine so busy that the burst could not be judged, the probes are quicker.
            let mut took = None;
            for _ in 0..ATTEMPTS {
                took = one_death(&lab, server, &service, death)?;
                settle(&lab, &service)?;
                if took.is_some() {
                    break;
                }
            }
            let none = || format!("{death:?}: the probes were quicker {ATTEMPTS} times");
            times.push(took.with_context(none)?);
        }
        times.sort_by(f64::total_cmp);
        let ms = |at: usize| times[at] * 1e3;
        println!(
            "{forwarding} {death:?}: out after {:.0} ms (median of {count}; {:.0} to {:.0} ms)",
            ms(count / 2),
            ms(0),
            ms(count - 1),
        );
    }
    Ok(())
}

/// Waits until the backend serves again.
fn settle(lab: &Lab, service: &Service) -> Result<()> {
    let b1 = lab.backend(1);
    let address = SocketAddr::new(b1.address(service.address.ip()), HTTP);
    wait_for("b1 to serve again", SOON, || {
        lab.client.namespace.within(|| {
            Ok(std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
        })?
    })
}

#[test]
fn a_backend_that_dies_under_load_is_out_before_its_probes_know() -> Result<()> {
    let name = "a_backend_that_dies_under_load_is_out_before_its_probes_know";
    let kinds = [
        Death::ProcessKilled,
        Death::HostGone,
        Death::PortFiltered,
        Death::AcceptQueueFull,
    ];
    deaths(name, "nat", &kinds)
}

#[test]
fn a_health_path_that_lies() -> Result<()> {
    deaths("a_health_path_that_lies", "nat", &[Death::Errors500])
}

#[test]
fn a_backend_that_dies_by_dsr_is_out_before_its_probes_know() -> Result<()> {
    let name = "a_backend_that_dies_by_dsr_is_out_before_its_probes_know";
    deaths(name, "dsr", &[Death::ProcessKilled, Death::HostGone])
}

#[test]
fn losses_eject_nobody() -> Result<()> {
    with_lab(|lab, _servers| {
        let seconds = std::env::var("LB_LOSS_SECONDS").map_or(Ok(8), |text| text.parse())?;
        let [nat, dsr] = ["nat", "dsr"].map(|forwarding| Service {
            name: forwarding.into(),
            ..service(lab, forwarding)
        });
        let mut agent = Agent::start(lab, &Config::new(vec![nat.clone(), dsr.clone()]))?;
        agent.settled()?;
        for host in lab.backends.iter().chain([&lab.client]) {
            filter(host, "numgen random mod 100 == 0 drop")?;
        }
        let loads =
            [nat.address, dsr.address].map(|address| Arrivals::start(&lab.client, address, LOAD));
        let wanted = u64::from(LOAD) * seconds;
        for load in loads {
            let load = load?;
            let limit = Duration::from_secs(3 * seconds) + SOON;
            wait_for("clients to come", limit, || {
                Ok(load.served() + load.failed() >= wanted)
            })?;
            let (served, failed) = (load.served(), load.failed());
            println!("{served} clients served, {failed} not");
            ensure!(10 * failed < served, "{failed} of {served}");
        }
        let events = agent.events()?;
        let ejected = events.iter().find(|event| event["kind"] == "ejected");
        ensure!(ejected.is_none(), "{ejected:?}");
        let suspected = events.iter().filter(|event| event["kind"] == "suspected");
        println!(
            "{} suspicions that the probes did not confirm",
            suspected.count()
        );
        Ok(())
    })
}

/// What its packets say keeps a backend out over a restart of the agent, for the time that is left,
/// though nobody asks it anything meanwhile.
#[test]
fn an_ejection_by_the_packets_outlives_the_agent() -> Result<()> {
    with_lab(|lab, servers| {
        let service = Service {
            options: "passive_http = \"eject\"".into(),
            ..service(lab, "nat")
        };
        let mut agent = Agent::start(lab, &Config::new(vec![service.clone()]))?;
        agent.settled()?;
        let load = Arrivals::start(&lab.client, service.address, LOAD)?;
        wait_for("the load", SOON, || Ok(load.served() > u64::from(LOAD)))?;
        servers[0].order(Order::Fail)?;
        agent.wait_routing("web/b1", "draining")?;
        drop(load);
        servers[0].order(Order::Work)?;
        let doubt = |agent: &Agent| -> Result<_> {
            let text = agent.lb(&["status", "web", "--json"])?.ok()?;
            let status: serde_json::Value = serde_json::from_str(&text)?;
            let b1 = &status["services"][0]["backends"][0];
            ensure!(b1["name"] == "b1" && b1["health"] == "healthy", "{b1}");
            ensure!(b1["ejections"] == 1 && b1["held_until"].is_string(), "{b1}");
            let mut axes = b1["axes"].as_array().into_iter().flatten();
            let packets = axes.find(|axis| axis["axis"] == "packets");
            Ok(packets.context("no such axis")?.clone())
        };
        let before = doubt(&agent)?;
        ensure!(
            before["state"] == "ejected" && before["code"] == "http_errors",
            "{before}"
        );
        agent.terminate()?;
        agent.run(&[], &[])?;
        agent.wait_status("the agent to be back", |_| Ok(true))?;
        let after = doubt(&agent)?;
        ensure!(after["reason"] == before["reason"], "{before} then {after}");
        // It neither ends sooner nor begins anew.
        let until = |doubt: &serde_json::Value| -> Result<f64> {
            second_of(&serde_json::json!({"at": doubt["until"]}))
        };
        let moved = (until(&after)? - until(&before)? + 1.0).rem_euclid(86_400.0);
        ensure!(moved < 2.0, "{before} then {after}");
        let routing = agent.status()?.backend("web/b1")?.routing.clone();
        ensure!(routing == "draining", "{routing}");
        let events = agent.events()?;
        let back = events.iter().find(|event| event["kind"] == "readmitted");
        ensure!(back.is_none(), "{back:?}");
        Ok(())
    })
}

/// The host at the end of a tunnel takes nothing apart and says so, to the balancer's kernel; its own
/// address answers, until that does not either.
#[test]
fn errors_about_a_tunnel_are_heeded() -> Result<()> {
    with_lab(|lab, _servers| {
        let b1 = lab.backend(1);
        // Else it would tell only once a second.
        b1.namespace.sysctl(&[("ipv4/icmp_ratelimit", "0")])?;
        let probes = PROBES.replace("unhealthy_threshold = 3", "unhealthy_threshold = 60");
        for forwarding in ["gue", "ipip"] {
            let service = service(lab, forwarding).health(&probes);
            let mut agent = Agent::start(lab, &Config::new(vec![service.clone()]))?;
            agent.settled()?;
            let others = &lab.backends[1..];
            let ends = others.iter().map(|host| Decap::start(host, "native"));
            let ends = ends.collect::<Result<Vec<_>>>()?;
            let load = Arrivals::start(&lab.client, service.address, LOAD)?;
            let errors = "ICMP errors about its tunnel: it cannot be reached";
            wait_for("the errors to be shown", SOON, || {
                Ok(agent.lb(&["status", "web"])?.ok()?.contains(errors))
            })?;
            ensure!(agent.status()?.backend("web/b1")?.routing == "active");
            filter(b1, &format!("tcp dport {HTTP} reject"))?;
            agent.wait_routing("web/b1", "out")?;
            let text = agent.lb(&["status", "web"])?.ok()?;
            ensure!(
                text.contains("passive: ") && text.contains(errors),
                "{text}"
            );
            b1.namespace.run("nft", &["delete table inet lost"])?;
            drop(load);
            agent.lb(&["detach"])?.ok()?;
            drop(ends);
        }
        Ok(())
    })
}
