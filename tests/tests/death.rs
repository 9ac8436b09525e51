//! Backends that die without a word: what becomes of the connections they had. Of those that are
//! opened before the probes notice, see `failures.rs`.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::idle::Idle;
use lb_tests::server_handle::TCP_ECHO;
use lb_tests::{Agent, Config, Lab, Service, with_lab};

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Silent connections to each of these addresses, some with each backend.
fn idle(lab: &Lab, to: &[SocketAddr]) -> Result<Vec<Idle>> {
    let mut all = Vec::new();
    for to in to {
        for _ in 0..30 {
            all.push(Idle::open(&lab.client, *to).with_context(|| to.to_string())?);
        }
    }
    Ok(all)
}

/// Those of `dead` must be reset by their next packet, the others go on.
fn must_be_told(connections: &mut [Idle], dead: &str) -> Result<()> {
    let mut reset = 0;
    for connection in connections {
        let result = connection.exchange();
        if connection.backend == dead {
            let error = result.err().context("a dead backend answers")?;
            ensure!(
                error.kind() == ErrorKind::ConnectionReset,
                "not a reset: {error}"
            );
            reset += 1;
        } else {
            result.with_context(|| format!("a flow of {}", connection.backend))?;
        }
    }
    ensure!(reset > 0, "{dead} had no connection");
    Ok(())
}

#[test]
fn the_next_packet_of_an_idle_flow_learns_that_its_backend_died() -> Result<()> {
    with_lab(|lab, _servers| {
        let [nat4, nat6] = NAT_VIP.map(|vip| at(vip, TCP_ECHO));
        let [dsr4, dsr6] = DSR_VIP.map(|vip| at(vip, TCP_ECHO));
        let service = |name, address| Service::tcp(lab, name, address, TCP_ECHO);
        let resets = |service: Service| service.dsr().options("on_death = \"reset\"");
        let services = vec![
            service("nat4", nat4),
            service("nat6", nat6),
            resets(service("dsr4", dsr4)),
            resets(service("dsr6", dsr6)),
        ];
        let mut agent = Agent::start(lab, &Config::new(services))?;
        agent.settled()?;
        let mut connections = idle(lab, &[nat4, nat6, dsr4, dsr6])?;
        lab.plug(lab.backend(1), false)?;
        for service in ["nat4", "nat6", "dsr4", "dsr6"] {
            agent.wait_routing(&format!("{service}/b1"), "out")?;
        }
        must_be_told(&mut connections, "b1")?;
        for service in ["nat4", "nat6", "dsr4", "dsr6"] {
            let reset = agent.counted(service, "reset_backend_out")?;
            ensure!(reset > 0, "{service} counted no reset");
        }
        // The others have only learned that they live.
        lab.plug(lab.backend(1), true)?;
        agent.settled()?;
        connections.retain(|connection| connection.backend != "b1");
        for connection in &mut connections {
            connection.exchange()?;
        }
        Ok(())
    })
}
