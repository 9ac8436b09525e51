//! Interfaces and neighbours that are several, that change, that go and that come back.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::{DSR_VIP, Host, NAT_VIP, own_dsr_vips};
use lb_tests::load::flows::Flows;
use lb_tests::load::{Amount, Load};
use lb_tests::server_handle::{HTTP, Server, TCP_ECHO};
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// NAT and DSR over both families, bearing with what happens to the network.
fn services(lab: &Lab) -> Vec<Service> {
    let mut services = Vec::new();
    for (family, index) in [("4", 0), ("6", 1)] {
        let (nat, dsr) = (at(NAT_VIP[index], TCP_ECHO), at(DSR_VIP[index], TCP_ECHO));
        services.push(Service::tcp(lab, &format!("nat{family}"), nat, TCP_ECHO));
        services.push(Service::tcp(lab, &format!("dsr{family}"), dsr, TCP_ECHO).dsr());
    }
    // Nothing here is about health: a backend that cannot be probed for a moment stays in.
    let forgiving = "probe = \"tcp\"\ninterval = \"2s\"\ntimeout = \"1900ms\"\n\
                     unhealthy_threshold = 30";
    let services = services.into_iter();
    services.map(|service| service.health(forgiving)).collect()
}

/// Established connections to every service.
fn open(client: &Host, services: &[Service]) -> Result<Vec<(String, Flows)>> {
    let open = |service: &Service| {
        let flows = Flows::open(client, service.address, 6)
            .with_context(|| format!("to {}", service.name))?;
        Ok((service.name.clone(), flows))
    };
    services.iter().map(open).collect()
}

/// Waits until every connection has been used some more; none may have broken.
fn all_live(all: &[(String, Flows)], when: &str) -> Result<()> {
    for (name, flows) in all {
        flows
            .exchange(3, SOON)
            .with_context(|| format!("{name} {when}"))?;
        let broken = flows.broken_except("");
        ensure!(broken.is_empty(), "{name} {when}: {broken:?}");
    }
    Ok(())
}

#[test]
fn clients_and_backends_behind_different_interfaces() -> Result<()> {
    with_lab(|lab, _servers| {
        let far = lab.far_client()?;
        let services = services(lab);
        let mut config = Config::new(services.clone());
        config.interfaces = &["eth0", "eth1"];
        let agent = Agent::start(lab, &config)?;
        let near = open(&lab.client, &services)?;
        let across = open(&far, &services)?;
        for round in 1..=3 {
            all_live(&near, &format!("near, round {round}"))?;
            all_live(&across, &format!("across, round {round}"))?;
        }
        let backends = |all: &[(String, Flows)]| all.iter().all(|(_, f)| f.alive().len() > 1);
        ensure!(backends(&across), "one backend has all connections");
        let verdicts = agent.raw_status()?["node"]["verdicts"].clone();
        ensure!(verdicts["pass_not_vip"].as_u64() > Some(0), "{verdicts}");
        Ok(())
    })
}

#[test]
fn a_backend_whose_interface_is_replaced_is_found_again() -> Result<()> {
    with_lab(|lab, _servers| {
        let services = services(lab);
        let agent = Agent::start(lab, &Config::new(services.clone()))?;
        let flows = open(&lab.client, &services)?;
        let mac = |host: &Host| -> Result<String> {
            let link = host.namespace.run("ip", &["link", "show", "eth0"])?;
            let (_, mac) = link.split_once("link/ether ").context("no MAC address")?;
            Ok(mac.split_whitespace().next().unwrap_or_default().to_owned())
        };
        let before = mac(lab.backend(1))?;
        lab.replace_interface(lab.backend(1))?;
        ensure!(
            mac(lab.backend(1))? != before,
            "the MAC address is the same"
        );
        agent.wait_event("neighbor", "its next hop has changed")?;
        all_live(&flows, "after the change")
    })
}

#[test]
fn an_interface_that_is_down_is_told_while_it_is() -> Result<()> {
    with_lab(|lab, _servers| {
        let services = services(lab);
        let agent = Agent::start(lab, &Config::new(services.clone()))?;
        let told = |what: &str| {
            let down = || {
                let status = agent.raw_status()?;
                Ok(status["node"]["interfaces"][0]["down"].as_str() == Some(what))
            };
            wait_for(&format!("the status to say {what}"), SOON, down)
        };
        lab.lb.namespace.ip("link set eth0 down")?;
        told("set down")?;
        agent.wait_event("datapath", "eth0: set down")?;
        let text = agent.lb(&["status"])?.ok()?;
        ensure!(text.contains("!! eth0: set down"), "{text}");
        lab.lb.namespace.ip("link set eth0 up")?;
        agent.wait_event("datapath", "eth0: up again")?;
        let status = agent.raw_status()?;
        ensure!(status["node"]["interfaces"][0].get("down").is_none());
        Ok(())
    })
}

