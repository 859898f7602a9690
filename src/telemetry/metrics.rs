//! Counters and histograms: one struct that all modules share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;

use super::family::{CounterVec, FixedFamily, Listed};
use super::histogram::{
    CALL_DURATION, CALL_IDS, COMMIT_DURATION, Histogram, HistogramCounts, REQUEST_DURATION,
};
use super::labels::{
    CallStatus, ClientLabel, EvictionReason, IdOutcome, Label, PassthroughStatus, RateLimitSource,
    RequestAction, RequestOutcome, ServiceLabel, StoreErrorKind, StoreLookupResult,
};
use super::recent_requests::RecentRequests;
use super::registration::{metrics, registered_as_clone};
use super::uninterpreted::UninterpretedServices;

/// Polling interval of a client without `prefer: wait`: that of the vendor's SDK.
const POLL_INTERVAL: Duration = Duration::from_secs(3);

/// Label of every service whose lookups are not interpreted.
const OTHER: &str = "other";

/// Labels of `refrain_client_requests_total`.
#[derive(Debug, EncodeLabelSet)]
struct ClientLabels {
    client: String,
}

/// Labels of `refrain_requests_total`.
#[derive(Debug, EncodeLabelSet)]
pub struct RequestLabels {
    service: String,
    /// Type of the request.
    pub action: RequestAction,
    /// Result of the request.
    pub outcome: RequestOutcome,
}

/// Labels of `refrain_upstream_calls_total`.
#[derive(Debug, EncodeLabelSet)]
pub struct CallLabels {
    service: String,
    /// Result of the call.
    pub status: CallStatus,
}

/// Label of `refrain_upstream_call_duration_seconds`.
#[derive(Debug, EncodeLabelSet)]
struct CallDurationLabels {
    service: String,
}

metrics! {
    /// Everything that refrain counts.
    ///
    /// Counting takes no lock and allocates nothing: every series is an array element or a field,
    /// and an increment is one relaxed addition.
    #[derive(Debug)]
    pub struct Metrics {
        /// Names of the services, in the order of the indexes in [`ServiceLabel`]; `other` is the
        /// last.
        services: Box<[String]>,
        /// Whether there was a request for each of `services`.
        in_use: Box<[Arc<AtomicBool>]>,
        /// Services that clients poll, but whose lookups are passed through.
        pub uninterpreted: UninterpretedServices,
        /// The last requests on the client port.
        pub recent_requests: RecentRequests,
        /// Requests on the client port that have ended
        #[metric("requests")]
        pub requests: FixedFamily<RequestLabels, Counter>,
        /// Requests on the client port that have ended, by configured name of the client or token
        #[metric("client_requests")]
        client_requests: FixedFamily<ClientLabels, Counter>,
        /// Time from the head of a request to the head of its response, without requests whose
        /// client disconnected
        #[metric("request_duration", Seconds)]
        request_duration: FixedFamily<RequestOutcome, Histogram>,
        /// Task ids in lookups, by outcome
        #[metric("ids")]
        pub ids: CounterVec<IdOutcome>,
        /// Responses to requests that were passed through, by class of status; failed for an error
        /// of refrain itself
        #[metric("passed_through")]
        pub passed_through: CounterVec<PassthroughStatus>,
        /// Lookup calls sent to the upstream, by status or type of failure
        #[metric("upstream_calls")]
        pub upstream_calls: FixedFamily<CallLabels, Counter>,
        /// Duration of lookup calls, up to the end of the response or the failure
        #[metric("upstream_call_duration", Seconds)]
        upstream_call_duration: FixedFamily<CallDurationLabels, Histogram>,
        /// Ids in one lookup call, a measure of how well lookups are batched
        #[metric("upstream_call_ids")]
        upstream_call_ids: Histogram,
        /// Lookup calls that the same clients would have sent without refrain
        #[metric("upstream_calls_baseline")]
        upstream_calls_baseline: Counter,
        /// Lookup calls that clients would have sent without refrain, minus those that refrain sent
        #[metric("upstream_calls_saved")]
        pub upstream_calls_saved: CallsSaved,
        /// Responses with status 429 to lookup calls
        #[metric("upstream_rate_limited")]
        pub upstream_rate_limited: Counter,
        /// Responses with status 429 to lookup calls that no client received
        #[metric("rate_limited_absorbed")]
        pub rate_limited_absorbed: Counter,
        /// Responses with status 429 that clients received, by source
        #[metric("rate_limited_passed_on")]
        pub rate_limited_passed_on: CounterVec<RateLimitSource>,
        /// Rechecks of a token that got no usable response; the stored tasks of the token are still
        /// served
        #[metric("rechecks_failed")]
        pub rechecks_failed: Counter,
        /// Ids looked up in the store, by result
        #[metric("store_lookups")]
        pub store_lookups: CounterVec<StoreLookupResult>,
        /// Duration of store transactions, from the wait for the lock to the end of the commit
        #[metric("store_commit_duration", Seconds)]
        pub store_commit_duration: Histogram,
        /// Tasks stored, once for each token that received them
        #[metric("store_tasks_stored")]
        pub store_tasks_stored: Counter,
        /// Tasks deleted through the client port and the JSON API
        #[metric("store_tasks_deleted")]
        pub store_tasks_deleted: Counter,
        /// Tasks removed because of `store.max_bytes` or `store.max_age`
        #[metric("store_tasks_evicted")]
        pub store_tasks_evicted: CounterVec<EvictionReason>,
        /// Failures of the task store
        #[metric("store_errors")]
        pub store_errors: CounterVec<StoreErrorKind>,
        /// Panics that were caught
        #[metric("panics")]
        pub panics: Counter,
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new([])
    }
}

