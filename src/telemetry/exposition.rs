//! The text of `/metrics`: every counter, the present and the process, as OpenMetrics or as Prometheus text 0.0.4.
//!
//! All series whose labels are known are there from the start with 0: an alert on growth misses a series that begins
//! with its first failure. `docs/metrics.md` has the table of all of this.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::format::{Format, as_prometheus_text};
use super::gauges::Gauges;
use super::histogram::HistogramCounts;
use super::labels::{CallStatus, Label, RequestAction, RequestOutcome};
use super::metrics::{CounterVec, Metrics};
use super::process::Process;

/// All metrics as text. `started_at` is in seconds since the Unix epoch.
///
/// # Errors
/// None in practice: writing to a string does not fail.
pub fn expose(
    format: Format,
    metrics: &Arc<Metrics>,
    present: Gauges,
    started_at: i64,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Reading { metrics: Arc::clone(metrics), present, started_at }));
    let mut page = String::with_capacity(32 << 10);
    text::encode(&mut page, &registry)?;
    Ok(match format {
        Format::OpenMetrics => page,
        Format::Prometheus => as_prometheus_text(&page),
    })
}

/// What one page shows.
#[derive(Debug)]
struct Reading {
    metrics: Arc<Metrics>,
    present: Gauges,
    started_at: i64,
}

impl Collector for Reading {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page(encoder);
        self.requests(&mut page)?;
        self.upstream(&mut page)?;
        self.queues(&mut page)?;
        self.store(&mut page)?;
        self.program(&mut page)?;
        process(&mut page)
    }
}

