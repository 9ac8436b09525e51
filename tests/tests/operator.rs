//! The operator's commands on a running balancer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::NAT_VIP;
use lb_tests::load::flows::Flows;
use lb_tests::load::{Amount, Load, Tally, http};
use lb_tests::server_handle::{HTTP, TCP_ECHO};
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

fn web() -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], 80)
}

fn service(lab: &Lab) -> Service {
    Service::tcp(lab, "web", web(), HTTP)
}

fn requests(lab: &Lab) -> Result<Tally> {
    let tally = Load::http(&lab.client, web(), false, Amount::requests(400))?.finish();
    tally.must_not_fail()?;
    Ok(tally)
}

#[test]
fn drain_enable_disable_and_weight_do_what_they_say() -> Result<()> {
    with_lab(|lab, _servers| {
        let echo = SocketAddr::new(NAT_VIP[0], TCP_ECHO);
        let services = vec![service(lab), Service::tcp(lab, "echo", echo, TCP_ECHO)];
        let mut agent = Agent::start(lab, &Config::new(services))?;
        let flows = Flows::open(&lab.client, echo, 30)?;

        agent.lb(&["drain", "web/b1"])?.ok()?;
        agent.lb(&["drain", "echo/b1"])?.ok()?;
        agent.wait_routing("web/b1", "draining")?;
        agent.wait_routing("echo/b1", "draining")?;
        ensure!(agent.status()?.backend("web/b1")?.admin == "drain");
        ensure!(requests(lab)?.of("b1") == 0);
        flows.exchange(5, SOON)?;
        ensure!(
            flows.broken_except("").is_empty(),
            "drain broke {:?}",
            flows.broken_except("")
        );

        agent.lb(&["disable", "echo/b1"])?.ok()?;
        agent.wait_routing("echo/b1", "out")?;
        ensure!(agent.status()?.backend("echo/b1")?.admin == "disabled");
        wait_for("the flows of a disabled backend to be reset", SOON, || {
            Ok(!flows.alive().contains_key("b1"))
        })?;
        ensure!(
            flows.broken_except("b1").is_empty(),
            "{:?}",
            flows.broken_except("b1")
        );

        agent.lb(&["enable", "web/b1"])?.ok()?;
        agent.lb(&["enable", "echo/b1"])?.ok()?;
        agent.settled()?;
        let events = agent.events()?;
        let mut back = events.iter().filter(|event| event["kind"] == "readmitted");
        ensure!(
            back.clone().count() == 2 && back.all(|event| event["origin"]["by"] == "agent"),
            "no probe has brought them back: {events:?}"
        );
        ensure!(requests(lab)?.of("b1") > 0);

        agent.lb(&["weight", "web/b1", "300"])?.ok()?;
        agent.wait_status("the weight", |status| {
            Ok(status.backend("web/b1")?.weight == 300)
        })?;
        let tally = Load::http(&lab.client, web(), false, Amount::requests(2000))?.finish();
        tally.must_not_fail()?;
        let share = tally.of("b1") * 100 / tally.requests();
        ensure!(
            (55..=65).contains(&share),
            "3 of 5 parts of the weight got {share} %"
        );
        Ok(())
    })
}

#[test]
fn exit_codes_are_the_contracts() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = Agent::prepare(lab, &Config::new(vec![service(lab)]))?;
        ensure!(agent.lb(&["status"])?.code == Some(3), "no agent runs");
        ensure!(
            agent.lb(&["drain", "web/b1"])?.code == Some(3),
            "no agent runs"
        );
        agent.run(&[], &[])?;
        agent.settled()?;
        for wrong in [
            &["drain", "web/b9"][..],
            &["status", "wbe"],
            &["drian", "web/b1"],
        ] {
            let output = agent.lb(wrong)?;
            ensure!(output.code == Some(2), "{wrong:?}: {output:?}");
            ensure!(!output.err.is_empty(), "{wrong:?} failed without a word");
        }
        let probe = agent.lb(&["probe", "web/b1", "--json"])?.ok()?;
        let probe: serde_json::Value = serde_json::from_str(&probe)?;
        ensure!(probe["outcome"] == "success", "{probe}");
        Ok(())
    })
}

#[test]
fn a_bad_reload_changes_nothing() -> Result<()> {
    with_lab(|lab, _servers| {
        let config = Config::new(vec![service(lab)]);
        let mut agent = Agent::start(lab, &config)?;
        let load = Load::http(&lab.client, web(), false, Amount::steady())?;
        let before = agent.status()?.service("web")?.generation;
        let text = std::fs::read_to_string(agent.config_path())?;
        for bad in [
            "[[service".to_owned(),
            text.replace("b2", "b1"),
            text.replace("nat", "nta"),
        ] {
            agent.configure_text(&bad)?;
            let output = agent.lb(&["reload"])?;
            ensure!(output.code == Some(2), "{output:?}");
            ensure!(
                output.err.contains("lb.toml"),
                "the error must name the file: {output:?}"
            );
        }
        let after = agent.status()?.service("web")?.generation;
        ensure!(
            before == after,
            "the generation went from {before} to {after}"
        );
        agent.settled()?;
        load.stop().must_not_fail()
    })
}

