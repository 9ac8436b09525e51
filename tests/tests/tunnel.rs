//! Tunnels to backends: IP-in-IP and GUE, taken apart by `lb decap` or the kernel.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::decap::Decap;
use lb_tests::lab::DSR_VIP;
use lb_tests::load::{Amount, Load};
use lb_tests::server_handle::{HTTP, TCP_ECHO};
use lb_tests::{Agent, Config, Lab, Server, Service, wait_for, with_lab};

const MIB: usize = 1 << 20;

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// HTTP with inner and outer family alike, and an echo for each VIP in the other family.
fn services(lab: &Lab, forwarding: &'static str) -> Vec<Service> {
    let [v4, v6] = DSR_VIP;
    let service = |name: &str, vip, port| {
        Service::tcp(lab, name, at(vip, port), port)
            .patient()
            .forwarded(forwarding)
    };
    vec![
        service("4in4", v4, HTTP),
        service("6in6", v6, HTTP),
        service("4in6", v4, TCP_ECHO).over(lab, v6),
        service("6in4", v6, TCP_ECHO).over(lab, v4),
    ]
}

fn decapsulate(lab: &Lab, mode: &str) -> Result<Vec<Decap>> {
    let backends = lab.backends.iter();
    backends.map(|host| Decap::start(host, mode)).collect()
}

fn requests(lab: &Lab, service: &Service, count: u64) -> Result<()> {
    let amount = Amount::requests(count);
    let tally = Load::http(&lab.client, service.address, false, amount)?.finish();
    tally.must_not_fail().context(service.name.clone())?;
    for name in ["b1", "b2", "b3"] {
        ensure!(tally.of(name) > 0, "{}: {tally:?}", service.name);
    }
    Ok(())
}

/// Sends a mebibyte to an echo and compares what comes back.
fn upload(lab: &Lab, to: SocketAddr) -> Result<()> {
    let work = move || -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        let sent: Vec<u8> = (0..MIB).map(|n| (n * 7 + n / 251) as u8).collect();
        let mut writer = stream.try_clone()?;
        let copy = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&copy));
        let mut greeting = Vec::new();
        while greeting.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("no greeting")?;
            greeting.push(byte[0]);
        }
        let mut received = vec![0; MIB];
        stream
            .read_exact(&mut received)
            .context("not all came back")?;
        ensure!(received == sent, "other bytes came back");
        match writing.join() {
            Ok(written) => Ok(written?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    };
    lab.client.namespace.within(work)?
}

/// Sum of a verdict over all services.
fn verdict(agent: &Agent, name: &str) -> Result<u64> {
    let status: serde_json::Value = serde_json::from_str(&agent.lb(&["status", "--json"])?.ok()?)?;
    let services = status["services"].as_array().context("no services")?;
    let of = |service: &serde_json::Value| service["verdicts"][name].as_u64().unwrap_or(0);
    Ok(services.iter().map(of).sum())
}

fn must_have_no_xdp(lab: &Lab) -> Result<()> {
    for host in &lab.backends {
        let link = host.namespace.run("ip", &["link", "show", "eth0"])?;
        ensure!(!link.contains("xdp"), "{}: {link}", host.name);
    }
    Ok(())
}

fn through_lb_decap(lab: &Lab, forwarding: &'static str, mode: &str) -> Result<()> {
    let services = services(lab, forwarding);
    let agent = Agent::start(lab, &Config::new(services.clone()))?;
    let ends = decapsulate(lab, mode)?;
    for service in &services[..2] {
        requests(lab, service, 600)?;
    }
    for service in &services {
        if service.address.port() == TCP_ECHO {
            upload(lab, service.address).context(service.name.clone())?;
        }
    }
    wait_for("the count of packets that were too long", SOON, || {
        Ok(verdict(&agent, "too_big")? > 0)
    })?;
    for end in ends {
        let counted = end.end()?;
        let of = |kind: &str| counted[kind]["packets"].as_u64().unwrap_or(0);
        let other = if forwarding == "gue" { "ipip" } else { "gue" };
        ensure!(of(forwarding) > 100 && of(other) == 0, "{counted}");
        ensure!(
            of("dropped_congested") + of("dropped_refused") == 0,
            "{counted}"
        );
    }
    must_have_no_xdp(lab)
}

