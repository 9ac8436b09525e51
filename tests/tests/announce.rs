//! VIPs that are announced while their services have quorum: the routes in the balancer's kernel, and
//! a real BIRD that announces them by BGP.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::NAT_VIP;
use lb_tests::load::{Amount, Load};
use lb_tests::process::Process;
use lb_tests::server::Order;
use lb_tests::server_handle::HTTP;
use lb_tests::skip::installed;
use lb_tests::{Agent, Config, Host, Lab, Server, Service, wait_for, with_lab};

/// A route of another agent's: the protocol is the same, the metric is not.
const FOREIGN: &str = "blackhole 203.0.113.99 table 108 proto 108 metric 7";

fn web() -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], 80)
}

/// Announced with half of it, at first and again with all of it.
fn service(lab: &Lab) -> Service {
    Service::tcp(lab, "web", web(), HTTP)
        .options("announce = \"route\"\nquorum = 50\nquorum_hysteresis = 50")
}

/// The routes of announced VIPs, as (VIP, table, type).
fn routes(host: &Host) -> Result<Vec<(IpAddr, String, String)>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let show = [
            "-json", family, "route", "show", "table", "all", "proto", "108",
        ];
        let text = host.namespace.run("ip", &show)?;
        let list: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
        for route in list.as_array().context("no list")? {
            let text = |key: &str| route[key].as_str().unwrap_or_default().to_owned();
            let (vip, table, kind) = (text("dst"), text("table"), text("type"));
            if vip != "203.0.113.99" {
                found.push((vip.parse().with_context(|| vip.clone())?, table, kind));
            }
        }
    }
    Ok(found)
}

fn stands(lab: &Lab, vip: IpAddr, table: &str) -> Result<bool> {
    let wanted = (vip, table.to_owned(), "blackhole".to_owned());
    Ok(routes(&lab.lb)?.contains(&wanted))
}

fn wait_route(lab: &Lab, vip: IpAddr, wanted: bool) -> Result<()> {
    let what = format!("the route to {vip} to be there: {wanted}");
    wait_for(&what, SOON, || Ok(stands(lab, vip, "108")? == wanted))
}

/// Another agent's route was left alone.
fn foreign_stands(lab: &Lab) -> Result<()> {
    let show = ["route", "show", "table", "108"];
    let text = lab.lb.namespace.run("ip", &show)?;
    ensure!(text.contains("203.0.113.99"), "it is gone: {text}");
    Ok(())
}

/// What a service says of its announcement.
fn announced(agent: &Agent<'_>, service: &str) -> Result<(bool, bool, f64)> {
    let status = agent.raw_status()?;
    let mut services = status["services"].as_array().into_iter().flatten();
    let service = services.find(|found| found["name"] == service);
    let service = service.context("no such service")?;
    let quorum = &service["quorum"];
    Ok((
        service["announced"].as_bool().context("no announced")?,
        quorum["held"].as_bool().context("no quorum")?,
        quorum["percent"].as_f64().context("no percent")?,
    ))
}

/// All that the kernel tells of changes of routes, in a file.
struct Monitor {
    _process: Process,
    path: PathBuf,
}

impl Monitor {
    fn start(lab: &Lab) -> Result<Self> {
        let path = lab.folder().join("routes.log");
        let mut command = lab.lb.namespace.command("ip");
        command
            .args(["monitor", "route"])
            .stdout(File::create(&path)?);
        let monitor = Self {
            _process: Process::spawn(&mut command, "ip monitor")?,
            path,
        };
        // Until it listens.
        wait_for("ip monitor", SOON, || {
            lab.lb.namespace.ip("route replace blackhole 192.0.2.1")?;
            lab.lb.namespace.ip("route del blackhole 192.0.2.1")?;
            Ok(monitor.text()?.contains("192.0.2.1"))
        })?;
        Ok(monitor)
    }

