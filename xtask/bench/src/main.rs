//! The measurements of `cargo xtask bench`: the time per packet of the real XDP program, requests
//! per second through it beside other balancers, what probes cost, and what faulty backends cost clients. Needs root.

mod comparison;
mod network;
mod packets;
mod page;
mod probes;
mod stats;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

#[derive(Parser)]
#[command(name = "lb-bench")]
struct Arguments {
    /// What to measure; may be repeated
    #[arg(required = true)]
    what: Vec<What>,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Of the rows of `packets` and `probes` and the faults and systems of `comparison`, only those
    /// whose names contain this; nothing is written then
    #[arg(long, value_name = "NAME", conflicts_with = "write")]
    only: Option<String>,
    /// Also put the results into the pages in this folder
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The time per packet
    Packets,
    /// Requests per second
    Network,
    /// Processor time of probes, and how many of them one core does
    Probes,
    /// Time to eject and requests failed, beside HAProxy and nginx
    Comparison,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let page = |name: &str| arguments.write.as_ref().map(|folder| folder.join(name));
    for what in &arguments.what {
        match what {
            What::Packets => packets::run(arguments.quick, arguments.only.as_deref())?,
            What::Network => network::run(arguments.quick)?,
            What::Probes => {
                let page = page("performance.md");
                probes::run(arguments.quick, arguments.only.as_deref(), page.as_deref())?;
            }
            What::Comparison => {
                let page = page("comparison.md");
                comparison::run(arguments.quick, arguments.only.as_deref(), page.as_deref())?;
            }
        }
    }
    Ok(())
}
