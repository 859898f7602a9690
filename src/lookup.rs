//! The use case: answer a look-up from the store as far as it goes, ask the lanes for the rest, put the answer
//! together.
//!
//! Called by `routes`; knows no HTTP server and no SQL. The pure parts stand in [`plan`].

pub mod plan;
mod stored;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::plan::BatchBody;
use crate::auth::{Auth, Caller};
use crate::batcher::{
    Backend, Batcher, Freshness, Handling, LookupFailure, LookupKind, LookupOptions, LookupResult, QueueKey,
    RecordSource, TaskOutcome,
};
use crate::clock;
use crate::config::Config;
use crate::lifecycle::Shutdown;
use crate::store::{DeleteEpoch, DeleteScope, Store, StoreError, StoredTask};
use crate::task::{FinalRecord, LookupIds, Service, TaskId};
use crate::telemetry::{IdOutcome, Label, Metrics};
use crate::upstream::{Credentials, UpstreamClient, UpstreamError, UpstreamResponse};

/// Who asks, and how.
#[derive(Clone, Copy)]
pub struct LookupRequest<'a> {
    /// The service of the path.
    pub service: &'a Service,
    /// Who asks.
    pub caller: &'a Caller,
    /// The request's header, of which some fields go upstream with it.
    pub headers: &'a HeaderMap,
    /// When it was asked, its body read.
    pub at: Instant,
    /// `prefer: wait=N`.
    pub wait: Option<Duration>,
    /// `prefer: handling=lenient`.
    pub lenient: bool,
    /// `cache-control: only-if-cached`.
    pub only_if_cached: bool,
    /// `cache-control: max-age`, zero for `no-cache`.
    pub max_age: Option<Duration>,
}

/// An answer and how it came about.
#[derive(Debug)]
pub struct LookupResponse {
    /// What the client gets.
    pub body: ResponseContent,
    /// How it came about.
    pub summary: CacheSummary,
}

/// What the client gets.
#[derive(Debug)]
pub enum ResponseContent {
    /// 200: one task's text.
    Task(Bytes),
    /// 200: a batch, with its room in memory.
    Batch(BatchBody, OwnedSemaphorePermit),
    /// An answer of the upstream as it is: `{}`, an error, a success that is no task.
    Upstream(Arc<UpstreamResponse>),
    /// No answer.
    Failed(LookupFailure),
    /// `only-if-cached`, and something asked for is not stored.
    NotStored,
    /// The answer would be longer than `upstream.max_response_bytes`.
    TooLarge,
    /// Answers on their way to clients take all the memory that is for them.
    Busy,
}

impl ResponseContent {
    /// Whether it is the upstream's word, from wherever it came.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Task(_) | Self::Batch(..) | Self::Upstream(_))
    }
}

/// How an answer came about: for headers, log and metrics.
#[derive(Clone, Debug, Default)]
pub struct CacheSummary {
    /// Places that were asked for.
    pub asked: usize,
    /// Places answered from the store.
    pub hits: usize,
    /// Places answered from a remembered pending answer.
    pub pending: usize,
    /// Places for which the upstream was asked.
    pub misses: usize,
    /// Places of those that an answer lacks, since their part failed (`prefer: handling=lenient`).
    pub failed: usize,
    /// Something was committed to the store for this answer.
    pub stored: bool,
    /// Everything that was asked upstream was asked by others already.
    pub collapsed: bool,
    /// Something was remembered but too old to be used.
    pub outdated: bool,
    /// Seconds since the oldest part of the answer came from the upstream.
    pub age: u64,
    /// Seconds after which asking again makes sense, on answers that hold an unfinished task.
    pub retry_after: Option<u64>,
}

/// The word for how a look-up was answered: log, metric label, `x-cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheResult {
    /// Everything from the store.
    Hit,
    /// Nothing was asked upstream; some of it is a remembered pending answer.
    Pending,
    /// Some of it from the store, some from the upstream.
    Partial,
    /// Everything from the upstream.
    Miss,
}

impl CacheResult {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Pending => "pending",
            Self::Partial => "partial",
            Self::Miss => "miss",
        }
    }
}

impl CacheSummary {
    /// The word for how the look-up was answered.
    pub fn source(&self) -> CacheResult {
        match (self.hits, self.pending, self.misses) {
            (_, 0, 0) => CacheResult::Hit,
            (_, _, 0) => CacheResult::Pending,
            (0, 0, _) => CacheResult::Miss,
            _ => CacheResult::Partial,
        }
    }
}

/// Answers look-ups.
pub struct LookupService {
    access: Arc<Auth>,
    store: Store,
    batcher: Batcher<ProxyBackend>,
    metrics: Arc<Metrics>,
    forward_headers: Vec<HeaderName>,
    max_batch: usize,
    max_response_bytes: u64,
    /// Room for batches on their way to clients, in KiB.
    room: Arc<Semaphore>,
}