impl Reading {
    fn requests(&self, page: &mut Page) -> fmt::Result {
        let metrics = &self.metrics;
        let mut family = page.family(
            "refrain_requests",
            "Requests on the client port that ended",
            None,
            MetricType::Counter,
        )?;
        let other = metrics.services().last();
        for service in metrics.services() {
            for action in RequestAction::ALL {
                for outcome in RequestOutcome::ALL {
                    let count = metrics.requests(service, *action, *outcome);
                    // A service that is not listed has no look-ups, unless none is.
                    let is_listed = Some(service) != other || metrics.services().count() == 1;
                    if count > 0 || may_be(*action, *outcome, is_listed) {
                        let labels = [
                            ("service", metrics.service_name(service)),
                            ("action", action.as_str()),
                            ("outcome", outcome.as_str()),
                        ];
                        sample(&mut family, &labels, count)?;
                    }
                }
            }
        }
        let mut family = page.family(
            "refrain_request_duration",
            "From the head of a request to the head of its answer; those whose client hung up are left out",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for outcome in RequestOutcome::ALL.iter().filter(|outcome| **outcome != RequestOutcome::Aborted) {
            let counts = metrics.request_seconds(*outcome);
            histogram(family.encode_family(&[("outcome", outcome.as_str())])?, &counts)?;
        }
        page.tally(
            "refrain_ids",
            "Task ids that look-ups asked for, by what became of them",
            "outcome",
            &metrics.ids,
        )?;
        page.tally(
            "refrain_passed_through",
            "Answers to requests that passed through, by class of status; failed for an error of refrain's own",
            "status",
            &metrics.passed_through,
        )?;
        page.gauge(
            "refrain_connections",
            "Connections that clients hold open",
            None,
            &self.present.connections,
        )
    }

    fn upstream(&self, page: &mut Page) -> fmt::Result {
        let metrics = &self.metrics;
        let mut family = page.family(
            "refrain_upstream_calls",
            "Look-up calls sent upstream, by status or kind of failure",
            None,
            MetricType::Counter,
        )?;
        for service in metrics.called_services() {
            for status in CallStatus::ALL {
                let labels = [("service", metrics.service_name(service)), ("status", status.as_str())];
                sample(&mut family, &labels, metrics.calls(service, *status))?;
            }
        }
        let mut family = page.family(
            "refrain_upstream_call_duration",
            "How long look-up calls took, to the end of the answer or to the failure",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for service in metrics.called_services() {
            let labels = [("service", metrics.service_name(service))];
            histogram(family.encode_family(&labels)?, &metrics.call_seconds(service))?;
        }
        let help = "Ids in one look-up call: how well look-ups are folded";
        histogram(
            page.family("refrain_upstream_call_ids", help, None, MetricType::Histogram)?,
            &metrics.call_ids(),
        )?;
        page.counter(
            "refrain_upstream_calls_saved",
            "Look-up calls that clients would have sent without refrain, less those that it made",
            None,
            &metrics.calls_saved(),
        )?;
        page.counter(
            "refrain_upstream_calls_baseline",
            "Look-up calls that the same clients would have sent without refrain",
            None,
            &metrics.calls_baseline(),
        )?;
        page.counter(
            "refrain_upstream_rate_limited",
            "Look-up calls that the upstream answered with 429",
            None,
            &metrics.upstream_rate_limited(),
        )?;
        page.counter(
            "refrain_rate_limited_absorbed",
            "429s of the upstream to look-up calls that no client saw",
            None,
            &metrics.rate_limited_absorbed(),
        )?;
        page.tally(
            "refrain_rate_limited_passed_on",
            "429s that clients got, by who said so",
            "source",
            &metrics.rate_limited_passed_on,
        )?;
        page.counter(
            "refrain_rechecks_failed",
            "Rechecks of a token that brought no word of the upstream; its hits go on",
            None,
            &metrics.rechecks_failed.get(),
        )?;
        page.gauge(
            "refrain_upstream_down",
            "1 while the upstream is known to be down, from a failed call to the next answer",
            None,
            &u64::from(self.present.queues.is_upstream_down),
        )
    }

    fn queues(&self, page: &mut Page) -> fmt::Result {
        let queues = &self.present.queues;
        page.gauge("refrain_queues", "Batcher: a token's look-ups of one service", None, &queues.queues)?;
        page.gauge("refrain_queue_tokens", "Tokens whose rate is kept", None, &queues.tokens)?;
        let mut family = page.family(
            "refrain_queue_ids",
            "Ids in queues: queued for a call, or in a call in flight",
            None,
            MetricType::Gauge,
        )?;
        for (state, ids) in [("queued", queues.queued), ("in_flight", queues.in_flight)] {
            family.encode_family(&[("state", state)])?.encode_gauge(&ids)?;
        }
        page.gauge("refrain_queue_waiters", "Look-ups that wait for an answer", None, &queues.waiters)?;
        page.gauge("refrain_pending_cache_ids", "Pending answers in memory", None, &queues.snapshots)?;
        page.gauge(
            "refrain_pending_cache",
            "Size of the pending answers in memory",
            Some(&Unit::Bytes),
            &queues.snapshot_bytes,
        )?;
        page.gauge(
            "refrain_queue_oldest_wait",
            "How long the id that waits longest for its turn has waited",
            Some(&Unit::Seconds),
            &queues.oldest_queued.as_secs_f64(),
        )
    }

    fn store(&self, page: &mut Page) -> fmt::Result {
        let (metrics, store) = (&self.metrics, &self.present.store);
        let bytes = Some(&Unit::Bytes);
        page.gauge("refrain_store_tasks", "Texts of finished tasks on disk", None, &store.tasks)?;
        page.gauge("refrain_store_text", "Size of those texts", bytes, &store.bytes)?;
        page.gauge("refrain_store_max", "store.max_bytes; 0 for no limit", bytes, &store.max_bytes)?;
        let mut family =
            page.family("refrain_store_file", "Size of the store's files", bytes, MetricType::Gauge)?;
        for (file, size) in [("database", store.database_bytes), ("wal", store.wal_bytes)] {
            family.encode_family(&[("file", file)])?.encode_gauge(&size)?;
        }
        let help = "Transactions of the store, from the wait for the lock to the end of the commit";
        histogram(
            page.family("refrain_store_commit_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?,
            &metrics.commit_seconds.counts(),
        )?;
        page.counter(
            "refrain_store_tasks_stored",
            "Tasks stored, once for each token that was shown them",
            None,
            &metrics.tasks_stored.get(),
        )?;
        page.counter(
            "refrain_store_tasks_deleted",
            "Tasks removed on a client's or an operator's word",
            None,
            &metrics.tasks_deleted.get(),
        )?;
        page.tally(
            "refrain_store_tasks_evicted",
            "Tasks removed by store.max_bytes and store.max_age",
            "reason",
            &metrics.tasks_evicted,
        )?;
        page.tally("refrain_store_errors", "Failures of the task store", "kind", &metrics.store_errors)?;
        page.gauge("refrain_store_queued_jobs", "Jobs that wait for the writer", None, &store.queued_jobs)?;
        page.gauge("refrain_store_queued", "Size of the texts in them", bytes, &store.queued_bytes)?;
        page.tally(
            "refrain_store_lookups",
            "Ids asked of the store, by where they were found",
            "result",
            &metrics.store_lookups,
        )?;
        page.gauge("refrain_memory_tasks", "Tasks in the memory tier", None, &store.memory_tasks)?;
        page.gauge(
            "refrain_memory",
            "Size of the memory tier, with its overhead",
            bytes,
            &store.memory_bytes,
        )?;
        page.gauge("refrain_memory_max", "store.memory_bytes", bytes, &store.memory_max_bytes)
    }

    fn program(&self, page: &mut Page) -> fmt::Result {
        let is_ready = u64::from(self.present.status == "ready");
        page.gauge("refrain_ready", "1 while /readyz says ready", None, &is_ready)?;
        page.gauge(
            "refrain_start_time",
            "When refrain started, since the Unix epoch",
            Some(&Unit::Seconds),
            &self.started_at,
        )?;
        page.counter("refrain_panics", "Panics that were caught", None, &self.metrics.panics.get())?;
        page.family("refrain_build", "What runs", None, MetricType::Info)?.encode_info(&[
            ("version", env!("CARGO_PKG_VERSION")),
            ("os", std::env::consts::OS),
            ("arch", std::env::consts::ARCH),
        ])
    }
}

fn process(page: &mut Page) -> fmt::Result {
    let process = Process::read();
    if let Some(seconds) = process.cpu_seconds {
        page.counter("process_cpu", "User and system time", Some(&Unit::Seconds), &seconds)?;
    }
    let (bytes, seconds) = (Some(&Unit::Bytes), Some(&Unit::Seconds));
    if let Some(size) = process.resident_bytes {
        page.gauge("process_resident_memory", "Memory in use", bytes, &size)?;
    }
    if let Some(size) = process.virtual_bytes {
        page.gauge("process_virtual_memory", "Address space", bytes, &size)?;
    }
    if let Some(at) = process.start_seconds {
        page.gauge("process_start_time", "Start of the process since the Unix epoch", seconds, &at)?;
    }
    for (name, help, number) in [
        ("process_open_fds", "Open file descriptors", process.open_fds),
        ("process_max_fds", "Most file descriptors that may be open", process.max_fds),
        ("process_threads", "Threads", process.threads),
    ] {
        if let Some(number) = number {
            page.gauge(name, help, None, &number)?;
        }
    }
    Ok(())
}

/// Whether a request can end so, and its series is there from the start.
fn may_be(action: RequestAction, outcome: RequestOutcome, is_listed: bool) -> bool {
    use RequestOutcome::{Aborted, Bypass, Failed, Hit, Miss, Partial, Pending, Refused};
    match (action, outcome) {
        (RequestAction::Other, Bypass | Refused | Failed | Aborted) => true,
        (RequestAction::Delete, Bypass | Failed | Aborted) => is_listed,
        (RequestAction::Retrieve, Partial) => false,
        (
            RequestAction::Retrieve | RequestAction::RetrieveBatch,
            Hit | Pending | Partial | Miss | Refused | Failed | Aborted,
        ) => is_listed,
        _ => false,
    }
}

/// The page under way.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// Begins a family. `name` goes without the suffix of its unit or type.
    fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, unit, kind)
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: &impl EncodeCounterValue,
    ) -> fmt::Result {
        self.family(name, help, unit, MetricType::Counter)?.encode_counter::<NoLabelSet, _, u64>(value, None)
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: &impl EncodeGaugeValue,
    ) -> fmt::Result {
        self.family(name, help, unit, MetricType::Gauge)?.encode_gauge(value)
    }

