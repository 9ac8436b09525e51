//! Another version takes over while packets flow: none may be lost, and one that cannot take over
//! touches nothing.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::flows::Flows;
use lb_tests::load::udp::Sequence;
use lb_tests::load::{Amount, Load};
use lb_tests::server_handle::{HTTP, TCP_ECHO, UDP_ECHO};
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

const UPGRADES: usize = 10;

/// TCP and UDP, by NAT and by direct server return, over IPv4 and IPv6.
fn services(lab: &Lab) -> Vec<Service> {
    let mut services = Vec::new();
    for (family, index) in [("4", 0), ("6", 1)] {
        let (nat, dsr) = (NAT_VIP[index], DSR_VIP[index]);
        let at = SocketAddr::new;
        let tcp = |name: &str, at| Service::tcp(lab, &format!("{name}{family}"), at, TCP_ECHO);
        let udp =
            |name: &str, at| Service::tcp(lab, &format!("{name}{family}"), at, UDP_ECHO).udp();
        services.push(tcp("tcp-nat", at(nat, TCP_ECHO)));
        services.push(tcp("tcp-dsr", at(dsr, TCP_ECHO)).dsr());
        services.push(udp("udp-nat", at(nat, UDP_ECHO)));
        services.push(udp("udp-dsr", at(dsr, UDP_ECHO)).dsr());
    }
    services.into_iter().map(Service::patient).collect()
}

/// Flows of all services.
struct Traffic {
    connections: Vec<(String, Flows)>,
    datagrams: Vec<(String, Sequence)>,
}

impl Traffic {
    fn start(lab: &Lab, services: &[Service]) -> Result<Self> {
        let mut traffic = Self {
            connections: Vec::new(),
            datagrams: Vec::new(),
        };
        for service in services {
            let name = service.name.clone();
            if service.protocol == "tcp" {
                let flows = Flows::open(&lab.client, service.address, 4)?;
                traffic.connections.push((name, flows));
            } else {
                let sequence = Sequence::start(&lab.client, service.address)?;
                traffic.datagrams.push((name, sequence));
            }
        }
        Ok(traffic)
    }

    /// Waits until every connection has been used some more and none has broken.
    fn goes_on(&self) -> Result<()> {
        for (name, flows) in &self.connections {
            flows.exchange(5, SOON)?;
            let broken = flows.broken_except("");
            ensure!(broken.is_empty(), "{name}: {broken:?}");
        }
        Ok(())
    }

    /// Ends it; not a datagram may be missing. Gives how many there were.
    fn finish(self) -> Result<u64> {
        self.goes_on()?;
        let mut sent = 0;
        for (name, sequence) in self.datagrams {
            let count = sequence.finish()?;
            ensure!(
                count.lost.is_empty() && count.doubled.is_empty() && count.backends.len() == 1,
                "{name}: {count:?}"
            );
            sent += count.sent;
        }
        Ok(sent)
    }
}

/// What changes when a link goes down and up, or is made anew.
fn link(lab: &Lab) -> Result<String> {
    let files = ["ifindex", "carrier_changes"].map(|file| format!("/sys/class/net/eth0/{file}"));
    lab.lb.namespace.run("cat", &[&files[0], &files[1]])
}

fn program_id(lab: &Lab) -> Result<String> {
    let link = lab.lb.namespace.run("ip", &["link", "show", "eth0"])?;
    let (_, id) = link
        .split_once("prog/xdp id ")
        .with_context(|| format!("no XDP in {link}"))?;
    Ok(id.split_whitespace().next().unwrap_or_default().into())
}

#[test]
fn ten_upgrades_under_load_lose_no_packet() -> Result<()> {
    with_lab(|lab, _servers| {
        let services = services(lab);
        let mut agent = Agent::start(lab, &Config::new(services.clone()))?;
        let original = agent.binary().to_path_buf();
        let traffic = Traffic::start(lab, &services)?;
        let before = link(lab)?;
        let mut program = program_id(lab)?;
        for version in 1..=UPGRADES {
            let binary = lab.folder().join(format!("lb-{version}"));
            std::fs::copy(&original, &binary).context("copying the program")?;
            ensure!(agent.terminate()?.success(), "log:\n{}", agent.log());
            agent.set_binary(binary.clone());
            agent.run(&[], &[])?;
            agent.settled()?;
            let now = program_id(lab)?;
            ensure!(now != program, "version {version} has not taken over");
            program = now;
            traffic
                .goes_on()
                .with_context(|| format!("version {version}"))?;
            std::fs::remove_file(binary).context("removing a copy")?;
        }
        let sent = traffic.finish()?;
        println!("{sent} datagrams over {UPGRADES} upgrades, none lost");
        ensure!(link(lab)? == before, "the link flapped or is another one");
        Ok(())
    })
}

