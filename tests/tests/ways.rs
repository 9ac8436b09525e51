//! How probes leave the balancer: by way of the VIP, from an address, with a mark, by an interface.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_tests::decap::Decap;
use lb_tests::lab::DSR_VIP;
use lb_tests::server_handle::{HTTP, TCP_ECHO};
use lb_tests::{Agent, Config, Lab, Service, with_lab};
use serde_json::Value;

const VIA: &str = "probe = \"http\"\npath = \"/readyz\"\nvia = \"vip\"\n\
                   interval = \"300ms\"\ntimeout = \"250ms\"";

fn service(lab: &Lab, name: &str, vip: IpAddr, port: u16) -> Service {
    Service::tcp(lab, name, SocketAddr::new(vip, port), port)
}

/// One probe of `backend` beside the schedule.
fn probe(agent: &Agent, backend: &str) -> Result<Value> {
    let text = agent.lb(&["probe", backend, "--json"])?.ok()?;
    serde_json::from_str(&text).context(text)
}

/// What a step of a probe says.
fn step<'a>(probe: &'a Value, name: &str) -> Option<&'a str> {
    let mut steps = probe["steps"].as_array()?.iter();
    steps.find(|step| step["name"] == name)?["detail"].as_str()
}

fn must_find(agent: &mut Agent, lost: &[&str], kept: &[&str]) -> Result<()> {
    for name in lost {
        agent.wait_routing(&format!("{name}/b1"), "out")?;
    }
    let status = agent.status()?;
    for name in kept.iter().map(|name| format!("{name}/b1")) {
        let routing = &status.backend(&name)?.routing;
        ensure!(routing == "active", "{name}: {routing}");
    }
    Ok(())
}

/// The rules and the routes of probes by way of the VIP that stand on the balancer.
fn traces(lab: &Lab) -> Result<String> {
    let ip = |arguments: &[&str]| lab.lb.namespace.run("ip", arguments);
    let mut text = String::new();
    for family in ["-4", "-6"] {
        let rules = ip(&[family, "rule", "show"])?;
        text.extend(rules.lines().filter(|line| line.contains("fwmark 0x6c")));
        text.push_str(&ip(&[family, "route", "show", "table", "27746"])?);
    }
    let links = ip(&["-br", "link"])?;
    text.extend(links.lines().filter(|line| line.contains("lb-probe")));
    Ok(text)
}