impl Metrics {
    /// Creates the metrics, all at zero. `services` are those whose lookups are interpreted.
    pub fn new<'a>(services: impl IntoIterator<Item = &'a str>) -> Self {
        // A set removes duplicate names.
        let named: BTreeSet<&str> = services.into_iter().filter(|name| *name != OTHER).collect();
        let services: Box<[String]> = named.into_iter().chain([OTHER]).map(String::from).collect();
        let mut request_labels = Vec::new();
        let mut call_labels = Vec::new();
        for service in &services {
            for action in RequestAction::ALL {
                for outcome in RequestOutcome::ALL {
                    let (service, action, outcome) = (service.clone(), *action, *outcome);
                    request_labels.push(RequestLabels { service, action, outcome });
                }
            }
            for status in CallStatus::ALL {
                call_labels.push(CallLabels { service: service.clone(), status: *status });
            }
        }
        let call_duration_labels =
            services.iter().map(|service| CallDurationLabels { service: service.clone() });
        // Most installations use a few of the many services. The series of a service are listed, with
        // 0 at first, once there was a request for it.
        let in_use: Box<[Arc<AtomicBool>]> = services.iter().map(|_| Arc::default()).collect();
        in_use[services.len() - 1].store(true, Ordering::Relaxed);
        let with_service = |service: &str| {
            let index = services.iter().position(|known| known == service).expect("one of the services");
            Listed::WithFlag(Arc::clone(&in_use[index]))
        };
        let with_lookups =
            |service: &str| if service == OTHER { Listed::Counted } else { with_service(service) };
        let other = ClientLabels { client: OTHER.to_owned() };
        let calls = FixedFamily::new(call_labels, |labels| with_lookups(&labels.service), Counter::default);
        let baseline = Counter::default();
        Self {
            requests: FixedFamily::new(
                request_labels,
                |labels| match is_possible(labels.action, labels.outcome, labels.service != OTHER) {
                    true => with_service(&labels.service),
                    false => Listed::Counted,
                },
                Counter::default,
            ),
            client_requests: [(other, Counter::default())].into_iter().collect(),
            request_duration: FixedFamily::new(
                RequestOutcome::ALL.iter().copied(),
                |outcome| match outcome {
                    RequestOutcome::Aborted => Listed::Counted,
                    _ => Listed::Always,
                },
                || Histogram::new(REQUEST_DURATION),
            ),
            ids: CounterVec::default(),
            passed_through: CounterVec::default(),
            upstream_call_duration: FixedFamily::new(
                call_duration_labels,
                |labels| with_lookups(&labels.service),
                || Histogram::new(CALL_DURATION),
            ),
            upstream_call_ids: Histogram::new(CALL_IDS),
            upstream_calls_saved: CallsSaved {
                baseline: baseline.clone(),
                calls: calls.clone(),
                highest: Arc::default(),
            },
            upstream_calls: calls,
            upstream_calls_baseline: baseline,
            upstream_rate_limited: Counter::default(),
            rate_limited_absorbed: Counter::default(),
            rate_limited_passed_on: CounterVec::default(),
            rechecks_failed: Counter::default(),
            store_lookups: CounterVec::default(),
            store_commit_duration: Histogram::new(COMMIT_DURATION),
            store_tasks_stored: Counter::default(),
            store_tasks_deleted: Counter::default(),
            store_tasks_evicted: CounterVec::default(),
            store_errors: CounterVec::default(),
            panics: Counter::default(),
            services,
            in_use,
            uninterpreted: UninterpretedServices::default(),
            recent_requests: RecentRequests::default(),
        }
    }

    /// Counts the requests of these clients and tokens by name.
    #[must_use]
    pub fn with_clients<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let labels = |client: &str| (ClientLabels { client: client.to_owned() }, Counter::default());
        self.client_requests = [OTHER].into_iter().chain(names).map(labels).collect();
        self
    }

    /// Returns the label of a client or token by its configured name, which is `other` unless it has
    /// one.
    pub fn client(&self, name: &str) -> ClientLabel {
        let position = self.client_requests.iter().position(|(labels, _)| labels.client == name);
        position.map_or(ClientLabel::OTHER, ClientLabel)
    }

    /// Returns the name of a client or token; `None` if it has none.
    pub fn client_name(&self, label: ClientLabel) -> Option<&str> {
        (label != ClientLabel::OTHER).then(|| self.client_requests.labels(label.0).client.as_str())
    }

    /// Returns the label of a service, which is `other` unless its lookups are interpreted.
    pub fn service(&self, name: &str) -> ServiceLabel {
        let other = self.services.len() - 1;
        let index = self.services[..other].iter().position(|service| service == name);
        ServiceLabel(index.unwrap_or(other))
    }

    /// Whether lookups of the service are interpreted.
    pub fn has_lookups(&self, label: ServiceLabel) -> bool {
        label.0 + 1 < self.services.len()
    }

    /// Returns the value of a service's label.
    pub fn service_name(&self, label: ServiceLabel) -> &str {
        &self.services[label.0]
    }

    /// Counts a request that has ended, `took` after its head was read.
    pub fn count_request(
        &self,
        client: ClientLabel,
        service: ServiceLabel,
        action: RequestAction,
        outcome: RequestOutcome,
        took: Duration,
    ) {
        let in_use = &self.in_use[service.0];
        // Reads first: a store would take the cache line from the other threads.
        if !in_use.load(Ordering::Relaxed) {
            in_use.store(true, Ordering::Relaxed);
        }
        self.client_requests.at(client.0).inc();
        let row = service.0 * RequestAction::ALL.len() + action.index();
        self.requests.at(row * RequestOutcome::ALL.len() + outcome.index()).inc();
        // The time until a client disconnects is not a latency of the proxy.
        if outcome != RequestOutcome::Aborted {
            self.request_duration.at(outcome.index()).observe(took);
        }
    }

    /// Returns the durations of the requests with this outcome.
    pub fn request_duration(&self, outcome: RequestOutcome) -> HistogramCounts {
        self.request_duration.at(outcome.index()).counts()
    }

    /// Counts a lookup call for `ids` ids that has ended.
    pub fn count_call(&self, service: ServiceLabel, status: CallStatus, ids: usize, took: Duration) {
        self.upstream_calls.at(service.0 * CallStatus::ALL.len() + status.index()).inc();
        self.upstream_call_duration.at(service.0).observe(took);
        self.upstream_call_ids.observe_number(ids as u64);
        if status == CallStatus::S429 {
            self.upstream_rate_limited.inc();
        }
    }

    /// Returns the durations of all lookup calls.
    pub fn upstream_call_duration(&self) -> HistogramCounts {
        let mut sum = HistogramCounts::zero(CALL_DURATION);
        self.upstream_call_duration.iter().for_each(|(_, histogram)| sum.add(&histogram.counts()));
        sum
    }

    /// Counts the calls that a client would have sent without refrain for a lookup that got a
    /// response: from the store, from a call, or the upstream's own error.
    ///
    /// More ids than `max_batch` take several calls. If `prefer: wait` held the lookup for `held`,
    /// the client would have polled at once and then every `POLL_INTERVAL`.
    pub fn count_lookup(&self, ids: usize, max_batch: usize, held: Option<Duration>) {
        let polls = held.map_or(1, |held| held.as_secs() / POLL_INTERVAL.as_secs() + 1);
        let calls = ids.div_ceil(max_batch.max(1)).max(1) as u64;
        self.upstream_calls_baseline.inc_by(calls * polls);
    }

    /// Returns the number of 429 responses that clients received for lookups, from the upstream or
    /// from refrain.
    pub fn rate_limited_lookups(&self) -> u64 {
        let passed_on = &self.rate_limited_passed_on;
        passed_on.get(RateLimitSource::Refrain) + passed_on.get(RateLimitSource::Upstream)
    }
}

