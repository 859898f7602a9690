//! The last hour and the last day in steps, for the charts of the dashboard.
//!
//! Two bounded ring buffers in memory, empty after a start. The caller ends the steps and passes
//! the counters in, so nothing here reads a clock.

use std::collections::VecDeque;
use std::time::Duration;

use super::gauges::Gauges;
use super::histogram::HistogramCounts;
use super::labels::{IdOutcome, RequestAction};
use super::metrics::Metrics;

/// Counters and gauges at the end of a step.
#[derive(Clone, Debug)]
pub struct CounterSnapshot {
    counts: StepCounts,
    call_duration: HistogramCounts,
    queued: u64,
    snapshots: u64,
    store_tasks: u64,
}

/// Counts since the start, or within one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// Lookups, with any outcome.
    pub lookups: u64,
    /// Ids in these lookups.
    pub ids: u64,
    /// Ids that came from the store.
    pub ids_hit: u64,
    /// Lookup calls sent to the upstream.
    pub calls: u64,
    /// Lookup calls saved.
    pub calls_saved: u64,
    /// 429 responses of the upstream to lookup calls.
    pub upstream_rate_limited: u64,
    /// Those of them that no client received.
    pub rate_limited_absorbed: u64,
    /// 429 responses that clients received for lookups.
    pub rate_limited_passed_on: u64,
}

impl StepCounts {
    fn since(&self, earlier: &Self) -> Self {
        let difference = |count: fn(&Self) -> u64| count(self).saturating_sub(count(earlier));
        Self {
            lookups: difference(|counts| counts.lookups),
            ids: difference(|counts| counts.ids),
            ids_hit: difference(|counts| counts.ids_hit),
            calls: difference(|counts| counts.calls),
            calls_saved: difference(|counts| counts.calls_saved),
            upstream_rate_limited: difference(|counts| counts.upstream_rate_limited),
            rate_limited_absorbed: difference(|counts| counts.rate_limited_absorbed),
            rate_limited_passed_on: difference(|counts| counts.rate_limited_passed_on),
        }
    }
}

impl CounterSnapshot {
    /// Reads the counters.
    pub fn of(metrics: &Metrics, gauges: &Gauges) -> Self {
        let is_lookup = |action| matches!(action, RequestAction::Retrieve | RequestAction::RetrieveBatch);
        Self {
            counts: StepCounts {
                lookups: metrics.requests.sum(|labels| is_lookup(labels.action)),
                ids: metrics.ids.total(),
                ids_hit: metrics.ids.get(IdOutcome::Hit),
                calls: metrics.upstream_calls.total(),
                calls_saved: metrics.upstream_calls_saved.get(),
                upstream_rate_limited: metrics.upstream_rate_limited.get(),
                rate_limited_absorbed: metrics.rate_limited_absorbed.get(),
                rate_limited_passed_on: metrics.rate_limited_lookups(),
            },
            call_duration: metrics.upstream_call_duration(),
            queued: gauges.queues.queued as u64,
            snapshots: gauges.queues.snapshots as u64,
            store_tasks: gauges.store.tasks,
        }
    }
}

/// One step: counts within it, and gauges at its end.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryPoint {
    /// End of the step, in seconds since the Unix epoch.
    pub at: i64,
    /// Counts within the step.
    pub counts: StepCounts,
    /// Median duration of the lookup calls, in seconds; `None` without a call.
    pub upstream_p50: Option<f64>,
    /// 99th percentile of the duration of the lookup calls, in seconds; `None` without a call.
    pub upstream_p99: Option<f64>,
    /// Queued ids.
    pub queued: u64,
    /// Pending records in memory.
    pub snapshots: u64,
    /// Tasks in the store.
    pub store_tasks: u64,
}

impl HistoryPoint {
    fn between(earlier: &CounterSnapshot, at: i64, now: &CounterSnapshot) -> Self {
        let call_duration = now.call_duration.since(&earlier.call_duration);
        Self {
            at,
            counts: now.counts.since(&earlier.counts),
            upstream_p50: call_duration.quantile(0.5),
            upstream_p99: call_duration.quantile(0.99),
            queued: now.queued,
            snapshots: now.snapshots,
            store_tasks: now.store_tasks,
        }
    }
}

#[derive(Debug)]
struct Ring {
    capacity: usize,
    points: VecDeque<HistoryPoint>,
    /// Snapshot at the end of the last step.
    last: CounterSnapshot,
}

impl Ring {
    fn new(capacity: usize, start: CounterSnapshot) -> Self {
        Self { capacity, points: VecDeque::with_capacity(capacity), last: start }
    }

    fn end_step(&mut self, at: i64, now: CounterSnapshot) {
        if self.points.len() == self.capacity {
            self.points.pop_front();
        }
        self.points.push_back(HistoryPoint::between(&self.last, at, &now));
        self.last = now;
    }
}

/// The last hour and the last day.
#[derive(Debug)]
pub struct History {
    hour: Ring,
    day: Ring,
    /// Short steps since the last long step ended.
    steps: usize,
}

impl History {
    /// Length of a step in the last hour.
    pub const STEP: Duration = Duration::from_secs(10);

