//! The agent starts, ends, crashes and comes back; the packets must not notice.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::flows::Flows;
use lb_tests::load::{Amount, Load};
use lb_tests::server_handle::{HTTP, TCP_ECHO};
use lb_tests::wait::pause;
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

fn web() -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], 80)
}

fn direct() -> SocketAddr {
    SocketAddr::new(DSR_VIP[0], HTTP)
}

fn echo() -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], TCP_ECHO)
}

fn config(lab: &Lab) -> Config {
    Config::new(vec![
        Service::tcp(lab, "web", web(), HTTP),
        Service::tcp(lab, "direct", direct(), HTTP).dsr(),
        Service::tcp(lab, "echo", echo(), TCP_ECHO),
    ])
}

/// Requests of every kind, none of which may fail.
struct Witness {
    loads: Vec<(&'static str, Load)>,
    flows: Flows,
}

impl Witness {
    fn new(lab: &Lab) -> Result<Self> {
        let load = |to, keep| Load::http(&lab.client, to, keep, Amount::steady());
        let loads = vec![
            ("NAT, new connections", load(web(), false)?),
            ("NAT, kept connections", load(web(), true)?),
            ("DSR, new connections", load(direct(), false)?),
            ("DSR, kept connections", load(direct(), true)?),
        ];
        Ok(Self {
            loads,
            flows: Flows::open(&lab.client, echo(), 12)?,
        })
    }

    /// Waits until every kind of request was made some more, and none has failed so far.
    fn content(&self) -> Result<()> {
        let before: Vec<_> = self.loads.iter().map(|(_, load)| load.tally()).collect();
        wait_for("more requests", SOON, || {
            let mut pairs = self.loads.iter().zip(&before);
            Ok(pairs.all(|((_, load), before)| load.tally().since(before).requests() >= 20))
        })?;
        self.flows.exchange(3, SOON)?;
        let failed = |(kind, load): &(&str, Load)| {
            let error = load.tally().must_not_fail().err()?;
            Some(format!("{kind}: {error:#}"))
        };
        let failed: Vec<String> = self.loads.iter().filter_map(failed).collect();
        ensure!(failed.is_empty(), "{failed:#?}");
        let broken = self.flows.broken_except("");
        ensure!(broken.is_empty(), "broken connections: {broken:?}");
        Ok(())
    }
}

#[test]
fn a_killed_agent_is_not_missed_and_its_successor_adopts() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = Agent::start(lab, &config(lab))?;
        agent.lb(&["drain", "web/b3"])?.ok()?;
        agent.wait_routing("web/b3", "draining")?;
        let witness = Witness::new(lab)?;
        let id = program_id(lab)?;
        agent.kill()?;
        pause(Duration::from_secs(1))?;
        witness.content().context("without an agent")?;
        ensure!(program_id(lab)? == id, "the program went with the agent");

        agent.run(&[], &[])?;
        agent.wait_status("the successor to hold the operator's drain", |status| {
            let drained = status.backend("web/b3")?;
            let others = status.services.iter().flat_map(|service| &service.backends);
            let active = others.filter(|backend| backend.routing == "active").count();
            Ok(drained.admin == "drain" && drained.routing != "active" && active == 8)
        })?;
        witness.content().context("after the restart")?;
        let tally = Load::http(&lab.client, web(), false, Amount::requests(400))?.finish();
        tally.must_not_fail()?;
        ensure!(tally.of("b3") == 0, "{tally:?}");
        Ok(())
    })
}

#[test]
fn an_agent_that_dies_at_any_step_loses_no_request() -> Result<()> {
    with_lab(|lab, _servers| {
        // Between the two, weights change and a whole service comes and goes, all of which must
        // leave the witness's flows where they are.
        let mut other = config(lab);
        let mut usual = other.clone();
        let spare = SocketAddr::new(NAT_VIP[1], 80);
        usual
            .services
            .push(Service::tcp(lab, "spare", spare, HTTP).options("drain_deadline = \"1s\""));
        for service in &mut other.services {
            service.backends[0].options = "weight = 50".into();
        }
        let mut agent = Agent::start(lab, &usual)?;
        let witness = Witness::new(lab)?;
        let mut crashes = 0;
        // Each round changes the configuration, dies at one step further, and is finished by a
        // successor; the last round has no such step.
        for step in 0..500 {
            let end = agent.terminate()?;
            ensure!(end.success(), "{end}; log:\n{}", agent.log());
            let config = if step % 2 == 0 { &other } else { &usual };
            agent.configure(config)?;
            agent.run(&[], &[("LB_FAILPOINT", &format!("plan-step:{step}"))])?;
            let settled = agent.settled();
            witness
                .content()
                .with_context(|| format!("at step {step}"))?;
            if agent.runs()? {
                settled.with_context(|| format!("there is no step {step}"))?;
                break;
            }
            crashes += 1;
            agent.run(&[], &[])?;
            agent
                .settled()
                .with_context(|| format!("the successor after step {step}"))?;
            witness
                .content()
                .with_context(|| format!("finished after step {step}"))?;
        }
        ensure!(crashes > 0, "the failpoint never fired: nothing was tested");
        ensure!(crashes < 500, "the plan has no end");
        println!("{crashes} steps, a crash at each");
        Ok(())
    })
}