/// Whether requests of this action can end with this outcome, so that the series is listed before.
/// `has_lookups` is whether lookups of the service are interpreted.
fn is_possible(action: RequestAction, outcome: RequestOutcome, has_lookups: bool) -> bool {
    use RequestOutcome::{Aborted, Answered, Bypass, Failed, Hit, Miss, Partial, Pending, Refused};
    match (action, outcome) {
        (RequestAction::Other, Bypass | Refused | Answered | Failed | Aborted) => true,
        (RequestAction::Delete, Bypass | Failed | Aborted) => has_lookups,
        (RequestAction::Retrieve, Partial) => false,
        (
            RequestAction::Retrieve | RequestAction::RetrieveBatch,
            Hit | Pending | Partial | Miss | Refused | Failed | Aborted,
        ) => has_lookups,
        _ => false,
    }
}

/// The counter of calls saved: the baseline minus the calls that were sent.
///
/// Calls are counted before the lookups that wait for them, and a retried call counts each time, so
/// the difference can fall for a while. A counter must not fall, so the highest difference is
/// shown.
#[derive(Clone, Debug)]
pub struct CallsSaved {
    baseline: Counter,
    calls: FixedFamily<CallLabels, Counter>,
    highest: Arc<AtomicU64>,
}

impl CallsSaved {
    /// Returns the number of calls saved so far.
    pub fn get(&self) -> u64 {
        // The baseline is read first: a lookup that ends meanwhile counts in the next reading.
        let baseline = self.baseline.get();
        let saved = baseline.saturating_sub(self.calls.total());
        self.highest.fetch_max(saved, Ordering::Relaxed).max(saved)
    }
}

