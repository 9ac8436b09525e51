//! The measurements of `cargo xtask bench`: the time per packet of the real XDP program, and
//! requests per second through it beside other balancers. Needs root.

mod network;
mod packets;
mod stats;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "lb-bench")]
struct Arguments {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Only the time per packet
    #[arg(long)]
    packets: bool,
    /// Only requests per second
    #[arg(long)]
    network: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.network {
        packets::run(arguments.quick)?;
    }
    if !arguments.packets {
        network::run(arguments.quick)?;
    }
    Ok(())
}
