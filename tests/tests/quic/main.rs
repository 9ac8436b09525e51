//! Services with `affinity = "quic"` under a real QUIC stack.

mod stack;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::server::Order;
use lb_tests::{Agent, Config, Lab, Server, Service, with_lab};
use stack::{Client, Ids, Stack};

/// Where QUIC is served.
const PORT: u16 = 4433;
/// Connections of each service: enough that hashing would hardly give them all the same backend
/// again from another port.
const CLIENTS: usize = 8;
/// Further addresses of the client.
const ELSEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 101)),
    IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x101)),
];

fn services(lab: &Lab) -> Vec<Service> {
    let service = |name: &str, vip| {
        Service::tcp(lab, name, SocketAddr::new(vip, PORT), PORT)
            .udp()
            .options("affinity = \"quic\"\ndrain_deadline = \"5m\"")
    };
    vec![
        service("nat4", NAT_VIP[0]),
        service("nat6", NAT_VIP[1]),
        service("dsr4", DSR_VIP[0]).dsr(),
        service("dsr6", DSR_VIP[1]).dsr(),
    ]
}

/// Servers on all backends, and an agent that forwards to them.
fn start<'lab>(lab: &'lab Lab, stack: &Stack, ids: Ids) -> Result<Agent<'lab>> {
    for host in &lab.backends {
        for address in [host.v4, host.v6].into_iter().chain(DSR_VIP) {
            stack.serve(host, SocketAddr::new(address, PORT), ids)?;
        }
    }
    let mut agent = Agent::start(lab, &Config::new(services(lab)))?;
    // By DSR the backend that was ready first keeps what has no ID for two minutes, so each
    // connection would begin there. The next agent knows the verdicts from the start.
    agent.terminate()?;
    agent.lb(&["detach"])?.ok()?;
    agent.run(&[], &[])?;
    agent.settled()?;
    Ok(agent)
}

fn connect(lab: &Lab, stack: &Stack) -> Result<Vec<(Service, Client)>> {
    let mut clients = Vec::new();
    for service in services(lab) {
        for _ in 0..CLIENTS {
            let client = stack.connect(&lab.client, service.address);
            clients.push((service.clone(), client.context(service.name.clone())?));
        }
        let homes: BTreeSet<&str> = clients[clients.len() - CLIENTS..]
            .iter()
            .map(|(_, client)| &*client.home)
            .collect();
        ensure!(homes.len() > 1, "{}: all at {homes:?}", service.name);
    }
    Ok(clients)
}

fn exchange(stack: &Stack, clients: &mut [(Service, Client)]) -> Result<()> {
    for (service, client) in clients {
        let done = stack.exchange(client);
        done.with_context(|| service.name.clone())?;
    }
    Ok(())
}

/// b3 says that it is not ready, and of the other two one has less weight.
fn disturb(agent: &mut Agent<'_>, servers: &mut [Server], lab: &Lab) -> Result<()> {
    servers[2].order(Order::Unready)?;
    for service in services(lab) {
        let name = &service.name;
        agent.lb(&["weight", &format!("{name}/b1"), "30"])?.ok()?;
        agent.wait_routing(&format!("{name}/b3"), "draining")?;
    }
    Ok(())
}

/// b3 is out; its connections are over.
fn eject(agent: &mut Agent<'_>, servers: &mut [Server], lab: &Lab) -> Result<()> {
    servers[2].kill()?;
    for service in services(lab) {
        agent.wait_routing(&format!("{}/b3", service.name), "out")?;
    }
    Ok(())
}

#[test]
fn a_connection_goes_on_wherever_its_client_moves() -> Result<()> {
    with_lab(|lab, servers| {
        lab.client.namespace.ip(&format!(
            "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad",
            ELSEWHERE[0], ELSEWHERE[1]
        ))?;
        let stack = Stack::new()?;
        let mut agent = start(lab, &stack, Ids::Named)?;
        let mut clients = connect(lab, &stack)?;
        let rebind = |clients: &[(Service, Client)], v4, v6| -> Result<()> {
            for (service, client) in clients {
                let from = if service.address.is_ipv4() { v4 } else { v6 };
                stack.rebind(client, &lab.client, from)?;
            }
            Ok(())
        };
        exchange(&stack, &mut clients)?;
        rebind(&clients, lab.client.v4, lab.client.v6)?;
        exchange(&stack, &mut clients).context("from another port")?;
        disturb(&mut agent, servers, lab)?;
        rebind(&clients, ELSEWHERE[0], ELSEWHERE[1])?;
        exchange(&stack, &mut clients).context("from another address")?;
        eject(&mut agent, servers, lab)?;
        clients.retain(|(_, client)| client.home != "b3");
        exchange(&stack, &mut clients).context("while b3 is out")?;
        rebind(&clients, lab.client.v4, lab.client.v6)?;
        exchange(&stack, &mut clients).context("back from there, while b3 is out")
    })
}

#[test]
fn connection_ids_that_name_nobody_go_by_the_5_tuple() -> Result<()> {
    with_lab(|lab, servers| {
        let stack = Stack::new()?;
        let mut agent = start(lab, &stack, Ids::Random)?;
        let mut clients = connect(lab, &stack)?;
        exchange(&stack, &mut clients)?;
        disturb(&mut agent, servers, lab)?;
        exchange(&stack, &mut clients).context("while b3 drains")?;
        eject(&mut agent, servers, lab)?;
        clients.retain(|(_, client)| client.home != "b3");
        exchange(&stack, &mut clients).context("while b3 is out")
    })
}
