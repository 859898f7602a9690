//! Histograms with fixed buckets, made of atomics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

use super::registration::registered_as_clone;

/// Upper bounds of the buckets of one kind of histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Buckets {
    /// Inclusive, rising, in the unit in which observations are made.
    bounds: &'static [u64],
    /// Divisor from that unit to the one that is shown.
    scale: f64,
}

impl Buckets {
    const fn seconds(nanoseconds: &'static [u64]) -> Self {
        Self { bounds: nanoseconds, scale: 1e9 }
    }

    const fn numbers(bounds: &'static [u64]) -> Self {
        Self { bounds, scale: 1.0 }
    }
}

/// Durations of client requests: 100 µs to one minute.
pub(super) const REQUEST_DURATION: Buckets = Buckets::seconds(&nanoseconds([
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
]));

/// Durations of upstream calls: 5 ms to one minute.
pub(super) const CALL_DURATION: Buckets = Buckets::seconds(&nanoseconds([
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
]));

/// Durations of database commits: 500 µs to 10 s.
pub(super) const COMMIT_DURATION: Buckets = Buckets::seconds(&nanoseconds([
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
]));

/// Numbers of ids in one upstream call.
pub(super) const CALL_IDS: Buckets = Buckets::numbers(&[1, 2, 5, 10, 20, 30, 40, 50, 100, 200]);

const fn nanoseconds<const N: usize>(seconds: [f64; N]) -> [u64; N] {
    let mut bounds = [0; N];
    let mut index = 0;
    while index < N {
        bounds[index] = (seconds[index] * 1e9 + 0.5) as u64;
        index += 1;
    }
    bounds
}

/// A histogram. Clones share the counts.
///
/// The histogram of prometheus-client takes a mutex for each observation, and its buckets cannot be
/// read, which the quantiles of the admin API need. Here an observation is two relaxed additions. A
/// reader may see an observation in its bucket before it is in the sum. The count is the sum of the
/// buckets, so these two always agree.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Buckets,
    /// One count for each bound, then one for larger observations, then the sum of all
    /// observations.
    cells: Arc<[AtomicU64]>,
}

impl Histogram {
    pub(super) fn new(buckets: Buckets) -> Self {
        let cells = (0..buckets.bounds.len() + 2).map(|_| AtomicU64::new(0)).collect();
        Self { buckets, cells }
    }

    /// Records a duration, in a histogram of durations.
    pub fn observe(&self, duration: Duration) {
        self.observe_number(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Records a number, in a histogram of numbers.
    pub fn observe_number(&self, number: u64) {
        let bounds = self.buckets.bounds;
        let bucket = bounds.partition_point(|bound| *bound < number);
        self.cells[bucket].fetch_add(1, Ordering::Relaxed);
        self.cells[bounds.len() + 1].fetch_add(number, Ordering::Relaxed);
    }

    /// Returns the counts of this moment.
    pub fn counts(&self) -> HistogramCounts {
        let mut counts: Vec<u64> = self.cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
        let sum = counts.pop().unwrap_or(0);
        HistogramCounts { buckets: self.buckets, counts, sum }
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        let counts = self.counts();
        encoder.encode_histogram::<NoLabelSet>(counts.sum(), counts.count(), &counts.buckets(), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

registered_as_clone!(Histogram);

/// The counts of a [`Histogram`] at one moment, or the difference of two moments.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramCounts {
    buckets: Buckets,
    counts: Vec<u64>,
    sum: u64,
}

impl HistogramCounts {
    /// Returns zero counts.
    pub(super) fn zero(buckets: Buckets) -> Self {
        Self { buckets, counts: vec![0; buckets.bounds.len() + 1], sum: 0 }
    }

    /// Returns the number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of the observations, in seconds for durations.
    #[expect(clippy::cast_precision_loss, reason = "a sum that is shown")]
    pub fn sum(&self) -> f64 {
        self.sum as f64 / self.buckets.scale
    }

    /// Returns the upper bound of each bucket, in seconds for durations, with the number of
    /// observations in that bucket alone. The last bound is infinite.
    #[expect(clippy::cast_precision_loss, reason = "bounds are far below 2^53")]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = self.buckets.bounds.iter().map(|bound| *bound as f64 / self.buckets.scale);
        bounds.chain([f64::INFINITY]).zip(self.counts.iter().copied()).collect()
    }

    /// Adds the counts of another histogram with the same buckets.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// Returns the difference from `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts);
        Self {
            buckets: self.buckets,
            counts: counts.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum: self.sum.saturating_sub(earlier.sum),
        }
    }

    /// Returns the value below which `share` of the observations lie, or `None` without
    /// observations.
    ///
    /// The estimate is that of `histogram_quantile` in Prometheus: observations count as evenly
    /// spread in their bucket, and those beyond the last bound as equal to it.
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
    fn observation_counts_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(Buckets::numbers(&[10, 20]));
        for number in [0, 10, 11, 20, 21, u64::MAX / 2] {
            histogram.observe_number(number);
        }
        let counts = histogram.counts();
        assert_eq!(counts.buckets(), [(10.0, 2), (20.0, 2), (f64::INFINITY, 2)]);
        assert_eq!(counts.count(), 6);
    }

    #[test]
    fn durations_are_shown_in_seconds() {
        let histogram = Histogram::new(CALL_DURATION);
        milliseconds(&histogram, &[250, 750]);
        let counts = histogram.counts();
        assert!((counts.sum() - 1.0).abs() < 1e-9);
        assert!(counts.buckets().contains(&(0.25, 1)) && counts.buckets().contains(&(1.0, 1)));
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.counts().count(), 3);
    }

    #[test]
    fn quantiles_equal_those_of_prometheus() {
        let histogram = Histogram::new(CALL_DURATION);
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
        let far = Histogram::new(Buckets::numbers(&[10]));
        far.observe_number(1000);
        assert_eq!(far.counts().quantile(0.5), Some(10.0), "values beyond the last bound are not known");
    }

    #[test]
    fn since_returns_the_difference() {
        let histogram = Histogram::new(CALL_DURATION);
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
    fn concurrent_observations_are_all_counted() {
        let histogram = Histogram::new(CALL_IDS);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|number| histogram.observe_number(number % 60)));
            }
        });
        assert_eq!(histogram.counts().count(), 40_000);
    }
}
