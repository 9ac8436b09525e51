//! What decides beside plain thresholds: several probes, degraded backends, hold-down.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::{Amount, Load};
use lb_tests::server::Order;
use lb_tests::server_handle::{HTTP, TCP_ECHO};
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};
use serde_json::Value;

fn nat(port: u16) -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], port)
}

fn dsr(port: u16) -> SocketAddr {
    SocketAddr::new(DSR_VIP[1], port)
}

/// A backend in `lb status --json`, whole.
fn backend(agent: &Agent, service: &str, name: &str) -> Result<Value> {
    let status = agent.raw_status()?;
    let find = |list: &Value, name: &str| {
        let mut list = list.as_array()?.iter();
        list.find(|one| one["name"] == name).cloned()
    };
    let service = find(&status["services"], service).context("no such service")?;
    find(&service["backends"], name).context("no such backend")
}

/// Two services on the same servers, and one on their IPv6 addresses.
fn three(lab: &Lab) -> Config {
    Config::new(vec![
        Service::tcp(lab, "nat", nat(HTTP), HTTP),
        Service::tcp(lab, "again", nat(81), HTTP),
        Service::tcp(lab, "dsr", dsr(HTTP), HTTP).dsr(),
    ])
}

/// A degraded backend keeps half of its slots in each service; the two on the same addresses share
/// their probes.
#[test]
fn a_degraded_backend_gets_half_and_breaks_nothing() -> Result<()> {
    with_lab(|lab, servers| {
        let mut agent = Agent::start(lab, &three(lab))?;
        let loads =
            [nat(HTTP), dsr(HTTP)].map(|to| Load::http(&lab.client, to, false, Amount::steady()));
        let whole = backend(&agent, "nat", "b1")?["slots"].as_u64().unwrap_or(0);
        servers[0].order(Order::Degraded)?;
        for service in ["nat", "again", "dsr"] {
            wait_for("b1 to have half of its slots", SOON, || {
                let b1 = backend(&agent, service, "b1")?;
                let slots = b1["slots"].as_u64().unwrap_or(0);
                let half = slots * 2 > whole * 9 / 10 && slots * 2 < whole * 11 / 10;
                Ok(half && b1["share"] == 50 && b1["routing"] == "active")
            })?;
        }
        agent.wait_event("weight", "degraded")?;
        servers[0].order(Order::Ready)?;
        wait_for("b1 to have all of its slots", SOON, || {
            Ok(backend(&agent, "nat", "b1")?["slots"] == whole)
        })?;
        for load in loads {
            load?.stop().must_not_fail()?;
        }
        // A shared probe counts for both services, and was made once.
        let status = agent.raw_status()?;
        let probes = |service: &Value| -> Option<u64> {
            let backends = service["backends"].as_array()?.iter();
            backends.map(|b| b["probes"]["success"].as_u64()).sum()
        };
        let services = status["services"].as_array().context("no services")?;
        let counts: Option<Vec<u64>> = services.iter().map(probes).collect();
        let Some([nat, again, dsr]) = counts.as_deref() else {
            bail!("{status}");
        };
        let made = status["node"]["prober"]["success"].as_u64();
        ensure!(
            nat == again && *nat > 0 && made == Some(nat + dsr),
            "{status}"
        );
        agent.settled()
    })
}

