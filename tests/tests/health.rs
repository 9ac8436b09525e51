//! Backends that fail in their several ways, under load.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::{DSR_VIP, NAT_VIP};
use lb_tests::load::download::Download;
use lb_tests::load::flows::Flows;
use lb_tests::load::{Amount, Load, udp};
use lb_tests::server::Order;
use lb_tests::server_handle::{HTTP, TCP_ECHO, UDP_ECHO};
use lb_tests::status::Status;
use lb_tests::wait::pause;
use lb_tests::{Agent, Config, Lab, Server, Service, wait_for, with_lab};

const MIB: u64 = 1 << 20;

fn nat(port: u16) -> SocketAddr {
    SocketAddr::new(NAT_VIP[0], port)
}

fn dsr(port: u16) -> SocketAddr {
    SocketAddr::new(DSR_VIP[1], port)
}

fn both(lab: &Lab, port: u16) -> Vec<Service> {
    vec![
        Service::tcp(lab, "nat", nat(port), port),
        Service::tcp(lab, "dsr", dsr(port), port).dsr(),
    ]
}

fn open(lab: &Lab) -> Result<[Flows; 2]> {
    Ok([
        Flows::open(&lab.client, nat(TCP_ECHO), 30).context("nat")?,
        Flows::open(&lab.client, dsr(TCP_ECHO), 30).context("dsr")?,
    ])
}

fn must_live(flows: &[Flows], except: &str) -> Result<()> {
    for flows in flows {
        flows.exchange(5, SOON)?;
        let broken = flows.broken_except(except);
        ensure!(
            broken.is_empty(),
            "broken flows of healthy backends: {broken:?}"
        );
    }
    Ok(())
}

#[test]
fn an_ejection_and_a_return_break_no_flow_of_another_backend() -> Result<()> {
    with_lab(|lab, servers| {
        let mut agent = Agent::start(lab, &Config::new(both(lab, TCP_ECHO)))?;
        let before = open(lab)?;
        must_live(&before, "")?;
        ensure!(
            before.iter().all(|flows| flows.alive().len() == 3),
            "not all backends are used"
        );

        servers[0].kill()?;
        for service in ["nat", "dsr"] {
            agent.wait_routing(&format!("{service}/b1"), "out")?;
        }
        must_live(&before, "b1")?;
        // Flows that stand-ins serve in b1's slots must survive its return.
        let during = open(lab)?;
        ensure!(
            during.iter().all(|flows| !flows.alive().contains_key("b1")),
            "b1 is out"
        );

        servers[0] = Server::start(lab.backend(1))?;
        for service in ["nat", "dsr"] {
            agent.wait_routing(&format!("{service}/b1"), "active")?;
        }
        must_live(&before, "b1")?;
        must_live(&during, "")?;
        let after = open(lab)?;
        must_live(&after, "")?;
        ensure!(
            after.iter().all(|flows| flows.alive().len() == 3),
            "b1 is not used again"
        );
        Ok(())
    })
}

#[test]
fn a_frozen_backend_is_out_and_comes_back() -> Result<()> {
    with_lab(|lab, servers| {
        let mut agent = Agent::start(lab, &Config::new(both(lab, HTTP)))?;
        servers[1].freeze()?;
        agent.wait_routing("nat/b2", "out")?;
        agent.wait_routing("dsr/b2", "out")?;
        for to in [nat(HTTP), dsr(HTTP)] {
            let tally = Load::http(&lab.client, to, false, Amount::requests(400))?.finish();
            tally.must_not_fail()?;
            ensure!(tally.of("b2") == 0, "{tally:?}");
        }
        servers[1].thaw()?;
        agent.settled()
    })
}

#[test]
fn an_unplugged_backend_is_out_and_comes_back() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = Agent::start(lab, &Config::new(both(lab, HTTP)))?;
        lab.plug(lab.backend(3), false)?;
        agent.wait_routing("nat/b3", "out")?;
        agent.wait_routing("dsr/b3", "out")?;
        for to in [nat(HTTP), dsr(HTTP)] {
            let tally = Load::http(&lab.client, to, false, Amount::requests(400))?.finish();
            tally.must_not_fail()?;
        }
        lab.plug(lab.backend(3), true)?;
        agent.settled()
    })
}

