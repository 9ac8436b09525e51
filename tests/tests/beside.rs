//! Living beside other programs, with no more privileges than needed.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::NAT_VIP;
use lb_tests::load::{Amount, Load};
use lb_tests::server_handle::HTTP;
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

const OTHER: &str = "/sys/fs/bpf/other";

fn web() -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], 80)
}

fn config(lab: &Lab, node: &str) -> Config {
    let mut config = Config::new(vec![Service::tcp(lab, "web", web(), HTTP).patient()]);
    config.node = node.into();
    config
}

fn served(lab: &Lab) -> Result<()> {
    let load = Load::http(&lab.client, web(), false, Amount::requests(200))?;
    load.finish().must_not_fail()
}

#[test]
fn what_is_not_ours_goes_to_the_chained_program() -> Result<()> {
    with_lab(|lab, _servers| {
        let chained = config(lab, &format!("chain = \"{OTHER}\""));
        let mut agent = Agent::prepare(lab, &chained)?;
        agent.run(&[], &[])?;
        ensure!(!agent.wait_end(SOON)?.success(), "started without the pin");
        let log = agent.log();
        ensure!(
            log.contains("nothing is pinned at /sys/fs/bpf/other"),
            "{log}"
        );
        ensure!(agent.traces()?.is_empty(), "{:?}", agent.traces()?);

        let other = lab.lb.namespace.pin_counting_xdp(OTHER)?;
        agent.run(&[], &[])?;
        agent.settled()?;
        let ping = || lab.ping(&lab.client, lab.lb.v4, SOON);
        let counts = |what: &str| -> Result<()> {
            let before = other.packets()?;
            ensure!(ping()?, "no answer to a ping, {what}");
            ensure!(other.packets()? > before, "not counted, {what}");
            Ok(())
        };
        counts("at first")?;
        served(lab)?;
        agent.kill()?;
        counts("without an agent")?;
        agent.run(&[], &[])?;
        agent.settled()?;
        counts("after a restart")?;

        // Taken out by a reload, and a wrong one changes nothing.
        agent.configure(&config(lab, ""))?;
        agent.lb(&["reload"])?.ok()?;
        let before = other.packets()?;
        ensure!(ping()?, "no answer without a chained program");
        ensure!(other.packets()? == before, "counted though taken out");
        agent.configure(&chained)?;
        agent.lb(&["reload"])?.ok()?;
        counts("put back in")?;
        let pins = agent.pins()?;
        agent.configure(&config(lab, &format!("chain = \"{pins}/program\"")))?;
        let refused = agent.lb(&["reload"])?;
        ensure!(
            refused.code == Some(2) || refused.code == Some(1),
            "{refused:?}"
        );
        ensure!(refused.err.contains("would call itself"), "{refused:?}");
        counts("after a reload that was refused")?;
        served(lab)?;

        agent.lb(&["detach"])?.ok()?;
        let before = other.packets()?;
        ensure!(ping()?, "no answer after detach");
        ensure!(other.packets()? == before, "counted after detach");
        let traces = agent.traces()?;
        ensure!(traces == [OTHER], "detach left {traces:?}");
        Ok(())
    })
}

#[test]
fn a_foreign_program_is_converted_as_the_error_says() -> Result<()> {
    with_lab(|lab, _servers| {
        let host = &lab.lb.namespace;
        let other = host.pin_counting_xdp(OTHER)?;
        host.run("ip", &["link", "set", "eth0", "xdpdrv", "pinned", OTHER])?;
        let chained = config(lab, &format!("chain = \"{OTHER}\""));
        let mut agent = Agent::prepare(lab, &chained)?;
        agent.run(&[], &[])?;
        ensure!(!agent.wait_end(SOON)?.success(), "took the interface");
        let log = agent.log();
        ensure!(log.contains("node.chain"), "the log names no mend:\n{log}");
        host.run("ip", &["link", "set", "dev", "eth0", "xdp", "off"])?;
        agent.run(&[], &[])?;
        agent.settled()?;
        served(lab)?;
        let before = other.packets()?;
        ensure!(lab.ping(&lab.client, lab.lb.v4, SOON)?, "no answer");
        ensure!(other.packets()? > before, "the other program is idle");
        Ok(())
    })
}

#[test]
fn a_running_agent_has_no_more_capabilities_than_it_needs() -> Result<()> {
    // CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF.
    const KEPT: u64 = 1 << 12 | 1 << 38 | 1 << 39;
    with_lab(|lab, _servers| {
        let mut agent = Agent::start(lab, &config(lab, ""))?;
        let threads = |agent: &Agent| -> Result<Vec<(String, u64, bool)>> {
            let id = agent.process_id().context("the agent does not run")?;
            let mut threads = Vec::new();
            for thread in std::fs::read_dir(format!("/proc/{id}/task"))? {
                let status = std::fs::read_to_string(thread?.path().join("status"))?;
                let value = |key: &str| {
                    let line = status.lines().find_map(|line| line.strip_prefix(key));
                    line.map(|line| line.trim().to_owned())
                        .context("no such line")
                };
                let bits = u64::from_str_radix(&value("CapEff:")?, 16)?
                    | u64::from_str_radix(&value("CapPrm:")?, 16)?;
                threads.push((value("Name:")?, bits, value("NoNewPrivs:")? == "1"));
            }
            Ok(threads)
        };
        let found = threads(&agent)?;
        ensure!(found.len() >= 5, "{found:?}");
        for (name, bits, no_new) in &found {
            ensure!(
                *bits == KEPT && *no_new,
                "thread {name}: {bits:x}, {no_new}"
            );
        }
        // All that a running agent does goes without the rest.
        served(lab)?;
        agent.lb(&["drain", "web/b1"])?.ok()?;
        agent.lb(&["weight", "web/b2", "50"])?.ok()?;
        agent.lb(&["enable", "web/b1"])?.ok()?;
        agent.settled()?;
        let spare = Service::tcp(lab, "spare", SocketAddr::new(NAT_VIP[1], 80), HTTP);
        let mut more = config(lab, "");
        more.services.push(spare);
        agent.configure(&more)?;
        agent.lb(&["reload"])?.ok()?;
        agent.settled()?;
        let flow = ["explain", "--help"];
        agent.lb(&flow)?.ok()?;
        // A successor takes over, and `lb detach` works through the agent.
        ensure!(agent.terminate()?.success(), "log:\n{}", agent.log());
        agent.run(&[], &[])?;
        agent.settled()?;
        wait_for("the state to be saved", SOON, || {
            Ok(lab.folder().join("state/state.json").is_file())
        })?;
        agent.lb(&["detach"])?.ok()?;
        ensure!(agent.traces()?.is_empty(), "{:?}", agent.traces()?);
        Ok(())
    })
}
