//! The agent: one loop that owns all state. Probes, neighbours, the datapath's thread and the
//! control socket send it what happens; it decides, and says what the maps should hold.

use std::path::PathBuf;

use thiserror::Error;
use tracing_subscriber::EnvFilter;

mod calls;
mod clock;
mod core;
mod probes;
mod run;
mod saved;
mod status;

use crate::api::socket::SocketError;
use crate::config::ConfigError;
use crate::datapath::DatapathError;
use crate::neighbor::NeighborError;

/// What `lb run` is told.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// Whether another XDP program on an interface may be replaced.
    pub replace: bool,
}

/// Why the agent did not start, or ended.
#[derive(Debug, Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Saved(#[from] saved::SavedError),
    #[error(transparent)]
    Journal(#[from] crate::api::journal::JournalError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Neighbor(#[from] NeighborError),
    #[error(transparent)]
    Full(#[from] crate::plan::Full),
    #[error(transparent)]
    Http(#[from] crate::api::http::HttpError),
    #[error("{key} cannot change while the agent runs; restart it (no packet is lost by that)")]
    NeedsRestart { key: &'static str },
    #[error("{what}: {source}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },
}

impl RunError {
    /// Exit code of `lb run`: 2 for a wrong configuration, 1 for anything else.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Socket(_)
            | Self::Saved(_)
            | Self::Journal(_)
            | Self::Datapath(_)
            | Self::Neighbor(_)
            | Self::Full(_)
            | Self::Http(_)
            | Self::NeedsRestart { .. }
            | Self::System { .. } => 1,
        }
    }
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// When it cannot start, or cannot go on. The data plane then stays as it is.
pub fn run(options: &RunOptions) -> Result<(), RunError> {
    let filter = EnvFilter::try_from_env("LB_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Fails only if a logger is set already, which then serves as well.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| RunError::System {
            what: "starting the runtime",
            source,
        })?;
    runtime.block_on(run::run(options))
}