impl EncodeMetric for CallsSaved {
    fn encode(&self, mut encoder: MetricEncoder) -> std::fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.get(), None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

registered_as_clone!(CallsSaved);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlisted_services_are_other() {
        let metrics = Metrics::new(["producer", "suno"]);
        let names: Vec<&str> =
            ["producer", "suno", "luma"].map(|name| metrics.service_name(metrics.service(name))).into();
        assert_eq!(names, ["producer", "suno", "other"]);
        let repeated = Metrics::new(["producer", "other", "producer"]);
        assert_eq!(repeated.services.len(), 2);
        let all = Metrics::default();
        assert_eq!(all.service_name(all.service("producer")), "other");
    }

    #[test]
    fn clients_without_a_configured_name_are_other() {
        let metrics = Metrics::default().with_clients(["reports", "batch jobs"]);
        for (name, expected) in
            [("reports", Some("reports")), ("batch jobs", Some("batch jobs")), ("x", None)]
        {
            assert_eq!(metrics.client_name(metrics.client(name)), expected);
        }
        assert_eq!(metrics.client("x"), ClientLabel::OTHER);
        assert_eq!(Metrics::default().client("reports"), ClientLabel::OTHER);
    }

    #[test]
    fn each_kind_of_request_has_its_own_counter() {
        let metrics = Metrics::new(["producer"]);
        let mut number = 0;
        for service in (0..2).map(ServiceLabel) {
            for action in RequestAction::ALL {
                for outcome in RequestOutcome::ALL {
                    number += 1;
                    for _ in 0..number {
                        metrics.count_request(ClientLabel::OTHER, service, *action, *outcome, Duration::ZERO);
                    }
                    let count = metrics.requests.sum(|labels| {
                        let expected = (metrics.service_name(service), *action, *outcome);
                        (labels.service.as_str(), labels.action, labels.outcome) == expected
                    });
                    assert_eq!(count, number);
                }
            }
        }
        assert_eq!(metrics.requests.total(), (1..=number).sum::<u64>());
        assert_eq!(metrics.request_duration(RequestOutcome::Aborted).count(), 0);
    }

    #[test]
    fn baseline_counts_the_calls_that_clients_would_have_sent() {
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
            assert_eq!(metrics.upstream_calls_baseline.get(), expected, "{ids} ids held {held:?}");
        }
    }

    #[test]
    fn calls_saved_never_fall() {
        let metrics = Metrics::new(["producer"]);
        let service = metrics.service("producer");
        let saved = || metrics.upstream_calls_saved.get();
        let call = |status| metrics.count_call(service, status, 1, Duration::from_millis(1));
        call(CallStatus::S200);
        assert_eq!(saved(), 0, "the call ended, its lookup has not");
        (0..10).for_each(|_| metrics.count_lookup(1, 50, None));
        assert_eq!(saved(), 9);
        (0..4).for_each(|_| call(CallStatus::S500));
        assert_eq!(saved(), 9);
        (0..4).for_each(|_| metrics.count_lookup(1, 50, None));
        assert_eq!(saved(), 9, "these make up for the failed calls");
        metrics.count_lookup(1, 50, None);
        assert_eq!(saved(), 10);
    }
}