#[test]
fn direct_flows_survive_changes_of_weight_and_a_crash_between() -> Result<()> {
    with_lab(|lab, _servers| {
        let to = SocketAddr::new(DSR_VIP[0], TCP_ECHO);
        let service = Service::tcp(lab, "direct", to, TCP_ECHO).dsr();
        let mut agent = Agent::start(lab, &Config::new(vec![service]))?;
        let mut all = vec![Flows::open(&lab.client, to, 30)?];
        let live = |all: &[Flows], when: &str| -> Result<()> {
            for flows in all {
                flows.exchange(3, SOON)?;
                let broken = flows.broken_except("");
                ensure!(broken.is_empty(), "{when}: {broken:?}");
            }
            Ok(())
        };
        // Each change moves slots while those moved before are still in transition; flows of every
        // age must stay where they were opened, whoever is the agent.
        for (round, weight) in ["1000", "10", "100"].into_iter().enumerate() {
            agent.lb(&["weight", "direct/b1", weight])?.ok()?;
            agent.settled()?;
            live(&all, &format!("weight {weight}"))?;
            all.push(Flows::open(&lab.client, to, 30)?);
            if round == 1 {
                agent.kill()?;
                live(&all, "after the crash")?;
                agent.run(&[], &[])?;
            } else {
                agent.lb(&["drain", "direct/b2"])?.ok()?;
                agent.wait_routing("direct/b2", "draining")?;
                live(&all, "while b2 drains")?;
                agent.lb(&["enable", "direct/b2"])?.ok()?;
            }
            agent.settled()?;
            live(&all, "settled")?;
        }
        Ok(())
    })
}

#[test]
fn sigterm_keeps_the_data_plane_unless_told_to_detach() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut config = config(lab);
        let mut agent = Agent::start(lab, &config)?;
        let witness = Witness::new(lab)?;
        ensure!(
            agent.terminate()?.success(),
            "SIGTERM is a normal end; log:\n{}",
            agent.log()
        );
        witness
            .content()
            .context("after SIGTERM with on_exit = keep")?;
        ensure!(!agent.traces()?.is_empty());
        drop(witness);

        config.node = "on_exit = \"detach\"".into();
        agent.configure(&config)?;
        agent.run(&[], &[])?;
        agent.settled()?;
        ensure!(
            agent.terminate()?.success(),
            "SIGTERM is a normal end; log:\n{}",
            agent.log()
        );
        let traces = agent.traces()?;
        ensure!(traces.is_empty(), "on_exit = detach left {traces:?}");
        Ok(())
    })
}

#[test]
fn detach_leaves_nothing_with_and_without_an_agent() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = Agent::start(lab, &config(lab))?;
        agent.lb(&["detach"])?.ok()?;
        let traces = agent.traces()?;
        ensure!(traces.is_empty(), "detach beside an agent left {traces:?}");
        agent.kill()?;

        agent.run(&[], &[])?;
        agent.settled()?;
        agent.kill()?;
        ensure!(
            !agent.traces()?.is_empty(),
            "the data plane must stay after a crash"
        );
        agent.lb(&["detach"])?.ok()?;
        let traces = agent.traces()?;
        ensure!(traces.is_empty(), "detach without an agent left {traces:?}");
        Ok(())
    })
}

#[test]
fn a_foreign_program_is_only_replaced_when_asked() -> Result<()> {
    with_lab(|lab, _servers| {
        lab.lb.namespace.attach_passing_xdp("eth0")?;
        let foreign = program_id(lab)?;
        let mut agent = Agent::prepare(lab, &config(lab))?;
        agent.run(&[], &[])?;
        let status = agent.wait_end(SOON)?;
        ensure!(
            !status.success(),
            "lb took an interface that another program holds"
        );
        ensure!(
            agent.log().contains("--replace"),
            "the log names no mend:\n{}",
            agent.log()
        );
        ensure!(program_id(lab)? == foreign, "the foreign program is gone");

        agent.run(&["--replace"], &[])?;
        agent.settled()?;
        ensure!(
            program_id(lab)? != foreign,
            "the foreign program is still there"
        );
        let tally = Load::http(&lab.client, web(), false, Amount::requests(400))?.finish();
        tally.must_not_fail()
    })
}

#[test]
fn a_second_agent_is_refused_and_harms_nothing() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = Agent::start(lab, &config(lab))?;
        let witness = Witness::new(lab)?;
        let config = agent.config_path();
        let config = config.to_str().context("a path that is not text")?;
        let second = agent.lb(&["run", "--config", config])?;
        ensure!(
            second.code == Some(1) && !second.err.is_empty(),
            "{second:?}"
        );
        agent.settled()?;
        witness.content()
    })
}

/// Id of the XDP program on the balancer's interface.
fn program_id(lab: &Lab) -> Result<String> {
    let link = lab.lb.namespace.run("ip", &["link", "show", "eth0"])?;
    let (_, id) = link
        .split_once("prog/xdp id ")
        .with_context(|| format!("no XDP in {link}"))?;
    Ok(id.split_whitespace().next().unwrap_or_default().into())
}
