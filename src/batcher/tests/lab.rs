//! The lanes under test: what is asked of them, and what their answers say.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::world::{Call, SimulatedBackend, credentials};
use crate::batcher::{
    Batcher, Handling, LookupFailure, LookupKind, LookupOptions, LookupResult, QueueKey, TaskOutcome,
};
use crate::config::{Services, TasksConfig, UpstreamConfig};
use crate::lifecycle::Shutdown;
use crate::task::{Service, TaskId};
use crate::telemetry::Metrics;
use crate::token::{DigestKey, Token};

/// Who asks: a token, a service and forwarded headers.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    token: String,
    service: &'static str,
    forwarded: Vec<(HeaderName, HeaderValue)>,
}

pub(super) fn asker(token: &str) -> Asker {
    Asker { token: token.to_owned(), service: "producer", forwarded: Vec::new() }
}

impl Asker {
    pub(super) fn service(mut self, service: &'static str) -> Self {
        self.service = service;
        self
    }

    pub(super) fn forwarding(mut self, value: &str) -> Self {
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

pub(super) fn waiting(mut look_up: TestLookup, wait: f64) -> TestLookup {
    look_up.options.wait = Some(seconds(wait));
    look_up
}

pub(super) fn lenient(mut look_up: TestLookup) -> TestLookup {
    look_up.options.handling = Handling::Lenient;
    look_up
}

pub(super) fn no_cache(mut look_up: TestLookup) -> TestLookup {
    look_up.options.max_age = Some(Duration::ZERO);
    look_up
}

pub(super) fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Lets paused time pass.
pub(super) async fn pass(length: f64) {
    sleep(seconds(length)).await;
}

/// Batcher over a simulated world.
#[derive(Clone)]
pub(super) struct Lab {
    pub(super) world: Arc<SimulatedBackend>,
    pub(super) queues: Arc<Batcher<Arc<SimulatedBackend>>>,
    pub(super) shutdown: Shutdown,
}

impl Deref for Lab {
    type Target = SimulatedBackend;

    fn deref(&self) -> &SimulatedBackend {
        &self.world
    }
}

impl Lab {
    /// Batcher and token buckets.
    pub(super) fn counts(&self) -> (usize, usize) {
        let totals = self.queues.totals();
        (totals.queues, totals.tokens)
    }

    pub(super) fn new() -> Self {
        Self::with(|_, _| {})
    }

    pub(super) fn with(configure: impl FnOnce(&mut UpstreamConfig, &mut TasksConfig)) -> Self {
        let mut upstream = UpstreamConfig::default();
        let mut tasks = TasksConfig { services: Services::All, ..TasksConfig::default() };
        configure(&mut upstream, &mut tasks);
        // So that the tests can count in whole seconds.
        upstream.requests_per_second /= crate::batcher::USED_SHARE;
        let world = Arc::new(SimulatedBackend::new());
        let metrics = Arc::new(Metrics::default());
        let shutdown = Shutdown::new();
        let queues = Arc::new(Batcher::new(Arc::clone(&world), &upstream, &tasks, metrics, shutdown.clone()));
        Self { world, queues, shutdown }
    }

    pub(super) async fn ask_as(&self, asker: &Asker, look_up: TestLookup) -> LookupResult {
        let credentials = credentials(&asker.token, &asker.forwarded);
        let TestLookup { ids, options } = look_up;
        let outcomes = vec![None; ids.len()];
        let answer = self.queues.look_up(asker.key(), &credentials, &ids, &options, outcomes);
        tokio::time::timeout(seconds(2000.0), answer).await.expect("nobody waits without end")
    }

    pub(super) async fn ask(&self, look_up: TestLookup) -> LookupResult {
        self.ask_as(&asker("t"), look_up).await
    }

    /// The outcome of a single look-up.
    pub(super) async fn ask_one(&self, name: &str) -> TaskOutcome {
        only(self.ask(single(name)).await)
    }

    /// Asks from a task of its own; aborting it is a hang-up.
    pub(super) fn begin_as(&self, asker: &Asker, look_up: TestLookup) -> JoinHandle<LookupResult> {
        let (lab, asker) = (self.clone(), asker.clone());
        tokio::spawn(async move { lab.ask_as(&asker, look_up).await })
    }

    pub(super) fn begin(&self, look_up: TestLookup) -> JoinHandle<LookupResult> {
        self.begin_as(&asker("t"), look_up)
    }

    /// Uses up the token's first call, so that what comes next has to queue for a second.
    pub(super) async fn spend_first_call(&self) {
        self.finished("first");
        self.ask(single("first")).await;
        self.forget_records();
    }

    /// Lets the token save up as many calls as it may.
    pub(super) async fn save_up(&self) {
        self.queues.charge(&asker("t").key().token);
        pass(100.0).await;
    }

    /// Sweeps as the program does, from now on.
    pub(super) fn sweep(&self) {
        let queues = Arc::clone(&self.queues);
        tokio::spawn(async move { queues.run_sweep().await });
    }
}

/// The outcome of a look-up of one id.
#[track_caller]
pub(super) fn only(answer: LookupResult) -> TaskOutcome {
    let [outcome] = <[Option<TaskOutcome>; 1]>::try_from(answer.outcomes).unwrap();
    outcome.expect("an outcome")
}

#[track_caller]
pub(super) fn finished(outcome: &TaskOutcome) -> String {
    match outcome {
        TaskOutcome::Final { record, .. } => String::from_utf8(record.to_vec()).unwrap(),
        other => panic!("not finished: {other:?}"),
    }
}

pub(super) fn is_finished(outcome: &TaskOutcome) -> bool {
    matches!(outcome, TaskOutcome::Final { .. })
}

/// The text, age and origin of a pending answer.
#[track_caller]
pub(super) fn pending(outcome: &TaskOutcome) -> (String, Duration, bool) {
    match outcome {
        TaskOutcome::Pending { record, freshness } => {
            (String::from_utf8(record.to_vec()).unwrap(), freshness.age(), freshness.is_cached())
        }
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

/// The status of the upstream's own error.
#[track_caller]
pub(super) fn failed_with(outcome: &TaskOutcome) -> u16 {
    match failure(outcome) {
        LookupFailure::Upstream(answer) => answer.status.as_u16(),
        other => panic!("not the upstream's error: {other:?}"),
    }
}

/// The moment, since the start of the world, at which a pending text was true.
pub(super) fn true_at(text: &[u8]) -> Duration {
    #[derive(serde::Deserialize)]
    struct Moment {
        at: u64,
    }
    Duration::from_millis(serde_json::from_slice::<Moment>(text).unwrap().at)
}

/// Never more calls than `rate` and `burst` allow, over any length of time.
#[track_caller]
pub(super) fn assert_pace(calls: &[Call], rate: f64, burst: u32) {
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
