//! The places where the command line meets parts that are merged separately. Each function is
//! replaced by one call when its part is there, and this file goes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Failure;
use crate::api::BackendName;
use crate::model::Model;

/// `agent::run`.
pub fn agent(_config: PathBuf, _replace: bool) -> Result<u8, Failure> {
    Err(missing("the agent"))
}

/// `cli::check::run`.
pub fn check(_file: &Path, _strict: bool, _json: bool) -> Result<u8, Failure> {
    Err(missing("the configuration"))
}

/// The configuration, then `Prober::run` and `cli::probe`.
pub fn probe(_config: &Path, _backend: &BackendName, _json: bool) -> Result<u8, Failure> {
    Err(missing("the configuration"))
}

/// The configuration.
pub fn load(_config: &Path) -> Result<Model, Failure> {
    Err(missing("the configuration"))
}

/// `config::duration::parse`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write it as 500ms, 5s or 1m30s".to_owned();
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let number: u32 = number.parse().map_err(|_| wrong())?;
        total += Duration::from_millis(u64::from(number) * milliseconds);
        rest = tail;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Ok(total)
}

fn missing(part: &str) -> Failure {
    Failure::Other(anyhow::anyhow!("this build is without {part}"))
}
