//! What a path needs beside the packets of flows: echo, fragments, and errors of routers.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lb_tests::beyond::Beyond;
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::download::Download;
use lb_tests::server_handle::{HTTP, UDP_ECHO};
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

const SOON: Duration = Duration::from_secs(20);

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn http_services(lab: &Lab) -> Vec<Service> {
    let ([nat4, nat6], [dsr4, dsr6]) = (NAT_VIP, DSR_VIP);
    let services = [
        Service::tcp(lab, "nat4", at(nat4, 80), HTTP),
        Service::tcp(lab, "nat6", at(nat6, 80), HTTP),
        Service::tcp(lab, "dsr4", at(dsr4, HTTP), HTTP).dsr(),
        Service::tcp(lab, "dsr6", at(dsr6, HTTP), HTTP).dsr(),
    ];
    services.map(Service::patient).into()
}

#[test]
fn vips_answer_ping_unless_told_not_to() -> Result<()> {
    with_lab(|lab, _servers| {
        let vips = [NAT_VIP, DSR_VIP].concat();
        let agent = Agent::start(lab, &Config::new(http_services(lab)))?;
        for vip in &vips {
            let answered = lab.ping(&lab.client, *vip, SOON)?;
            ensure!(answered, "no answer to ping from {vip}");
        }
        wait_for("the answers to be counted", SOON, || {
            let counted = agent.status()?.node.verdicts.get("echo_reply").copied();
            Ok(counted >= Some(4))
        })?;
        drop(agent);
        let mut config = Config::new(http_services(lab));
        config.node = "answer_ping = false".into();
        let _agent = Agent::start(lab, &config)?;
        for vip in &vips {
            let answered = lab.ping(&lab.client, *vip, Duration::from_secs(1))?;
            ensure!(!answered, "{vip} answered");
        }
        Ok(())
    })
}

/// Sends a datagram and gives the name of the backend whose echo comes back.
fn exchange(to: SocketAddr, datagram: &[u8]) -> Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(datagram)?;
    let mut buffer = vec![0; 1 << 16];
    let length = socket.recv(&mut buffer).context("waiting for the echo")?;
    let space = buffer.iter().position(|byte| *byte == b' ');
    let space = space.context("an echo without a name")?;
    ensure!(buffer[space + 1..length] == *datagram, "not what was sent");
    Ok(String::from_utf8_lossy(&buffer[..space]).into_owned())
}

#[test]
fn large_datagrams_arrive_whole_both_ways() -> Result<()> {
    with_lab(|lab, _servers| {
        let udp = |name, vip| {
            let service = Service::tcp(lab, name, at(vip, UDP_ECHO), UDP_ECHO);
            service.udp().dsr().patient()
        };
        let nat = |name, vip| {
            Service::tcp(lab, name, at(vip, 53), UDP_ECHO)
                .udp()
                .patient()
        };
        let services = vec![
            udp("dsr4", DSR_VIP[0]),
            udp("dsr6", DSR_VIP[1]),
            nat("nat4", NAT_VIP[0]),
            nat("nat6", NAT_VIP[1]),
        ];
        let agent = Agent::start(lab, &Config::new(services.clone()))?;
        // In three fragments, the last with less than a header's worth of what the first has.
        let datagram: Vec<u8> = (0..4000u32).map(|n| (n % 251) as u8).collect();
        for service in &services {
            for _ in 0..20 {
                lab.client
                    .namespace
                    .within(|| exchange(service.address, &datagram))?
                    .with_context(|| service.name.clone())?;
            }
        }
        // From several sockets at once.
        let to = services[2].address;
        let clients = (0..8u8).map(|n| {
            let datagram: Vec<u8> = datagram.iter().map(|byte| byte ^ n).collect();
            let exchanges = move || (0..50).try_for_each(|_| exchange(to, &datagram).map(drop));
            lab.client.namespace.spawn(exchanges)
        });
        let clients = clients.collect::<Result<Vec<_>>>()?;
        for client in clients {
            match client.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        let status = agent.status()?;
        for service in &status.services {
            let dropped = service.verdicts.get("drop_fragment");
            ensure!(dropped.is_none(), "{}: {dropped:?}", service.name);
        }
        Ok(())
    })
}

#[test]
fn a_narrow_path_is_discovered() -> Result<()> {
    with_lab(|lab, _servers| {
        let beyond = Beyond::new(lab, 1300)?;
        let services = http_services(lab);
        let agent = Agent::start(lab, &Config::new(services.clone()))?;
        for (index, service) in services.iter().enumerate() {
            let download = Download::start(&beyond.client, service.address, 4 << 20, None)
                .with_context(|| service.name.clone())?;
            let ended = wait_for("the download to end", 3 * SOON, || Ok(download.ended()));
            if ended.is_err() {
                bail!(
                    "{}: stuck after {} bytes",
                    service.name,
                    download.received()
                );
            }
            download.finish().with_context(|| service.name.clone())?;
            wait_for("the errors to be counted", SOON, || {
                let services = agent.status()?.services;
                Ok(services[index].verdicts.get("icmp_error") > Some(&0))
            })
            .with_context(|| service.name.clone())?;
        }
        Ok(())
    })
}
