//! The last hour and day, for charts: two rings of steps in memory, bounded, empty after a start.
//!
//! Pure: whoever owns it says when a step ends and what the counters are then. `app` does, every [`History::STEP`].

use std::collections::VecDeque;
use std::time::Duration;

use super::gauges::Gauges;
use super::histogram::HistogramCounts;
use super::labels::{IdOutcome, RequestAction};
use super::metrics::Metrics;

/// Counters and the present at the end of a step.
#[derive(Clone, Debug)]
pub struct Snapshot {
    counters: [u64; COUNTERS],
    call_seconds: HistogramCounts,
    queued: u64,
    snapshots: u64,
    store_tasks: u64,
}

const COUNTERS: usize = 8;

impl Snapshot {
    /// Reads the counters.
    pub fn of(metrics: &Metrics, present: &Gauges) -> Self {
        let lookups = [RequestAction::Retrieve, RequestAction::RetrieveBatch];
        Self {
            counters: [
                lookups.iter().map(|action| metrics.requests_by_action(*action)).sum(),
                metrics.ids.total(),
                metrics.ids.get(IdOutcome::Hit),
                metrics.calls_made(),
                metrics.calls_saved(),
                metrics.upstream_rate_limited(),
                metrics.rate_limited_absorbed(),
                metrics.lookups_rate_limited(),
            ],
            call_seconds: metrics.all_call_seconds(),
            queued: present.queues.queued as u64,
            snapshots: present.queues.snapshots as u64,
            store_tasks: present.store.tasks,
        }
    }
}

/// One step: counts of what came in it, and what was so at its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its end, in seconds since the Unix epoch.
    pub at: i64,
    /// Look-ups, however they ended.
    pub lookups: u64,
    /// Ids that they asked for.
    pub ids: u64,
    /// Those of them that came from the store.
    pub ids_hit: u64,
    /// Look-up calls made.
    pub calls: u64,
    /// Calls saved.
    pub calls_saved: u64,
    /// 429s of the upstream to look-up calls.
    pub upstream_rate_limited: u64,
    /// Those of them that no client saw.
    pub rate_limited_absorbed: u64,
    /// 429s that clients got for their look-ups.
    pub rate_limited_passed_on: u64,
    /// Median of the calls' duration, in seconds.
    pub upstream_p50: Option<f64>,
    /// 99th percentile of the calls' duration, in seconds.
    pub upstream_p99: Option<f64>,
    /// Ids that waited for their turn at its end.
    pub queued: u64,
    /// Pending answers in memory at its end.
    pub snapshots: u64,
    /// Tasks in the store at its end.
    pub store_tasks: u64,
}

impl Point {
    fn between(earlier: &Snapshot, at: i64, now: &Snapshot) -> Self {
        let mut counts = [0; COUNTERS];
        for (count, (now, then)) in counts.iter_mut().zip(now.counters.iter().zip(&earlier.counters)) {
            *count = now.saturating_sub(*then);
        }
        let [lookups, ids, ids_hit, calls, calls_saved, met, absorbed, passed_on] = counts;
        let call_seconds = now.call_seconds.since(&earlier.call_seconds);
        Self {
            at,
            lookups,
            ids,
            ids_hit,
            calls,
            calls_saved,
            upstream_rate_limited: met,
            rate_limited_absorbed: absorbed,
            rate_limited_passed_on: passed_on,
            upstream_p50: call_seconds.quantile(0.5),
            upstream_p99: call_seconds.quantile(0.99),
            queued: now.queued,
            snapshots: now.snapshots,
            store_tasks: now.store_tasks,
        }
    }
}

#[derive(Debug)]
struct Ring {
    capacity: usize,
    points: VecDeque<Point>,
    /// As of the end of the last step.
    last: Snapshot,
}

impl Ring {
    fn new(capacity: usize, start: Snapshot) -> Self {
        Self { capacity, points: VecDeque::with_capacity(capacity), last: start }
    }