    fn text(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.path)?)
    }

    /// Lines by which the route to `vip` went, after all that has happened so far.
    fn deletions(&self, lab: &Lab, vip: IpAddr) -> Result<Vec<String>> {
        const MARK: &str = "192.0.2.2";
        let marks = || Ok::<_, anyhow::Error>(self.text()?.matches(MARK).count());
        let before = marks()?;
        let mark = format!("route add blackhole {MARK}\nroute del blackhole {MARK}");
        lab.lb.namespace.ip(&mark)?;
        wait_for(
            "ip monitor to catch up",
            SOON,
            || Ok(marks()? >= before + 2),
        )?;
        let vip = vip.to_string();
        let text = self.text()?;
        let lines = text
            .lines()
            .filter(|line| line.starts_with("Deleted") && line.contains(&vip));
        Ok(lines.map(str::to_owned).collect())
    }
}

#[test]
fn a_vip_is_announced_while_its_service_has_quorum() -> Result<()> {
    with_lab(|lab, servers| {
        for server in servers.iter_mut() {
            server.order(Order::Unready)?;
        }
        let six = Service::tcp(lab, "six", SocketAddr::new(NAT_VIP[1], 80), HTTP)
            .options("announce = \"route\"");
        let mut agent = Agent::prepare(lab, &Config::new(vec![service(lab), six]))?;
        agent.run(&[], &[])?;
        let healthy = |agent: &mut Agent<'_>, count: usize| {
            agent.wait_status(&format!("{count} healthy backends"), |status| {
                let backends = &status.service("web")?.backends;
                let known = backends.iter().all(|backend| backend.health != "unknown");
                let healthy = backends.iter().filter(|b| b.health == "healthy").count();
                Ok(known && healthy == count)
            })
        };
        healthy(&mut agent, 0)?;
        ensure!(routes(&lab.lb)?.is_empty(), "announced without a backend");
        ensure!(announced(&agent, "web")? == (false, false, 0.0));

        for server in servers.iter_mut() {
            server.order(Order::Ready)?;
        }
        for vip in NAT_VIP {
            wait_route(lab, vip, true)?;
        }
        agent.wait_event(
            "announced",
            "203.0.113.10: 100.0 % of the weight of web can serve",
        )?;
        ensure!(announced(&agent, "web")? == (true, true, 100.0));

        servers[0].order(Order::Unready)?;
        healthy(&mut agent, 2)?;
        ensure!(stands(lab, NAT_VIP[0], "108")?, "two of three are quorum");
        servers[1].order(Order::Unready)?;
        wait_route(lab, NAT_VIP[0], false)?;
        agent.wait_event(
            "withdrawn",
            "203.0.113.10: 33.3 % of the weight of web can serve",
        )?;
        let events = agent.events()?;
        let withdrawn = events.iter().rfind(|event| event["kind"] == "withdrawn");
        let withdrawn = withdrawn.context("no event")?;
        let share = withdrawn["evidence"]["serving_percent"].as_f64();
        ensure!(
            share.is_some_and(|share| (33.0..34.0).contains(&share)),
            "{withdrawn}"
        );
        ensure!(stands(lab, NAT_VIP[1], "108")?, "one is quorum there");

        servers[1].order(Order::Ready)?;
        healthy(&mut agent, 2)?;
        ensure!(!stands(lab, NAT_VIP[0], "108")?, "it is back too soon");
        let text = agent.lb(&["status"])?.ok()?;
        ensure!(
            text.contains("!! VIP NOT ANNOUNCED: 66.7 % of the weight of web"),
            "{text}"
        );
        servers[0].order(Order::Ready)?;
        wait_route(lab, NAT_VIP[0], true)?;
        let text = agent.lb(&["status"])?.ok()?;
        ensure!(text.contains("VIP announced: 100.0 %"), "{text}");

        // Also by the operator's word.
        for backend in ["six/b1", "six/b2", "six/b3"] {
            agent.lb(&["drain", backend])?.ok()?;
        }
        wait_route(lab, NAT_VIP[1], false)?;
        ensure!(stands(lab, NAT_VIP[0], "108")?);
        Ok(())
    })
}