#[test]
fn a_backend_without_the_vip_passes_the_direct_probe_and_is_found_by_way_of_the_vip() -> Result<()>
{
    with_lab(|lab, _servers| {
        let [v4, v6] = DSR_VIP;
        let config = Config::new(vec![
            service(lab, "via4", v4, HTTP).dsr().health(VIA),
            service(lab, "via6", v6, HTTP).dsr().health(VIA),
            service(lab, "direct4", v4, TCP_ECHO).dsr(),
            service(lab, "direct6", v6, TCP_ECHO).dsr(),
        ]);
        let mut agent = Agent::start(lab, &config)?;
        for (name, vip) in [("via4", v4), ("via6", v6)] {
            let probe = probe(&agent, &format!("{name}/b2"))?;
            ensure!(probe["outcome"] == "success", "{probe}");
            let connect = step(&probe, "connect").context("no step")?;
            ensure!(connect.contains(&vip.to_string()), "{probe}");
            ensure!(
                step(&probe, "via").is_some_and(|via| via.starts_with("dsr to ")),
                "{probe}"
            );
        }

        let b1 = &lab.backend(1).namespace;
        b1.ip(&format!(
            "addr del {v4}/32 dev lo\naddr del {v6}/128 dev lo"
        ))?;
        must_find(&mut agent, &["via4", "via6"], &["direct4", "direct6"])?;
        let lost = probe(&agent, "via4/b1")?;
        ensure!(lost["outcome"] == "failure", "{lost}");
        b1.ip(&format!(
            "addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad"
        ))?;
        agent.settled()?;

        // A killed agent leaves two rules that lead nowhere; the next one takes them over.
        agent.kill()?;
        let left = traces(lab)?;
        ensure!(
            !left.contains("lb-probe") && left.matches("fwmark").count() == 2,
            "{left}"
        );
        agent.run(&[], &[])?;
        agent.settled()?;
        agent.wait_status("a probe after the start", |status| {
            Ok(status.backend("via4/b1")?.health == "healthy")
        })?;
        let again = probe(&agent, "via6/b1")?;
        ensure!(again["outcome"] == "success", "{again}");
        let standing = traces(lab)?;
        ensure!(standing.matches("fwmark").count() == 2, "{standing}");
        agent.terminate()?;
        let left = traces(lab)?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

fn through_tunnels(lab: &Lab, forwarding: &'static str) -> Result<()> {
    let [v4, v6] = DSR_VIP;
    let via = |name: &str, vip, port| {
        let health = match port {
            TCP_ECHO => VIA.replace(
                "probe = \"http\"\npath = \"/readyz\"\n",
                "probe = \"tcp\"\n",
            ),
            _ => VIA.to_owned(),
        };
        service(lab, name, vip, port)
            .forwarded(forwarding)
            .health(&health)
    };
    let services = vec![
        via("4in4", v4, HTTP),
        via("6in6", v6, HTTP),
        via("4in6", v4, TCP_ECHO).over(lab, v6),
        via("6in4", v6, TCP_ECHO).over(lab, v4),
    ];
    // Where families differ, the way to the VIP says what probes come from.
    lab.lb.namespace.ip(&format!(
        "route add default via {}\nroute add default via {}",
        lab.client.v4, lab.client.v6
    ))?;
    let mut ends: Vec<Decap> = (lab.backends.iter())
        .map(|host| Decap::start(host, "native"))
        .collect::<Result<_>>()?;
    let mut agent = Agent::start(lab, &Config::new(services))?;
    for name in ["4in4", "6in6", "4in6", "6in4"] {
        let probe = probe(&agent, &format!("{name}/b2"))?;
        ensure!(probe["outcome"] == "success", "{name}: {probe}");
    }
    let counted = ends.remove(0).end()?;
    ensure!(
        counted[forwarding]["packets"].as_u64() > Some(8),
        "{counted}"
    );
    must_find(&mut agent, &["4in4", "6in6", "4in6", "6in4"], &[])?;
    let status = agent.status()?;
    for service in &status.services {
        for backend in &service.backends[1..] {
            ensure!(backend.routing == "active", "{backend:?}");
        }
    }
    Ok(())
}

#[test]
fn a_backend_that_drops_ipip_is_found_by_way_of_the_vip() -> Result<()> {
    with_lab(|lab, _servers| through_tunnels(lab, "ipip"))
}

#[test]
fn a_backend_that_drops_gue_is_found_by_way_of_the_vip() -> Result<()> {
    with_lab(|lab, _servers| through_tunnels(lab, "gue"))
}

#[test]
fn probes_have_the_source_the_mark_and_the_interface_that_are_asked_for() -> Result<()> {
    with_lab(|lab, _servers| {
        let [v4, v6] = DSR_VIP;
        let plain = "probe = \"tcp\"\ninterval = \"300ms\"\ntimeout = \"250ms\"\n";
        let with = |name: &str, vip, port, more: &str| {
            service(lab, name, vip, port)
                .dsr()
                .health(&format!("{plain}{more}"))
        };
        lab.lb.namespace.ip("addr add 10.77.0.55/24 dev eth0\n\
             addr add fd77::55/64 dev eth0 nodad\n\
             rule add fwmark 77 prohibit priority 50")?;
        let config = Config::new(vec![
            with("source4", v4, HTTP, "source = \"10.77.0.55\""),
            with("source6", v6, HTTP, "source = \"fd77::55\"\nvia = \"vip\""),
            with("mark", v4, TCP_ECHO, "mark = 78"),
            with("interface", v6, TCP_ECHO, "interface = \"eth0\""),
        ]);
        let agent = Agent::start(lab, &config)?;
        for (name, from) in [
            ("source4", "from 10.77.0.55:"),
            ("source6", "from [fd77::55]:"),
        ] {
            let probe = probe(&agent, &format!("{name}/b1"))?;
            let connect = step(&probe, "connect").context("no step")?;
            ensure!(connect.contains(from), "{probe}");
        }
        let changed = Config::new(vec![
            with("source4", v4, HTTP, "source = \"10.77.0.56\""),
            with("mark", v4, TCP_ECHO, "mark = 77"),
            with("interface", v6, TCP_ECHO, "interface = \"lo\""),
        ]);
        agent.configure(&changed)?;
        agent.lb(&["reload"])?.ok()?;
        for (name, outcome, says) in [
            ("source4", "internal", "cannot send from 10.77.0.56"),
            ("mark", "failure", "prohibits"),
            ("interface", "failure", "no route"),
        ] {
            let probe = probe(&agent, &format!("{name}/b1"))?;
            let detail = probe["detail"].as_str().context("no detail")?;
            ensure!(
                probe["outcome"] == outcome && detail.contains(says),
                "{name}: {probe}"
            );
        }
        Ok(())
    })
}
