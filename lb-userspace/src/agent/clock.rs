//! The agent's two clocks: a monotonic one to decide by, and the wall clock to show.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::datapath::sys;

/// Both clocks. The monotonic one counts from the host's boot, so that what follows from it, the
/// phase of a probe for one, is the same in the next agent.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    /// CLOCK_MONOTONIC at `origin`.
    offset: Duration,
    /// The wall clock at `origin`.
    wall: Timestamp,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
            offset: sys::monotonic(),
            wall: Timestamp::now(),
        }
    }

    /// Time since boot.
    pub fn now(&self) -> Duration {
        self.time(Instant::now())
    }

    /// The time of an instant, since boot.
    pub fn time(&self, at: Instant) -> Duration {
        self.offset + at.saturating_duration_since(self.origin)
    }

    /// The instant of a time since boot.
    pub fn instant(&self, at: Duration) -> tokio::time::Instant {
        // Far beyond any process's life, and inside what an instant can hold.
        const FAR: Duration = Duration::from_secs(10 * 365 * 86_400);
        let ahead = at.saturating_sub(self.offset).min(FAR);
        tokio::time::Instant::from_std(self.origin + ahead)
    }

    /// The wall clock's reading at a time since boot, to the millisecond; the last that there is, if
    /// it is beyond that.
    pub fn wall(&self, at: Duration) -> Timestamp {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let ahead = millis(at) - millis(self.offset);
        let millis = self.wall.as_millisecond().saturating_add(ahead);
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }

    /// Follows the wall clock where it was set, as by NTP after a boot. What it drifts by is left
    /// alone, so that what happened once keeps its time.
    pub fn follow_wall(&mut self) {
        const SET: SignedDuration = SignedDuration::from_millis(500);
        let (wall, now) = (Timestamp::now(), self.now());
        if wall.duration_since(self.wall(now)).abs() > SET {
            self.reset(wall, now);
        }
    }

    /// The wall clock reads `wall` at `now`.
    fn reset(&mut self, wall: Timestamp, now: Duration) {
        // In whole milliseconds, as they are shown.
        let ahead = now.as_millis() as i64 - self.offset.as_millis() as i64;
        let began = wall.checked_sub(SignedDuration::from_millis(ahead));
        self.wall = began.unwrap_or(wall);
    }

    /// When the wall clock will read `at`, as a time since boot; now, if it did already.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_is_set_is_followed() {
        let mut clock = Clock::start();
        let now = clock.now();
        let right = clock.wall(now);
        // As if it had been a day behind when the agent started.
        let day = SignedDuration::from_hours(24);
        clock.reset(right.checked_sub(day).unwrap(), now);
        assert_eq!(clock.wall(now).duration_since(right), -day);
        clock.follow_wall();
        let off = clock.wall(now).duration_since(right).abs();
        assert!(off < SignedDuration::from_secs(60), "{off}");

        let before = clock.wall(now);
        clock.follow_wall();
        assert_eq!(clock.wall(now), before, "what happened keeps its time");
    }

    #[test]
    fn what_never_comes_is_not_now() {
        let clock = Clock::start();
        let never = clock.monotonic(Timestamp::MAX);
        assert!(clock.wall(never) > "9000-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(clock.wall(Duration::MAX), Timestamp::MAX);
    }
}