#[test]
fn a_next_hop_that_is_a_router_may_change() -> Result<()> {
    with_lab(|lab, _servers| {
        for number in [1, 2] {
            lab.backend(number).namespace.sysctl(&[
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/all/send_redirects", "0"),
                ("ipv4/conf/eth0/send_redirects", "0"),
            ])?;
        }
        // b3 is reached by b1, later by b2.
        let route = |action: &str, router: &Host| {
            let target = lab.backend(3);
            lab.lb.namespace.ip(&format!(
                "route {action} {} via {}\nroute {action} {} via {}",
                target.v4, router.v4, target.v6, router.v6
            ))
        };
        route("add", lab.backend(1))?;
        // By NAT only: the routers own the VIPs of direct server return themselves.
        let nat = |service: &Service| service.forwarding == "nat";
        let services = services(lab).into_iter().filter(nat);
        let services: Vec<Service> = services.map(|service| service.only(&["b3"])).collect();
        let agent = Agent::start(lab, &Config::new(services.clone()))?;
        let flows = open(&lab.client, &services)?;
        all_live(&flows, "by b1")?;
        route("replace", lab.backend(2))?;
        agent.wait_event("neighbor", "its next hop has changed")?;
        // If anything still went by b1, it would be lost.
        lab.backend(1)
            .namespace
            .sysctl(&[("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0")])?;
        all_live(&flows, "by b2")
    })
}

#[test]
fn the_balancers_interface_may_flap() -> Result<()> {
    with_lab(|lab, _servers| {
        // Else the kernel forgets the IPv6 addresses of an interface that goes down.
        lab.lb
            .namespace
            .sysctl(&[("ipv6/conf/eth0/keep_addr_on_down", "1")])?;
        let services = services(lab);
        let agent = Agent::start(lab, &Config::new(services.clone()))?;
        let flows = open(&lab.client, &services)?;
        let before = lab.lb.namespace.run("ip", &["link", "show", "eth0"])?;
        for round in 1..=3 {
            lab.lb.namespace.ip("link set eth0 down")?;
            lab.lb.namespace.ip("link set eth0 up")?;
            all_live(&flows, &format!("after flap {round}"))?;
        }
        let program = |text: &str| text.split_once("prog/xdp id").map(|(_, id)| id.to_owned());
        let after = lab.lb.namespace.run("ip", &["link", "show", "eth0"])?;
        ensure!(program(&before) == program(&after), "{before}\n{after}");
        let events = agent.events()?;
        let detached = events.iter().any(|event| event["kind"] == "detached");
        ensure!(!detached, "{events:?}");
        Ok(())
    })
}

#[test]
fn an_interface_that_comes_back_is_attached_to_again() -> Result<()> {
    with_lab(|lab, _servers| {
        let services = services(lab);
        let mut agent = Agent::start(lab, &Config::new(services.clone()))?;
        lab.remove_interface(&lab.lb)?;
        agent.wait_event("detached", "eth0 is gone")?;
        let status = agent.raw_status()?;
        ensure!(
            status["node"]["interfaces"] == serde_json::json!([{"name": "eth0", "mode": "off"}]),
            "{status}"
        );
        // What is gone keeps nobody from changing the rest.
        agent.lb(&["reload"])?.ok()?;
        lab.insert_interface(&lab.lb)?;
        agent.wait_event("attached", "eth0 is back: attached in native mode")?;
        agent.settled()?;
        let flows = open(&lab.client, &services)?;
        all_live(&flows, "over the new interface")?;
        // And no further reload or restart finds anything amiss.
        agent.lb(&["reload"])?.ok()?;
        all_live(&flows, "after a reload")?;
        agent.lb(&["detach"])?.ok()?;
        ensure!(agent.traces()?.is_empty(), "{:?}", agent.traces()?);
        Ok(())
    })
}