/// Bytes of batches on their way to clients, over all connections: what slow readers can hold. Room for four of the
/// largest answers at the least.
const ANSWER_ROOM: u64 = 512 << 20;

/// The parts of the proxy that the batcher calls.
pub struct ProxyBackend {
    /// Client for upstream lookups.
    pub upstream: UpstreamClient,
    /// Store for final records.
    pub store: Store,
    /// Receiver of token status reports.
    pub auth: Arc<Auth>,
}

impl Backend for ProxyBackend {
    type Epoch = DeleteEpoch;

    fn epoch(&self) -> DeleteEpoch {
        self.store.epoch()
    }

    async fn look_up(
        &self,
        service: &Service,
        credentials: &Credentials,
        ids: &[TaskId],
    ) -> Result<UpstreamResponse, UpstreamError> {
        self.upstream.look_up(service, credentials, ids).await
    }

    async fn insert(&self, key: &QueueKey, epoch: DeleteEpoch, records: Vec<FinalRecord>) -> Vec<bool> {
        self.store.insert(&self.auth.reader(&key.token), &key.service, epoch, records).await
    }

    fn report_response(&self, key: &QueueKey, response: &UpstreamResponse) {
        self.auth.record_response(&key.token, response.status.as_u16(), &response.body);
    }
}

impl LookupService {
    /// A retriever over these rooms.
    pub fn new(config: &Config, backend: ProxyBackend, metrics: Arc<Metrics>, shutdown: Shutdown) -> Self {
        let (access, store) = (Arc::clone(&backend.auth), backend.store.clone());
        let batcher = Batcher::new(backend, &config.upstream, &config.tasks, Arc::clone(&metrics), shutdown);
        let max_response_bytes = config.upstream.max_response_bytes;
        let room = kib(ANSWER_ROOM.max(max_response_bytes.saturating_mul(4)));
        let room = Arc::new(Semaphore::new((room as usize).min(Semaphore::MAX_PERMITS)));
        Self {
            access,
            store,
            batcher,
            metrics,
            forward_headers: config.tasks.forward_headers.clone(),
            max_batch: config.upstream.max_batch,
            max_response_bytes,
            room,
        }
    }

    /// The lanes, for what is done in the background and for what passes through.
    pub fn batcher(&self) -> &Batcher<impl Backend> {
        &self.batcher
    }

    /// Answers a look-up. Dropping the future withdraws it.
    pub async fn retrieve(&self, asked: LookupIds, question: &LookupRequest<'_>) -> LookupResponse {
        let reply = match asked {
            LookupIds::Single(id) => self.retrieve_one(question, id).await,
            ids @ LookupIds::Batch { .. } => self.retrieve_many(question, ids).await,
        };
        self.count(&reply, question.wait.map(|_| question.at.elapsed()));
        reply
    }

    /// The upstream confirmed that this caller deleted a task: it is forgotten here, for all, if the caller held the
    /// right to read it; an answer that began before is not stored either way.
    ///
    /// # Errors
    /// If it could not be written; the task is hidden from now on all the same.
    pub async fn forget(&self, caller: &Caller, service: &Service, id: &TaskId) -> Result<(), StoreError> {
        self.batcher.discard_cached(service, id);
        let scope = DeleteScope::ByReader { reader: caller.reader, service: service.clone(), id: id.clone() };
        self.store.delete(scope).await.map(|_| ())
    }

    /// An operator has tasks forgotten, for all. Gives the number of texts removed.
    ///
    /// # Errors
    /// If it could not be written; the tasks are hidden from now on all the same.
    pub async fn forget_by_operator(&self, scope: DeleteScope) -> Result<u64, StoreError> {
        match &scope {
            DeleteScope::Task { service, id } | DeleteScope::ByReader { service, id, .. } => {
                self.batcher.discard_cached(service, id);
            }
            DeleteScope::Service(_) | DeleteScope::OlderThan(_) => self.batcher.discard_all_cached(),
        }
        self.store.delete(scope).await
    }

    async fn retrieve_one(&self, question: &LookupRequest<'_>, id: TaskId) -> LookupResponse {
        let mut summary = CacheSummary { asked: 1, ..CacheSummary::default() };
        let ids = [id];
        let mut known = match self.stored(question, &ids).await {
            Ok(known) => known,
            Err(body) => return refused(body, summary),
        };
        if let Some(task) = known.pop().flatten() {
            summary.hits = 1;
            summary.age = age(task.stored_at);
            return LookupResponse { body: ResponseContent::Task(task.record), summary };
        }
        if question.only_if_cached {
            return LookupResponse { body: ResponseContent::NotStored, summary };
        }
        let body = Box::pin(self.fetch_one(question, &ids, &mut summary)).await;
        LookupResponse { body, summary }
    }

