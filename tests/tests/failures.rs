//! The ways in which health checking fails its users, one test each, by the name of the failure.
//! A health path that lies is for the passive checks, which have tests of their own.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lb_tests::agent::SOON;
use lb_tests::applications::missing;
use lb_tests::lab::{DSR_VIP, Host, NAT_VIP};
use lb_tests::load::download::Download;
use lb_tests::load::flows::Flows;
use lb_tests::load::idle::Idle;
use lb_tests::load::{Amount, Load, Requester, TIMEOUT, udp};
use lb_tests::process::Process;
use lb_tests::server::Order;
use lb_tests::server_handle::{HTTP, TCP_ECHO, UDP_ECHO};
use lb_tests::sniff::Sniffer;
use lb_tests::wait::pause;
use lb_tests::{Agent, Config, Lab, Server, Service, wait_for, with_lab};
use serde_json::Value;

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// A service by NAT and one by direct server return, with the same servers.
fn both(lab: &Lab, port: u16) -> [(Service, SocketAddr); 2] {
    let (nat, dsr) = (at(NAT_VIP[0], port), at(DSR_VIP[1], port));
    [
        (Service::tcp(lab, "nat", nat, port), nat),
        (Service::tcp(lab, "dsr", dsr, port).dsr(), dsr),
    ]
}

/// The probes of a backend so far by what they found.
fn probes(agent: &Agent<'_>, backend: &str, outcome: &str) -> Result<u64> {
    let (service, name) = backend.split_once('/').context("not SERVICE/BACKEND")?;
    let named = |list: &Value, name: &str| {
        let mut list = list.as_array().into_iter().flatten();
        list.find(|entry| entry["name"] == name).cloned()
    };
    let status = agent.raw_status()?;
    let service = named(&status["services"], service).context("no such service")?;
    let backend = named(&service["backends"], name).context("no such backend")?;
    let count = backend["probes"][outcome].as_u64();
    count.with_context(|| format!("no count of {outcome}"))
}

