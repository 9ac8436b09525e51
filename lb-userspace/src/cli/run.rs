//! `lb run`.

use anyhow::Context;

use super::{Failure, log};
use crate::agent::{self, RunError, RunOptions};

/// Runs the agent until it is told to end.
pub fn run(options: RunOptions) -> Result<u8, Failure> {
    let _log = log::to_stderr("info")?;
    // `lb status` names it, to people who are in another directory.
    let config = std::path::absolute(&options.config)
        .with_context(|| format!("finding where {} is", options.config.display()))?;
    match agent::run(&RunOptions { config, ..options }) {
        Ok(()) => Ok(0),
        Err(RunError::Config(error)) => Err(error.into()),
        Err(error) => Err(Failure::Other(error.into())),
    }
}
