//! Backends by host name, with a real DNS server in the client's namespace.

use std::collections::BTreeSet;
use std::path::PathBuf;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::{Amount, Load};
use lb_tests::process::Process;
use lb_tests::server_handle::{HTTP, TCP_ECHO};
use lb_tests::status::Status;
use lb_tests::{Agent, Backend, Config, Host, Lab, Service, wait_for, with_lab};

/// A name server whose records are the lines of a file.
struct Dns<'lab> {
    lab: &'lab Lab,
    process: Option<Process>,
    hosts: PathBuf,
}

impl<'lab> Dns<'lab> {
    fn start(lab: &'lab Lab, hosts: &[&Host]) -> Result<Self> {
        let mut dns = Self {
            lab,
            process: None,
            hosts: lab.folder().join("hosts"),
        };
        dns.write(hosts)?;
        dns.run()?;
        Ok(dns)
    }

    fn write(&self, hosts: &[&Host]) -> Result<()> {
        let lines = hosts
            .iter()
            .map(|host| format!("{} app.lab\n{} app.lab\n", host.v4, host.v6));
        Ok(std::fs::write(&self.hosts, lines.collect::<String>())?)
    }

    fn run(&mut self) -> Result<()> {
        let mut command = self.lab.client.namespace.command("/usr/sbin/dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--user=",
            ])
            .args([
                "--conf-file=/dev/null",
                "--pid-file=",
                "--local=/lab/",
                "--local-ttl=1",
            ])
            .arg(format!("--addn-hosts={}", self.hosts.display()));
        self.process = Some(Process::spawn(&mut command, "dnsmasq")?);
        Ok(())
    }

    /// Gives the name other addresses.
    fn change(&self, hosts: &[&Host]) -> Result<()> {
        self.write(hosts)?;
        let process = self.process.as_ref().context("it does not run")?;
        process.signal(libc::SIGHUP)
    }

    fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it does not run")?;
        process.kill()
    }
}

fn by_name(name: &str, host: &str, vip: SocketAddr) -> Service {
    Service {
        name: name.into(),
        address: vip,
        ports: None,
        protocol: "tcp",
        forwarding: "nat",
        options: "drain_deadline = \"3s\"".into(),
        health: "interval = \"300ms\"\ntimeout = \"250ms\"".into(),
        backends: vec![Backend {
            name: "app".into(),
            address: SocketAddr::new(vip.ip(), vip.port()),
            options: format!("# {host}"),
        }],
    }
}

/// The file, with host names in the place of the addresses that a [`Config`] has.
fn text(lab: &Lab, services: Vec<Service>) -> String {
    let mut config = Config::new(services);
    config.node = "dns_servers = [\"10.77.0.100\"]\ndns_max_ttl = \"1s\"".into();
    let text = config.toml(lab.folder());
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        match lines.peek().and_then(|next| next.strip_prefix("# ")) {
            Some(host) => {
                let port = line.rsplit_once(':').map_or("", |(_, port)| port);
                out.push_str(&format!("address = \"{host}:{port}\n"));
            }
            None => out.push_str(&format!("{line}\n")),
        }
    }
    out
}

fn backends(status: &Status, service: &str) -> Result<BTreeSet<String>> {
    let backends = status.service(service)?.backends.iter();
    Ok(backends
        .map(|backend| format!("{} {}", backend.name, backend.routing))
        .collect())
}

fn wait_backends(agent: &mut Agent, service: &str, hosts: &[std::net::IpAddr]) -> Result<()> {
    let wanted: BTreeSet<String> = hosts.iter().map(|ip| format!("app@{ip} active")).collect();
    agent.wait_status(&format!("{service} to have {wanted:?}"), |status| {
        Ok(backends(status, service)? == wanted)
    })
}

#[test]
fn backends_follow_their_name_and_outlive_dns() -> Result<()> {
    with_lab(|lab, _servers| {
        let (b1, b2, b3) = (lab.backend(1), lab.backend(2), lab.backend(3));
        let mut dns = Dns::start(lab, &[b1, b2])?;
        let web = SocketAddr::new(NAT_VIP[0], HTTP);
        let services = vec![
            by_name("web", "app.lab", web),
            by_name("six", "app.lab", SocketAddr::new(DSR_VIP[1], TCP_ECHO)).dsr(),
            by_name("nowhere", "nowhere.lab", SocketAddr::new(NAT_VIP[1], HTTP)),
        ];
        let mut agent = Agent::prepare(lab, &Config::new(Vec::new()))?;
        agent.configure_text(&text(lab, services))?;
        agent
            .lb(&["check", &agent.config_path().display().to_string()])?
            .ok()?;
        agent.run(&[], &[])?;
        wait_backends(&mut agent, "web", &[b1.v4, b2.v4])?;
        wait_backends(&mut agent, "six", &[b1.v6, b2.v6])?;
        wait_backends(&mut agent, "nowhere", &[])?;
        agent.wait_event(
            "name",
            "nowhere.lab (AAAA) cannot be resolved: there is no such name",
        )?;

        // Other addresses under load: what is removed drains, what is new is probed first.
        let load = Load::http(&lab.client, web, false, Amount::steady())?;
        wait_for("answers of b1 and b2", SOON, || {
            let tally = load.tally();
            Ok(tally.of("b1") > 0 && tally.of("b2") > 0)
        })?;
        dns.change(&[b2, b3])?;
        wait_backends(&mut agent, "web", &[b2.v4, b3.v4])?;
        wait_backends(&mut agent, "six", &[b2.v6, b3.v6])?;
        let before = load.tally();
        wait_for("answers of b3 and none of b1", SOON, || {
            let after = load.tally().since(&before);
            Ok(after.of("b3") > 20 && after.of("b2") > 20)
        })?;
        let after = load.tally().since(&before);
        ensure!(after.of("b1") == 0, "{after:?}");
        agent.wait_event("added", "app.lab has this address now")?;
        agent.wait_event("removed", "app.lab does not have this address any more")?;

        load.stop().must_not_fail()?;

        // The name goes away, then the server: the last addresses stay.
        dns.change(&[])?;
        agent.wait_event(
            "name",
            "app.lab (A) cannot be resolved: there is no such name (NXDOMAIN)",
        )?;
        wait_backends(&mut agent, "web", &[b2.v4, b3.v4])?;
        dns.change(&[b2, b3])?;
        agent.wait_event("name", "app.lab (A) is resolved again")?;
        dns.kill()?;
        let failing = |agent: &Agent| -> Result<bool> {
            let status = agent.raw_status()?;
            let names = status["node"]["names"].as_array().context("no names")?;
            Ok(names.iter().all(|name| name["error"].is_string()))
        };
        wait_for("an error of every name", SOON, || failing(&agent))?;
        wait_backends(&mut agent, "web", &[b2.v4, b3.v4])?;

        // An agent that starts meanwhile has them from the one before.
        agent.kill()?;
        agent.run(&[], &[])?;
        wait_backends(&mut agent, "web", &[b2.v4, b3.v4])?;
        wait_backends(&mut agent, "six", &[b2.v6, b3.v6])?;

        dns.write(&[b1])?;
        dns.run()?;
        wait_backends(&mut agent, "web", &[b1.v4])?;
        wait_backends(&mut agent, "six", &[b1.v6])?;
        Ok(())
    })
}