    async fn fetch_one(
        &self,
        question: &LookupRequest<'_>,
        ids: &[TaskId],
        summary: &mut CacheSummary,
    ) -> ResponseContent {
        let mut answer = self.fetch(question, LookupKind::Single, ids, vec![None]).await;
        summary.count_enqueued(&answer);
        let outcome = answer.outcomes.pop().flatten().unwrap_or(TaskOutcome::Failed(LookupFailure::Internal));
        summary.count_one(&outcome, 1);
        match outcome {
            TaskOutcome::Final { record, .. } => ResponseContent::Task(record),
            TaskOutcome::Pending { record, .. } => {
                summary.retry_after = Some(whole_seconds(answer.cycle));
                ResponseContent::Task(record)
            }
            TaskOutcome::Unknown { response: Some(response), .. } | TaskOutcome::Relayed(response) => {
                ResponseContent::Upstream(response)
            }
            // The batcher calls `retrieve` for an unknown id of a single lookup.
            TaskOutcome::Unknown { response: None, .. } => ResponseContent::Failed(LookupFailure::Internal),
            TaskOutcome::Failed(failure) => ResponseContent::Failed(failure),
        }
    }

    async fn retrieve_many(&self, question: &LookupRequest<'_>, plan: LookupIds) -> LookupResponse {
        let mut summary = CacheSummary { asked: plan.positions().len(), ..CacheSummary::default() };
        let known = match self.stored(question, plan.distinct()).await {
            Ok(known) => known,
            Err(body) => return refused(body, summary),
        };
        summary.age = known.iter().flatten().map(|task| task.stored_at).min().map_or(0, age);
        summary.hits = plan.positions().iter().filter(|place| known[**place as usize].is_some()).count();
        let (texts, missing) = if summary.hits == summary.asked {
            (known.into_iter().map(|task| task.map(|task| task.record)).collect(), Vec::new())
        } else {
            if question.only_if_cached {
                return LookupResponse { body: ResponseContent::NotStored, summary };
            }
            match Box::pin(self.fetch_many(question, &plan, known, &mut summary)).await {
                Ok(fetched) => fetched,
                Err(failure) => return LookupResponse { body: ResponseContent::Failed(failure), summary },
            }
        };
        let envelope = BatchBody::new(&plan, texts, &missing.iter().collect::<Vec<_>>());
        let length = envelope.remaining() as u64;
        if length > self.max_response_bytes {
            return LookupResponse { body: ResponseContent::TooLarge, summary };
        }
        let body = match Arc::clone(&self.room).try_acquire_many_owned(kib(length)) {
            Ok(room) => ResponseContent::Batch(envelope, room),
            Err(_) => ResponseContent::Busy,
        };
        LookupResponse { body, summary }
    }

    /// Fetches the records that are not stored. Returns all records, and the ids whose part failed.
    async fn fetch_many(
        &self,
        question: &LookupRequest<'_>,
        plan: &LookupIds,
        known: Vec<Option<StoredTask>>,
        summary: &mut CacheSummary,
    ) -> Result<(Vec<Option<Bytes>>, Vec<TaskId>), LookupFailure> {
        let stored = |StoredTask { record, stored_at }| TaskOutcome::Final {
            record,
            source: RecordSource::Store { stored_at },
        };
        let known = known.into_iter().map(|task| task.map(stored)).collect();
        let mut places = vec![0; plan.distinct().len()];
        plan.positions().iter().for_each(|place| places[*place as usize] += 1);
        let answer = self.fetch(question, LookupKind::Batch, plan.distinct(), known).await;
        summary.count_enqueued(&answer);
        let (mut missing, mut failed) = (Vec::new(), None);
        let mut texts = Vec::with_capacity(plan.distinct().len());
        for ((outcome, id), places) in answer.outcomes.into_iter().zip(plan.distinct().iter()).zip(places) {
            if let Some(outcome) = &outcome {
                summary.count_one(outcome, places);
            }
            texts.push(match outcome {
                Some(TaskOutcome::Final { record, .. }) => Some(record),
                Some(TaskOutcome::Pending { record, .. }) => {
                    summary.retry_after = Some(whole_seconds(answer.cycle));
                    Some(record)
                }
                Some(TaskOutcome::Unknown { .. }) => None,
                Some(TaskOutcome::Failed(failure)) => {
                    missing.push(id.clone());
                    failed = failed.or(Some(failure));
                    None
                }
                Some(TaskOutcome::Relayed(_)) | None => {
                    missing.push(id.clone());
                    None
                }
            });
        }
        let nothing_known = texts.iter().all(Option::is_none);
        match failed {
            Some(failure) if !question.lenient || nothing_known => Err(failure),
            _ => Ok((texts, missing)),
        }
    }

