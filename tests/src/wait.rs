//! Waiting for a condition, with a generous deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

/// How often a condition is looked at.
const PERIOD: Duration = Duration::from_millis(20);

/// Waits until `condition` is true.
///
/// # Errors
/// When `limit` has passed (naming `what` was awaited), when `condition` fails, or on Ctrl-C.
pub fn wait_for(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        if condition()? {
            return Ok(());
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} in vain for: {what}");
        }
        pause(PERIOD)?;
    }
}

/// Sleeps, but wakes up and fails on Ctrl-C.
pub fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        if interrupt::requested() {
            bail!("interrupted");
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(PERIOD));
    }
}
