//! A distribution in fixed buckets, made of atomics.
//!
//! prometheus-client's own histogram takes a mutex for each observation. Two workers that answer hits would meet at it, and one that
//! is preempted while it holds it would stop the other; and its count, sum and bucket are three writes to one line of
//! memory anyway. This one is two relaxed additions, one of them to a bucket. A reader may see a bucket without its
//! share of the sum, for the length of an instruction; the count is the sum of the buckets, so the two never disagree.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of client latencies: 100 µs to a minute, in nanoseconds.
pub(super) const REQUEST_BOUNDS: &[u64] = &[
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// Upper bounds of upstream calls: 5 ms to a minute, in nanoseconds.
pub(super) const CALL_BOUNDS: &[u64] = &[
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// Upper bounds of commits: 500 µs to 10 s, in nanoseconds.
pub(super) const COMMIT_BOUNDS: &[u64] = &[
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// Upper bounds of ids in one call.
pub(super) const IDS_BOUNDS: &[u64] = &[1, 2, 5, 10, 20, 30, 40, 50, 100, 200];

/// Nanoseconds in a second, for what is shown in seconds.
pub(super) const PER_SECOND: f64 = 1e9;

/// See the head of this file.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds, inclusive, rising.
    bounds: &'static [u64],
    /// What an observation is divided by to be shown.
    scale: f64,
    /// One more than there are bounds: the last one is for what lies beyond.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [u64], scale: f64) -> Self {
        Self {
            bounds,
            scale,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts a duration, in a histogram of such.
    pub fn observe(&self, duration: Duration) {
        self.observe_number(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts a number, in a histogram of such.
    pub fn observe_number(&self, number: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < number);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(number, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn counts(&self) -> HistogramCounts {
        HistogramCounts {
            bounds: self.bounds,
            scale: self.scale,
            buckets: self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

/// What a [`Histogram`] had counted at one moment, or between two.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramCounts {
    bounds: &'static [u64],
    scale: f64,
    buckets: Vec<u64>,
    sum: u64,
}

impl HistogramCounts {
    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum, in base units.
    #[expect(clippy::cast_precision_loss, reason = "a sum that is shown")]
    pub fn sum(&self) -> f64 {
        self.sum as f64 / self.scale
    }

    /// Upper bounds, in base units, each with the number of observations in its bucket alone; the last is infinite.
    #[expect(clippy::cast_precision_loss, reason = "bounds are far below 2^53")]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().map(|bound| *bound as f64 / self.scale);
        bounds.chain([f64::INFINITY]).zip(self.buckets.iter().copied()).collect()
    }

    /// Adds what another histogram of the same bounds has counted.
    pub fn add(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let buckets = self.buckets.iter().zip(&earlier.buckets);
        Self {
            bounds: self.bounds,
            scale: self.scale,
            buckets: buckets.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum: self.sum.saturating_sub(earlier.sum),
        }
    }

    /// The value below which a share of the observations lies, taken as evenly spread in their bucket, as `histogram_quantile`
    /// of Prometheus does it; the highest bound for what lies beyond. `None` without an observation.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share * self.count() as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        if self.count() == 0 {
            return None;
        }
        for (upper, count) in self.buckets() {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                return Some(match upper.is_finite() {
                    true => lower + (upper - lower) * ((rank - below) / count).clamp(0.0, 1.0),
                    false => lower,
                });
            }
            below += count;
            lower = if upper.is_finite() { upper } else { lower };
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(histogram: &Histogram, durations: &[u64]) {
        for duration in durations {
            histogram.observe(Duration::from_millis(*duration));
        }
    }

    #[test]
    fn an_observation_goes_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(&[10, 20], 1.0);
        for number in [0, 10, 11, 20, 21, u64::MAX / 2] {
            histogram.observe_number(number);
        }
        let counts = histogram.counts();
        assert_eq!(counts.buckets(), [(10.0, 2), (20.0, 2), (f64::INFINITY, 2)]);
        assert_eq!(counts.count(), 6);
    }

    #[test]
    fn durations_are_shown_in_seconds() {
        let histogram = Histogram::new(CALL_BOUNDS, PER_SECOND);
        milliseconds(&histogram, &[250, 750]);
        let counts = histogram.counts();
        assert!((counts.sum() - 1.0).abs() < 1e-9);
        assert!(counts.buckets().contains(&(0.25, 1)) && counts.buckets().contains(&(1.0, 1)));
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.counts().count(), 3);
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let histogram = Histogram::new(CALL_BOUNDS, PER_SECOND);
        assert_eq!(histogram.counts().quantile(0.5), None);
        // 50 in (0.1, 0.25], 50 in (0.25, 0.5]
        milliseconds(&histogram, &[200; 50]);
        milliseconds(&histogram, &[300; 50]);
        let counts = histogram.counts();
        let near = |share: f64, expected: f64| {
            let found = counts.quantile(share).unwrap();
            assert!((found - expected).abs() < 1e-9, "{share}: {found}");
        };
        near(0.5, 0.25);
        near(0.25, 0.175);
        near(0.99, 0.495);
        let far = Histogram::new(&[10], 1.0);
        far.observe_number(1000);
        assert_eq!(far.counts().quantile(0.5), Some(10.0), "nothing is known beyond the last bound");
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let histogram = Histogram::new(CALL_BOUNDS, PER_SECOND);
        milliseconds(&histogram, &[5, 50]);
        let earlier = histogram.counts();
        milliseconds(&histogram, &[500]);
        let since = histogram.counts().since(&earlier);
        assert_eq!((since.count(), since.sum()), (1, 0.5));
        let mut sum = earlier.clone();
        sum.add(&since);
        assert_eq!(sum, histogram.counts());
    }

    #[test]
    fn nothing_is_lost_among_threads() {
        let histogram = Histogram::new(IDS_BOUNDS, 1.0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|number| histogram.observe_number(number % 60)));
            }
        });
        assert_eq!(histogram.counts().count(), 40_000);
    }
}
