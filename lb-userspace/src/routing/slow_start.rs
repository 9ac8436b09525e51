//! Easing a backend back in.
//!
//! A backend that comes back takes a growing share of its slots over `slow_start`: linear, at least
//! 10 %, in twenty steps of 5 %, since every step writes a table. There is no easing in when the
//! agent starts, out of panic or of standing by, nor while every backend with traffic is being eased
//! in: shares are relative, and somebody has to carry the load.
//!
//! The share is not a weight: a weight would have the base table built anew, and move slots of
//! others. `crate::table::Base::overlay_shares` hands out the backend's own slots step by step.

use std::time::Duration;

use super::{Decision, Routing};

/// Steps from nothing to all.
const STEPS: u128 = 20;
/// Percent it begins with.
const LEAST: u8 = 10;

/// When the easing in began that a backend which is active now is in, if any.
pub(super) fn began(
    before: Option<&Decision>,
    window: Duration,
    now: Duration,
) -> Option<Duration> {
    let before = before?;
    let began = match before.routing {
        Routing::Active => before.eased_since?,
        Routing::Out | Routing::Draining { .. } => now,
        Routing::Standby | Routing::Panic => return None,
    };
    (now < began + window).then_some(began)
}

/// Share in percent, and when it changes next.
pub(super) fn share(began: Duration, window: Duration, now: Duration) -> (u8, Duration) {
    let window = window.as_nanos().max(1);
    let step = (now.saturating_sub(began).as_nanos() * STEPS / window).min(STEPS - 1);
    let next = (window * (step + 1)).div_ceil(STEPS);
    let percent = (step * 100 / STEPS) as u8;
    let after = Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX));
    (percent.max(LEAST), began + after)
}
