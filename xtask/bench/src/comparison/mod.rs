//! Balancers beside each other when backends fail: how soon each ejects, and what it costs the
//! clients.

mod faults;
mod load;
mod systems;

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lb_tests::wait::pause;
use lb_tests::{Lab, Server, interrupt, skip};

use crate::page;
use crate::stats::Spread;
use faults::Fault;
use load::{Load, Tally};
use systems::{PORT, System, VIP};

/// Load before the fault, and for the checks to be in their rhythm.
const BEFORE: Duration = Duration::from_secs(2);

/// One fault of one system.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// From the fault to the balancer's own word that `b1` gets nothing any more, seconds.
    ejected: Option<f64>,
    tally: Tally,
}

/// Compares, and prints Markdown tables; writes them into the page `write`, too, if one is given.
/// With `only`, just the faults and systems whose names contain it.
pub fn run(quick: bool, only: Option<&str>, write: Option<&Path>) -> Result<()> {
    if let Some(reason) = skip::reason() {
        bail!("nothing can be compared: {reason}");
    }
    interrupt::watch()?;
    let rounds = if quick { 1 } else { 3 };
    let lab = Lab::new(3)?;
    let mut servers = lab.serve()?;
    let mut runs = Fault::ALL.map(|_| System::ALL.map(|_| Vec::new()));
    for _ in 0..rounds {
        for (fault, runs) in Fault::ALL.iter().zip(&mut runs) {
            for (system, runs) in System::ALL.iter().zip(runs) {
                let named = |part| fault.title().contains(part) || system.label().contains(part);
                if !only.is_none_or(named) {
                    continue;
                }
                let run = once(&lab, &mut servers, *system, *fault)
                    .with_context(|| format!("{}: {}", system.label(), fault.title()))?;
                eprintln!("{}: {}: {run:?}", fault.title(), system.label());
                runs.push(run);
            }
        }
    }
    let mut text = format!(
        "Medians of {rounds} {}; in brackets the least and the greatest.\n",
        if rounds == 1 { "run" } else { "runs" }
    );
    for (fault, runs) in Fault::ALL.iter().zip(&runs) {
        table(&mut text, *fault, runs);
    }
    println!("\n{text}");
    match write {
        Some(path) => page::replace(path, "the comparison", &format!("\n{text}\n")),
        None => Ok(()),
    }
}

fn once(lab: &Lab, servers: &mut [Server], system: System, fault: Fault) -> Result<Run> {
    let running = system.start(lab)?;
    let load = Load::start(&lab.client, SocketAddr::new(VIP, PORT))?;
    pause(BEFORE)?;
    let (start, mut ejected) = (Instant::now(), None);
    let mut look = || {
        if ejected.is_none() && running.ejected()? {
            ejected = Some(start.elapsed().as_secs_f64());
        }
        Ok(())
    };
    let result = fault.happen(lab, servers, &mut look);
    let tally = load.stop();
    running.end()?;
    fault.mend(lab, servers)?;
    result?;
    Ok(Run { ejected, tally })
}

fn table(text: &mut String, fault: Fault, runs: &[Vec<Run>]) {
    if runs.iter().all(Vec::is_empty) {
        return;
    }
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n### {}\n\n| | ejected after | requests failed | slow | of |\n| --- | --- | --- | --- | --- |\n",
        fault.title()
    );
    let measured = System::ALL.iter().zip(runs);
    for (system, runs) in measured.filter(|(_, runs)| !runs.is_empty()) {
        let ejected: Vec<f64> = runs.iter().filter_map(|run| run.ejected).collect();
        let word = match (ejected.len(), runs.len()) {
            (0, _) => "never".to_owned(),
            (some, all) if some < all => format!("{}, {some} of {all} times", seconds(&ejected)),
            _ => seconds(&ejected),
        };
        let count = |of: fn(&Tally) -> u32| {
            let values: Vec<f64> = runs.iter().map(|run| f64::from(of(&run.tally))).collect();
            spread(&values, 0, "")
        };
        let _ = writeln!(
            text,
            "| {} | {word} | {} | {} | {} |",
            system.label(),
            count(|tally| tally.failed),
            count(|tally| tally.slow),
            count(|tally| tally.requests)
        );
    }
}

fn seconds(values: &[f64]) -> String {
    spread(values, 1, " s")
}

/// `2.4 s (2.1–2.9)`, or without the brackets where there is one value.
fn spread(values: &[f64], digits: usize, unit: &str) -> String {
    let Some(spread) = Spread::of(values) else {
        return "-".to_owned();
    };
    let median = format!("{:.digits$}{unit}", spread.median);
    if values.len() == 1 {
        return median;
    }
    format!(
        "{median} ({:.digits$}–{:.digits$})",
        spread.least, spread.greatest
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_stands_beside_the_median() {
        assert_eq!(spread(&[2.0], 1, " s"), "2.0 s");
        assert_eq!(spread(&[4.0, 0.0, 1.0], 0, ""), "1 (0–4)");
        assert_eq!(spread(&[], 0, ""), "-");
    }
}
