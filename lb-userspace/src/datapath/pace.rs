//! When tables are swapped: not at every change, and yet without a wait for who must be out.

use std::time::{Duration, Instant};

use lb_common::abi::BackendState;

use crate::plan::Contents;

/// Least time between two swaps; what comes meanwhile is swapped in together.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// When the last tables were swapped.
///
/// A swap waits until [`INTERVAL`] has passed since the last one. One that takes the slots of an ejected
/// backend waits only for the last one of its kind: a step of a slow start, or another's return, just
/// before does not hold up the first ejection, while the ejections of a rack that dies go out together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    any: Option<Instant>,
    ejecting: Option<Instant>,
}

impl Pace {
    /// When a swap may be made; `None`: at once, whatever the time.
    pub fn next(&self, ejects: bool) -> Option<Instant> {
        let last = if ejects { self.ejecting } else { self.any };
        last.map(|last| last + INTERVAL)
    }

    /// A swap was made.
    pub const fn swapped(&mut self, ejects: bool, now: Instant) {
        self.any = Some(now);
        if ejects {
            self.ejecting = Some(now);
        }
    }
}

/// Whether a backend that takes new flows by `now` takes none by `wanted`.
pub fn ejects(now: &Contents, wanted: &Contents) -> bool {
    let active = |backend: &crate::plan::Backend| backend.state == BackendState::Active;
    let taking = now.backends.iter().filter(|(_, backend)| active(backend));
    taking
        .map(|(id, _)| wanted.backends.get(id))
        .any(|wanted| !wanted.is_some_and(active))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Backend;

    /// When each of some swaps is made that are wanted at these milliseconds, as
    /// (wanted at, ejects): what is still waiting goes with the next.
    fn made(wanted: &[(u64, bool)]) -> Vec<(u64, bool)> {
        let start = Instant::now();
        let (mut pace, mut made) = (Pace::default(), Vec::new());
        let mut waiting: Option<bool> = None;
        for at in 0..1000 {
            for (_, ejects) in wanted.iter().filter(|(wanted, _)| *wanted == at) {
                waiting = Some(waiting.unwrap_or_default() || *ejects);
            }
            let now = start + Duration::from_millis(at);
            let due = |ejects: &bool| pace.next(*ejects).is_none_or(|next| now >= next);
            if let Some(ejects) = waiting.filter(due) {
                pace.swapped(ejects, now);
                made.push((at, ejects));
                waiting = None;
            }
        }
        made
    }

    #[test]
    fn the_first_ejection_does_not_wait_for_other_swaps() {
        // Steps of a slow start, and in their midst an ejection.
        let wanted = [(0, false), (60, false), (100, false), (130, true)];
        assert_eq!(made(&wanted), [(0, false), (100, false), (130, true)]);
        // The next step waits for that one.
        let wanted = [(0, false), (10, true), (20, false)];
        assert_eq!(made(&wanted), [(0, false), (10, true), (110, false)]);
    }

    #[test]
    fn ejections_that_follow_go_out_together() {
        let wanted = [(0, true), (1, true), (40, true), (99, false), (250, true)];
        assert_eq!(made(&wanted), [(0, true), (100, true), (250, true)]);
        // What waits as a mere change is swapped in with the ejection.
        let wanted = [(0, false), (30, false), (50, true)];
        assert_eq!(made(&wanted), [(0, false), (50, true)]);
    }

    #[test]
    fn an_ejection_is_a_loss_of_new_flows() {
        use BackendState::{Active, Draining, Out};
        let contents = |states: &[BackendState]| Contents {
            backends: (1..)
                .zip(states)
                .map(|(id, state)| {
                    let backend = Backend {
                        service: 1,
                        address: "10.0.0.1:80".parse().unwrap(),
                        server_id: None,
                        watches_http: false,
                        state: *state,
                        path: None,
                    };
                    (id, backend)
                })
                .collect(),
            ..Contents::default()
        };
        let ejected = |now: &[_], wanted: &[_]| ejects(&contents(now), &contents(wanted));
        assert!(ejected(&[Active, Active], &[Active, Draining]));
        assert!(ejected(&[Active, Active], &[Out, Active]));
        assert!(ejected(&[Active, Active], &[Active]), "removed");
        assert!(
            !ejected(&[Active, Draining], &[Active, Out]),
            "has no slots"
        );
        assert!(!ejected(&[Active, Out], &[Active, Active]));
        assert!(!ejected(&[Active], &[Active, Active]));
    }
}
