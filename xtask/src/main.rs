//! `cargo xtask`: set-up, build, demo, test, soak and bench of lb.
//!
//! Depends on nothing that needs the BPF toolchain, so that it compiles before that is installed.

mod bench;
mod build;
mod command;
mod demo;
mod kernel;
mod setup;
mod soak;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lb_tests::applications::Mode;

use bench::Subject;
use setup::Purpose;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set-up, build, demo, test, soak and bench of lb"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Name what is missing on this machine, and install it
    Setup {
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Also what `bench` needs (haproxy, nginx, wrk, nftables)
        #[arg(long)]
        bench: bool,
        /// Also what the checks of `.ci/run` and all tests need (cargo-deny; nginx, HAProxy,
        /// iperf3; packages from PyPI and npm; QEMU)
        #[arg(long)]
        ci: bool,
    },
    /// Build `lb`, with the XDP program in it
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Build lb and show it at work: real requests through namespaces, and backends that fail
    Demo {
        /// Leave it running, and print how to look inside
        #[arg(long)]
        keep: bool,
    },
    /// Run every test, those that need root included, and sum up
    Test {
        /// Only tests whose name contains this
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
    },
    /// Test under the oldest Linux that is supported, in a virtual machine
    Kernel {
        /// Another version that Debian has a package of
        #[arg(long, value_name = "VERSION", default_value = kernel::OLDEST)]
        linux: String,
        /// Only tests whose name contains this
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
    },
    /// Real applications through kills, drains, reloads and crashes for some minutes
    Soak {
        /// How long to go on, in whole rounds
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Only this way to forward
        #[arg(long, value_parser = Mode::ALL.map(Mode::word))]
        mode: Option<String>,
    },
    /// Measure the time per packet, and requests per second and what probes cost beside others
    Bench {
        /// What to measure
        #[arg(value_enum, default_values_t = Subject::DEFAULT)]
        what: Vec<Subject>,
        /// Fewer and shorter rounds
        #[arg(long)]
        quick: bool,
        /// The same as `packets`
        #[arg(long, conflicts_with = "network")]
        packets: bool,
        /// The same as `network`
        #[arg(long)]
        network: bool,
        /// Also put the results into the pages below docs/ that have a place for them
        #[arg(long, conflicts_with = "only")]
        write: bool,
        /// Only the rows of `packets` and `probes`, and the faults and systems of `comparison`,
        /// whose names contain this
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().task {
        Task::Setup { yes, bench, ci } => {
            let mut purposes = vec![Purpose::Build, Purpose::Lab, Purpose::Test];
            purposes.extend(bench.then_some(Purpose::Bench));
            if ci {
                purposes.extend([Purpose::Applications, Purpose::Ci, Purpose::Kernel]);
            }
            setup::run(&purposes, yes)?;
            println!("Everything needed is installed.");
            Ok(ExitCode::SUCCESS)
        }
        Task::Build { release } => build::run(release).map(|()| ExitCode::SUCCESS),
        Task::Demo { keep } => {
            setup::run(&[Purpose::Build, Purpose::Lab], true)?;
            build::run(false)?;
            demo::run(keep).map(|()| ExitCode::SUCCESS)
        }
        Task::Test { filter } => test::run(filter.as_deref()),
        Task::Kernel { linux, filter } => kernel::run(&linux, filter.as_deref()),
        Task::Soak { minutes, mode } => {
            setup::run(
                &[Purpose::Build, Purpose::Lab, Purpose::Applications],
                false,
            )?;
            build::run(false)?;
            let chosen = |each: &Mode| mode.as_deref() == Some(each.word());
            let modes: Vec<Mode> = match mode {
                Some(_) => Mode::ALL.into_iter().filter(chosen).collect(),
                None => Mode::TOGETHER.to_vec(),
            };
            soak::run(minutes, &modes).map(|()| ExitCode::SUCCESS)
        }
        Task::Bench {
            what,
            quick,
            packets,
            network,
            write,
            only,
        } => {
            let what = match (packets, network) {
                (true, _) => vec![Subject::Packets],
                (_, true) => vec![Subject::Network],
                (false, false) => what,
            };
            bench::run(&what, quick, write, only.as_deref()).map(|()| ExitCode::SUCCESS)
        }
    }
}