#[test]
fn a_route_outlives_the_agent_without_a_gap_and_is_put_back() -> Result<()> {
    with_lab(|lab, _servers| {
        lab.lb.namespace.ip(&format!("route add {FOREIGN}"))?;
        let config = Config::new(vec![service(lab)]);
        let mut agent = Agent::start(lab, &config)?;
        wait_route(lab, web().ip(), true)?;
        let monitor = Monitor::start(lab)?;
        agent.kill()?;
        ensure!(stands(lab, web().ip(), "108")?, "it went with the agent");
        agent.run(&[], &[])?;
        agent.settled()?;
        ensure!(agent.terminate()?.success());
        ensure!(stands(lab, web().ip(), "108")?, "it went with SIGTERM");
        agent.run(&[], &[])?;
        agent.settled()?;
        wait_for("the quorum of the successor's own verdicts", SOON, || {
            Ok(announced(&agent, "web")? == (true, true, 100.0))
        })?;
        let gone = monitor.deletions(lab, web().ip())?;
        ensure!(gone.is_empty(), "{gone:?}");

        // Another table, where it is before it goes from this one.
        let mut moved = config.clone();
        moved.node = "announce_table = 4000000000".into();
        agent.configure(&moved)?;
        agent.lb(&["reload"])?.ok()?;
        wait_for("the route in another table only", SOON, || {
            let there = (web().ip(), "4000000000".into(), "blackhole".into());
            Ok(routes(&lab.lb)? == [there])
        })?;
        agent.configure(&config)?;
        agent.lb(&["reload"])?.ok()?;
        wait_route(lab, web().ip(), true)?;

        // Somebody removes it, or puts another in its place.
        lab.lb
            .namespace
            .ip("route del blackhole 203.0.113.10 table 108")?;
        wait_route(lab, web().ip(), true)?;
        agent.wait_event("announced", "put back")?;
        let gone = monitor.deletions(lab, web().ip())?;
        ensure!(!gone.is_empty(), "ip monitor tells of no deletion at all");
        let metric = metric(lab)?;
        lab.lb.namespace.ip(&format!(
            "route replace unreachable 203.0.113.10 table 108 metric {metric}"
        ))?;
        wait_route(lab, web().ip(), true)?;

        foreign_stands(lab)
    })
}

/// Metric of the agent's route.
fn metric(lab: &Lab) -> Result<u64> {
    let show = ["-json", "route", "show", "table", "108", "203.0.113.10"];
    let text = lab.lb.namespace.run("ip", &show)?;
    let list: serde_json::Value = serde_json::from_str(&text)?;
    list[0]["metric"].as_u64().with_context(|| text.clone())
}

#[test]
fn what_is_not_served_any_more_is_withdrawn() -> Result<()> {
    with_lab(|lab, servers| {
        lab.lb.namespace.ip(&format!("route add {FOREIGN}"))?;
        let config = Config::new(vec![service(lab)]);
        let mut silent = config.clone();
        silent.services[0] = Service::tcp(lab, "web", web(), HTTP);
        let mut agent = Agent::start(lab, &config)?;
        wait_route(lab, web().ip(), true)?;

        // By a reload without the key.
        agent.configure(&silent)?;
        agent.lb(&["reload"])?.ok()?;
        wait_route(lab, web().ip(), false)?;
        agent.wait_event("withdrawn", "no service asks for it any more")?;
        agent.configure(&config)?;
        agent.lb(&["reload"])?.ok()?;
        wait_route(lab, web().ip(), true)?;

        // By an agent that starts without it.
        agent.kill()?;
        agent.configure(&silent)?;
        agent.run(&[], &[])?;
        wait_route(lab, web().ip(), false)?;
        wait_for("a second event", SOON, || {
            let told = |event: &serde_json::Value| {
                let reason = event["reason"].as_str().unwrap_or_default();
                event["kind"] == "withdrawn" && reason.contains("no service asks")
            };
            Ok(agent.lb(&["status"])?.code == Some(0)
                && agent.events()?.iter().filter(|event| told(event)).count() == 2)
        })?;
        agent.kill()?;

        // By `lb detach`, with and without an agent.
        agent.configure(&config)?;
        agent.run(&[], &[])?;
        wait_route(lab, web().ip(), true)?;
        agent.lb(&["detach"])?.ok()?;
        ensure!(!stands(lab, web().ip(), "108")?, "detached and announced");
        agent.kill()?;
        agent.run(&[], &[])?;
        wait_route(lab, web().ip(), true)?;
        agent.kill()?;
        agent.lb(&["detach"])?.ok()?;
        ensure!(!stands(lab, web().ip(), "108")?, "detached and announced");

        // By an end that detaches, and at a start that finds all backends dead.
        let mut detaching = config.clone();
        detaching.node = "on_exit = \"detach\"".into();
        agent.configure(&detaching)?;
        agent.run(&[], &[])?;
        wait_route(lab, web().ip(), true)?;
        ensure!(agent.terminate()?.success());
        ensure!(!stands(lab, web().ip(), "108")?, "detached and announced");
        agent.configure(&config)?;
        agent.run(&[], &[])?;
        wait_route(lab, web().ip(), true)?;
        agent.kill()?;
        for server in servers.iter_mut() {
            server.kill()?;
        }
        agent.run(&[], &[])?;
        wait_route(lab, web().ip(), false)?;

        foreign_stands(lab)
    })
}