#[test]
fn a_backend_that_xdp_cannot_reach_says_why() -> Result<()> {
    with_lab(|lab, _servers| {
        lab.lb.namespace.ip("link add br7 type bridge\n\
             addr add 10.79.0.1/24 dev br7\n\
             link set br7 up\n\
             neigh add 10.79.0.5 lladdr 02:00:00:00:79:05 dev br7")?;
        let mut web = Service::tcp(lab, "web", at(NAT_VIP[0], 80), HTTP);
        web.health = "probe = \"none\"".into();
        for (name, address) in [
            ("own", lab.lb.v4.to_string()),
            ("bridged", "10.79.0.5".to_owned()),
            ("silent", "10.77.0.66".to_owned()),
            ("nowhere", "192.0.2.1".to_owned()),
        ] {
            let mut backend = web.backends[0].clone();
            backend.name = name.into();
            backend.address = format!("{address}:8080").parse()?;
            web.backends.push(backend);
        }
        let mut agent = Agent::prepare(lab, &Config::new(vec![web]))?;
        agent.run(&[], &[])?;
        let expected = [
            ("own", "address of this host"),
            ("bridged", "bridge device br7"),
            ("silent", "does not answer ARP"),
            ("nowhere", "no route"),
        ];
        wait_for("the reasons", SOON, || {
            let Ok(status) = agent.raw_status() else {
                return Ok(false);
            };
            let backends = status["services"][0]["backends"].clone();
            let find = |name: &str| {
                let mut backends = backends.as_array().into_iter().flatten();
                backends.find(|backend| backend["name"] == name).cloned()
            };
            Ok(expected.iter().all(|(name, reason)| {
                find(name).is_some_and(|backend| {
                    let text = backend["unresolved_reason"].as_str().unwrap_or_default();
                    backend["unresolved"] == true && text.contains(reason)
                })
            }))
        })
        .with_context(|| format!("{:?}", agent.raw_status()))?;
        let text = agent.lb(&["status"])?.ok()?;
        ensure!(text.contains("bridge device br7"), "{text}");
        Ok(())
    })
}

#[test]
fn the_balancers_own_host_may_be_a_backend() -> Result<()> {
    with_lab(|lab, _servers| {
        own_dsr_vips(&lab.lb.namespace)?;
        let _server = Server::start(&lab.lb)?;
        let services = ["dsr", "gue"].map(|forwarding| {
            let port = if forwarding == "dsr" { HTTP } else { TCP_ECHO };
            let service = Service::tcp(lab, forwarding, at(DSR_VIP[0], port), port).patient();
            let mut own = service.backends[0].clone();
            own.name = "lb".into();
            own.address = at(lab.lb.v4, port);
            Service {
                backends: if forwarding == "dsr" {
                    vec![service.backends[0].clone(), own]
                } else {
                    vec![own]
                },
                ..service.forwarded(forwarding)
            }
        });
        let [dsr, gue] = &services;
        let mut agent = Agent::start(lab, &Config::new(services.to_vec()))?;
        agent.settled()?;
        let tally = Load::http(&lab.client, dsr.address, false, Amount::requests(200))?.finish();
        tally.must_not_fail()?;
        for name in ["b1", "lb"] {
            ensure!(tally.of(name) > 20, "{name}: {tally:?}");
        }
        let flows = Flows::open(&lab.client, gue.address, 3)?;
        flows.exchange(3, SOON)?;
        ensure!(flows.alive().get("lb") == Some(&3), "{:?}", flows.all());
        Ok(())
    })
}

#[test]
fn another_affinity_of_a_direct_service_is_announced() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut config = Config::new(services(lab));
        let agent = Agent::start(lab, &config)?;
        let quiet = agent.lb(&["reload"])?.ok()?;
        ensure!(!quiet.contains("affinity"), "{quiet}");
        for service in &mut config.services {
            service.options = "affinity = \"client\"".into();
        }
        agent.configure(&config)?;
        let warned = agent.lb(&["reload"])?.ok()?;
        ensure!(
            warned.contains("affinity") && warned.contains("dsr4, dsr6"),
            "{warned}"
        );
        ensure!(!warned.contains("nat4"), "{warned}");
        agent.wait_event("reload", "dsr4, dsr6")?;
        // Written back in the words that the operator reads.
        ensure!(warned.contains("WARNING"), "{warned}");
        Ok(())
    })
}

#[test]
fn a_balanced_load_survives_the_loss_of_the_second_interface() -> Result<()> {
    with_lab(|lab, _servers| {
        let far = lab.far_client()?;
        let mut config = Config::new(vec![
            Service::tcp(lab, "web", at(NAT_VIP[0], 80), HTTP).patient(),
        ]);
        config.interfaces = &["eth0", "eth1"];
        let agent = Agent::start(lab, &config)?;
        let load = Load::http(&lab.client, at(NAT_VIP[0], 80), false, Amount::steady())?;
        Load::http(&far, at(NAT_VIP[0], 80), false, Amount::requests(40))?
            .finish()
            .must_not_fail()?;
        lab.lb.namespace.ip("link del eth1")?;
        agent.wait_event("detached", "eth1 is gone")?;
        let before = load.tally();
        wait_for("more requests", SOON, || {
            Ok(load.tally().since(&before).requests() >= 100)
        })?;
        load.stop().must_not_fail()
    })
}
