//! What a change of a service with many backends takes: the agent's work, and the kernel's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lb_common::abi::{BackendState, Hop};
use lb_userspace::config;
use lb_userspace::datapath::{Datapath, PinDirectory, detach};
use lb_userspace::model::{BackendKey, Model};
use lb_userspace::plan::{self, Builder, Contents, Duty, Op, Path, Tunnel};

use crate::stats::Spread;

const BACKENDS: u16 = 1_000;

/// One change, in milliseconds: what the agent computes, what it writes but for the swap of the
/// table, and the swap, in which the kernel waits until no packet uses the old table.
struct Change {
    build: f64,
    write: f64,
    swap: f64,
}

/// Measures, and prints a table.
pub fn run(rounds: usize) -> Result<()> {
    let pins = PinDirectory::of(&PathBuf::from(format!(
        "/bench/tables/{}",
        std::process::id()
    )));
    let mut datapath = Datapath::open(pins.clone(), 4096)?;
    let result = measure(&mut datapath, rounds);
    drop(datapath);
    detach(&pins)?;
    let (slots, rows) = result?;
    println!(
        "\nMilliseconds that a change of a service with {BACKENDS} backends and {slots} slots takes: \
         median of {rounds}, least and greatest. The swap is the kernel's grace period.\n"
    );
    println!("{:<34}{:>21}{:>21}{:>21}", "", "build", "write", "swap");
    for (name, changes) in rows {
        let column = |of: fn(&Change) -> f64| {
            let values: Vec<f64> = changes.iter().map(of).collect();
            Spread::of(&values).map_or_else(String::new, |spread| {
                let Spread {
                    median,
                    least,
                    greatest,
                } = spread;
                format!("{median:.1}  {least:.1}–{greatest:.1}")
            })
        };
        let [build, write, swap] = [column(|c| c.build), column(|c| c.write), column(|c| c.swap)];
        println!("{name:<34}{build:>21}{write:>21}{swap:>21}");
    }
    Ok(())
}

type Rows = Vec<(&'static str, Vec<Change>)>;

fn measure(datapath: &mut Datapath, rounds: usize) -> Result<(usize, Rows)> {
    let model = model()?;
    let mut rows: Rows = [
        "a new service",
        "one backend out",
        "one backend back",
        "another weight",
    ]
    .map(|name| (name, Vec::new()))
    .into();
    let mut slots = 0;
    for _ in 0..rounds {
        let mut applied = Contents::default();
        let mut builder = Builder::new(applied.clone());
        let mut duties = duties(&model);
        let first = duties.keys().next().context("no backend")?.clone();
        for (step, (_, changes)) in rows.iter_mut().enumerate() {
            if let Some(duty) = duties.get_mut(&first) {
                (duty.state, duty.share, duty.weight) = match step {
                    1 => (BackendState::Out, 0, 100),
                    3 => (BackendState::Active, 100, 50),
                    _ => (BackendState::Active, 100, 100),
                };
            }
            let start = Instant::now();
            // Each long after the one before, so that no transition is left.
            let now = Duration::from_secs(100_000 * (step as u64 + 1));
            let wanted = builder.build(&model, &duties, &paths(), now)?.clone();
            let ops = plan::plan(&applied, &wanted);
            let build = milliseconds(start);
            let (mut write, mut swap) = (0.0, 0.0);
            for op in &ops {
                let start = Instant::now();
                datapath.apply(op)?;
                op.note(&mut applied);
                *match op {
                    Op::Table(..) => &mut swap,
                    _ => &mut write,
                } += milliseconds(start);
            }
            slots = applied.services.values().map(|s| s.slots.len()).sum();
            changes.push(Change { build, write, swap });
        }
        for op in plan::plan(&applied, &Contents::default()) {
            datapath.apply(&op)?;
        }
    }
    Ok((slots, rows))
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 1, high, low)
}

fn model() -> Result<Model> {
    let mut text = String::from(
        "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"many\"\n\
         address = \"203.0.113.10:80\"\n[service.health]\nprobe = \"none\"\n",
    );
    for number in 1..=BACKENDS {
        text.push_str(&format!(
            "[[service.backend]]\naddress = \"{}:80\"\n",
            address(number)
        ));
    }
    Ok(config::parse(&text, "many.toml")?)
}

fn duties(model: &Model) -> BTreeMap<BackendKey, Duty> {
    let services = model.services.iter();
    let backends = services.flat_map(|service| {
        let backends = service.backends.iter();
        backends.map(|backend| service.key(backend))
    });
    let active = Duty {
        state: BackendState::Active,
        weight: 100,
        share: 100,
    };
    backends.map(|key| (key, active)).collect()
}

fn paths() -> BTreeMap<IpAddr, Path> {
    let path = Path {
        hop: Hop {
            ifindex: 1,
            ..Hop::default()
        },
        source: Ipv4Addr::new(10, 0, 0, 1).into(),
        mtu: 1500,
        tunnel: Tunnel::default(),
    };
    (1..=BACKENDS)
        .map(|number| (address(number).into(), path))
        .collect()
}
