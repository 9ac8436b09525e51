//! Which connections may break, and when: those of a backend that was killed, or that has drained
//! for longer than its deadline.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A time in which a backend breaks its connections.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: Instant,
    /// None while it lasts.
    until: Option<Instant>,
    /// Whether new connections may fail as well, because the balancer cannot know yet.
    opens: bool,
}

/// What was done to the backends, shared by those who do it and those who judge by it.
#[derive(Clone, Debug, Default)]
pub struct Excuses(Arc<Mutex<BTreeMap<String, Vec<Window>>>>);

impl Excuses {
    /// The backend is about to be killed: its connections break, and new ones fail until
    /// [`Excuses::gone`].
    pub fn dies(&self, backend: &str) {
        self.add(backend, Instant::now(), true);
    }

    /// The balancer knows that the backend is dead, so no new connection goes there.
    pub fn gone(&self, backend: &str) {
        self.end(backend);
    }

    /// The backend drains; from `deadline` on its connections may be reset.
    pub fn leaves(&self, backend: &str, deadline: Instant) {
        self.add(backend, deadline, false);
    }

    /// The backend is about to return: connections from now on must hold.
    pub fn returns(&self, backend: &str) {
        self.end(backend);
    }

    /// Whether a connection of `backend` that was opened at `opened` may have broken by now.
    pub fn broke(&self, backend: &str, opened: Instant, now: Instant) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut windows = all.get(backend).into_iter().flatten();
        windows.any(|window| window.from <= now && window.until.is_none_or(|until| opened <= until))
    }

    /// Whether a connection that was tried from `started` until now may have failed: it may have
    /// fallen to a backend whose death the balancer did not know yet.
    pub fn failed(&self, started: Instant, now: Instant) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().flatten().any(|window| {
            window.opens && window.from <= now && window.until.is_none_or(|until| started <= until)
        })
    }

    fn add(&self, backend: &str, from: Instant, opens: bool) {
        let window = Window {
            from,
            until: None,
            opens,
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(backend.to_owned()).or_default().push(window);
    }

    fn end(&self, backend: &str) {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(windows) = all.get_mut(backend) else {
            return;
        };
        // A deadline that has not come never will.
        windows.retain(|window| window.until.is_some() || window.from <= now);
        for window in windows {
            window.until.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_death_excuses_older_connections_of_that_backend_only() {
        let excuses = Excuses::default();
        let before = Instant::now();
        assert!(!excuses.broke("b1", before, Instant::now()));
        excuses.dies("b1");
        assert!(excuses.failed(before, Instant::now()));
        assert!(excuses.broke("b1", before, Instant::now()));
        assert!(!excuses.broke("b2", before, Instant::now()));
        excuses.gone("b1");
        let after = Instant::now() + Duration::from_millis(1);
        assert!(excuses.broke("b1", before, after), "noticed late");
        assert!(!excuses.broke("b1", after, after), "opened afterwards");
        assert!(!excuses.failed(after, after));
    }

    #[test]
    fn a_drain_excuses_nothing_before_its_deadline() {
        let excuses = Excuses::default();
        let opened = Instant::now();
        excuses.leaves("b1", opened + Duration::from_secs(60));
        assert!(!excuses.broke("b1", opened, opened + Duration::from_secs(59)));
        assert!(excuses.broke("b1", opened, opened + Duration::from_secs(60)));
        assert!(!excuses.failed(opened, opened + Duration::from_secs(61)));
        excuses.returns("b1");
        assert!(!excuses.broke("b1", opened, opened + Duration::from_secs(61)));
    }
}
