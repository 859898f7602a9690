//! What refrain counts: one struct, handed to every room. [`expose`](super::expose) shows it.
//!
//! On the way of a request nothing is looked up by name: labels are places in arrays that are made once, a count is a relaxed
//! addition. What is so at present (lanes, store, memory) is not counted here but read when somebody looks.
//!
//! # Calls saved
//!
//! What the same clients would have sent without refrain, less the look-up calls that refrain made:
//!
//! - each look-up that was answered, by the store, by a call or by the upstream's own error, is a call its client would
//!   have sent;
//! - a batch of more ids than `upstream.max_batch` would have been as many calls as it takes;
//! - one held by `prefer: wait` would have been a poll at once and one every [`POLL_INTERVAL`] until its answer;
//! - what refrain refused or could not answer, and whoever hung up, counts for nothing.
//!
//! Calls for look-ups that are still waiting are made before these count, and a call that is tried again counts each
//! time, so the difference may fall for a while. A counter never does: it shows the most that was saved so far.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::histogram::{
    CALL_BOUNDS, COMMIT_BOUNDS, Histogram, HistogramCounts, IDS_BOUNDS, PER_SECOND, REQUEST_BOUNDS,
};
use super::labels::{
    CallStatus, EvictionReason, IdOutcome, Label, PassthroughStatus, RateLimitSource, RequestAction,
    RequestOutcome, StoreErrorKind, StoreLookupResult,
};

/// How often a client without `prefer: wait` asks: the vendor's SDK polls every 3 s.
const POLL_INTERVAL: Duration = Duration::from_secs(3);

/// The label of every service that is not listed.
const OTHER: &str = "other";

/// One counter for each word of a closed set.
#[derive(Debug)]
pub struct CounterVec<L> {
    counts: Box<[AtomicU64]>,
    labels: PhantomData<L>,
}

impl<L: Label> Default for CounterVec<L> {
    fn default() -> Self {
        Self { counts: L::ALL.iter().map(|_| AtomicU64::new(0)).collect(), labels: PhantomData }
    }
}

impl<L: Label> CounterVec<L> {
    /// Counts one.
    pub fn count(&self, label: L) {
        self.add(label, 1);
    }

    /// Counts so many.
    pub fn add(&self, label: L, number: u64) {
        self.counts[label.index()].fetch_add(number, Ordering::Relaxed);
    }

    /// The count of one word.
    pub fn get(&self, label: L) -> u64 {
        self.counts[label.index()].load(Ordering::Relaxed)
    }

    /// The count of each word.
    pub fn all(&self) -> impl Iterator<Item = (L, u64)> {
        L::ALL.iter().map(|label| (*label, self.get(*label)))
    }

    /// The count of all words together.
    pub fn total(&self) -> u64 {
        self.all().map(|(_, count)| count).sum()
    }
}

/// A service as a label: one of `tasks.services`, else `other`. Made by [`Metrics::service`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceLabel(usize);

/// Everything refrain counts.
#[derive(Debug)]
pub struct Metrics {
    /// `tasks.services` by name, and `other` as the last.
    services: Box<[Box<str>]>,
    /// By service, action and outcome, in this order.
    requests: Box<[AtomicU64]>,
    /// From the arrival of a request's head to the head of its answer, by outcome.
    request_seconds: Box<[Histogram]>,
    /// What became of the ids that look-ups asked for.
    pub ids: CounterVec<IdOutcome>,
    /// By service.
    calls: Box<[CounterVec<CallStatus>]>,
    /// By service.
    call_seconds: Box<[Histogram]>,
    call_ids: Histogram,
    calls_baseline: AtomicU64,
    calls_saved: AtomicU64,
    /// 429s of the upstream after which refrain tried again.
    absorbed: AtomicU64,
    /// 429s that clients saw.
    pub rate_limited_passed_on: CounterVec<RateLimitSource>,
    /// Answers to what passed through.
    pub passed_through: CounterVec<PassthroughStatus>,
    /// Failures of the task store.
    pub store_errors: CounterVec<StoreErrorKind>,
    /// Where the store found what it was asked for.
    pub store_lookups: CounterVec<StoreLookupResult>,
    /// Transactions, from the wait for the lock to the end of the commit.
    pub commit_seconds: Histogram,
    /// Tasks that commits stored for a reader.
    pub tasks_stored: Counter,
    /// Rows that were forgotten on a client's or an operator's word.
    pub tasks_deleted: Counter,
    /// Rows that the sweep removed.
    pub tasks_evicted: CounterVec<EvictionReason>,
    /// Hits served although the upstream could not be asked whether the token still holds.
    pub rechecks_failed: Counter,
    /// Panics that were caught.
    pub panics: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new([])
    }
}

