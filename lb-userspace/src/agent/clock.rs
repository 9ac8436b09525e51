//! The agent's two clocks: a monotonic one to decide by, and the wall clock to show.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Both clocks, as they stood when the agent started.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    wall: Timestamp,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
            wall: Timestamp::now(),
        }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The time of an instant, since the start.
    pub fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.origin)
    }

    /// The instant of a time since the start.
    pub fn instant(&self, at: Duration) -> tokio::time::Instant {
        // Far beyond any process's life, and inside what an instant can hold.
        const FAR: Duration = Duration::from_secs(10 * 365 * 86_400);
        tokio::time::Instant::from_std(self.origin + at.min(FAR))
    }

    /// The wall clock's reading at a time since the start, to the millisecond.
    pub fn wall(&self, at: Duration) -> Timestamp {
        let millis = self
            .wall
            .as_millisecond()
            .saturating_add_unsigned(at.as_millis() as u64);
        Timestamp::from_millisecond(millis).unwrap_or(self.wall)
    }

    /// When the wall clock will read `at`, as a time since the start; now, if it did already.
    pub fn monotonic(&self, at: Timestamp) -> Duration {
        let ahead = at.duration_since(Timestamp::now());
        let ahead = if ahead.is_negative() {
            SignedDuration::ZERO
        } else {
            ahead
        };
        self.now() + ahead.unsigned_abs()
    }
}
