//! How late something comes, as a histogram: the starts of probes, and the data plane behind verdicts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Counts probes by how long after they were due they started, or verdicts by how long after them the
/// data plane followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lateness {
    /// Probes by the first of [`Lateness::BOUNDS`] that their lateness does not exceed; those
    /// beyond all of them last.
    counts: [u64; Lateness::BOUNDS.len() + 1],
    /// The sum of all, seconds.
    seconds: f64,
}

impl Lateness {
    /// Upper bounds of the buckets, seconds.
    pub const BOUNDS: [f64; 11] = [
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0,
    ];

    /// A probe started so late.
    pub fn count(&mut self, late: Duration) {
        let late = late.as_secs_f64();
        let place = Self::BOUNDS.partition_point(|bound| *bound < late);
        self.counts[place] += 1;
        self.seconds += late;
    }

    /// All probes.
    pub fn probes(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all, seconds.
    pub const fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Each bound with the number of probes that were not later.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0;
        Self::BOUNDS
            .into_iter()
            .zip(self.counts)
            .map(move |(bound, count)| {
                sum += count;
                (bound, sum)
            })
    }

    /// What came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        for (count, before) in counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        Self {
            counts,
            seconds: self.seconds - earlier.seconds,
        }
    }

    /// The least bound that this share of the probes (0 to 1) kept; `None` if none did.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = self.probes() as f64 * share;
        self.cumulative()
            .find(|(_, count)| *count as f64 >= wanted)
            .map(|(bound, _)| bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_counted_by_the_bound_they_keep() {
        let mut late = Lateness::default();
        for millis in [0, 1, 3, 50, 7_000] {
            late.count(Duration::from_millis(millis));
        }
        let counts: Vec<u64> = late.cumulative().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4]);
        assert_eq!(late.probes(), 5);
        assert_eq!(late.quantile(0.4), Some(0.001));
        assert_eq!(late.quantile(0.8), Some(0.05));
        assert_eq!(late.quantile(1.0), None);
        let before = late;
        late.count(Duration::from_millis(4));
        let since = late.since(&before);
        assert_eq!((since.probes(), since.quantile(1.0)), (1, Some(0.005)));
    }
}
