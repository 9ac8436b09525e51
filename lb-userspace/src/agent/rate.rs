//! How many probes may be started in a second (`probes_per_second`).

use std::time::Duration;

/// What was not used within this time is lost, so that what starts at once stays small.
const SAVED: Duration = Duration::from_millis(100);

/// A bucket of starts, kept as the time at which it is full again (the generic cell rate algorithm).
/// Pure: time comes in.
#[derive(Debug)]
pub struct Rate {
    /// Time between two starts; zero: no limit.
    between: Duration,
    full: Duration,
}

impl Rate {
    /// So many in a second; `None`: no limit.
    pub fn new(per_second: Option<u32>) -> Self {
        Self {
            between: per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate),
            full: Duration::ZERO,
        }
    }

    /// Another limit, from now on.
    pub fn set(&mut self, per_second: Option<u32>) {
        self.between = Self::new(per_second).between;
    }

    /// How many may be started at `now`.
    pub fn room(&self, now: Duration) -> usize {
        if self.between.is_zero() {
            return usize::MAX;
        }
        if now < self.ready() {
            return 0;
        }
        let free = (now + SAVED).saturating_sub(self.full.max(now));
        let room = free.as_nanos() / self.between.as_nanos() + 1;
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// When the next one may be started; may be in the past.
    pub const fn ready(&self) -> Duration {
        self.full.saturating_sub(SAVED)
    }

    /// So many have been started.
    pub fn started(&mut self, count: usize, now: Duration) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.full = self.full.max(now) + self.between * count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn starts_are_spread_and_none_is_lost() {
        for per_second in [1, 7, 50, 3_000] {
            let mut rate = Rate::new(Some(per_second));
            let (mut now, mut started, mut most) = (ms(5_000), 0, 0);
            while now <= ms(15_000) {
                let room = rate.room(now);
                rate.started(room, now);
                (started, most) = (started + room, most.max(room));
                assert_eq!(rate.room(now), 0, "all are taken");
                // Never asleep for ever, never at once.
                assert!(rate.ready() > now);
                now = rate.ready();
                assert!(rate.room(now) > 0, "{per_second}");
            }
            let allowed = 10 * per_second as usize;
            let burst = (per_second / 10) as usize + 1;
            assert!(
                started >= allowed && started <= allowed + burst + 1,
                "{started}"
            );
            assert!(most <= burst, "{most} at once");
        }
    }

    #[test]
    fn what_was_not_used_is_lost() {
        let mut rate = Rate::new(Some(100));
        assert_eq!(rate.room(ms(1_000)), 11);
        rate.started(11, ms(1_000));
        assert_eq!(rate.room(ms(1_005)), 0);
        assert_eq!(rate.room(ms(1_010)), 1);
        assert_eq!(rate.room(ms(60_000)), 11);
        rate.set(None);
        assert_eq!(rate.room(ms(60_000)), usize::MAX);
        rate.started(1_000_000, ms(60_000));
        assert_eq!(rate.room(ms(60_000)), usize::MAX);
        rate.set(Some(10));
        assert_eq!(rate.room(ms(61_000)), 2);
    }
}