    fn tally<L: Label>(&mut self, name: &str, help: &str, label: &str, tally: &CounterVec<L>) -> fmt::Result {
        let mut family = self.family(name, help, None, MetricType::Counter)?;
        for (word, count) in tally.all() {
            sample(&mut family, &[(label, word.as_str())], count)?;
        }
        Ok(())
    }
}

fn sample(family: &mut MetricEncoder, labels: &impl EncodeLabelSet, count: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)
}

fn histogram(mut encoder: MetricEncoder, counts: &HistogramCounts) -> fmt::Result {
    encoder.encode_histogram::<NoLabelSet>(counts.sum(), counts.count(), &counts.buckets(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_have_the_same_samples() {
        let metrics = Arc::new(Metrics::new(["producer"]));
        metrics.panics.inc_by(3);
        let present = Gauges { status: "ready", ..Gauges::default() };
        let samples = |format| {
            let page = expose(format, &metrics, present.clone(), 1_700_000_000).unwrap();
            let lines = page.lines().filter(|line| !line.starts_with('#') && !line.starts_with("process_"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let older = samples(Format::Prometheus);
        assert_eq!(older, samples(Format::OpenMetrics));
        assert!(older.contains(&"refrain_panics_total 3".to_owned()));
        assert!(older.contains(&"refrain_ready 1".to_owned()));
    }

    #[test]
    fn a_service_that_is_not_listed_has_no_look_ups_from_the_start() {
        let page = |metrics| expose(Format::Prometheus, &Arc::new(metrics), Gauges::default(), 0).unwrap();
        let named = page(Metrics::new(["producer"]));
        assert!(named.contains("{service=\"producer\",action=\"retrieve\",outcome=\"hit\"} 0"));
        assert!(named.contains("{service=\"other\",action=\"other\",outcome=\"bypass\"} 0"));
        assert!(!named.contains("{service=\"other\",action=\"retrieve\""));
        let all = page(Metrics::default());
        assert!(all.contains("{service=\"other\",action=\"retrieve\",outcome=\"hit\"} 0"));
    }
}