/// Commands are run at each change, once more by another agent, and before an agent ends that withdraws.
#[test]
fn commands_are_run_when_a_vip_comes_and_goes() -> Result<()> {
    with_lab(|lab, servers| {
        let log = lab.folder().join("commands");
        let script = format!(
            "echo $LB_EVENT $LB_SERVICE $LB_ADDRESS:$LB_PORT >> {}",
            log.display()
        );
        let command = format!("[\"/bin/sh\", \"-c\", \"{script}\"]");
        let web = Service::tcp(lab, "web", web(), HTTP).options(&format!(
            "announce = \"route\"\non_announce = {command}\non_withdraw = {command}"
        ));
        let six = Service::tcp(lab, "six", SocketAddr::new(NAT_VIP[1], 80), HTTP)
            .options("announce = \"route\"\non_announce = [\"/bin/false\"]");
        let mut config = Config::new(vec![web, six]);
        config.node = "allow_exec = true".to_owned();
        let mut agent = Agent::start(lab, &config)?;
        let said =
            ["announced", "withdrawn"].map(|event| format!("{event} web {}:80\n", NAT_VIP[0]));
        let [up, down] = said.each_ref();
        let wait = |wanted: &[&String]| {
            let wanted: String = wanted.iter().map(|line| line.as_str()).collect();
            let mut text = String::new();
            wait_for("the commands", SOON, || {
                text = std::fs::read_to_string(&log).unwrap_or_default();
                Ok(text == wanted)
            })
            .with_context(|| format!("want {wanted:?}, got {text:?}"))
        };
        wait(&[up])?;
        agent.wait_event("command_failed", "on_announce: exit status 1")?;
        agent.kill()?;
        agent.run(&[], &[])?;
        wait(&[up, up])?;
        agent.settled()?;
        for server in servers.iter_mut() {
            server.order(Order::Unready)?;
        }
        wait(&[up, up, down])?;
        for server in servers.iter_mut() {
            server.order(Order::Ready)?;
        }
        wait(&[up, up, down, up])?;
        agent.lb(&["detach"])?.ok()?;
        // Before it was answered.
        let text = std::fs::read_to_string(&log)?;
        ensure!(text == [&**up, up, down, up, down].concat(), "{text}");
        Ok(())
    })
}

/// BIRD in a namespace; killed when dropped.
struct Bird {
    _process: Process,
}

impl Bird {
    fn start(lab: &Lab, host: &Host, config: &str) -> Result<Self> {
        let file = |what: &str| lab.folder().join(format!("bird-{}.{what}", host.name));
        std::fs::write(file("conf"), config)?;
        let mut command = host.namespace.command("/usr/sbin/bird");
        command.arg("-f");
        for (option, what) in [("-c", "conf"), ("-s", "ctl"), ("-P", "pid")] {
            command.arg(option).arg(file(what));
        }
        command.stderr(File::create(file("log"))?);
        Ok(Self {
            _process: Process::spawn(&mut command, "bird")?,
        })
    }
}