#[test]
fn maps_of_another_layout_are_refused_and_left_alone() -> Result<()> {
    with_lab(|lab, _servers| {
        let services = services(lab);
        let mut agent = Agent::start(lab, &Config::new(services.clone()))?;
        let traffic = Traffic::start(lab, &services)?;
        ensure!(agent.terminate()?.success(), "log:\n{}", agent.log());
        let (before, program) = (agent.traces()?, program_id(lab)?);
        // As if a version had made the maps whose layout is another.
        let params = format!("{}/PARAMS", agent.pins()?);
        lab.lb.namespace.change_pinned_word(&params, 4_000_000)?;
        agent.run(&[], &[])?;
        let end = agent.wait_end(SOON)?;
        ensure!(!end.success(), "maps of another layout were taken over");
        let log = agent.log();
        for word in ["layout 4000000", "Nothing was changed", "lb detach"] {
            ensure!(log.contains(word), "the log does not say {word:?}:\n{log}");
        }
        let config = agent.config_path().display().to_string();
        let doctor = agent.lb(&["doctor", "--config", &config])?;
        ensure!(doctor.out.contains("mend: lb run --migrate"), "{doctor:?}");
        ensure!(agent.traces()? == before, "pins or programs have changed");
        ensure!(program_id(lab)? == program, "the program was replaced");
        traffic.finish().context("under the old version")?;
        // The mend that was named.
        agent.lb(&["detach"])?.ok()?;
        ensure!(agent.traces()?.is_empty(), "{:?}", agent.traces()?);
        agent.run(&[], &[])?;
        agent.settled()?;
        Traffic::start(lab, &services)?.finish().map(drop)
    })
}

/// Only the pins of what [`Agent::traces`] gives.
fn pins(agent: &Agent<'_>) -> Result<Vec<String>> {
    let mut traces = agent.traces()?;
    traces.retain(|line| line.starts_with('/'));
    traces.sort();
    Ok(traces)
}

#[test]
fn maps_of_another_layout_are_changed_over_without_a_gap() -> Result<()> {
    with_lab(|lab, _servers| {
        let web = SocketAddr::new(NAT_VIP[0], 80);
        let echo = SocketAddr::new(NAT_VIP[0], TCP_ECHO);
        let direct: Vec<Service> = services(lab)
            .into_iter()
            .filter(|service| service.forwarding == "dsr")
            .collect();
        let nat = [
            Service::tcp(lab, "web", web, HTTP).patient(),
            Service::tcp(lab, "echo", echo, TCP_ECHO).patient(),
        ];
        let config = Config::new(direct.iter().cloned().chain(nat).collect());
        let mut agent = Agent::start(lab, &config)?;
        // The first backend that was ready has all slots at first, and they are in transition after
        // that. With the verdicts known from the start, all are settled.
        agent.terminate()?;
        agent.lb(&["detach"])?.ok()?;
        agent.run(&[], &[])?;
        agent.settled()?;
        let traffic = Traffic::start(lab, &direct)?;
        let established = Flows::open(&lab.client, echo, 4)?;
        let load = Load::http(&lab.client, web, false, Amount::steady())?;
        ensure!(agent.terminate()?.success(), "log:\n{}", agent.log());
        let params = format!("{}/PARAMS", agent.pins()?);
        lab.lb.namespace.change_pinned_word(&params, 4_000_000)?;
        let (before, old_pins) = (agent.traces()?, pins(&agent)?);
        let old = program_id(lab)?;

        // The second interface cannot be had: the first keeps its program.
        agent.configure(&Config {
            interfaces: &["eth0", "nope0"],
            ..config.clone()
        })?;
        agent.run(&["--migrate"], &[])?;
        ensure!(!agent.wait_end(SOON)?.success(), "nope0 was had");
        ensure!(agent.log().contains("nope0"), "log:\n{}", agent.log());
        ensure!(agent.traces()? == before, "{:?}", agent.traces()?);
        // One that is killed while it fills the new maps.
        agent.configure(&config)?;
        agent.run(&["--migrate"], &[("LB_FAILPOINT", "plan-step:3")])?;
        ensure!(!agent.wait_end(SOON)?.success(), "it has not aborted");
        ensure!(program_id(lab)? == old, "too early");
        ensure!(pins(&agent)?.len() > old_pins.len(), "nothing was begun");
        traffic.goes_on()?;
        load.tally().must_not_fail()?;

        agent.run(&["--migrate"], &[])?;
        agent.settled()?;
        agent.wait_event("attached", "were replaced")?;
        ensure!(program_id(lab)? != old, "the old program is still there");
        ensure!(pins(&agent)? == old_pins, "{:?}", pins(&agent)?);
        let sent = traffic.finish().context("by direct server return")?;
        println!("{sent} datagrams over the change, none lost");
        // A connection by NAT is lost, but only one that was there.
        wait_for("the old connections to break", SOON, || {
            Ok(established.broken_except("").len() == 4)
        })?;
        let tally = load.stop();
        ensure!(tally.failed <= 8, "{tally:?}");
        // It is an ordinary data plane now.
        ensure!(agent.terminate()?.success(), "log:\n{}", agent.log());
        agent.run(&[], &[])?;
        agent.settled()?;
        Traffic::start(lab, &direct)?.finish().map(drop)
    })
}
