//! `cargo xtask demo`: the balancer at work before the viewer's eyes, in network namespaces on
//! this machine. Nothing outside them is touched, and nothing is left behind.

mod report;
mod scenes;
mod stage;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lb_tests::wait::pause;
use lb_tests::{Agent, Lab, Server, interrupt, skip};

use report::Report;
use stage::{Stage, config};

/// Runs the demo; with `keep`, leaves everything running at the end until Ctrl-C.
///
/// # Errors
/// If the machine cannot run it, something broke, Ctrl-C was pressed, or a measurement was not as
/// expected. Namespaces and processes are removed in every case.
pub fn run(keep: bool) -> Result<()> {
    if let Some(reason) = skip::reason() {
        bail!("the demo cannot run: {reason}");
    }
    interrupt::watch()?;
    let result = play(keep);
    if interrupt::requested() {
        println!("\n   Stopped. Namespaces and processes are removed.");
    }
    result
}

fn play(keep: bool) -> Result<()> {
    let start = Instant::now();
    println!("lb demo: everything runs in network namespaces and is removed at the end.");
    println!("Building lb …");
    lb_tests::binaries::lb()?;
    lb_tests::binaries::helper()?;

    let mut report = Report::default();
    report.scene(
        "The stage",
        &[
            "client ──┐",
            "         ├── switch ──┬── b1, b2, b3   HTTP, UDP echo",
            "lb ──────┘            └── b4           gRPC",
            "",
            "web     203.0.113.10:80            NAT   b1 b2 b3   HTTP probes",
            "direct  [2001:db8:77::20]:8080     DSR   b1 b2 b3   HTTP probes",
            "rpc     203.0.113.10:50051         NAT   b4         gRPC probes",
            "echo    203.0.113.10:7001 (UDP)    NAT   b1 b2 b3   HTTP probes",
            "",
            "Probes every 500 ms, timeout 200 ms; 3 failures eject, 2 successes readmit.",
        ],
    );
    let lab = Lab::new(4)?;
    let servers = lab
        .backends
        .iter()
        .map(Server::start)
        .collect::<Result<Vec<_>>>()?;
    let config = config(&lab);
    let mut agent = Agent::prepare(&lab, &config)?;
    agent.tell_log = false;
    let started = Instant::now();
    agent.run(&[], &[])?;
    if let Err(error) = agent.settled() {
        // The error of an agent that ended has its log already.
        let log = if agent.runs()? {
            agent.log()
        } else {
            String::new()
        };
        return Err(error.context(format!("lb did not start properly\n{log}")));
    }
    let ready = started.elapsed();
    let status = agent.status()?;
    let mode = status
        .node
        .interfaces
        .first()
        .map_or("not attached", |found| found.mode.as_str());
    report.expect(
        mode == "native",
        "XDP on the balancer's veth",
        mode,
        "native",
    );
    report.note(&format!(
        "every backend had its first probe {:.1} s after the start of `lb run`",
        ready.as_secs_f64()
    ));

    let mut stage = Stage::open(&lab, agent, servers, report)?;
    scenes::spread(&mut stage)?;
    scenes::death(&mut stage)?;
    scenes::drain(&mut stage)?;
    scenes::panic(&mut stage)?;
    scenes::recovery(&mut stage)?;
    scenes::operator(&mut stage)?;

    let requests = stage.all_requests();
    if !keep {
        scenes::detach(&mut stage)?;
    }
    let outcome = stage.report.summary(&requests, start.elapsed());
    if keep {
        look_inside(&stage);
        while !interrupt::requested() {
            // Ctrl-C is the way out and no failure here.
            if pause(Duration::from_secs(1)).is_err() {
                break;
            }
        }
    }
    outcome
}

fn look_inside(stage: &Stage<'_>) {
    let folder = stage.agent.binary().parent().unwrap_or(Path::new("/"));
    let client = stage.lab.client.namespace.name();
    println!("\n── Look inside {}", "─".repeat(57));
    println!("   Everything goes on until Ctrl-C. In another terminal, as root:\n");
    println!("   export LB_SOCKET={}", stage.agent.socket().display());
    println!("   PATH={}:$PATH", folder.display());
    for command in ["status", "events --follow", "probe web/b1", "drain web/b2"] {
        println!("   lb {command}");
    }
    println!("\n   nsenter --net=/run/netns/{client} curl http://203.0.113.10/");
    for host in std::iter::once(&stage.lab.lb).chain(&stage.lab.backends) {
        let path = format!("/run/netns/{}", host.namespace.name());
        println!("   nsenter --net={path} bash   # {}", host.name);
    }
    println!(
        "\n   configuration: {}",
        stage.agent.config_path().display()
    );
}
