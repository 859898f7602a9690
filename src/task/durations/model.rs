//! Histogram of task durations, and the estimates for a pending task that follow from it.
//!
//! *F(t)* is the share of tasks that have finished by the age *t*, and *S = 1 - F* the share that is
//! still pending. Within a bucket *F* is linear. In the last bucket, which has no upper bound, *S* is
//! inversely proportional to the age.

use std::sync::LazyLock;

/// Number of buckets in which a duration doubles.
const BUCKETS_PER_DOUBLING: usize = 4;

/// Number of doublings between 1 s and the start of the last bucket, 2^15 s (about 9 h).
const DOUBLINGS: usize = 15;

/// Number of buckets: one below 1 s, those of the doublings, and one for longer durations.
const BUCKETS: usize = BUCKETS_PER_DOUBLING * DOUBLINGS + 2;

/// The bucket without an upper bound.
const LAST: usize = BUCKETS - 1;

/// Samples below which a model makes no estimates.
const MIN_SAMPLES: u64 = 20;

/// Factor by which a new sample reduces the weight of the earlier ones. Of the weight of all samples,
/// the last 200 have 96 %.
const DECAY: f64 = 1.0 - 1.0 / 64.0;

/// Weight of the prior distribution in samples. It keeps the estimates finite where no sample is.
const PRIOR_WEIGHT: f64 = 1.0;

/// Median of the prior distribution in seconds. Its survival function is `m / (m + t)`, so a task
/// that is older than all samples finishes within a further second with a probability of about
/// 1 / age.
const PRIOR_MEDIAN: f64 = 10.0;

/// Time in which a task finishes if nothing is known about it, in seconds. It sets the scale of
/// [`DurationModel::expected_undetected`] without data.
const UNKNOWN_DURATION: f64 = 120.0;

/// Largest age in estimates, in seconds (about 30 years). Larger ones are reduced to it.
const MAX_AGE: f64 = 1e9;

/// Largest relative difference between the weights that were read and those that the number of
/// samples implies. The weights are saved with single precision.
const WEIGHT_TOLERANCE: f64 = 1e-3;

/// Lower bounds of the buckets in seconds: 0, 1 and then four per doubling.
static LOWER_BOUNDS: LazyLock<[f64; BUCKETS]> = LazyLock::new(|| {
    std::array::from_fn(|bucket| match bucket.checked_sub(1) {
        None => 0.0,
        Some(steps) => (steps as f64 / BUCKETS_PER_DOUBLING as f64).exp2(),
    })
});

/// Decayed histogram of the durations of tasks, in seconds from creation to end. Newer samples
/// count more: a change of the durations is learnt within 200 samples.
///
/// Ages and durations are in seconds. Ages that are negative or not a number count as 0.
#[derive(Clone, Debug, PartialEq)]
pub struct DurationModel {
    /// Number of samples so far.
    samples: u64,
    /// Decayed number of samples in each bucket.
    weights: [f64; BUCKETS],
    /// *S* at the lower bound of each bucket, prior included.
    survival: [f64; BUCKETS],
    /// Integral of *S* from the lower bound of each bucket to that of the last one. Integrals to a
    /// common end are small where *S* is small, so that their differences stay precise.
    area: [f64; BUCKETS],
}

impl Default for DurationModel {
    fn default() -> Self {
        Self::with_weights(0, [0.0; BUCKETS])
    }
}

impl DurationModel {
    fn with_weights(samples: u64, weights: [f64; BUCKETS]) -> Self {
        let mut model = Self { samples, weights, survival: [0.0; BUCKETS], area: [0.0; BUCKETS] };
        model.rebuild();
        model
    }

