//! The command line. A thin shell: what it shows comes from the agent over the control socket, or,
//! for the commands that need no agent, from the modules that do the work.

use std::io;
use std::process::ExitCode;

use clap::Parser;

mod args;
mod capture;
pub mod check;
mod columns;
mod control;
mod decap;
pub mod doctor;
mod events;
mod explain;
mod log;
mod output;
pub mod probe;
mod run;
mod simulate;
mod status;
mod top;

use crate::agent::RunOptions;
use crate::api::ApiError;
use crate::api::client::ClientError;
use crate::config::ConfigError;
use crate::simulate::TraceError;
use args::{Args, Command};

/// What ends a command other than well. Its exit code is part of the contract.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Wrong usage.
    #[error("{0}")]
    Usage(String),
    #[error("{}", output::chain(.0))]
    Other(#[from] anyhow::Error),
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// 2 wrong usage or configuration, 3 no agent, 1 anything else; 0 if the reader of our output
    /// (`| head`) has read enough.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Client(ClientError::NoAgent(_) | ClientError::Permission(_)) => 3,
            Self::Client(
                ClientError::Io { .. }
                | ClientError::Closed(_)
                | ClientError::Silent(_)
                | ClientError::Version { .. },
            ) => 1,
            Self::Api(error) => error.kind.exit_code(),
            Self::Config(_) | Self::Trace(_) | Self::Usage(_) => 2,
            Self::Other(_) => 1,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Output(_) => 1,
        }
    }
}

/// Entry point of the `lb` binary.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version come this way too, with code 0. A closed output changes nothing.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let code = failure.exit_code();
            if code != 0 {
                output::complain(&failure.to_string());
            }
            ExitCode::from(code)
        }
    }
}

fn dispatch(args: Args) -> Result<u8, Failure> {
    let socket = &args.socket;
    match args.command {
        Command::Run {
            config,
            replace,
            migrate,
        } => run::run(RunOptions {
            config,
            replace,
            migrate,
        }),
        Command::Check { file, strict, json } => Ok(check::run(&file, strict, json)),
        Command::Status { service, json } => control::status(socket, service, json),
        Command::Top {
            service,
            once,
            sort,
        } => top::run(socket, service, once, sort),
        Command::Drain { backend, deadline } => control::drain(socket, backend, deadline),
        Command::Enable { backend } => control::enable(socket, backend),
        Command::Disable { backend } => control::disable(socket, backend),
        Command::Promote { backend } => control::promote(socket, backend),
        Command::Probes(probes) => control::probes(socket, probes),
        Command::Weight { backend, weight } => control::weight(socket, backend, weight),
        Command::Events {
            follow,
            since,
            limit,
            json,
        } => control::events(socket, follow, since, limit, json),
        Command::Probe {
            backend,
            probe,
            config,
            strict,
            json,
        } => {
            let wish = probe::Wish {
                name: &backend,
                only: probe.as_deref(),
                json,
                strict,
            };
            match config {
                Some(config) => probe::run(&config, wish),
                None => control::probe(socket, wish),
            }
        }
        Command::Simulate { config, trace } => simulate::run(&config, &trace),
        Command::Explain {
            src,
            dst,
            protocol,
            connection_id,
            json,
        } => control::explain(socket, src, dst, protocol, connection_id, json),
        Command::Capture {
            service,
            all: _,
            write,
            count,
            snaplen,
            json,
        } => capture::run(
            socket,
            &capture::Options {
                service,
                write,
                count,
                snaplen,
                json,
            },
        ),
        Command::Reload => control::reload(socket),
        Command::Detach => control::detach(socket),
        Command::Decap {
            interface,
            xdp_mode,
            gue_port,
            json,
        } => decap::run(&interface, xdp_mode, gue_port, json),
        Command::Doctor { config, json } => doctor::run(config.as_deref(), json),
    }
}