#[test]
fn ipip_to_backends_with_lb_decap() -> Result<()> {
    with_lab(|lab, _servers| through_lb_decap(lab, "ipip", "native"))
}

#[test]
fn gue_to_backends_with_lb_decap() -> Result<()> {
    with_lab(|lab, _servers| through_lb_decap(lab, "gue", "native"))
}

/// Where the kernel has looked at the packet before the program has.
#[test]
fn lb_decap_in_generic_mode() -> Result<()> {
    with_lab(|lab, _servers| through_lb_decap(lab, "ipip", "generic"))
}

#[test]
fn a_tunnel_backend_is_ejected_and_comes_back() -> Result<()> {
    with_lab(|lab, servers| {
        let service = Service::tcp(lab, "web", at(DSR_VIP[0], HTTP), HTTP).forwarded("gue");
        let mut agent = Agent::start(lab, &Config::new(vec![service.clone()]))?;
        let _ends = decapsulate(lab, "native")?;
        requests(lab, &service, 300)?;
        servers[0].kill()?;
        agent.wait_routing("web/b1", "out")?;
        let load = Load::http(&lab.client, service.address, false, Amount::requests(300))?;
        let tally = load.finish();
        tally.must_not_fail()?;
        ensure!(tally.of("b1") == 0, "{tally:?}");
        servers[0] = Server::start(lab.backend(1))?;
        agent.settled()?;
        requests(lab, &service, 300)
    })
}

#[test]
fn lb_decap_leaves_another_program_alone() -> Result<()> {
    with_lab(|lab, _servers| {
        let first = Decap::start(lab.backend(1), "native")?;
        let binary = lb_tests::binaries::lb()?;
        let host = &lab.backend(1).namespace;
        let second = host
            .command(&binary)
            .args(["decap", "--interface", "eth0"])
            .output()?;
        let error = String::from_utf8_lossy(&second.stderr);
        ensure!(second.status.code() == Some(1), "{second:?}");
        ensure!(error.contains("lb_decap"), "{error}");
        first.end()?;
        must_have_no_xdp(lab)?;
        let missing = host
            .command(&binary)
            .args(["decap", "--interface", "nosuch0"])
            .output()?;
        let error = String::from_utf8_lossy(&missing.stderr);
        ensure!(error.contains("no interface nosuch0"), "{error}");
        Ok(())
    })
}

/// Runs with devices of the kernel, or says what the kernel lacks.
fn through_the_kernel(lab: &Lab, forwarding: &'static str) -> Result<()> {
    if forwarding == "gue" {
        // Asking for them does not load them. Where they cannot be loaded, the next command says so.
        let _ = std::process::Command::new("modprobe")
            .args(["--all", "--quiet", "fou", "fou6"])
            .status();
    }
    for host in &lab.backends {
        let mut lines = format!(
            "link add lb4 type ipip local {0} remote any\nlink set lb4 up\n\
             link add lb6 type ip6tnl mode any local {1} remote ::\nlink set lb6 up",
            host.v4, host.v6
        );
        if forwarding == "gue" {
            lines = format!("fou add port 6080 gue\nfou add port 6080 gue -6\n{lines}");
        }
        if let Err(error) = host.namespace.ip(&lines) {
            let error = format!("{error:#}").replace('\n', "; ");
            println!(
                "SKIPPED {forwarding}_to_backends_with_kernel_devices: this kernel has no such \
                 tunnels: {error}"
            );
            return Ok(());
        }
    }
    let services = services(lab, forwarding);
    let _agent = Agent::start(lab, &Config::new(services[..2].to_vec()))?;
    for service in &services[..2] {
        requests(lab, service, 600)?;
    }
    Ok(())
}

#[test]
fn ipip_to_backends_with_kernel_devices() -> Result<()> {
    with_lab(|lab, _servers| through_the_kernel(lab, "ipip"))
}

#[test]
fn gue_to_backends_with_kernel_devices() -> Result<()> {
    with_lab(|lab, _servers| through_the_kernel(lab, "gue"))
}