    /// Restores a model from what [`DurationModel::samples`] and [`DurationModel::weights`] returned.
    /// `None` if the values are damaged or of another version.
    pub fn restore(samples: u64, weights: &[u8]) -> Option<Self> {
        let (chunks, []) = weights.as_chunks::<4>() else { return None };
        let weights: Vec<f64> = chunks.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
        let weights: [f64; BUCKETS] = weights.try_into().ok()?;
        let expected = (1.0 - DECAY.powf(samples as f64)) / (1.0 - DECAY);
        let sum: f64 = weights.iter().sum();
        let is_valid = weights.iter().all(|weight| *weight >= 0.0)
            && (sum - expected).abs() <= expected * WEIGHT_TOLERANCE;
        is_valid.then(|| Self::with_weights(samples, weights))
    }

    /// Returns the weights of the buckets as little-endian single-precision numbers, for
    /// [`DurationModel::restore`].
    pub fn weights(&self) -> Vec<u8> {
        self.weights.iter().flat_map(|weight| (*weight as f32).to_le_bytes()).collect()
    }

    /// Number of recorded samples.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Whether there are enough samples for estimates.
    pub fn has_data(&self) -> bool {
        self.samples >= MIN_SAMPLES
    }

    /// Records the duration of a task in seconds. Values that are negative or not finite are
    /// ignored.
    pub fn record(&mut self, duration: f64) {
        if !duration.is_finite() || duration < 0.0 {
            return;
        }
        self.weights.iter_mut().for_each(|weight| *weight *= DECAY);
        self.weights[bucket_of(duration)] += 1.0;
        self.samples = self.samples.saturating_add(1);
        self.rebuild();
    }

    /// Returns *F(age)*, the share of tasks that had finished by this age. With few samples it is
    /// mostly the prior.
    pub fn finished_share(&self, age: f64) -> f64 {
        1.0 - self.survival_at(clamp_age(age))
    }

    /// Returns the probability that a task that was pending at the age `from` has finished by the
    /// age `to`. `None` without data.
    pub fn finish_probability(&self, from: f64, to: f64) -> Option<f64> {
        let (from, to) = (clamp_age(from), clamp_age(to));
        let pending = self.survival_at(to.max(from)) / self.survival_at(from);
        self.has_data().then(|| (1.0 - pending).clamp(0.0, 1.0))
    }

    /// Returns the age until which a task that was pending at `age` can do without another look,
    /// if a finish may be noticed late with the given probability: it is unlikely to have finished
    /// since, and it belongs to the quickest or to the slowest tasks, so that most finishes are
    /// noticed at once. At least `age`. `None` without data.
    pub fn unlikely_until(&self, age: f64, probability: f64) -> Option<f64> {
        let age = clamp_age(age);
        if !self.has_data() {
            return None;
        }
        let pending = self.survival_at(age);
        let since_last_look = self.age_at(pending * (1.0 - probability));
        let quickest_end = self.age_at(1.0 - probability);
        Some(match () {
            () if age < quickest_end => since_last_look.min(quickest_end),
            () if pending <= probability => since_last_look,
            () => age,
        })
    }

    /// Returns the expected time for which a task that was pending at the age `from` has been
    /// finished at the age `to`, in seconds: 0 for a task that certainly still runs, up to
    /// `to - from`.
    ///
    /// It is the integral of `(F(t) - F(from)) / S(from)` from `from` to `to`. Without data it grows
    /// with the square of `to - from`, whatever the age.
    pub fn expected_undetected(&self, from: f64, to: f64) -> f64 {
        let (from, to) = (clamp_age(from), clamp_age(to));
        let elapsed = to - from;
        if elapsed <= 0.0 {
            return 0.0;
        }
        if !self.has_data() {
            return elapsed * elapsed / (2.0 * UNKNOWN_DURATION);
        }
        let expected_pending = (self.area_after(from) - self.area_after(to)) / self.survival_at(from);
        (elapsed - expected_pending).clamp(0.0, elapsed)
    }

