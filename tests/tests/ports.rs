//! Services with several ports, and QUIC connection IDs that name a backend.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::flows::Flows;
use lb_tests::load::{Amount, Load};
use lb_tests::server_handle::{HTTP, TCP_ECHO, UDP_ECHO};
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

/// Clients at as many ports.
const CLIENTS: usize = 60;

/// The next of them.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Requests to one port of the service, connections to another, none to a third.
fn two_ports_of(lab: &Lab, vip: IpAddr) -> Result<()> {
    let amount = Amount::requests(300);
    let tally = Load::http(&lab.client, at(vip, HTTP), false, amount)?.finish();
    tally.must_not_fail()?;
    for name in ["b1", "b2", "b3"] {
        ensure!(tally.of(name) > 0, "{tally:?}");
    }
    let flows = Flows::open(&lab.client, at(vip, TCP_ECHO), 20)?;
    flows.exchange(5, SOON)?;
    let broken = flows.broken_except("");
    ensure!(broken.is_empty(), "{broken:?}");
    let beside = at(vip, HTTP + 1);
    let connected = (lab.client.namespace)
        .within(move || TcpStream::connect_timeout(&beside, std::time::Duration::from_secs(1)))?;
    ensure!(connected.is_err(), "{beside} is nobody's");
    Ok(())
}

#[test]
fn a_range_of_ports_in_one_service() -> Result<()> {
    with_lab(|lab, _servers| {
        let ranges = [
            ("nat4", NAT_VIP[0], "nat"),
            ("nat6", NAT_VIP[1], "nat"),
            ("dsr4", DSR_VIP[0], "dsr"),
            ("dsr6", DSR_VIP[1], "dsr"),
        ];
        let services = ranges.map(|(name, vip, forwarding)| {
            Service::tcp(lab, name, at(vip, HTTP), HTTP)
                .patient()
                .forwarded(forwarding)
                .ports("7000-8080")
        });
        let agent = Agent::start(lab, &Config::new(services.to_vec()))?;
        for (name, vip, _) in ranges {
            two_ports_of(lab, vip).context(name)?;
        }
        let status = agent.status()?;
        let shown: Vec<&str> = status.services.iter().map(|s| &*s.address).collect();
        ensure!(shown[0] == "203.0.113.10:7000-8080", "{shown:?}");
        let backend = &status.services[0].backends[0].address;
        ensure!(backend == "10.77.0.11:*", "{backend}");
        let asked = ["explain", "10.77.0.100:4000", "203.0.113.10:7002"];
        let found = agent.lb(&asked)?.ok()?;
        ensure!(found.contains("nat4"), "{found}");
        Ok(())
    })
}

#[test]
fn any_port_but_those_of_other_services() -> Result<()> {
    with_lab(|lab, _servers| {
        let vip = NAT_VIP[0];
        let rest = Service::tcp(lab, "rest", at(vip, HTTP), HTTP)
            .patient()
            .only(&["b1"])
            .ports("*");
        let http = Service::tcp(lab, "http", at(vip, HTTP), HTTP)
            .patient()
            .only(&["b2"]);
        let _agent = Agent::start(lab, &Config::new(vec![rest, http]))?;
        let amount = Amount::requests(50);
        let tally = Load::http(&lab.client, at(vip, HTTP), false, amount)?.finish();
        tally.must_not_fail()?;
        ensure!(tally.of("b2") == tally.requests(), "{tally:?}");
        let flows = Flows::open(&lab.client, at(vip, TCP_ECHO), 5)?;
        flows.exchange(5, SOON)?;
        let broken = flows.broken_except("b1");
        ensure!(broken.is_empty(), "{broken:?}");
        Ok(())
    })
}

/// Sends a datagram from a port of its own; gives the name of the backend that answers.
fn ask(lab: &Lab, to: SocketAddr, payload: &[u8]) -> Result<String> {
    let payload = payload.to_vec();
    lab.client.namespace.within(move || -> Result<String> {
        // A port that comes up twice would have a flow already.
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind(at(any, port))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send(&payload)?;
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer).context("no echo")?;
        let echo = &answer[..length];
        let name = echo
            .strip_suffix(&*payload)
            .context("other bytes came back")?;
        Ok(String::from_utf8_lossy(name).trim().to_owned())
    })?
}

/// First packet of a connection: QUIC version 1, a connection ID that the client has drawn.
fn initial() -> Vec<u8> {
    let mut bytes = vec![0xc0, 0, 0, 0, 1, 8];
    bytes.extend([0x11; 60]);
    bytes
}

/// A later packet: short header, a connection ID that the backend with this address has chosen.
fn established(backend: IpAddr) -> Vec<u8> {
    let mut bytes = vec![0x40, 0x0b];
    match backend {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(&v6.octets()[12..]),
    }
    bytes.extend([0x22; 48]);
    bytes
}

#[test]
fn a_quic_client_that_moves_stays_with_its_backend() -> Result<()> {
    with_lab(|lab, _servers| {
        let service = |name: &str, address| {
            Service::tcp(lab, name, address, UDP_ECHO)
                .udp()
                .patient()
                .options("affinity = \"quic\"\ndrain_deadline = \"60s\"")
        };
        let services = vec![
            service("nat4", at(NAT_VIP[0], 443)),
            service("nat6", at(NAT_VIP[1], 443)),
            service("dsr4", at(DSR_VIP[0], UDP_ECHO)).dsr(),
            service("dsr6", at(DSR_VIP[1], UDP_ECHO)).dsr(),
        ];
        let agent = Agent::start(lab, &Config::new(services.clone()))?;
        for service in &services {
            let to = service.address;
            let first = ask(lab, to, &initial())?;
            let home = lab.backends.iter().find(|host| host.name == first);
            let home = home.with_context(|| format!("an answer of {first:?}"))?;
            let packet = established(home.address(to.ip()));
            for _ in 0..CLIENTS {
                let name = ask(lab, to, &packet).context(service.name.clone())?;
                ensure!(name == first, "{}: {name}, not {first}", service.name);
            }
            // By DSR the backend that was ready first keeps what has no ID for two minutes.
            if service.forwarding == "nat" {
                let others: Result<BTreeSet<String>> =
                    (0..CLIENTS).map(|_| ask(lab, to, &initial())).collect();
                let others = others?;
                ensure!(others.len() == 3, "hashing would not move it: {others:?}");
            }
        }
        // To each of the others, whichever has the slot; and while it drains.
        let to = at(DSR_VIP[0], UDP_ECHO);
        for host in &lab.backends {
            let name = ask(lab, to, &established(host.v4))?;
            ensure!(name == host.name, "{name}, not {}", host.name);
        }
        for service in ["dsr4", "nat4"] {
            agent.lb(&["drain", &format!("{service}/b2")])?.ok()?;
        }
        let nat = at(NAT_VIP[0], 443);
        wait_for("new flows to keep away from b2", SOON, || {
            let names: Result<BTreeSet<String>> =
                (0..CLIENTS).map(|_| ask(lab, nat, &initial())).collect();
            Ok(!names?.contains("b2"))
        })?;
        for to in [to, nat] {
            for _ in 0..CLIENTS {
                let name = ask(lab, to, &established(lab.backend(2).v4))?;
                ensure!(name == "b2", "{to}: {name} while b2 drains");
            }
        }
        let asked = [
            "explain",
            "10.77.0.100:4000",
            "203.0.113.10:443",
            "--protocol",
            "udp",
        ];
        let found = agent.lb(&asked)?.ok()?;
        ensure!(found.contains("connection ID"), "{found}");
        Ok(())
    })
}
