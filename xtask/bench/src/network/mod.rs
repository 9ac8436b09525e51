//! Requests per second and processor time per request, through network namespaces of this
//! machine: wrk, one backend, and what lies between them.

mod cpu;
mod systems;
mod wrk;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use lb_tests::{Lab, Server, interrupt, skip};

use crate::stats::Spread;
use systems::System;
use wrk::Load;

/// Measures, and prints two tables.
pub fn run(quick: bool) -> Result<()> {
    if let Some(reason) = skip::reason() {
        bail!("requests per second cannot be measured: {reason}");
    }
    interrupt::watch()?;
    let (rounds, time) = match quick {
        true => (2, Duration::from_secs(2)),
        false => (5, Duration::from_secs(5)),
    };
    let lab = Lab::new(1)?;
    let _server = Server::start(lab.backend(1))?;
    let mut keep = System::ALL.map(|_| Vec::new());
    let mut reconnect = System::ALL.map(|_| Vec::new());
    for _ in 0..rounds {
        for ((system, keep), reconnect) in System::ALL.iter().zip(&mut keep).zip(&mut reconnect) {
            system
                .with(&lab, |to| {
                    keep.push(wrk::run(&lab.client, to, time, false)?);
                    reconnect.push(wrk::run(&lab.client, to, time, true)?);
                    Ok(())
                })
                .with_context(|| format!("measuring {}", system.label()))?;
        }
    }
    let how = format!(
        "{} connections, one backend, medians of {rounds} rounds of {} s",
        wrk::CONNECTIONS,
        time.as_secs()
    );
    print(&format!("Requests on kept connections: {how}."), &keep);
    print(
        &format!("A new connection for each request: {how}."),
        &reconnect,
    );
    Ok(())
}

fn print(title: &str, loads: &[Vec<Load>]) {
    println!("\n{title}\n");
    println!(
        "{:<30}{:>12}{:>16}{:>20}{:>12}",
        "", "requests/s", "range", "CPU µs/request", "p99 ms"
    );
    for (system, loads) in System::ALL.iter().zip(loads) {
        let of = |value: fn(&Load) -> f64| Spread::of(&loads.iter().map(value).collect::<Vec<_>>());
        let (Some(rate), Some(cpu), Some(p99)) = (
            of(|load| load.requests_per_second),
            of(|load| load.cpu),
            of(|load| load.p99),
        ) else {
            continue;
        };
        let range = format!("{:.0}–{:.0}", rate.least, rate.greatest);
        println!(
            "{:<30}{:>12.0}{range:>16}{:>20.1}{:>12.2}",
            system.label(),
            rate.median,
            cpu.median,
            p99.median
        );
    }
}