#[test]
fn a_flapping_backend() -> Result<()> {
    with_lab(|lab, servers| {
        let [(service, vip), _] = both(lab, HTTP);
        let pace = "interval = \"500ms\"\ntimeout = \"450ms\"\nunhealthy_threshold = 4";
        let health = format!("probe = \"http\"\npath = \"/readyz\"\n{pace}");
        let mut agent = Agent::start(lab, &Config::new(vec![service.health(&health)]))?;
        let load = Load::http(&lab.client, vip, false, Amount::steady())?;
        // Single failures: each success starts the count anew.
        let generation = agent.status()?.service("nat")?.generation;
        for _ in 0..6 {
            for (order, outcome) in [(Order::Unready, "failure"), (Order::Ready, "success")] {
                let before = probes(&agent, "nat/b1", outcome)?;
                servers[0].order(order)?;
                wait_for("a probe", SOON, || {
                    Ok(probes(&agent, "nat/b1", outcome)? > before)
                })?;
            }
        }
        ensure!(probes(&agent, "nat/b1", "failure")? >= 6, "no failures");
        let now = agent.status()?;
        ensure!(
            now.service("nat")?.generation == generation,
            "the table has changed"
        );
        ensure!(now.backend("nat/b1")?.routing == "active");

        // Real flaps are followed, and each is counted.
        for _ in 0..2 {
            servers[0].order(Order::Unready)?;
            agent.wait_routing("nat/b1", "draining")?;
            servers[0].order(Order::Ready)?;
            agent.settled()?;
        }
        ensure!(probes(&agent, "nat/b1", "flaps")? == 4, "flaps not counted");
        load.stop().must_not_fail()
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
fn a_black_hole_between_death_and_ejection() -> Result<()> {
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
        // How long it took is told, and what it might take was known before.
        let config = agent.config_path();
        let checked = agent
            .lb(&["check", "--json", &config.to_string_lossy()])?
            .ok()?;
        let checked: Value = serde_json::from_str(&checked)?;
        let budget = &checked["services"][0]["budget"];
        let worst = ["eject_worst_ms", "jitter_ms"].map(|key| budget[key].as_f64());
        let worst: Option<f64> = worst.into_iter().sum();
        let events = agent.events()?;
        let ejected = events.iter().find(|event| event["kind"] == "ejected");
        let evidence = &ejected.context("no event")?["evidence"];
        ensure!(
            worst.is_some() && evidence["budget_ms"].as_f64() == worst,
            "{evidence}, {budget}"
        );
        ensure!(evidence["took_ms"].as_f64().is_some_and(|took| took > 0.0));
        for ((name, _), load) in rescued.iter().zip(saved) {
            let tally = load.stop();
            println!(
                "{name}: {} opened, {} failed",
                tally.requests(),
                tally.failed
            );
            tally.must_not_fail().context(*name)?;
            let rescued = agent.counted(name, "syn_rescued")?;
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
            ensure!(agent.counted(name, "syn_rescued")? == 0, "{name} rescued");
        }
        Ok(())
    })
}

#[test]
fn requests_dropped_on_deploy() -> Result<()> {
    with_lab(|lab, servers| {
        let mut agent = Agent::start(
            lab,
            &Config::new(both(lab, HTTP).map(|(service, _)| service).to_vec()),
        )?;
        let loads = both(lab, HTTP).map(|(_, to)| to);
        let loads = loads.map(|to| Load::http(&lab.client, to, false, Amount::steady()));
        let loads = loads.into_iter().collect::<Result<Vec<_>>>()?;
        for (index, server) in servers.iter_mut().enumerate() {
            let host = lab.backend(index + 1);
            // As a good deploy does: say so first, stop when nothing is left to do.
            server.order(Order::Unready)?;
            agent.wait_routing(&format!("nat/{}", host.name), "draining")?;
            agent.wait_routing(&format!("dsr/{}", host.name), "draining")?;
            let before: Vec<_> = loads.iter().map(Load::tally).collect();
            wait_for("requests under way to end", SOON, || {
                let mut pairs = loads.iter().zip(&before);
                Ok(pairs.all(|(load, before)| load.tally().since(before).requests() >= 40))
            })?;
            server.kill()?;
            *server = Server::start(host)?;
            agent.settled()?;
        }
        for load in loads {
            let tally = load.stop();
            tally.must_not_fail()?;
            ensure!(tally.answered.len() == 3, "{tally:?}");
        }
        Ok(())
    })
}

#[test]
fn a_cascade() -> Result<()> {
    with_lab(|lab, servers| {
        let [(service, vip), _] = both(lab, HTTP);
        let service = service.options("panic_threshold = 50\ndrain_deadline = \"20s\"");
        let mut agent = Agent::start(lab, &Config::new(vec![service]))?;
        let load = Load::http(&lab.client, vip, false, Amount::steady())?;
        // Each can carry a third of the load and not much more. Without one of them the next is
        // overloaded, and without panic so would be the last.
        let mut before = load.tally();
        let mut seen_panic = false;
        servers[0].order(Order::Unready)?;
        wait_for("the overload to be survived", SOON, || {
            pause(Duration::from_millis(100))?;
            let now = load.tally();
            let round = now.since(&before);
            for (server, name) in servers[1..].iter_mut().zip(["b2", "b3"]) {
                let overloaded = round.of(name) * 100 > round.requests() * 42;
                server.order(if overloaded {
                    Order::Unready
                } else {
                    Order::Ready
                })?;
            }
            before = now;
            seen_panic |= agent.status()?.service("nat")?.panic;
            // In panic the pool shares the load again, the dead-beat one included.
            Ok(seen_panic && ["b1", "b2", "b3"].iter().all(|name| round.of(name) > 0))
        })?;
        for server in servers.iter_mut() {
            server.order(Order::Ready)?;
        }
        agent.settled()?;
        ensure!(!agent.status()?.service("nat")?.panic);
        let tally = load.stop();
        println!("{:?}", tally.answered);
        tally.must_not_fail()
    })
}

#[test]
fn a_whole_service_marked_down() -> Result<()> {
    with_lab(|lab, servers| {
        let services = [(HTTP, "all"), (81, "fail"), (82, "fallback")].map(|(port, action)| {
            let service = Service::tcp(lab, action, at(NAT_VIP[0], port), HTTP);
            let mut service = service.options(&format!("panic_action = \"{action}\""));
            if action == "fallback" {
                service.backends[2].options = "fallback = true".into();
            }
            service
        });
        let [all, fail, fallback] = services.each_ref().map(|service| service.address);
        let mut agent = Agent::prepare(lab, &Config::new(services.to_vec()))?;
        agent.run(&[], &[])?;
        agent.wait_routing("fallback/b3", "standby")?;
        agent.wait_status("all but the fallback to be active", |status| {
            let mut backends = status.services.iter().flat_map(|service| &service.backends);
            Ok(backends.all(|backend| ["active", "standby"].contains(&&*backend.routing)))
        })?;
        let load = Load::http(&lab.client, all, false, Amount::steady())?;
        let requests = || Amount::requests(80);
        let sorry = Load::http(&lab.client, fallback, false, requests())?.finish();
        sorry.must_not_fail()?;
        ensure!(sorry.of("b3") == 0, "the fallback serves: {sorry:?}");

        for server in &mut servers[..2] {
            server.order(Order::Unready)?;
        }
        agent.wait_status("panic", |status| {
            Ok(status.services.iter().all(|found| found.panic))
        })?;
        ensure!(agent.status()?.backend("all/b1")?.routing == "panic");
        ensure!(agent.status()?.backend("all/b3")?.routing == "active");
        let inside = load.tally();
        wait_for("all backends to be used in panic", SOON, || {
            Ok(load.tally().since(&inside).answered.len() == 3)
        })?;
        let sorry = Load::http(&lab.client, fallback, false, requests())?.finish();
        sorry.must_not_fail()?;
        ensure!(sorry.of("b3") == sorry.requests(), "{sorry:?}");
        let dropped = agent.counted("fail", "drop_no_backend")?;
        let refused = lab
            .client
            .namespace
            .within(|| TcpStream::connect_timeout(&fail, Duration::from_millis(300)))?;
        ensure!(refused.is_err(), "a connection in spite of panic");
        ensure!(agent.counted("fail", "drop_no_backend")? > dropped);
        // The operator's word stands above panic.
        agent.lb(&["disable", "all/b2"])?.ok()?;
        agent.wait_routing("all/b2", "out")?;
        agent.lb(&["enable", "all/b2"])?.ok()?;

        for server in &mut servers[..2] {
            server.order(Order::Ready)?;
        }
        agent.wait_status("the end of panic", |status| {
            Ok(status.services.iter().all(|found| !found.panic))
        })?;
        agent.wait_routing("fallback/b3", "standby")?;
        agent.wait_routing("fail/b3", "active")?;
        // Only `disable` may have cost requests: those under way at b2.
        let tally = load.stop();
        ensure!(tally.failed <= 4, "{tally:?}");
        Ok(())
    })
}

/// In panic a closed port gets nothing, unless nobody has another.
#[test]
fn a_service_whose_processes_die() -> Result<()> {
    with_lab(|lab, servers| {
        let [(service, vip), _] = both(lab, HTTP);
        let mut agent = Agent::start(lab, &Config::new(vec![service]))?;
        servers[1].order(Order::Unready)?;
        servers[0].kill()?;
        agent.wait_status("panic", |status| {
            let of = |name: &str| Ok::<_, anyhow::Error>(&*status.backend(name)?.routing);
            let routing = [of("nat/b1")?, of("nat/b2")?, of("nat/b3")?];
            Ok(status.service("nat")?.panic && routing == ["out", "panic", "active"])
        })?;
        let reason = agent.status()?.backend("nat/b1")?.reason.clone();
        ensure!(reason.starts_with("not even in panic"), "{reason}");
        let tally = Load::http(&lab.client, vip, false, Amount::requests(200))?.finish();
        tally.must_not_fail()?;
        ensure!(tally.of("b2") > 0 && tally.of("b3") > 0, "{tally:?}");

        for server in &mut servers[1..] {
            server.kill()?;
        }
        agent.wait_status("all to be tried", |status| {
            let mut backends = status.service("nat")?.backends.iter();
            Ok(backends.all(|backend| {
                backend.routing == "panic" && backend.reason.contains("all refuse connections")
            }))
        })?;
        // Clients learn it at once, from the last refusal that a flow can meet.
        wait_for("a client to be told", SOON, || {
            let refused = lab
                .client
                .namespace
                .within(|| TcpStream::connect_timeout(&vip, TIMEOUT))?;
            Ok(refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
        })?;
        // The first that is back serves, and then alone.
        servers[2] = Server::start(&lab.backends[2])?;
        agent.wait_status("the one that is back", |status| {
            let of = |name: &str| Ok::<_, anyhow::Error>(&*status.backend(name)?.routing);
            Ok([of("nat/b1")?, of("nat/b2")?, of("nat/b3")?] == ["out", "out", "active"])
        })?;
        let tally = Load::http(&lab.client, vip, false, Amount::requests(50))?.finish();
        tally.must_not_fail()
    })
}

/// nginx on a backend: TLS on two ports, and none on a third. Its certificate has expired. Its log has a line for each request:
/// port, number of the connection, and `r` if its TLS session was resumed.
fn tls_server(lab: &Lab, host: &Host, ports: [u16; 3]) -> Result<Process> {
    let mut params = rcgen::CertificateParams::new(vec!["lab".to_owned()])?;
    params.not_after = rcgen::date_time_ymd(2021, 3, 4);
    let key = rcgen::KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let folder = lab.folder().display();
    std::fs::write(lab.folder().join("cert.pem"), certificate.pem())?;
    std::fs::write(lab.folder().join("key.pem"), key.serialize_pem())?;
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
        .concat();
    let [fresh, kept, plain] = ports;
    let text = format!(
        "daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 64; }}\n\
         http {{\n{temporary}\
         log_format probes '$server_port $connection $ssl_session_reused';\n\
         access_log {folder}/probes.log probes;\n\
         keepalive_timeout 1h;\n\
         server {{\n\
         listen {fresh} ssl;\nlisten {kept} ssl;\nlisten {plain};\n\
         ssl_certificate {folder}/cert.pem;\nssl_certificate_key {folder}/key.pem;\n\
         location / {{ return 200 ok; }}\n}}\n}}\n"
    );
    let config = lab.folder().join("tls.conf");
    std::fs::write(&config, text)?;
    let mut command = host.namespace.command("nginx");
    command.args(["-e", "stderr", "-c"]).arg(config);
    Process::spawn(&mut command, "nginx")
}

#[test]
fn the_cost_of_tls_probes() -> Result<()> {
    if let Some(reason) = missing() {
        println!("SKIPPED the_cost_of_tls_probes: {reason}");
        return Ok(());
    }
    let lab = Lab::new(1)?;
    let ports = [8443, 8444, 8445];
    let _server = tls_server(&lab, lab.backend(1), ports)?;
    let pace = "path = \"/readyz\"\ninterval = \"300ms\"\ntimeout = \"250ms\"";
    let service = |name, port, health: &str| {
        let service = Service::tcp(&lab, name, at(NAT_VIP[0], port), port);
        service.health(&format!("{health}\n{pace}"))
    };
    let services = vec![
        service("fresh", ports[0], "probe = \"https\""),
        service("kept", ports[1], "probe = \"https\"\nreuse = \"60s\""),
        // The same port, asked at another without TLS.
        service("override", 443, "probe = \"http\"\nport = 8445"),
    ];
    let mut agent = Agent::start(&lab, &Config::new(services))?;
    for name in ["fresh", "kept", "override"] {
        wait_for("a few probes", SOON, || {
            Ok(probes(&agent, &format!("{name}/b1"), "success")? >= 6)
        })?;
    }
    // Each of them knows what it was shown, on a kept connection too.
    let status = agent.raw_status()?;
    let ends: Vec<_> = (0..3)
        .map(|n| &status["services"][n]["backends"][0]["checks"][0]["certificate_not_after"])
        .collect();
    let end = serde_json::Value::from("2021-03-04T00:00:00Z");
    ensure!(ends == [&end, &end, &serde_json::Value::Null], "{status:#}");
    let text = agent.lb(&["status"])?.ok()?;
    for name in ["fresh", "kept"] {
        let warning = format!("!! {name}: the certificate that b1 shows expired ");
        ensure!(text.contains(&warning), "{text}");
    }
    ensure!(!text.contains("!! override"), "{text}");
    agent.terminate()?;
    let log = std::fs::read_to_string(lab.folder().join("probes.log"))?;
    let of = |port: u16| {
        let lines = log
            .lines()
            .filter(move |line| line.starts_with(&port.to_string()));
        let lines = lines.map(|line| line.split(' ').skip(1).map(str::to_owned));
        lines
            .map(Iterator::collect::<Vec<String>>)
            .collect::<Vec<_>>()
    };
    let connections = |port| {
        let all: std::collections::BTreeSet<_> =
            of(port).into_iter().map(|l| l[0].clone()).collect();
        all.len()
    };
    let handshakes = |port| of(port).iter().filter(|line| line[1] == ".").count();
    let [fresh, kept, plain] = ports;
    // A connection for each probe, but one full handshake only; with `reuse` one of either.
    ensure!(
        connections(fresh) == of(fresh).len() && of(fresh).len() >= 6,
        "{log}"
    );
    ensure!(handshakes(fresh) <= 2, "sessions are not resumed: {log}");
    ensure!(connections(kept) <= 2 && of(kept).len() >= 6, "{log}");
    ensure!(
        handshakes(plain) == 0 || of(plain).iter().all(|l| l[1] != "r"),
        "{log}"
    );
    Ok(())
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
        let datagrams = Load::start(&lab.client, Amount::steady(), || {
            udp::Client::new(at(DSR_VIP[0], UDP_ECHO), true)
        })?;
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

        let seen = datagrams.tally();
        wait_for("datagrams to be answered by b2", SOON, || {
            Ok(datagrams.tally().since(&seen).of("b2") > 5)
        })?;
        ensure!(seen.of("b1") > 0, "no datagrams before: {seen:?}");

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

/// How many connections of a server are open, as the host that it runs on sees it.
fn established(host: &Host, port: u16) -> Result<usize> {
    let filter = format!("( sport = :{port} )");
    let arguments = ["-Htn", "state", "established", &filter];
    Ok(host.namespace.run("ss", &arguments)?.lines().count())
}

#[test]
fn long_lived_flows_that_never_drain() -> Result<()> {
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
            Ok(agent.counted("web", "reset_to_backend")? > 0
                && established(lab.backend(2), HTTP)? == 0)
        })
    })
}

#[test]
fn resets_of_many_flows_at_once_keep_to_their_rate() -> Result<()> {
    with_lab(|lab, _servers| {
        let [(service, vip), _] = both(lab, TCP_ECHO);
        let service = service.patient().options("drain_deadline = \"1s\"");
        let mut config = Config::new(vec![service]);
        config.node = "reset_rate = 2".into();
        let mut agent = Agent::start(lab, &config)?;
        let flows = Flows::open(&lab.client, vip, 60)?;
        let draining = flows.alive().get("b2").copied().unwrap_or(0);
        ensure!(draining > 0, "b2 has no flows");
        agent.lb(&["drain", "nat/b2"])?.ok()?;
        // All are told in the end: who is not goes on asking.
        wait_for("every flow of b2 to be cut", SOON, || {
            Ok(!flows.alive().contains_key("b2"))
        })?;
        agent.wait_routing("nat/b2", "out")?;
        ensure!(flows.broken_except("b2").is_empty(), "others are broken");
        let dropped = agent.counted("nat", "drop_reset_rate")?;
        ensure!(dropped > 0, "{draining} flows were reset at once");
        Ok(())
    })
}