    /// Returns the age by which the given share of tasks has finished, in seconds. `share` is
    /// reduced to 0 to 1. `None` without data.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        self.has_data().then(|| self.age_at(1.0 - share.clamp(0.0, 1.0)))
    }

    /// Returns the median of the time after which a task that is pending at this age finishes, in
    /// seconds. `None` without data.
    pub fn remaining(&self, age: f64) -> Option<f64> {
        let age = clamp_age(age);
        self.has_data().then(|| (self.age_at(self.survival_at(age) / 2.0) - age).max(0.0))
    }

    /// Calculates `survival` and `area` from the weights and the prior.
    fn rebuild(&mut self) {
        let bounds = &*LOWER_BOUNDS;
        let prior = |age: f64| PRIOR_WEIGHT * PRIOR_MEDIAN / (PRIOR_MEDIAN + age);
        let mut longer = 0.0;
        for bucket in (0..BUCKETS).rev() {
            longer += self.weights[bucket];
            self.survival[bucket] = longer + prior(bounds[bucket]);
        }
        let total = self.survival[0];
        self.survival.iter_mut().for_each(|pending| *pending /= total);
        self.area[LAST] = 0.0;
        for bucket in (0..LAST).rev() {
            let width = bounds[bucket + 1] - bounds[bucket];
            let mean = (self.survival[bucket] + self.survival[bucket + 1]) / 2.0;
            self.area[bucket] = self.area[bucket + 1] + width * mean;
        }
    }

    /// Returns *S(age)*.
    fn survival_at(&self, age: f64) -> f64 {
        let bounds = &*LOWER_BOUNDS;
        let bucket = bucket_of(age);
        if bucket == LAST {
            return self.survival[LAST] * bounds[LAST] / age;
        }
        let share = (age - bounds[bucket]) / (bounds[bucket + 1] - bounds[bucket]);
        self.survival[bucket] - share * (self.survival[bucket] - self.survival[bucket + 1])
    }

    /// Returns the integral of *S* from `age` to the lower bound of the last bucket, negative for
    /// larger ages.
    fn area_after(&self, age: f64) -> f64 {
        let bounds = &*LOWER_BOUNDS;
        let bucket = bucket_of(age);
        if bucket == LAST {
            return -self.survival[LAST] * bounds[LAST] * (age / bounds[LAST]).ln();
        }
        let mean = (self.survival_at(age) + self.survival[bucket + 1]) / 2.0;
        self.area[bucket + 1] + (bounds[bucket + 1] - age) * mean
    }

    /// Returns the age at which *S* has this value, the inverse of [`DurationModel::survival_at`].
    fn age_at(&self, survival: f64) -> f64 {
        let bounds = &*LOWER_BOUNDS;
        if survival <= self.survival[LAST] {
            return (self.survival[LAST] * bounds[LAST] / survival).min(MAX_AGE);
        }
        // The prior makes the table strictly decreasing, from 1 on.
        let bucket = self.survival.partition_point(|pending| *pending >= survival).saturating_sub(1);
        let share = (self.survival[bucket] - survival) / (self.survival[bucket] - self.survival[bucket + 1]);
        bounds[bucket] + share * (bounds[bucket + 1] - bounds[bucket])
    }
}

/// Returns the bucket of a duration or an age. At a bound, rounding may select either of its two
/// buckets; both give the same estimates there.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is 0 or more")]
fn bucket_of(seconds: f64) -> usize {
    if seconds < 1.0 {
        return 0;
    }
    (1 + (seconds.log2() * BUCKETS_PER_DOUBLING as f64) as usize).min(LAST)
}