/// The configuration of docs/config.md, with the addresses of the laboratory.
fn documented() -> Result<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
    let page = std::fs::read_to_string(path)?;
    let (_, rest) = page
        .split_once("```bird\n")
        .context("no BIRD in docs/config.md")?;
    let (config, _) = rest.split_once("```").context("no end of it")?;
    let mut config = config.to_owned();
    for (there, here) in [
        ("198.51.100.11", "10.77.0.2"),
        ("198.51.100.1", "10.77.0.100"),
        ("2001:db8:51::11", "fd77::2"),
        ("2001:db8:51::1", "fd77::100"),
    ] {
        ensure!(config.contains(there), "{there} is not in {config}");
        config = config.replace(there, here);
    }
    Ok(format!("log stderr all;\n{config}"))
}

/// The other end.
const ROUTER: &str = "
    log stderr all;
    router id 10.77.0.100;
    protocol device { }
    protocol kernel { ipv4 { import none; export all; }; }
    protocol kernel { ipv6 { import none; export all; }; }
    protocol bgp lb4 {
        local 10.77.0.100 as 64513;
        neighbor 10.77.0.2 as 64512;
        connect delay time 1;
        ipv4 { import all; export none; };
    }
    protocol bgp lb6 {
        local fd77::100 as 64513;
        neighbor fd77::2 as 64512;
        connect delay time 1;
        ipv6 { import all; export none; };
    }
";

#[test]
fn bird_announces_the_vip_while_its_service_can_serve() -> Result<()> {
    if !installed("bird") {
        println!(
            "SKIPPED bird_announces_the_vip_while_its_service_can_serve: `bird` is not installed (Debian: bird2)"
        );
        return Ok(());
    }
    with_lab(|lab, servers| {
        // From here on only BGP tells the client where the VIPs are.
        lab.client
            .namespace
            .ip("route del 203.0.113.0/24\nroute del 2001:db8:77::/64")?;
        let services = NAT_VIP.iter().enumerate().map(|(number, vip)| {
            let name = format!("web{number}");
            let service = Service::tcp(lab, &name, SocketAddr::new(*vip, 80), HTTP);
            service.options("announce = \"route\"")
        });
        let mut agent = Agent::start(lab, &Config::new(services.collect()))?;
        let _balancer = Bird::start(lab, &lab.lb, &documented()?)?;
        let _router = Bird::start(lab, &lab.client, ROUTER)?;
        let routed = |vip: IpAddr| -> Result<bool> {
            let family = if vip.is_ipv4() { "-4" } else { "-6" };
            let show = [family, "route", "show", &vip.to_string()];
            let text = lab.client.namespace.run("ip", &show)?;
            let next_hop = format!("via {}", lab.lb.address(vip));
            Ok(text.contains(&next_hop) && text.contains("proto bird"))
        };
        let wait_routed = |wanted: bool| -> Result<()> {
            for vip in NAT_VIP {
                let what = format!("the router's route to {vip} to be there: {wanted}");
                wait_for(&what, SOON, || Ok(routed(vip)? == wanted))?;
            }
            Ok(())
        };
        let served = || -> Result<()> {
            for vip in NAT_VIP {
                let to = SocketAddr::new(vip, 80);
                let tally = Load::http(&lab.client, to, false, Amount::requests(40))?.finish();
                tally.must_not_fail().with_context(|| format!("to {vip}"))?;
            }
            Ok(())
        };
        wait_routed(true)?;
        served()?;

        for server in servers.iter_mut() {
            server.kill()?;
        }
        wait_routed(false)?;
        for (server, host) in servers.iter_mut().zip(&lab.backends) {
            *server = Server::start(host)?;
        }
        wait_routed(true)?;
        served()?;

        // The data plane stays, and so does what is said of it.
        agent.kill()?;
        lb_tests::wait::pause(Duration::from_secs(2))?;
        wait_routed(true)?;
        served()?;
        agent.lb(&["detach"])?.ok()?;
        wait_routed(false)
    })
}