    /// Length of a step in the last day.
    pub const LONG_STEP: Duration = Duration::from_secs(300);

    const HOUR_STEPS: usize = 360;
    const DAY_STEPS: usize = 288;
    const STEPS_PER_LONG_STEP: usize = 30;

    /// Creates an empty history. The first step is counted from `start`.
    pub fn new(start: CounterSnapshot) -> Self {
        Self {
            hour: Ring::new(Self::HOUR_STEPS, start.clone()),
            day: Ring::new(Self::DAY_STEPS, start),
            steps: 0,
        }
    }

    /// Ends a step at `at`, in seconds since the Unix epoch.
    pub fn end_step(&mut self, at: i64, now: CounterSnapshot) {
        self.steps += 1;
        if self.steps == Self::STEPS_PER_LONG_STEP {
            self.steps = 0;
            self.day.end_step(at, now.clone());
        }
        self.hour.end_step(at, now);
    }

    /// Returns the steps of the last hour, oldest first.
    pub fn hour(&self) -> impl Iterator<Item = &HistoryPoint> {
        self.hour.points.iter()
    }

    /// Returns the steps of the last day, oldest first.
    pub fn day(&self) -> impl Iterator<Item = &HistoryPoint> {
        self.day.points.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{CallStatus, ClientLabel, IdOutcome, RateLimitSource, RequestOutcome};

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Counts two lookups, one call and one absorbed 429.
    fn traffic(metrics: &Metrics) {
        let service = metrics.service("producer");
        for outcome in [RequestOutcome::Hit, RequestOutcome::Miss] {
            metrics.count_request(ClientLabel::OTHER, service, RequestAction::Retrieve, outcome, MILLISECOND);
            metrics.count_lookup(1, 50, None);
        }
        metrics.ids.inc(IdOutcome::Hit);
        metrics.ids.inc(IdOutcome::Fetched);
        metrics.count_call(service, CallStatus::S429, 1, 100 * MILLISECOND);
        metrics.rate_limited_absorbed.inc();
        metrics.rate_limited_passed_on.inc(RateLimitSource::Refrain);
        metrics.rate_limited_passed_on.inc(RateLimitSource::PassedThrough);
    }

    #[test]
    fn step_counts_what_happened_within_it() {
        let metrics = Metrics::new(["producer"]);
        let mut gauges = Gauges::default();
        let mut history = History::new(CounterSnapshot::of(&metrics, &gauges));
        traffic(&metrics);
        gauges.queues.queued = 3;
        history.end_step(10, CounterSnapshot::of(&metrics, &gauges));
        gauges.queues.queued = 0;
        gauges.store.tasks = 7;
        history.end_step(20, CounterSnapshot::of(&metrics, &gauges));
        let points: Vec<&HistoryPoint> = history.hour().collect();
        let first = points[0];
        assert_eq!((first.at, first.counts.lookups, first.counts.ids, first.counts.ids_hit), (10, 2, 2, 1));
        assert_eq!(
            (first.counts.calls, first.counts.calls_saved, first.queued, first.store_tasks),
            (1, 1, 3, 0)
        );
        let limited = (
            first.counts.upstream_rate_limited,
            first.counts.rate_limited_absorbed,
            first.counts.rate_limited_passed_on,
        );
        assert_eq!(limited, (1, 1, 1), "requests that passed through are not lookups");
        assert!(first.upstream_p50.is_some_and(|p50| p50 > 0.05 && p50 <= 0.1));
        let second = points[1];
        assert_eq!(
            (second.at, second.counts.lookups, second.counts.calls, second.counts.calls_saved),
            (20, 0, 0, 0)
        );
        assert_eq!((second.upstream_p50, second.upstream_p99, second.store_tasks), (None, None, 7));
    }

    #[test]
    fn history_keeps_one_hour_and_one_day() {
        let metrics = Metrics::new(["producer"]);
        let gauges = Gauges::default();
        let mut history = History::new(CounterSnapshot::of(&metrics, &gauges));
        assert_eq!((history.hour().count(), history.day().count()), (0, 0));
        let steps = 10_000;
        for step in 1..=steps {
            traffic(&metrics);
            history.end_step(step * 10, CounterSnapshot::of(&metrics, &gauges));
        }
        let hour: Vec<i64> = history.hour().map(|point| point.at).collect();
        assert_eq!((hour.len(), hour[0], hour[359]), (360, (steps - 359) * 10, steps * 10));
        let day: Vec<(i64, u64)> = history.day().map(|point| (point.at, point.counts.lookups)).collect();
        assert_eq!(day.len(), 288);
        assert!(day.iter().all(|(at, lookups)| at % 300 == 0 && *lookups == 60), "{day:?}");
        assert!(day.windows(2).all(|pair| pair[1].0 - pair[0].0 == 300));
    }

    #[test]
    fn step_lengths_fit_together() {
        assert_eq!(History::STEP * 30, History::LONG_STEP);
        assert_eq!(History::STEP * 360, Duration::from_secs(3600));
        assert_eq!(History::LONG_STEP * 288, Duration::from_secs(24 * 3600));
    }
}