    async fn fetch(
        &self,
        question: &LookupRequest<'_>,
        kind: LookupKind,
        ids: &[TaskId],
        outcomes: Vec<Option<TaskOutcome>>,
    ) -> LookupResult {
        let LookupRequest { wait, lenient, max_age, only_if_cached, .. } = *question;
        let handling = if lenient { Handling::Lenient } else { Handling::Strict };
        let options = LookupOptions { kind, wait, handling, max_age, only_if_cached };
        let (queue, credentials) = self.queue(question);
        self.batcher.look_up(queue, &credentials, ids, &options, outcomes).await
    }

    /// Where a question that is not answered here is asked, and with what.
    fn queue(&self, question: &LookupRequest<'_>) -> (QueueKey, Credentials) {
        let LookupRequest { service, caller, headers, .. } = *question;
        let forwarded = forwarded(headers, &self.forward_headers);
        let credentials = Credentials { token: caller.token.clone(), forwarded: forwarded.clone() };
        (QueueKey { service: service.clone(), token: caller.digest, forwarded }, credentials)
    }

    /// The ids, as the client saw what became of them, and the calls that it would have sent without refrain.
    fn count(&self, LookupResponse { summary, body }: &LookupResponse, held: Option<Duration>) {
        // The upstream's own error is what the client would have got for the same call.
        if body.is_answer() || matches!(body, ResponseContent::Failed(LookupFailure::Upstream(_))) {
            self.metrics.count_lookup(summary.asked, self.max_batch, held);
        }
        let CacheSummary { asked, hits, pending, misses, failed, .. } = *summary;
        // In the order of `IdOutcome`: hit, pending, fetched, failed, refused.
        let counts = match body {
            ResponseContent::Failed(_) => [0, 0, 0, asked, 0],
            ResponseContent::NotStored | ResponseContent::TooLarge | ResponseContent::Busy => {
                [0, 0, 0, 0, asked]
            }
            _ => [hits, pending, misses.saturating_sub(failed), failed, 0],
        };
        for (outcome, ids) in IdOutcome::ALL.iter().zip(counts).filter(|(_, ids)| *ids > 0) {
            self.metrics.ids.inc_by(*outcome, ids as u64);
        }
    }
}

/// The client's fields of `tasks.forward_headers`, by name and in order.
fn forwarded(headers: &HeaderMap, names: &[HeaderName]) -> Vec<(HeaderName, HeaderValue)> {
    names
        .iter()
        .flat_map(|name| headers.get_all(name).iter().map(|value| (name.clone(), value.clone())))
        .map(|(name, mut value)| {
            // Whatever it is, it is not for logs.
            value.set_sensitive(true);
            (name, value)
        })
        .collect()
}

impl CacheSummary {
    fn count_enqueued(&mut self, result: &LookupResult) {
        self.collapsed = result.enqueued.joined > 0 && result.enqueued.added == 0;
        self.outdated = result.enqueued.outdated > 0;
    }

    /// Counts the outcome of an id that stands at `places` places of the request.
    fn count_one(&mut self, outcome: &TaskOutcome, places: usize) {
        let freshness = match outcome {
            // Counted as a hit before.
            TaskOutcome::Final { source: RecordSource::Store { .. }, .. } => return,
            TaskOutcome::Final { source: RecordSource::Upstream { is_stored }, .. } => {
                self.stored |= is_stored;
                Freshness::Fetched
            }
            TaskOutcome::Pending { freshness, .. } | TaskOutcome::Unknown { freshness, .. } => *freshness,
            TaskOutcome::Failed(_) => {
                self.failed += places;
                Freshness::Fetched
            }
            TaskOutcome::Relayed(_) => Freshness::Fetched,
        };
        self.age = self.age.max(freshness.age().as_secs());
        if freshness.is_cached() {
            self.pending += places;
        } else {
            self.misses += places;
        }
    }
}

/// A look-up that did not get as far as its ids. A failure is that of a recheck, which went upstream for all of them.
fn refused(body: ResponseContent, mut summary: CacheSummary) -> LookupResponse {
    if matches!(body, ResponseContent::Failed(_)) {
        summary.misses = summary.asked;
    }
    LookupResponse { body, summary }
}

/// Seconds since a task was stored, by the wall clock; never negative.
fn age(stored_at: i64) -> u64 {
    u64::try_from(clock::unix_now().saturating_sub(stored_at)).unwrap_or(0)
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// At least one, rounded up: a `retry-after` of 0 would be an invitation.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}
