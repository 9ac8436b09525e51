//! `lb run`.

use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::agent::{self, RunError, RunOptions};

/// Runs the agent until it is told to end.
pub fn run(options: &RunOptions) -> Result<u8, Failure> {
    log_to_stderr("info")?;
    match agent::run(options) {
        Ok(()) => Ok(0),
        Err(RunError::Config(error)) => Err(error.into()),
        Err(error) => Err(Failure::Other(error.into())),
    }
}

/// Logs what LB_LOG asks for, or `default`.
pub fn log_to_stderr(default: &str) -> Result<(), Failure> {
    let filter = match std::env::var("LB_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|error| Failure::Usage(format!("LB_LOG={text:?}: {error}")))?,
        Err(std::env::VarError::NotPresent) => EnvFilter::new(default),
        Err(error) => return Err(Failure::Usage(format!("LB_LOG: {error}"))),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    Ok(())
}
