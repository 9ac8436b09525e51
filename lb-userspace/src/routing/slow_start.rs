//! Easing a backend back in.
//!
//! A backend that comes back takes a growing share of its slots over `slow_start`: the time that has
//! passed in parts of that, to the power of 1 / `slow_start_aggression`, at least
//! `slow_start_min_percent` (Envoy's rule). By default that is linear from 10 %. It grows in twenty
//! steps, since every step writes a table. There is no easing in when the agent starts, out of panic
//! or of standing by, nor while every backend with traffic is being eased in: shares are relative, and
//! somebody has to carry the load.
//!
//! The share is not a weight: a weight would have the base table built anew, and move slots of
//! others. `crate::table::Base::overlay_shares` hands out the backend's own slots step by step.

use std::collections::BTreeMap;
use std::time::Duration;

use super::decide::Earliest;
use super::{Decision, Routing, ServiceRouting};
use crate::model::{BackendKey, Service, SlowStart};

/// Steps from nothing to all.
const STEPS: u32 = 20;
/// What a percentage may lack by being computed in binary.
const ROUNDING: f64 = 1e-9;

/// Gives the shares of those that come back, if others are there to carry the load.
pub(super) fn ease_in(
    backends: &mut BTreeMap<BackendKey, Decision>,
    before: Option<&ServiceRouting>,
    service: &Service,
    now: Duration,
    next: &mut Earliest,
) {
    let rules = &service.slow_start;
    for (key, decision) in backends.iter_mut() {
        if decision.routing == Routing::Active {
            let before = before.and_then(|before| before.backends.get(key));
            decision.eased_since = began(before, rules.window, now);
        }
    }
    let others = service.backends.iter().any(|backend| {
        let decision = backends.get(&service.key(backend));
        let full = decision.is_some_and(|d| d.routing.takes_new_flows() && d.eased_since.is_none());
        full && backend.weight > 0
    });
    for decision in backends.values_mut() {
        if let Some(began) = decision.eased_since {
            let (share, until) = share(began, rules, now);
            next.consider(until);
            if others {
                decision.share = share;
            }
        }
    }
}

/// When the easing in began that a backend which is active now is in, if any.
fn began(before: Option<&Decision>, window: Duration, now: Duration) -> Option<Duration> {
    let before = before?;
    let began = match before.routing {
        Routing::Active => before.eased_since?,
        Routing::Out | Routing::Draining { .. } => now,
        Routing::Standby | Routing::Panic => return None,
    };
    (now < began + window).then_some(began)
}

/// Share in percent, and when it changes next.
fn share(began: Duration, rules: &SlowStart, now: Duration) -> (u8, Duration) {
    let (window, steps) = (rules.window.as_nanos().max(1), u128::from(STEPS));
    let step = now.saturating_sub(began).as_nanos() * steps / window;
    let step = u32::try_from(step).unwrap_or(STEPS).min(STEPS - 1);
    let next = (window * u128::from(step + 1)).div_ceil(steps);
    let after = Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX));
    (percent(step, rules), began + after)
}

/// The share after so many steps.
fn percent(step: u32, rules: &SlowStart) -> u8 {
    let time = f64::from(step) / f64::from(STEPS);
    let percent = 100.0 * time.powf(1.0 / rules.aggression) + ROUNDING;
    // A cast saturates.
    (percent as u8).max(rules.least).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_envoys_curve() {
        let shares = |aggression, least| {
            let rules = SlowStart {
                window: Duration::from_secs(100),
                aggression,
                least,
            };
            [0, 1, 5, 10, 15, 19].map(|step| percent(step, &rules))
        };
        assert_eq!(shares(1.0, 10), [10, 10, 25, 50, 75, 95]);
        // factor = max(min, (t / window) ^ (1 / aggression))
        assert_eq!(shares(2.0, 10), [10, 22, 50, 70, 86, 97]);
        assert_eq!(shares(0.5, 5), [5, 5, 6, 25, 56, 90]);
        assert_eq!(shares(1.0, 60), [60, 60, 60, 60, 75, 95]);
        assert_eq!(shares(10.0, 100), [100; 6]);
    }

    #[test]
    fn shares_never_fall_and_there_are_twenty_at_the_most() {
        for hundredths in [10, 37, 100, 250, 1000] {
            let rules = SlowStart {
                window: Duration::from_secs(7),
                aggression: f64::from(hundredths) / 100.0,
                least: 10,
            };
            let (mut now, mut last, mut steps) = (Duration::ZERO, 0, 0);
            while now < rules.window {
                let (percent, next) = share(Duration::ZERO, &rules, now);
                assert!((rules.least..=100).contains(&percent) && percent >= last);
                assert!(next > now && next <= rules.window);
                (now, last, steps) = (next, percent, steps + 1);
            }
            assert_eq!(steps, STEPS);
        }
    }
}