#[test]
fn a_download_ends_well_while_its_backend_drains() -> Result<()> {
    with_lab(|lab, servers| {
        let mut agent = Agent::start(lab, &Config::new(both(lab, HTTP)))?;
        let download = |to| Download::from_backend(&lab.client, to, "b2", 8 * MIB, 2 * MIB);
        let downloads = [download(nat(HTTP))?, download(dsr(HTTP))?];
        servers[1].order(Order::Unready)?;
        agent.wait_routing("nat/b2", "draining")?;
        agent.wait_routing("dsr/b2", "draining")?;
        ensure!(
            downloads.iter().all(|download| !download.ended()),
            "too fast to show anything"
        );
        for to in [nat(HTTP), dsr(HTTP)] {
            let tally = Load::http(&lab.client, to, false, Amount::requests(400))?.finish();
            tally.must_not_fail()?;
            ensure!(
                tally.of("b2") == 0,
                "new flows to a draining backend: {tally:?}"
            );
        }
        for download in downloads {
            download.finish()?;
        }
        servers[1].order(Order::Ready)?;
        agent.settled()
    })
}

#[test]
fn the_drain_deadline_cuts_what_is_left() -> Result<()> {
    with_lab(|lab, servers| {
        let services = both(lab, HTTP).into_iter();
        let services = services
            .map(|service| service.options("drain_deadline = \"2s\""))
            .collect();
        let mut agent = Agent::start(lab, &Config::new(services))?;
        for to in [nat(HTTP), dsr(HTTP)] {
            let endless = |backend| Download::from_backend(&lab.client, to, backend, 1 << 40, MIB);
            let (straggler, other) = (endless("b2")?, endless("b1")?);
            servers[1].order(Order::Unready)?;
            agent.wait_routing("nat/b2", "out")?;
            agent.wait_routing("dsr/b2", "out")?;
            // The reset answers a packet of the client, so the flow learns of it at once; a mere
            // silence would keep the download waiting for its read timeout and say so.
            wait_for("the straggler to be cut", SOON, || Ok(straggler.ended()))?;
            let end = straggler
                .finish()
                .err()
                .context("an endless download ended well")?;
            ensure!(
                format!("{end:#}").contains("reset"),
                "not reset, but: {end:#}"
            );
            ensure!(!other.ended(), "a download of a healthy backend was cut");
            servers[1].order(Order::Ready)?;
            agent.settled()?;
        }
        Ok(())
    })
}

#[test]
fn a_higher_tier_stands_by() -> Result<()> {
    with_lab(|lab, servers| {
        let mut service = Service::tcp(lab, "web", nat(80), HTTP);
        service.backends[2].options = "tier = 1".into();
        let config = Config::new(vec![service]);
        let mut agent = Agent::prepare(lab, &config)?;
        agent.run(&[], &[])?;
        agent.wait_status("tier 0 to serve and tier 1 to stand by", |status| {
            let routing = |name| Ok::<_, anyhow::Error>(status.backend(name)?.routing.clone());
            let seen = [routing("web/b1")?, routing("web/b2")?, routing("web/b3")?];
            Ok(seen == ["active", "active", "standby"])
        })?;
        let tally = Load::http(&lab.client, nat(80), false, Amount::requests(400))?.finish();
        tally.must_not_fail()?;
        ensure!(tally.of("b3") == 0, "{tally:?}");
        servers[0].kill()?;
        servers[1].kill()?;
        agent.wait_status("tier 1 to serve", |status| {
            Ok(["active", "panic"].contains(&&*status.backend("web/b3")?.routing))
        })
    })
}

#[test]
fn a_changed_mac_address_is_followed() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = Agent::start(lab, &Config::new(both(lab, HTTP)))?;
        lab.change_mac(lab.backend(1))?;
        for to in [nat(HTTP), dsr(HTTP)] {
            let load = Load::http(&lab.client, to, false, Amount::steady())?;
            wait_for("b1 to be reached at its new MAC address", SOON, || {
                agent.settled()?;
                let before = load.tally();
                pause(Duration::from_millis(500))?;
                let now = load.tally().since(&before);
                Ok(now.of("b1") > 0 && now.failed == 0)
            })?;
        }
        Ok(())
    })
}

