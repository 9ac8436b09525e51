//! The ways in which health checking fails its users, one test each, by the name of the failure.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::flows::Flows;
use lb_tests::load::idle::Idle;
use lb_tests::server::Order;
use lb_tests::server_handle::{TCP_ECHO, UDP_ECHO};
use lb_tests::sniff::Sniffer;
use lb_tests::{Agent, Config, Lab, Service, with_lab};

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Waits until one backend of each of these services is active and has the service's packets.
fn wait_active(agent: &mut Agent<'_>, services: &[&str], backend: &str) -> Result<()> {
    for service in services {
        agent.wait_routing(&format!("{service}/{backend}"), "active")?;
    }
    Ok(())
}

/// Silent connections, all to this backend.
fn idle(lab: &Lab, to: &[SocketAddr], backend: &str) -> Result<Vec<Idle>> {
    let mut all = Vec::new();
    for to in to {
        for _ in 0..5 {
            let idle = Idle::open(&lab.client, *to).with_context(|| to.to_string())?;
            ensure!(idle.backend == backend, "{to} leads to {}", idle.backend);
            all.push(idle);
        }
    }
    Ok(all)
}

fn must_be_reset(connections: &mut [Idle]) -> Result<()> {
    for connection in connections {
        let result = connection.exchange();
        let error = result.err().context("the old primary still answers")?;
        ensure!(
            error.kind() == ErrorKind::ConnectionReset,
            "not a reset: {error}"
        );
    }
    Ok(())
}

#[test]
fn split_brain_on_promotion() -> Result<()> {
    with_lab(|lab, servers| {
        let (nat, dsr) = (at(NAT_VIP[0], TCP_ECHO), at(DSR_VIP[1], TCP_ECHO));
        let options = "mode = \"active_passive\"\npromote_after = \"1s\"";
        let services = vec![
            Service::tcp(lab, "nat", nat, TCP_ECHO).options(options),
            Service::tcp(lab, "dsr", dsr, TCP_ECHO)
                .dsr()
                .options(options),
            Service::tcp(lab, "udp", at(DSR_VIP[0], UDP_ECHO), UDP_ECHO)
                .dsr()
                .udp()
                .options(options),
        ];
        let all = ["nat", "dsr", "udp"];
        let mut agent = Agent::prepare(lab, &Config::new(services))?;
        agent.run(&[], &[])?;
        wait_active(&mut agent, &all, "b1")?;
        agent.wait_routing("nat/b2", "standby")?;
        let mut before = idle(lab, &[nat, dsr], "b1")?;
        let mut later = idle(lab, &[nat, dsr], "b1")?;
        let busy = [
            Flows::open(&lab.client, nat, 5)?,
            Flows::open(&lab.client, dsr, 5)?,
        ];

        // The primary serves on, and its flows reach it; only the probes hear nothing of it.
        servers[0].order(Order::Hang)?;
        wait_active(&mut agent, &all, "b2")?;
        let old = [
            Sniffer::start(lab.backend(1), TCP_ECHO)?,
            Sniffer::start(lab.backend(1), UDP_ECHO)?,
        ];
        must_be_reset(&mut before)?;
        idle(lab, &[nat, dsr], "b2")?;
        for flows in &busy {
            flows.exchange(1, lb_tests::agent::SOON)?;
            ensure!(flows.alive().is_empty(), "flows of the old primary live");
        }

        // It is back for the probes, and stays away from clients.
        servers[0].order(Order::Ready)?;
        agent.wait_routing("nat/b1", "standby")?;
        agent.wait_routing("dsr/b1", "standby")?;
        must_be_reset(&mut later)?;
        let mut kept = idle(lab, &[nat, dsr], "b2")?;

        // A restart changes nothing.
        agent.terminate()?;
        agent.run(&[], &[])?;
        wait_active(&mut agent, &all, "b2")?;
        agent.wait_routing("nat/b1", "standby")?;
        for connection in &mut kept {
            connection.exchange()?;
        }
        let counts = old.each_ref().map(Sniffer::packets);
        ensure!(counts == [0, 0], "packets for the old primary: {counts:?}");
        Ok(())
    })
}