/// Returns an age within the bounds of the estimates.
fn clamp_age(age: f64) -> f64 {
    if age.is_nan() { 0.0 } else { age.clamp(0.0, MAX_AGE) }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn learnt(durations: impl IntoIterator<Item = f64>) -> DurationModel {
        let mut model = DurationModel::default();
        durations.into_iter().for_each(|duration| model.record(duration));
        model
    }

    /// Durations around a median, as of a service that usually takes about as long.
    fn around(median: f64, count: u32) -> impl Iterator<Item = f64> {
        (0..count).map(move |index| median * (0.8 + 0.4 * f64::from(index % 20) / 19.0))
    }

    /// Ages over all buckets and beyond the last one.
    fn age() -> impl Strategy<Value = f64> {
        prop_oneof![1 => Just(0.0), 8 => (-4.0..18.0_f64).prop_map(f64::exp2)]
    }

    fn model() -> impl Strategy<Value = DurationModel> {
        vec(age(), 20..150).prop_map(learnt)
    }

    /// Integral of the finish probability by the trapezoidal rule.
    fn integrated(model: &DurationModel, from: f64, to: f64) -> f64 {
        const STEPS: u32 = 4000;
        let step = (to - from) / f64::from(STEPS);
        let at = |index: u32| model.finish_probability(from, from + step * f64::from(index)).unwrap();
        (0..STEPS).map(|index| (at(index) + at(index + 1)) / 2.0 * step).sum()
    }

    proptest! {
        #[test]
        fn finished_share_grows_from_zero_towards_one(model in model(), one in age(), other in age()) {
            let (low, high) = (one.min(other), one.max(other));
            prop_assert!(model.finished_share(low) <= model.finished_share(high) + 1e-12);
            prop_assert_eq!(model.finished_share(0.0), 0.0);
            prop_assert!(model.finished_share(high) < 1.0);
        }

        #[test]
        fn finish_probability_is_between_zero_and_one(model in model(), one in age(), other in age()) {
            let probability = model.finish_probability(one, other).unwrap();
            prop_assert!((0.0..=1.0).contains(&probability), "{}", probability);
            prop_assert!(one < other || probability == 0.0);
        }

        #[test]
        fn expected_undetected_equals_the_numeric_integral(
            model in model(),
            from in age(),
            elapsed in (-4.0..12.0_f64).prop_map(f64::exp2),
        ) {
            let (exact, numeric) =
                (model.expected_undetected(from, from + elapsed), integrated(&model, from, from + elapsed));
            prop_assert!((exact - numeric).abs() <= 1e-3 * elapsed + 1e-9, "{} {}", exact, numeric);
            prop_assert!((0.0..=elapsed * (1.0 + 1e-9)).contains(&exact));
        }

        #[test]
        fn quantile_is_the_inverse_of_the_finished_share(model in model(), share in 0.0..0.999_f64) {
            let age = model.quantile(share).unwrap();
            prop_assert!((model.finished_share(age) - share).abs() < 1e-9, "{}", age);
        }

        #[test]
        fn half_of_the_pending_tasks_finish_in_the_remaining_time(model in model(), age in age()) {
            let remaining = model.remaining(age).unwrap();
            let probability = model.finish_probability(age, age + remaining).unwrap();
            prop_assert!((probability - 0.5).abs() < 1e-6, "{}", probability);
        }

        #[test]
        fn saved_model_is_restored(model in model(), age in age()) {
            let restored = DurationModel::restore(model.samples(), &model.weights()).unwrap();
            prop_assert_eq!(restored.samples(), model.samples());
            prop_assert!((restored.finished_share(age) - model.finished_share(age)).abs() < 1e-6);
        }

        #[test]
        fn any_bytes_are_restored_or_refused(samples in any::<u64>(), bytes in vec(any::<u8>(), 0..300)) {
            if let Some(model) = DurationModel::restore(samples, &bytes) {
                prop_assert!((0.0..=1.0).contains(&model.finished_share(60.0)));
            }
        }

        #[test]
        fn changed_durations_are_learnt_within_200_samples(old in 2.0..10_000.0_f64, new in 2.0..10_000.0_f64) {
            let model = learnt(around(old, 500).chain(around(new, 200)));
            let median = model.quantile(0.5).unwrap();
            prop_assert!((new * 0.75..new * 1.25).contains(&median), "{} -> {}: {}", old, new, median);
            // Of the tasks that the model expects, at most a tenth has another duration.
            let near = model.finished_share(new * 1.5) - model.finished_share(new * 0.6);
            prop_assert!(near > 0.9, "{}", near);
        }

        #[test]
        fn task_older_than_all_samples_has_a_hazard_of_1_per_age(
            median in 1.0..5000.0_f64,
            factor in 3.0..1000.0_f64,
        ) {
            let model = learnt(around(median, 300));
            let age = (median * factor).max(60.0);
            let hazard = model.finish_probability(age, age * 1.01).unwrap() / (age * 0.01);
            prop_assert!((0.7..1.3).contains(&(hazard * age)), "{} at {}", hazard * age, age);
        }
    }

    #[test]
    fn task_that_is_due_has_more_undetected_time_than_others() {
        let model = learnt(around(60.0, 100));
        let young = model.expected_undetected(10.0, 20.0);
        let due = model.expected_undetected(60.0, 70.0);
        let late = model.expected_undetected(600.0, 610.0);
        assert!(young < 0.1 && late < 0.2 && due > 2.0, "{young} {due} {late}");
        assert!(model.finish_probability(10.0, 25.0).unwrap() < 0.05);
        assert!((50.0..70.0).contains(&model.remaining(0.0).unwrap()));
        assert!(model.remaining(600.0).unwrap() > 300.0);
    }

    #[test]
    fn few_samples_make_no_estimate() {
        let few = learnt(around(60.0, 19));
        assert!(!few.has_data());
        assert_eq!(few.quantile(0.5), None);
        assert_eq!(few.remaining(10.0), None);
        assert_eq!(few.finish_probability(10.0, 20.0), None);
        let undetected = few.expected_undetected(0.0, 12.0);
        assert_eq!(undetected, few.expected_undetected(5000.0, 5012.0));
        assert_eq!(few.expected_undetected(0.0, 24.0), 4.0 * undetected);
        assert!(learnt(around(60.0, 20)).has_data());
    }

    #[test]
    fn values_that_are_no_duration_are_ignored() {
        let model = learnt([-1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
        assert_eq!(model, DurationModel::default());
        let model = learnt([0.0, 0.5, 1e300].into_iter().cycle().take(60));
        for (from, to) in [(f64::NAN, f64::NAN), (-5.0, f64::INFINITY), (f64::INFINITY, 3.0), (7.0, 3.0)] {
            assert!(model.finish_probability(from, to).unwrap().is_finite());
            assert!(model.expected_undetected(from, to).is_finite());
            assert!(model.remaining(from).unwrap().is_finite());
        }
        assert!(model.quantile(1.0).unwrap().is_finite() && model.quantile(f64::NAN).is_some());
    }

    #[test]
    fn damaged_weights_are_refused() {
        let model = learnt(around(60.0, 50));
        let saved = model.weights();
        let with = |at: usize, value: f32| {
            let mut changed = saved.clone();
            changed[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
            changed
        };
        for damaged in [
            Vec::new(),
            saved[4..].to_vec(),
            [saved.as_slice(), &[0]].concat(),
            with(0, f32::NAN),
            with(0, f32::INFINITY),
            with(0, -1.0),
            with(0, 1.0),
        ] {
            assert_eq!(DurationModel::restore(50, &damaged), None);
        }
        assert_eq!(DurationModel::restore(49, &saved), None);
        assert!(DurationModel::restore(50, &saved).is_some());
    }

    #[test]
    fn samples_fall_into_the_bucket_of_their_bounds() {
        for bucket in 0..BUCKETS {
            let low = LOWER_BOUNDS[bucket];
            let inside = LOWER_BOUNDS.get(bucket + 1).map_or(low * 2.0, |high| (low + high) / 2.0);
            assert_eq!(bucket_of(inside), bucket, "{inside}");
        }
    }

    /// `cargo test --release --lib estimates_of_10_000 -- --ignored --nocapture`
    #[test]
    #[ignore = "prints a figure"]
    fn estimates_of_10_000_tasks() {
        let model = learnt(around(60.0, 300));
        let start = std::time::Instant::now();
        let ages = (0..10_000).map(|index| f64::from(index) * 0.03);
        let sum: f64 = ages.map(|age| model.expected_undetected(age, age + 15.0)).sum();
        println!("10,000 estimates: {:?} (sum {sum:.0})", start.elapsed());
    }
}
