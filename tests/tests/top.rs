//! `lb top` on a terminal and without one.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use lb_tests::agent::SOON;
use lb_tests::lab::NAT_VIP;
use lb_tests::load::{Amount, Load};
use lb_tests::process::Process;
use lb_tests::server_handle::HTTP;
use lb_tests::{Agent, Config, Lab, Service, wait_for, with_lab};

const WEB: SocketAddr = SocketAddr::new(NAT_VIP[0], 80);

fn start(lab: &Lab) -> Result<Agent<'_>> {
    let web = Service::tcp(lab, "web", WEB, HTTP).patient();
    Agent::start(lab, &Config::new(vec![web]))
}

/// The cells of the line that begins with `name`.
fn row<'a>(frame: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let mut lines = frame.lines().map(|line| line.split_whitespace().collect());
    lines
        .find(|cells: &Vec<&str>| cells.first() == Some(&name))
        .with_context(|| format!("no {name} in\n{frame}"))
}

#[test]
fn without_a_terminal_it_is_one_frame_with_rates() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = start(lab)?;
        let load = Load::http(&lab.client, WEB, false, Amount::steady())?;
        for arguments in [&["top", "--once"][..], &["top", "web"]] {
            let frame = agent.lb(arguments)?.ok()?;
            ensure!(!frame.contains('\x1b'), "{frame:?}");
            // Name, health, packets, bytes, new flows, flows.
            let service = row(&frame, "web")?;
            ensure!(service[1] == "100", "{frame}");
            for rate in &service[3..6] {
                ensure!(!["-", "0", "0.0"].contains(rate), "{rate} in\n{frame}");
            }
            let backend = row(&frame, "b1")?;
            ensure!(backend[1..3] == ["active", "healthy"], "{frame}");
        }
        load.stop().must_not_fail()?;
        ensure!(agent.lb(&["top", "wbe"])?.code == Some(2));
        agent.kill()?;
        ensure!(agent.lb(&["top"])?.code == Some(3), "no agent runs");
        Ok(())
    })
}

/// What was written to the terminal so far contains all of these, in this order.
fn shows(log: &Path, wanted: &[&str]) -> Result<()> {
    let mut seen = String::new();
    let result = wait_for(&format!("{wanted:?}"), SOON, || {
        seen = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
        let mut rest = Some(seen.as_str());
        for text in wanted {
            rest = rest
                .and_then(|rest| rest.split_once(text))
                .map(|(_, rest)| rest);
        }
        Ok(rest.is_some())
    });
    result.with_context(|| format!("on the terminal: {seen:?}"))
}

#[test]
fn on_a_terminal_it_follows_the_keys_and_the_agent() -> Result<()> {
    with_lab(|lab, _servers| {
        let mut agent = start(lab)?;
        let log = lab.folder().join("top.out");
        let binary = agent.binary().display();
        let socket = agent.socket();
        let inner = format!(
            "stty cols 150 rows 20; exec {binary} --socket {} top",
            socket.display()
        );
        let mut command = lab.lb.namespace.command("script");
        command
            .args(["--quiet", "--return", "--command", &inner, "/dev/null"])
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(File::create(&log)?);
        let mut top = Process::spawn(&mut command, "script")?;
        let mut keys = top.child().stdin.take().context("no keyboard")?;
        let enter = "\x1b[?1049h";
        shows(
            &log,
            &[
                enter,
                "sorted by config",
                "PACKETS/s",
                "web",
                "b1",
                "q quit",
            ],
        )?;
        keys.write_all(b"s")?;
        shows(&log, &["sorted by packets"])?;
        keys.write_all(b"\x1b[D\x1b[D")?;
        shows(&log, &["sorted by packets", "sorted by flows"])?;
        keys.write_all(b"p")?;
        shows(&log, &["PAUSED"])?;
        keys.write_all(b"p")?;
        // It goes on: the agent is asked again, dead or alive.
        agent.kill()?;
        shows(&log, &["PAUSED", "!! no agent listens"])?;
        agent.run(&[], &[])?;
        agent.settled()?;
        agent.lb(&["disable", "web/b1"])?.ok()?;
        agent.wait_routing("web/b1", "out")?;
        shows(&log, &["!! no agent listens", "ready", "out"])?;
        keys.write_all(b"q")?;
        let status = top.wait(SOON)?;
        ensure!(status.success(), "{status}");
        // The terminal is as it was before.
        shows(&log, &[enter, "\x1b[?25h", "\x1b[?1049l"])
    })
}
