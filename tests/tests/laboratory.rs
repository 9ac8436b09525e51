//! The laboratory itself, without `lb`: what the other tests take for granted.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::load::download::Download;
use lb_tests::load::flows::Flows;
use lb_tests::load::{Amount, Load, grpc, udp};
use lb_tests::server::Order;
use lb_tests::server_handle::{GRPC, HTTP, TCP_ECHO, UDP_ECHO};
use lb_tests::{Lab, Server, skip};

const MIB: u64 = 1 << 20;

#[test]
fn servers_answer_over_both_families_and_obey() -> Result<()> {
    if skip::skipped("laboratory::servers_answer_over_both_families_and_obey") {
        return Ok(());
    }
    let lab = Lab::new(1)?;
    let mut server = Server::start(lab.backend(1))?;
    for ip in [lab.backend(1).v4, lab.backend(1).v6] {
        let at = |port| SocketAddr::new(ip, port);
        ensure!(
            lab.ping(&lab.client, ip, Duration::from_secs(5))?,
            "no ping to {ip}"
        );
        for keep in [true, false] {
            let tally = Load::http(&lab.client, at(HTTP), keep, Amount::requests(400))?.finish();
            tally.must_not_fail()?;
            ensure!(tally.of("b1") == 400, "{tally:?}");
            let udp = || udp::Client::new(at(UDP_ECHO), keep);
            Load::start(&lab.client, Amount::requests(400), udp)?
                .finish()
                .must_not_fail()?;
        }
        let grpc = || grpc::Client::new(at(GRPC));
        let tally = Load::start(&lab.client, Amount::requests(40), grpc)?.finish();
        tally.must_not_fail()?;
        ensure!(tally.of("b1") == 40, "{tally:?}");
        Download::start(&lab.client, at(HTTP), 64 * MIB, None)?.finish()?;
    }
    let to = SocketAddr::new(lab.backend(1).v4, HTTP);
    let ask = || {
        let mut client = lb_tests::load::http::Client::new(to, false);
        lab.client
            .namespace
            .within(move || client.fetch("/readyz"))?
    };
    ensure!(ask()?.0 == 200);
    server.order(Order::Unready)?;
    ensure!(ask()?.0 == 503);
    server.order(Order::Ready)?;
    ensure!(ask()?.0 == 200);
    server.kill()?;
    ensure!(ask().is_err(), "a killed backend answered");
    Ok(())
}

#[test]
fn load_notices_what_breaks() -> Result<()> {
    if skip::skipped("laboratory::load_notices_what_breaks") {
        return Ok(());
    }
    let lab = Lab::new(1)?;
    let mut server = Server::start(lab.backend(1))?;
    let at = |port| SocketAddr::new(lab.backend(1).v4, port);
    let load = Load::http(&lab.client, at(HTTP), true, Amount::steady())?;
    let flows = Flows::open(&lab.client, at(TCP_ECHO), 4)?;
    let download = Download::start(&lab.client, at(HTTP), 1 << 40, Some(MIB))?;
    flows.exchange(2, Duration::from_secs(20))?;
    ensure!(flows.alive().get("b1") == Some(&4), "{:?}", flows.all());
    load.tally().must_not_fail()?;
    server.kill()?;
    flows.exchange(2, Duration::from_secs(20))?;
    ensure!(flows.broken_except("").len() == 4, "{:?}", flows.all());
    ensure!(download.finish().is_err(), "a download outlived its server");
    let server = Server::start(lab.backend(1))?;
    ensure!(load.stop().failed > 0, "the load did not notice the kill");
    drop(server);
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    if skip::skipped("laboratory::nothing_is_left_behind") {
        return Ok(());
    }
    let lab = Lab::new(2)?;
    let server = Server::start(lab.backend(1))?;
    let folder = lab.folder().to_path_buf();
    let names: Vec<String> = lab
        .backends
        .iter()
        .map(|host| host.namespace.name().into())
        .collect();
    drop((server, lab));
    ensure!(!folder.exists());
    for name in names {
        ensure!(
            !Path::new("/run/netns").join(&name).exists(),
            "{name} is left"
        );
    }
    Ok(())
}

#[test]
fn a_foreign_program_and_pins_stay_inside() -> Result<()> {
    if skip::skipped("laboratory::a_foreign_program_and_pins_stay_inside") {
        return Ok(());
    }
    let lab = Lab::new(1)?;
    let lb = &lab.lb.namespace;
    lb.attach_passing_xdp("eth0")?;
    ensure!(
        lb.run("ip", &["link", "show", "eth0"])?
            .contains("prog/xdp id"),
        "not attached"
    );
    ensure!(
        lab.ping(&lab.client, lab.lb.v4, Duration::from_secs(5))?,
        "it does not pass"
    );
    lb.run("mkdir", &["/sys/fs/bpf/lab-was-here"])?;
    ensure!(
        !Path::new("/sys/fs/bpf/lab-was-here").exists(),
        "a pin is seen on the host"
    );
    ensure!(
        lb.run("ls", &["/sys/class/net"])?
            .split_whitespace()
            .eq(["eth0", "lo"])
    );
    Ok(())
}

#[test]
fn a_new_mac_address_is_announced_and_a_cable_can_be_cut() -> Result<()> {
    if skip::skipped("laboratory::a_new_mac_address_is_announced_and_a_cable_can_be_cut") {
        return Ok(());
    }
    let lab = Lab::new(1)?;
    let (backend, patience) = (lab.backend(1), Duration::from_secs(5));
    for ip in [backend.v4, backend.v6] {
        ensure!(lab.ping(&lab.client, ip, patience)?, "no ping to {ip}");
    }
    lab.change_mac(backend)?;
    for ip in [backend.v4, backend.v6] {
        let neighbours = lab
            .client
            .namespace
            .run("ip", &["neigh", "show", &ip.to_string()])?;
        ensure!(
            neighbours.contains("02:00:00:00:77:"),
            "not announced: {neighbours}"
        );
        ensure!(
            lab.ping(&lab.client, ip, patience)?,
            "no ping to {ip} at its new address"
        );
    }
    lab.plug(backend, false)?;
    ensure!(
        !lab.ping(&lab.client, backend.v4, Duration::from_millis(500))?,
        "not cut"
    );
    lab.plug(backend, true)?;
    ensure!(lab.ping(&lab.client, backend.v4, patience)?, "not mended");
    Ok(())
}
