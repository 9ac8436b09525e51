//! The agent: one loop that owns all state. Probes, neighbours, the datapath's thread and the
//! control socket send it what happens; it decides, and says what the maps should hold.

use std::path::PathBuf;

use thiserror::Error;
use tokio::runtime::Builder;

mod announce;
mod attach;
mod calls;
mod capture;
mod clock;
mod configure;
mod core;
mod deciding;
mod detail;
mod events;
mod explain;
mod failures;
mod fence;
mod gap;
mod names;
mod outcomes;
mod passive;
mod primaries;
mod probes;
mod rate;
mod restore;
mod run;
mod saved;
mod saver;
mod status;
mod words;

use crate::api::socket::SocketError;
use crate::config::ConfigError;
use crate::datapath::{DatapathError, sys};
use crate::privileges;

/// What `lb run` is told.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// Whether another XDP program on an interface may be replaced.
    pub replace: bool,
    /// Whether to change over where maps of another layout are pinned.
    pub migrate: bool,
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
    Http(#[from] crate::api::http::HttpError),
    #[error(transparent)]
    Token(#[from] crate::api::token::TokenError),
    #[error("looking for routes of announced VIPs: {0}")]
    Routes(#[from] crate::neighbor::NeighborError),
    #[error("{key} cannot change while the agent runs; restart it (no packet is lost by that)")]
    NeedsRestart { key: &'static str },
    #[error(
        "{key} cannot change while the data plane stands; run `lb detach` and start the agent \
         again, at the price of the established flows"
    )]
    NeedsDetach { key: &'static str },
    #[error("{what}: {source}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// When it cannot start, or cannot go on. The data plane then stays as it is.
pub fn run(options: &RunOptions) -> Result<(), RunError> {
    sys::save_memory();
    privileges::no_new_privileges().map_err(|source| RunError::System {
        what: "setting no_new_privs",
        source,
    })?;
    let build = |mut builder: Builder| {
        let runtime = builder
            .on_thread_start(privileges::give_up_in_thread)
            .enable_all()
            .build();
        runtime.map_err(|source| RunError::System {
            what: "starting the runtime",
            source,
        })
    };
    // The probes share the loop's thread: waking another one for each start and each end costs as
    // much as the probe itself.
    let probing = build(Builder::new_current_thread())?;
    let mut beside = Builder::new_multi_thread();
    beside.worker_threads(1).thread_name("api");
    let beside = build(beside)?;
    let (options, handle) = (options.clone(), beside.handle().clone());
    // As a task: what a runtime is blocked on is woken by a system call, even by its own thread.
    let agent = probing.spawn(async move { run::run(&options, &handle).await });
    probing
        .block_on(agent)
        .unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(RunError::System {
                what: "running the agent",
                source: error.into(),
            }),
        })
}