    fn end_step(&mut self, at: i64, now: Snapshot) {
        if self.points.len() == self.capacity {
            self.points.pop_front();
        }
        self.points.push_back(Point::between(&self.last, at, &now));
        self.last = now;
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct History {
    hour: Ring,
    day: Ring,
    /// Steps since the last long step ended.
    steps: usize,
}

impl History {
    /// The length of a step of the last hour.
    pub const STEP: Duration = Duration::from_secs(10);

    /// The length of a step of the last day.
    pub const LONG_STEP: Duration = Duration::from_secs(300);

    const HOUR_STEPS: usize = 360;
    const DAY_STEPS: usize = 288;
    const STEPS_OF_A_LONG_ONE: usize = 30;

    /// Empty; `start` is what the first step is counted from.
    pub fn new(start: Snapshot) -> Self {
        Self {
            hour: Ring::new(Self::HOUR_STEPS, start.clone()),
            day: Ring::new(Self::DAY_STEPS, start),
            steps: 0,
        }
    }

    /// A step ended at `at`, in seconds since the Unix epoch.
    pub fn end_step(&mut self, at: i64, now: Snapshot) {
        self.steps += 1;
        if self.steps == Self::STEPS_OF_A_LONG_ONE {
            self.steps = 0;
            self.day.end_step(at, now.clone());
        }
        self.hour.end_step(at, now);
    }

    /// The last hour, oldest first.
    pub fn hour(&self) -> impl Iterator<Item = &Point> {
        self.hour.points.iter()
    }

    /// The last day, oldest first.
    pub fn day(&self) -> impl Iterator<Item = &Point> {
        self.day.points.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{CallStatus, IdOutcome, RateLimitSource, RequestOutcome};

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// A second of traffic: two look-ups, one call, one 429 absorbed.
    fn traffic(metrics: &Metrics) {
        let service = metrics.service("producer");
        for outcome in [RequestOutcome::Hit, RequestOutcome::Miss] {
            metrics.count_request(service, RequestAction::Retrieve, outcome, MILLISECOND);
            metrics.count_lookup(1, 50, None);
        }
        metrics.ids.count(IdOutcome::Hit);
        metrics.ids.count(IdOutcome::Fetched);
        metrics.count_call(service, CallStatus::S429, 1, 100 * MILLISECOND);
        metrics.count_rate_limited_absorbed();
        metrics.rate_limited_passed_on.count(RateLimitSource::Refrain);
        metrics.rate_limited_passed_on.count(RateLimitSource::PassedThrough);
    }

    #[test]
    fn a_step_holds_what_came_in_it_alone() {
        let metrics = Metrics::new(["producer"]);
        let mut present = Gauges::default();
        let mut history = History::new(Snapshot::of(&metrics, &present));
        traffic(&metrics);
        present.queues.queued = 3;
        history.end_step(10, Snapshot::of(&metrics, &present));
        present.queues.queued = 0;
        present.store.tasks = 7;
        history.end_step(20, Snapshot::of(&metrics, &present));
        let points: Vec<&Point> = history.hour().collect();
        let first = points[0];
        assert_eq!((first.at, first.lookups, first.ids, first.ids_hit), (10, 2, 2, 1));
        assert_eq!((first.calls, first.calls_saved, first.queued, first.store_tasks), (1, 1, 3, 0));
        let limited =
            (first.upstream_rate_limited, first.rate_limited_absorbed, first.rate_limited_passed_on);
        assert_eq!(limited, (1, 1, 1), "what passed through is no look-up's");
        assert!(first.upstream_p50.is_some_and(|p50| p50 > 0.05 && p50 <= 0.1));
        let second = points[1];
        assert_eq!((second.at, second.lookups, second.calls, second.calls_saved), (20, 0, 0, 0));
        assert_eq!((second.upstream_p50, second.upstream_p99, second.store_tasks), (None, None, 7));
    }

    #[test]
    fn an_hour_and_a_day_are_kept_and_no_more() {
        let metrics = Metrics::new(["producer"]);
        let present = Gauges::default();
        let mut history = History::new(Snapshot::of(&metrics, &present));
        assert_eq!((history.hour().count(), history.day().count()), (0, 0));
        let steps = 10_000;
        for step in 1..=steps {
            traffic(&metrics);
            history.end_step(step * 10, Snapshot::of(&metrics, &present));
        }
        let hour: Vec<i64> = history.hour().map(|point| point.at).collect();
        assert_eq!((hour.len(), hour[0], hour[359]), (360, (steps - 359) * 10, steps * 10));
        let day: Vec<(i64, u64)> = history.day().map(|point| (point.at, point.lookups)).collect();
        assert_eq!(day.len(), 288);
        assert!(day.iter().all(|(at, lookups)| at % 300 == 0 && *lookups == 60), "{day:?}");
        assert!(day.windows(2).all(|pair| pair[1].0 - pair[0].0 == 300));
    }

    #[test]
    fn the_lengths_fit_together() {
        assert_eq!(History::STEP * 30, History::LONG_STEP);
        assert_eq!(History::STEP * 360, Duration::from_secs(3600));
        assert_eq!(History::LONG_STEP * 288, Duration::from_secs(24 * 3600));
    }
}