#[test]
fn a_reload_adds_and_removes_backends_without_a_failed_request() -> Result<()> {
    with_lab(|lab, _servers| {
        let all = Config::new(vec![service(lab)]);
        let two = Config::new(vec![service(lab).only(&["b1", "b2"])]);
        let mut agent = Agent::start(lab, &two)?;
        let load = Load::http(&lab.client, web(), false, Amount::steady())?;
        let kept = Load::http(&lab.client, web(), true, Amount::steady())?;
        ensure!(requests(lab)?.of("b3") == 0);

        agent.configure(&all)?;
        agent.lb(&["reload"])?.ok()?;
        agent.wait_routing("web/b3", "active")?;
        ensure!(requests(lab)?.of("b3") > 0);

        agent.configure(&two)?;
        agent.lb(&["reload"])?.ok()?;
        agent.wait_status("b3 to get no new flow", |status| {
            Ok(status
                .backend("web/b3")
                .is_ok_and(|found| found.routing == "draining")
                || status.backend("web/b3").is_err())
        })?;
        ensure!(requests(lab)?.of("b3") == 0);
        load.stop().must_not_fail().context("new connections")?;
        kept.stop().must_not_fail().context("kept connections")
    })
}

#[test]
fn events_tell_what_happened() -> Result<()> {
    with_lab(|lab, servers| {
        let mut agent = Agent::start(lab, &Config::new(vec![service(lab)]))?;
        servers[2].kill()?;
        agent.wait_routing("web/b3", "out")?;
        agent.lb(&["drain", "web/b1"])?.ok()?;
        agent.wait_routing("web/b1", "draining")?;
        let events = agent.events()?;
        let find = |kind: &str, backend: &str| {
            let found = events
                .iter()
                .find(|event| event["kind"] == kind && event["backend"] == backend);
            found.with_context(|| format!("no {kind} of {backend} in {events:#?}"))
        };
        let ejected = &find("ejected", "b3")?["evidence"];
        let [took, budget] = ["took_ms", "budget_ms"].map(|key| ejected[key].as_f64());
        ensure!(
            took.is_some() && took <= budget,
            "out of its budget: {ejected}"
        );
        ensure!(ejected["probe_class"] == "refused", "{ejected}");
        find("draining", "b1")?;
        let origin = &find("admin", "b1")?["origin"];
        ensure!(origin.to_string().contains("drain"), "who did it? {origin}");
        Ok(())
    })
}

#[test]
fn the_http_endpoints_tell_the_state() -> Result<()> {
    with_lab(|lab, servers| {
        let mut config = Config::new(vec![service(lab)]);
        config.node = "http = \"127.0.0.1:9400\"".into();
        let mut agent = Agent::start(lab, &config)?;
        let get = |path: &str| -> Result<(u16, String)> {
            let mut client = http::Client::new(SocketAddr::from(([127, 0, 0, 1], 9400)), false);
            let (status, body) = lab.lb.namespace.within(|| client.fetch(path))??;
            Ok((status, String::from_utf8(body)?))
        };
        for path in ["/livez", "/startupz", "/readyz", "/healthz"] {
            wait_for(path, SOON, || Ok(get(path)?.0 == 200))?;
        }
        requests(lab)?;
        servers[0].kill()?;
        agent.wait_routing("web/b1", "out")?;
        // The page and the metrics come from a snapshot that may be a second old.
        let out = r#"lb_backend_routing{service="web",backend="b1",state="out"} 1"#;
        wait_for("the metrics to show that b1 is out", SOON, || {
            Ok(get("/metrics")?.1.lines().any(|line| line == out))
        })?;
        ensure!(get("/")?.1.contains("b1"), "the page names no backend");
        ensure!(
            get("/readyz")?.0 == 200,
            "a dead backend is not the agent's fault"
        );
        Ok(())
    })
}

#[test]
fn what_an_agent_that_hung_was_asked_meanwhile_is_not_done_later() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = Agent::start(lab, &Config::new(vec![service(lab)]))?;
        agent.freeze()?;
        let mut asked = Vec::new();
        for arguments in [&["detach"][..], &["disable", "web/b1"]] {
            asked.push(agent.command(arguments).spawn()?);
        }
        // Its listener's queue has both: each is connected before it can wait for its answer.
        std::thread::sleep(Duration::from_secs(1));
        for mut client in asked {
            ensure!(client.try_wait()?.is_none(), "it waits for its answer");
            client.kill()?;
            client.wait()?;
        }
        agent.thaw()?;
        agent.settled()?;
        // Asked after them, and answered after them.
        agent.lb(&["weight", "web/b1", "50"])?.ok()?;
        let events = agent.events()?;
        let done: Vec<_> = events.iter().filter(|e| e["kind"] == "admin").collect();
        ensure!(done.len() == 1, "{done:?}");
        ensure!(agent.status()?.backend("web/b1")?.admin == "enabled");
        requests(lab)?;
        Ok(())
    })
}
