//! Batcher under test, with paused time and a simulated backend.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::task::JoinHandle;

use super::backend::{Call, SimulatedBackend};
use crate::batcher::rate_limit::USED_SHARE;
use crate::batcher::{
    Batcher, Handling, LookupFailure, LookupKind, LookupOptions, LookupResult, QueueKey, TaskOutcome,
};
use crate::config::{TasksConfig, UpstreamConfig};
use crate::lifecycle::Shutdown;
use crate::task::{Service, TaskId};
use crate::telemetry::Metrics;
use crate::token::{DigestKey, Token};
use crate::upstream::Credentials;

/// A client: its token, the service it uses and its forwarded headers.
#[derive(Clone, Debug)]
pub(super) struct TestClient {
    token: String,
    service: &'static str,
    forwarded: Vec<(HeaderName, HeaderValue)>,
}

pub(super) fn client(token: &str) -> TestClient {
    TestClient { token: token.to_owned(), service: "producer", forwarded: Vec::new() }
}

impl TestClient {
    pub(super) fn with_service(mut self, service: &'static str) -> Self {
        self.service = service;
        self
    }

    pub(super) fn with_header(mut self, value: &str) -> Self {
        let header = (HeaderName::from_static("x-record-exempt"), HeaderValue::from_str(value).unwrap());
        self.forwarded.push(header);
        self
    }

    pub(super) fn key(&self) -> QueueKey {
        QueueKey {
            service: Service::parse(self.service).unwrap(),
            token: DigestKey::new(&[0; 32]).digest(&Token::parse(&self.token).unwrap()),
            forwarded: self.forwarded.clone(),
        }
    }
}

pub(super) fn id(name: &str) -> TaskId {
    TaskId::parse(name).unwrap()
}

/// A lookup of distinct ids.
#[derive(Clone, Debug)]
pub(super) struct TestLookup {
    pub(super) ids: Vec<TaskId>,
    pub(super) options: LookupOptions,
}

pub(super) fn single(name: &str) -> TestLookup {
    TestLookup { ids: vec![id(name)], options: LookupOptions::new(LookupKind::Single) }
}

pub(super) fn batch<T: AsRef<str>>(names: &[T]) -> TestLookup {
    let ids = names.iter().map(|name| id(name.as_ref())).collect();
    TestLookup { ids, options: LookupOptions::new(LookupKind::Batch) }
}

pub(super) fn long_poll(mut lookup: TestLookup, wait: f64) -> TestLookup {
    lookup.options.wait = Some(seconds(wait));
    lookup
}

pub(super) fn lenient(mut lookup: TestLookup) -> TestLookup {
    lookup.options.handling = Handling::Lenient;
    lookup
}

pub(super) fn max_age(mut lookup: TestLookup, age: f64) -> TestLookup {
    lookup.options.max_age = Some(seconds(age));
    lookup
}

pub(super) fn no_cache(lookup: TestLookup) -> TestLookup {
    max_age(lookup, 0.0)
}

/// `count` ids: the prefix and a number each.
pub(super) fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

pub(super) async fn sleep(length: f64) {
    tokio::time::sleep(seconds(length)).await;
}

/// A batcher over a simulated backend.
#[derive(Clone)]
pub(super) struct Harness {
    pub(super) backend: Arc<SimulatedBackend>,
    pub(super) batcher: Batcher<Arc<SimulatedBackend>>,
    pub(super) shutdown: Shutdown,
}

impl Deref for Harness {
    type Target = SimulatedBackend;

    fn deref(&self) -> &SimulatedBackend {
        &self.backend
    }
}

impl Harness {
    pub(super) fn new() -> Self {
        Self::with(|_, _| {})
    }

    pub(super) fn with(configure: impl FnOnce(&mut UpstreamConfig, &mut TasksConfig)) -> Self {
        let mut upstream = UpstreamConfig::default();
        let mut tasks = TasksConfig::default();
        configure(&mut upstream, &mut tasks);
        // So that the tests can count in whole seconds.
        upstream.requests_per_second /= USED_SHARE;
        let backend = Arc::new(SimulatedBackend::new());
        let metrics = Arc::new(Metrics::default());
        let shutdown = Shutdown::new();
        let batcher = Batcher::new(Arc::clone(&backend), &upstream, &tasks, metrics, shutdown.clone());
        Self { backend, batcher, shutdown }
    }

    pub(super) async fn look_up_as(&self, client: &TestClient, lookup: TestLookup) -> LookupResult {
        let credentials =
            Credentials { token: Token::parse(&client.token).unwrap(), forwarded: client.forwarded.clone() };
        let TestLookup { ids, options } = lookup;
        let result = self.batcher.look_up(client.key(), &credentials, &ids, &options, vec![None; ids.len()]);
        tokio::time::timeout(seconds(2000.0), result).await.expect("no lookup waits without end")
    }

    pub(super) async fn look_up(&self, lookup: TestLookup) -> LookupResult {
        self.look_up_as(&client("t"), lookup).await
    }