#[test]
fn backends_come_and_go_without_a_datagram_lost() -> Result<()> {
    with_lab(|lab, servers| {
        let services = vec![
            Service::tcp(lab, "nat", nat(UDP_ECHO), UDP_ECHO).udp(),
            Service::tcp(lab, "dsr", dsr(UDP_ECHO), UDP_ECHO)
                .udp()
                .dsr(),
        ];
        let services = services.into_iter();
        let services = services.map(|service| service.options("drain_deadline = \"500ms\""));
        let mut agent = Agent::start(lab, &Config::new(services.collect()))?;
        // A datagram is not sent again, so one that meets a half-made change is missed. Few enough
        // of them that the ports of NAT, which UDP holds for two minutes, suffice.
        let amount = Amount {
            workers: 1,
            pause: Duration::from_millis(5),
            each: None,
        };
        let load = |to| Load::start(&lab.client, amount, move || udp::Client::new(to, false));
        let loads = [load(nat(UDP_ECHO))?, load(dsr(UDP_ECHO))?];
        for _ in 0..4 {
            servers[1].order(Order::Unready)?;
            agent.wait_routing("nat/b2", "out")?;
            agent.wait_routing("dsr/b2", "out")?;
            servers[1].order(Order::Ready)?;
            agent.settled()?;
        }
        for load in loads {
            load.stop().must_not_fail()?;
        }
        Ok(())
    })
}

/// One is out, and one more would be too many: it goes on, over a restart of the agent too, until the
/// first one is back.
#[test]
fn an_ejection_too_many_waits_for_its_place() -> Result<()> {
    with_lab(|lab, servers| {
        let service = Service::tcp(lab, "nat", nat(HTTP), HTTP);
        let service = service
            .options("drain_deadline = \"1s\"\npanic_threshold = 0\nmax_ejection_percent = 0");
        let mut agent = Agent::start(lab, &Config::new(vec![service]))?;
        agent.settled()?;
        let load = Load::http(&lab.client, nat(HTTP), false, Amount::steady())?;
        servers[1].order(Order::Unready)?;
        agent.wait_routing("nat/b2", "out")?;
        servers[0].order(Order::Unready)?;
        let is_kept = |status: &Status| {
            let [b1, b2] = [status.backend("nat/b1")?, status.backend("nat/b2")?];
            Ok(b2.routing == "out"
                && (b1.health.as_str(), b1.routing.as_str()) == ("unhealthy", "active")
                && b1.slots > 0
                && b1.reason.contains("max_ejection_percent"))
        };
        agent.wait_status("b1 to be kept", is_kept)?;
        let events = agent.events()?;
        let refused = events.iter().filter(|e| e["kind"] == "ejection_refused");
        let refused: Vec<_> = refused.map(|event| &event["backend"]).collect();
        ensure!(refused == ["b1"], "{refused:?}");
        agent.kill()?;
        agent.run(&[], &[])?;
        agent.wait_status("b1 to be kept by another agent", is_kept)?;
        servers[1].order(Order::Ready)?;
        agent.wait_routing("nat/b2", "active")?;
        agent.wait_routing("nat/b1", "out")?;
        let events = agent.events()?;
        let readmitted = events
            .iter()
            .any(|e| e["kind"] == "readmitted" && e["backend"] == "b1");
        ensure!(!readmitted, "b1 was never out before");
        load.stop().must_not_fail()
    })
}

#[test]
fn a_returning_backend_is_warmed_up() -> Result<()> {
    with_lab(|lab, servers| {
        let service = Service::tcp(lab, "nat", nat(HTTP), HTTP);
        let service = service.options("drain_deadline = \"1s\"\nslow_start = \"4s\"");
        let mut agent = Agent::start(lab, &Config::new(vec![service]))?;
        let slots = |status: &Status| -> Result<[u64; 2]> {
            Ok([
                status.backend("nat/b1")?.slots,
                status.backend("nat/b2")?.slots,
            ])
        };
        agent.wait_status("b1 to have its share", |status| {
            let [b1, b2] = slots(status)?;
            Ok(b1.abs_diff(b2) <= b2 / 10)
        })?;
        let load = Load::http(&lab.client, nat(HTTP), false, Amount::steady())?;
        servers[0].order(Order::Unready)?;
        agent.wait_routing("nat/b1", "out")?;
        servers[0].order(Order::Ready)?;
        agent.wait_status("b1 to begin with a part of its share", |status| {
            let [b1, b2] = slots(status)?;
            Ok(b1 > 0 && b1 < b2 / 2)
        })?;
        agent.wait_status("b1 to have all of its share", |status| {
            let [b1, b2] = slots(status)?;
            Ok(b1.abs_diff(b2) <= b2 / 10)
        })?;
        load.stop().must_not_fail()
    })
}
