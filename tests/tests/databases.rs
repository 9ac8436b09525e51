//! Redis and PostgreSQL are restarted one backend after the other under load.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use lb_tests::agent::SOON;
use lb_tests::databases::{Client, Database, Kind, POSTGRES, REDIS, missing};
use lb_tests::lab::{DSR_VIP, Host, NAT_VIP};
use lb_tests::load::{Amount, Load};
use lb_tests::{Agent, Config, Lab, Service, wait_for};

const BACKENDS: u8 = 2;

/// First port of this host that probes come from; clients by NAT come from lower ones.
const PROBES_FROM: u16 = 32768;

/// How many connections of clients a server has.
fn clients(lab: &Lab, host: &Host, port: u16) -> Result<usize> {
    let filter = format!("( sport = :{port} )");
    let arguments = ["-Htn", "state", "established", &filter];
    let text = host.namespace.run("ss", &arguments)?;
    let peers = text.lines().filter_map(|line| {
        let peer = line.split_whitespace().last()?.replace("::ffff:", "");
        peer.parse::<SocketAddr>().ok()
    });
    let lb = |ip: IpAddr| ip == lab.lb.v4 || ip == lab.lb.v6;
    Ok(peers
        .filter(|peer| !lb(peer.ip()) || peer.port() < PROBES_FROM)
        .count())
}

#[test]
fn databases_restarted_after_a_drain_lose_no_request() -> Result<()> {
    if let Some(reason) = missing() {
        println!("SKIPPED databases_restarted_after_a_drain_lose_no_request: {reason}");
        return Ok(());
    }
    let lab = Lab::new(BACKENDS)?;
    let redis = SocketAddr::new(NAT_VIP[0], REDIS);
    let postgres = SocketAddr::new(DSR_VIP[0], POSTGRES);
    let kinds = [
        ("redis", Kind::Redis, redis),
        ("postgres", Kind::Postgres, postgres),
    ];
    let start = |host| {
        kinds
            .iter()
            .map(|(_, kind, _)| Database::start(&lab, host, *kind))
            .collect::<Result<Vec<_>>>()
    };
    let mut databases = lab.backends.iter().map(start).collect::<Result<Vec<_>>>()?;
    let services = kinds.map(|(name, kind, address)| {
        let service = Service::tcp(&lab, name, address, address.port());
        let service = match kind {
            Kind::Redis => service,
            Kind::Postgres => service.dsr(),
        };
        let service = service.options("drain_deadline = \"1m\"");
        service.health(&format!(
            "probe = \"{name}\"\ninterval = \"1s\"\ntimeout = \"900ms\""
        ))
    });
    let mut agent = Agent::start(&lab, &Config::new(services.to_vec()))?;
    let steady = Amount {
        workers: 4,
        pause: Duration::from_millis(5),
        each: None,
    };
    let load = |(name, kind, to): (&'static str, Kind, SocketAddr)| {
        let load = Load::start(&lab.client, steady, || Client::new(kind, to))?;
        Ok((name, load))
    };
    let loads = kinds.map(load).into_iter().collect::<Result<Vec<_>>>()?;
    let served_by = |host: &Host| {
        let before: Vec<u64> = loads
            .iter()
            .map(|(_, l)| l.tally().of(&host.name))
            .collect();
        wait_for("requests to be served by each", SOON, || {
            let mut pairs = loads.iter().zip(&before);
            Ok(pairs.all(|((_, load), before)| load.tally().of(&host.name) > before + 20))
        })
        .with_context(|| format!("{}: {loads:?}", host.name))
    };
    for host in &lab.backends {
        served_by(host)?;
    }

    for (host, running) in lab.backends.iter().zip(&mut databases) {
        for ((name, _, address), database) in kinds.iter().zip(running) {
            let backend = format!("{name}/{}", host.name);
            agent.lb(&["drain", &backend])?.ok()?;
            agent.wait_routing(&backend, "draining")?;
            wait_for("its clients to be elsewhere", SOON, || {
                Ok(clients(&lab, host, address.port())? == 0)
            })?;
            database.stop()?;
            *database = Database::start(&lab, host, database.kind())?;
            // The verdict may be that of before: it was gone for a moment only.
            wait_for("it to answer", SOON, || {
                let answer = agent.lb(&["probe", &backend, "--json"])?.ok()?;
                Ok(serde_json::from_str::<serde_json::Value>(&answer)?["outcome"] == "success")
            })?;
            agent.lb(&["enable", &backend])?.ok()?;
        }
        agent.settled()?;
        served_by(host)?;
    }
    for (name, load) in loads {
        let tally = load.stop();
        println!("{name}: {:?}", tally.answered);
        tally.must_not_fail().context(name)?;
    }
    Ok(())
}