    /// Returns the outcome of a single lookup.
    pub(super) async fn look_up_one(&self, name: &str) -> TaskOutcome {
        only_outcome(self.look_up(single(name)).await)
    }

    /// Starts a lookup in a task. Aborting the task stands for a client that hangs up.
    pub(super) fn start_as(&self, client: &TestClient, lookup: TestLookup) -> JoinHandle<LookupResult> {
        let (harness, client) = (self.clone(), client.clone());
        tokio::spawn(async move { harness.look_up_as(&client, lookup).await })
    }

    pub(super) fn start(&self, lookup: TestLookup) -> JoinHandle<LookupResult> {
        self.start_as(&client("t"), lookup)
    }

    /// Uses the token's first call, so that the next one has to wait for a second.
    pub(super) async fn spend_first_call(&self) {
        self.add_final("first");
        self.look_up(single("first")).await;
        self.clear_records();
    }

    /// Fills the token's bucket up to its burst.
    pub(super) async fn fill_bucket(&self) {
        self.batcher.charge(&client("t").key().token);
        sleep(100.0).await;
    }

    /// Starts the regular sweep.
    pub(super) fn start_sweep(&self) {
        let batcher = self.batcher.clone();
        tokio::spawn(async move { batcher.run_sweep().await });
    }

    /// Asserts that a pending record is as old as it claims, up to the latency of a call.
    #[track_caller]
    pub(super) fn assert_true_age(&self, pending: &PendingRecord) {
        let age = self.elapsed() - made_at(pending.record.as_bytes());
        assert!(age.abs_diff(pending.age) <= seconds(0.011), "{:?}: {pending:?}", self.elapsed());
    }

    /// Asserts the numbers of queues and of rate limiters.
    #[track_caller]
    pub(super) fn assert_sizes(&self, queues: usize, tokens: usize) {
        let totals = self.batcher.totals();
        assert_eq!((totals.queues, totals.tokens), (queues, tokens));
    }
}

/// Returns the outcome of a lookup of one id.
#[track_caller]
pub(super) fn only_outcome(result: LookupResult) -> TaskOutcome {
    let [outcome] = <[Option<TaskOutcome>; 1]>::try_from(result.outcomes).unwrap();
    outcome.expect("an outcome")
}

#[track_caller]
pub(super) fn final_record(outcome: &TaskOutcome) -> String {
    match outcome {
        TaskOutcome::Final { record, .. } => String::from_utf8(record.to_vec()).unwrap(),
        other => panic!("not final: {other:?}"),
    }
}

pub(super) fn is_final(outcome: &TaskOutcome) -> bool {
    matches!(outcome, TaskOutcome::Final { .. })
}

/// Returns the number of final records.
pub(super) fn count_final(result: &LookupResult) -> usize {
    result.outcomes.iter().flatten().filter(|outcome| is_final(outcome)).count()
}

/// A pending record with its freshness.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PendingRecord {
    pub(super) record: String,
    pub(super) age: Duration,
    pub(super) is_cached: bool,
}

#[track_caller]
pub(super) fn pending_record(outcome: &TaskOutcome) -> PendingRecord {
    match outcome {
        TaskOutcome::Pending { record, freshness } => PendingRecord {
            record: String::from_utf8(record.to_vec()).unwrap(),
            age: freshness.age(),
            is_cached: freshness.is_cached(),
        },
        other => panic!("not pending: {other:?}"),
    }
}

#[track_caller]
pub(super) fn failure(outcome: &TaskOutcome) -> &LookupFailure {
    match outcome {
        TaskOutcome::Failed(failure) => failure,
        other => panic!("not failed: {other:?}"),
    }
}

/// Returns the status of the upstream's error.
#[track_caller]
pub(super) fn failure_status(outcome: &TaskOutcome) -> u16 {
    match failure(outcome) {
        LookupFailure::Upstream(response) => response.status.as_u16(),
        other => panic!("not an upstream error: {other:?}"),
    }
}

/// Returns the time since the start of the backend at which it made a pending record.
pub(super) fn made_at(record: &[u8]) -> Duration {
    #[derive(serde::Deserialize)]
    struct Record {
        at: u64,
    }
    Duration::from_millis(serde_json::from_slice::<Record>(record).unwrap().at)
}

/// Returns the seconds between consecutive calls.
pub(super) fn gaps(calls: &[Call]) -> Vec<f64> {
    calls.windows(2).map(|pair| pair[1].seconds() - pair[0].seconds()).collect()
}

/// Asserts that there are never more calls than `rate` and `burst` permit, over any length of time.
#[track_caller]
pub(super) fn assert_rate(calls: &[Call], rate: f64, burst: u32) {
    for (first, from) in calls.iter().enumerate() {
        for (number, to) in calls[first..].iter().enumerate() {
            let (count, length) = ((number + 1) as f64, (to.at - from.at).as_secs_f64());
            assert!(
                count <= rate * length + f64::from(burst) + 0.001,
                "{count} calls within {length} s from {:?}",
                from.at
            );
        }
    }
}