impl Metrics {
    /// Nothing counted yet. `services` are those of `tasks.services`, none where it is `["*"]`.
    pub fn new<'a>(services: impl IntoIterator<Item = &'a str>) -> Self {
        // Each once: a series must not stand there twice. One that is called `other` shares the place of the rest.
        let named: BTreeSet<&str> = services.into_iter().filter(|name| *name != OTHER).collect();
        let services: Box<[Box<str>]> = named.into_iter().chain([OTHER]).map(Box::from).collect();
        let cells = services.len() * RequestAction::ALL.len() * RequestOutcome::ALL.len();
        Self {
            requests: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            request_seconds: RequestOutcome::ALL
                .iter()
                .map(|_| Histogram::new(REQUEST_BOUNDS, PER_SECOND))
                .collect(),
            ids: CounterVec::default(),
            calls: services.iter().map(|_| CounterVec::default()).collect(),
            call_seconds: services.iter().map(|_| Histogram::new(CALL_BOUNDS, PER_SECOND)).collect(),
            call_ids: Histogram::new(IDS_BOUNDS, 1.0),
            calls_baseline: AtomicU64::new(0),
            calls_saved: AtomicU64::new(0),
            absorbed: AtomicU64::new(0),
            rate_limited_passed_on: CounterVec::default(),
            passed_through: CounterVec::default(),
            store_errors: CounterVec::default(),
            store_lookups: CounterVec::default(),
            commit_seconds: Histogram::new(COMMIT_BOUNDS, PER_SECOND),
            tasks_stored: Counter::default(),
            tasks_deleted: Counter::default(),
            tasks_evicted: CounterVec::default(),
            rechecks_failed: Counter::default(),
            panics: Counter::default(),
            services,
        }
    }

    /// A service's label; `other` unless it is one of `tasks.services`.
    pub fn service(&self, name: &str) -> ServiceLabel {
        let other = self.services.len() - 1;
        let place = self.services[..other].iter().position(|service| **service == *name);
        ServiceLabel(place.unwrap_or(other))
    }

    /// The word of a service's label.
    pub fn service_name(&self, label: ServiceLabel) -> &str {
        &self.services[label.0]
    }

    /// All services as labels, `other` as the last.
    pub(super) fn services(&self) -> impl Iterator<Item = ServiceLabel> {
        (0..self.services.len()).map(ServiceLabel)
    }

    /// Services that look-up calls are made for: `other` only where `tasks.services` names none.
    pub(super) fn called_services(&self) -> impl Iterator<Item = ServiceLabel> {
        (0..self.services.len().saturating_sub(1).max(1)).map(ServiceLabel)
    }

    /// A request ended, so long after its head came.
    pub fn count_request(
        &self,
        service: ServiceLabel,
        action: RequestAction,
        outcome: RequestOutcome,
        took: Duration,
    ) {
        self.requests[Self::cell(service, action, outcome)].fetch_add(1, Ordering::Relaxed);
        // Until somebody hung up is no latency of ours.
        if outcome != RequestOutcome::Aborted {
            self.request_seconds[outcome.index()].observe(took);
        }
    }

    fn cell(service: ServiceLabel, action: RequestAction, outcome: RequestOutcome) -> usize {
        (service.0 * RequestAction::ALL.len() + action.index()) * RequestOutcome::ALL.len() + outcome.index()
    }

    /// How many requests of this kind ended so.
    pub fn requests(&self, service: ServiceLabel, action: RequestAction, outcome: RequestOutcome) -> u64 {
        self.requests[Self::cell(service, action, outcome)].load(Ordering::Relaxed)
    }

    /// How many requests ended so, of all services and actions.
    pub fn requests_by_outcome(&self, outcome: RequestOutcome) -> u64 {
        let outcomes = RequestOutcome::ALL.len();
        let cells = self.requests.iter().skip(outcome.index()).step_by(outcomes);
        cells.map(|cell| cell.load(Ordering::Relaxed)).sum()
    }

    /// How many requests asked so, of all services and with all outcomes.
    pub fn requests_by_action(&self, action: RequestAction) -> u64 {
        let count =
            |service| RequestOutcome::ALL.iter().map(move |outcome| self.requests(service, action, *outcome));
        self.services().flat_map(count).sum()
    }

    /// How long requests with this outcome took.
    pub fn request_seconds(&self, outcome: RequestOutcome) -> HistogramCounts {
        self.request_seconds[outcome.index()].counts()
    }

    /// A look-up call came to its end: for so many ids, with this status or failure, after so long.
    pub fn count_call(&self, service: ServiceLabel, status: CallStatus, ids: usize, took: Duration) {
        self.calls[service.0].count(status);
        self.call_seconds[service.0].observe(took);
        self.call_ids.observe_number(ids as u64);
    }

    /// Look-up calls of a service that came to this.
    pub fn calls(&self, service: ServiceLabel, status: CallStatus) -> u64 {
        self.calls[service.0].get(status)
    }

    /// Look-up calls of all services that came to this.
    pub fn calls_by_status(&self, status: CallStatus) -> u64 {
        self.calls.iter().map(|calls| calls.get(status)).sum()
    }

    /// All look-up calls.
    pub fn calls_made(&self) -> u64 {
        self.calls.iter().map(CounterVec::total).sum()
    }

    /// How long a service's look-up calls took.
    pub fn call_seconds(&self, service: ServiceLabel) -> HistogramCounts {
        self.call_seconds[service.0].counts()
    }

    /// How long the look-up calls of all services took.
    pub fn all_call_seconds(&self) -> HistogramCounts {
        let mut sum = Histogram::new(CALL_BOUNDS, PER_SECOND).counts();
        self.call_seconds.iter().for_each(|histogram| sum.add(&histogram.counts()));
        sum
    }

    /// How many ids look-up calls asked for.
    pub fn call_ids(&self) -> HistogramCounts {
        self.call_ids.counts()
    }

    /// A look-up for so many ids, held so long by `prefer: wait` if it was, was answered; see the head of this file.
    pub fn count_lookup(&self, ids: usize, max_batch: usize, held: Option<Duration>) {
        let polls = held.map_or(1, |held| held.as_secs() / POLL_INTERVAL.as_secs() + 1);
        let calls = ids.div_ceil(max_batch.max(1)).max(1) as u64;
        self.calls_baseline.fetch_add(calls * polls, Ordering::Relaxed);
    }

    /// Calls that the same clients would have sent without refrain.
    pub fn calls_baseline(&self) -> u64 {
        self.calls_baseline.load(Ordering::Relaxed)
    }

    /// Calls saved so far; never falls.
    pub fn calls_saved(&self) -> u64 {
        // In this order: a look-up that is answered in between shows in the next reading.
        let without = self.calls_baseline();
        let saved = without.saturating_sub(self.calls_made());
        self.calls_saved.fetch_max(saved, Ordering::Relaxed).max(saved)
    }

    /// The upstream answered a look-up call with 429 and no client sees it.
    pub fn count_rate_limited_absorbed(&self) {
        self.absorbed.fetch_add(1, Ordering::Relaxed);
    }

    /// 429s of the upstream to look-up calls.
    pub fn upstream_rate_limited(&self) -> u64 {
        self.calls_by_status(CallStatus::S429)
    }

    /// Those of them that no client saw.
    pub fn rate_limited_absorbed(&self) -> u64 {
        self.absorbed.load(Ordering::Relaxed)
    }

    /// 429s that clients got for their look-ups, from the upstream or from refrain.
    pub fn lookups_rate_limited(&self) -> u64 {
        self.rate_limited_passed_on.get(RateLimitSource::Refrain)
            + self.rate_limited_passed_on.get(RateLimitSource::Upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlisted_services_are_other() {
        let metrics = Metrics::new(["producer", "suno"]);
        let names: Vec<&str> =
            ["producer", "suno", "luma"].map(|name| metrics.service_name(metrics.service(name))).into();
        assert_eq!(names, ["producer", "suno", "other"]);
        assert_eq!(metrics.called_services().count(), 2);
        let repeated = Metrics::new(["producer", "other", "producer"]);
        assert_eq!(repeated.services().count(), 2);
        let all = Metrics::default();
        assert_eq!(all.service_name(all.service("producer")), "other");
        assert_eq!(all.called_services().count(), 1);
    }

    #[test]
    fn requests_are_counted_each_in_its_own_place() {
        let metrics = Metrics::new(["producer"]);
        let mut number = 0;
        for service in metrics.services() {
            for action in RequestAction::ALL {
                for outcome in RequestOutcome::ALL {
                    number += 1;
                    for _ in 0..number {
                        metrics.count_request(service, *action, *outcome, Duration::ZERO);
                    }
                    assert_eq!(metrics.requests(service, *action, *outcome), number);
                }
            }
        }
        let all: u64 = (1..=number).sum();
        let by_outcome = RequestOutcome::ALL.iter().map(|outcome| metrics.requests_by_outcome(*outcome));
        let by_action = RequestAction::ALL.iter().map(|action| metrics.requests_by_action(*action));
        assert_eq!((by_outcome.sum::<u64>(), by_action.sum::<u64>()), (all, all));
        assert_eq!(metrics.request_seconds(RequestOutcome::Aborted).count(), 0);
    }

    #[test]
    fn every_look_up_answered_is_a_call_its_client_would_have_sent() {
        let metrics = Metrics::default();
        let mut expected = 0;
        for (ids, held, calls) in [
            (1, None, 1),
            (50, None, 1),
            (51, None, 2),
            (1000, None, 20),
            (1, Some(0.1), 1),
            (1, Some(2.9), 1),
            (1, Some(3.0), 2),
            (1, Some(60.0), 21),
            (100, Some(7.0), 6),
        ] {
            metrics.count_lookup(ids, 50, held.map(Duration::from_secs_f64));
            expected += calls;
            assert_eq!(metrics.calls_baseline(), expected, "{ids} ids held {held:?}");
        }
    }

    #[test]
    fn calls_saved_never_fall() {
        let metrics = Metrics::new(["producer"]);
        let service = metrics.service("producer");
        let call = |status| metrics.count_call(service, status, 1, Duration::from_millis(1));
        call(CallStatus::S200);
        assert_eq!(metrics.calls_saved(), 0, "the call was made, its look-up is not answered yet");
        (0..10).for_each(|_| metrics.count_lookup(1, 50, None));
        assert_eq!(metrics.calls_saved(), 9);
        (0..4).for_each(|_| call(CallStatus::S500));
        assert_eq!(metrics.calls_saved(), 9);
        (0..4).for_each(|_| metrics.count_lookup(1, 50, None));
        assert_eq!(metrics.calls_saved(), 9, "these make up for the calls tried in vain");
        metrics.count_lookup(1, 50, None);
        assert_eq!(metrics.calls_saved(), 10);
    }
}