/// One probe of two is against a backend; it stays out for its hold-down, over a restart.
#[test]
fn one_probe_of_two_ejects_and_the_hold_down_outlives_the_agent() -> Result<()> {
    with_lab(|lab, servers| {
        let pace = "interval = \"300ms\"\ntimeout = \"250ms\"";
        let health = format!(
            "name = \"ready\"\nprobe = \"http\"\npath = \"/readyz\"\n{pace}\n\
             unhealthy_threshold = 1\nhold_down = \"6s\"\n\n\
             [[service.health]]\nname = \"echo\"\nprobe = \"tcp\"\nport = {TCP_ECHO}\n{pace}\n"
        );
        let config = Config::new(vec![
            Service::tcp(lab, "web", nat(HTTP), HTTP).health(&health),
        ]);
        let mut agent = Agent::prepare(lab, &config)?;
        let text = std::fs::read_to_string(agent.config_path())?;
        agent.configure_text(&text.replace("\n[service.health]", "\n[[service.health]]"))?;
        agent.run(&[], &[])?;
        agent.settled()?;
        servers[0].order(Order::Unready)?;
        agent.wait_routing("web/b1", "draining")?;
        let b1 = backend(&agent, "web", "b1")?;
        let reason =
            "unhealthy: ready: 1 failure: HTTP 503, want 200; ejection 1, held down for 6s";
        ensure!(b1["reason"] == reason, "{b1}");
        let checks: Vec<_> = (b1["checks"].as_array().into_iter().flatten())
            .map(|check| (&check["name"], &check["health"]))
            .collect();
        ensure!(
            format!("{checks:?}").contains("String(\"echo\"), String(\"healthy\")"),
            "{b1}"
        );
        let held = b1["held_until"].clone();
        ensure!(held.is_string(), "{b1}");
        servers[0].order(Order::Ready)?;

        agent.terminate()?;
        agent.run(&[], &[])?;
        agent.wait_status("the agent to be back", |_| Ok(true))?;
        // Its probes are well again meanwhile: what keeps it out is the hold-down, whose end the
        // event log shows to have been waited for.
        agent.wait_routing("web/b1", "active")?;
        let events = agent.events()?;
        let of_b1 = |event: &&Value| event["kind"] == "readmitted" && event["backend"] == "b1";
        let event = events.iter().rev().find(of_b1).context("no such event")?;
        // Both in UTC; up to the second they compare as texts.
        let second =
            |time: &Value| -> Option<String> { Some(time.as_str()?.get(..19)?.to_owned()) };
        let (back, until) = (second(&event["at"]), second(&held));
        ensure!(
            back.is_some() && back >= until,
            "back at {back:?}, held until {until:?}"
        );
        Ok(())
    })
}

/// A backend that asks to be drained gets no new connection, keeps those it has, and is back at its
/// word; nothing is lost, though that many together would be a panic if they had failed.
#[test]
fn backends_that_ask_to_be_drained_lose_nothing() -> Result<()> {
    with_lab(|lab, servers| {
        let health = "probe = \"http\"\npath = \"/readyz\"\ndrain_status = [\"404\"]\n\
                      interval = \"300ms\"\ntimeout = \"250ms\"";
        let service = |name: &str, to| Service::tcp(lab, name, to, HTTP).health(health);
        let config = Config::new(vec![
            service("nat", nat(HTTP)),
            service("dsr", dsr(HTTP)).dsr(),
        ]);
        let mut agent = Agent::start(lab, &config)?;
        let mut loads = Vec::new();
        for to in [nat(HTTP), dsr(HTTP)] {
            for kept in [false, true] {
                loads.push(Load::http(&lab.client, to, kept, Amount::steady())?);
            }
        }
        for server in &mut servers[..2] {
            server.order(Order::Leaving)?;
        }
        for backend in ["nat/b1", "nat/b2", "dsr/b1", "dsr/b2"] {
            agent.wait_routing(backend, "draining")?;
        }
        let text = agent.lb(&["status", "nat", "--json"])?.ok()?;
        let status: Value = serde_json::from_str(&text)?;
        let service = &status["services"][0];
        let b1 = &service["backends"][0];
        ensure!(
            b1["health"] == "healthy" && b1["cause"] == "leaving" && b1["ejections"] == 0,
            "{b1}"
        );
        ensure!(
            service["panic"] == false && service["healthy_percent"] == 100.0,
            "{service}"
        );
        let last = &b1["checks"][0]["history"][0];
        ensure!(
            last["class"] == "drain" && last["outcome"] == "success",
            "{b1}"
        );
        let axis = |name: &str| {
            let axes = b1["axes"].as_array().into_iter().flatten();
            axes.clone().find(|axis| axis["axis"] == name).cloned()
        };
        let routed = axis("routing").context("no such axis")?;
        ensure!(
            routed["code"] == "leaving" && routed["until"].is_string(),
            "{b1}"
        );
        let text = agent.lb(&["status", "nat"])?.ok()?;
        ensure!(text.contains("HTTP 404, asks to be drained in "), "{text}");
        let before = b1["new_flows"].clone();
        let served: Vec<u64> = loads.iter().map(|load| load.tally().requests()).collect();
        wait_for("more answers", SOON, || {
            let mut pairs = loads.iter().zip(&served);
            Ok(pairs.all(|(load, before)| load.tally().requests() > before + 50))
        })?;
        let after = backend(&agent, "nat", "b1")?;
        ensure!(after["new_flows"] == before, "{before} then {after}");
        for server in &mut servers[..2] {
            server.order(Order::Ready)?;
        }
        agent.settled()?;
        for load in loads {
            load.stop().must_not_fail()?;
        }
        Ok(())
    })
}
