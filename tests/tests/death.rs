//! Backends that die without a word: what becomes of the connections they had, and of those that
//! are opened before their probes notice.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::{DSR_VIP, Host, NAT_VIP};
use lb_tests::load::download::Download;
use lb_tests::load::idle::Idle;
use lb_tests::load::{Amount, Load, Requester, TIMEOUT};
use lb_tests::server_handle::{HTTP, TCP_ECHO};
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

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

/// A counter of `lb status`.
fn counted(agent: &Agent<'_>, service: &str, verdict: &str) -> Result<u64> {
    let status = agent.raw_status()?;
    let services = status["services"].as_array().context("no services")?;
    let found = services.iter().find(|found| found["name"] == service);
    let found = found.with_context(|| format!("no service {service}"))?;
    Ok(found["verdicts"][verdict].as_u64().unwrap_or(0))
}

/// How many connections of a server are open, as the host that it runs on sees it.
fn established(host: &Host, port: u16) -> Result<usize> {
    let filter = format!("( sport = :{port} )");
    let arguments = ["-Htn", "state", "established", &filter];
    Ok(host.namespace.run("ss", &arguments)?.lines().count())
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
            let reset = counted(&agent, service, "reset_backend_out")?;
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

#[test]
fn at_the_drain_deadline_both_ends_are_told() -> Result<()> {
    with_lab(|lab, _servers| {
        let vip = at(NAT_VIP[0], 80);
        let service = Service::tcp(lab, "web", vip, HTTP).patient();
        let service = service.options("drain_deadline = \"1s\"");
        let mut agent = Agent::start(lab, &Config::new(vec![service]))?;
        agent.settled()?;
        let rate = 1 << 20;
        let download = Download::from_backend(&lab.client, vip, "b2", 1 << 30, rate)?;
        ensure!(
            established(lab.backend(2), HTTP)? > 0,
            "the download is not seen on its server"
        );
        agent.lb(&["drain", "web/b2"])?.ok()?;
        agent.wait_routing("web/b2", "out")?;
        let Err(error) = download.finish() else {
            bail!("a download of a gigabyte ended in a second");
        };
        let reset = error.chain().any(|cause| {
            let cause = cause.downcast_ref::<std::io::Error>();
            cause.is_some_and(|error| error.kind() == ErrorKind::ConnectionReset)
        });
        ensure!(reset, "not a reset: {error:#}");
        wait_for("the server to lose the connection", SOON, || {
            Ok(counted(&agent, "web", "reset_to_backend")? > 0
                && established(lab.backend(2), HTTP)? == 0)
        })
    })
}

/// Opens connections, and does nothing with them.
struct Connector(SocketAddr);

impl Requester for Connector {
    fn request(&mut self) -> Result<String> {
        TcpStream::connect_timeout(&self.0, TIMEOUT)?;
        Ok("opened".into())
    }
}

#[test]
fn no_new_connection_fails_while_a_dead_backend_goes_unnoticed() -> Result<()> {
    with_lab(|lab, _servers| {
        let rescued = [("nat", at(NAT_VIP[0], 80)), ("dsr", at(DSR_VIP[0], HTTP))];
        let left = [
            ("nat-left", at(NAT_VIP[1], 80)),
            ("dsr-left", at(DSR_VIP[1], HTTP)),
        ];
        let services = rescued.iter().chain(&left).map(|(name, address)| {
            let service = Service::tcp(lab, name, *address, HTTP);
            let rescue = !name.ends_with("left");
            let forwarding = &name[..3];
            let health = format!(
                "probe = \"http\"\npath = \"/readyz\"\nport = {HTTP}\n\
                 interval = \"5s\"\nunhealthy_threshold = 3"
            );
            Service {
                forwarding: if forwarding == "dsr" { "dsr" } else { "nat" },
                ..service
                    .options(&format!("syn_rescue = {rescue}\npassive = \"off\""))
                    .health(&health)
            }
        });
        let mut agent = Agent::start(lab, &Config::new(services.collect()))?;
        agent.settled()?;
        // Fifty connections a second for each service, also while each takes a few seconds.
        let amount = Amount {
            workers: 100,
            pause: Duration::from_secs(2),
            each: None,
        };
        let load = |(_, address): &(&str, SocketAddr)| {
            let address = *address;
            Load::start(&lab.client, amount, || Connector(address))
        };
        let saved = rescued.iter().map(load).collect::<Result<Vec<_>>>()?;
        let lost = left.iter().map(load).collect::<Result<Vec<_>>>()?;
        lab.plug(lab.backend(1), false)?;
        for (name, _) in rescued.iter().chain(&left) {
            agent.wait_routing(&format!("{name}/b1"), "out")?;
        }
        for ((name, _), load) in rescued.iter().zip(saved) {
            let tally = load.stop();
            println!(
                "{name}: {} opened, {} failed",
                tally.requests(),
                tally.failed
            );
            tally.must_not_fail().context(*name)?;
            let rescued = counted(&agent, name, "syn_rescued")?;
            println!("{name}: {rescued} rescued");
            ensure!(rescued > 10, "{name}: only {rescued} rescued");
        }
        for ((name, _), load) in left.iter().zip(lost) {
            let tally = load.stop();
            println!(
                "{name}: {} opened, {} failed",
                tally.requests(),
                tally.failed
            );
            ensure!(tally.failed > 0, "{name}: the backend was not missed");
            ensure!(counted(&agent, name, "syn_rescued")? == 0, "{name} rescued");
        }
        Ok(())
    })
}
