//! Lookups: stored records first, the batcher for the rest, then one assembled response.
//!
//! The ids of a request have one list of outcomes. The store fills in its records, the batcher
//! completes the list, and the response is assembled from it. No HTTP server types and no SQL here.

mod backend;
mod batch_body;
mod stored;
mod summary;
mod unsent;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

pub use self::backend::ProxyBackend;
pub use self::batch_body::BatchBody;
pub use self::summary::{CacheResult, CacheSummary};
use self::unsent::UnsentResponses;
use crate::auth::{Auth, Caller};
use crate::batcher::{
    Backend, Batcher, Handling, LookupFailure, LookupOptions, LookupResult, QueueKey, TaskOutcome,
};
use crate::config::Config;
use crate::headers;
use crate::lifecycle::{Shutdown, Supervisor};
use crate::store::{DeleteScope, Store, StoreError};
use crate::task::{InterpretedService, LookupIds, Service, TaskId};
use crate::telemetry::{IdOutcome, Label, Metrics};
use crate::upstream::{Credentials, UpstreamResponse};

/// Lookup of one request.
pub struct LookupRequest<'a> {
    /// Service of the path.
    pub service: &'a InterpretedService,
    /// Sender of the request.
    pub caller: &'a Caller,
    /// Requested ids.
    pub ids: LookupIds,
    /// Preferences of the request.
    pub options: LookupOptions,
    /// Headers of the request. Those of `tasks.forward_headers` are sent upstream.
    pub headers: &'a HeaderMap,
    /// When the body was complete.
    pub received_at: Instant,
}

/// Response to a lookup.
#[derive(Debug)]
pub struct LookupResponse {
    /// Content for the client.
    pub result: Result<ResponseContent, LookupError>,
    /// Numbers and times for headers, log and metrics.
    pub summary: CacheSummary,
}

/// Content of a successful lookup.
#[derive(Debug)]
pub enum ResponseContent {
    /// One task record.
    Record(Bytes),
    /// Envelope of a batch.
    Batch(Box<BatchBody>),
    /// Response of the upstream to a single id, without a task record. It is relayed.
    Upstream(Arc<UpstreamResponse>),
}

/// Reason why a lookup has no content.
#[derive(Debug)]
pub enum LookupError {
    /// An upstream lookup failed.
    Failed(LookupFailure),
    /// `only-if-cached` was requested, and at least one record is not stored.
    NotStored,
    /// The response would exceed `upstream.max_response_bytes`.
    TooLarge,
    /// Responses that clients have not received yet use all the memory that is allowed.
    Busy,
}

/// Performs lookups and deletes.
pub struct LookupService {
    auth: Arc<Auth>,
    store: Store,
    batcher: Batcher<ProxyBackend>,
    background: Supervisor,
    metrics: Arc<Metrics>,
    forward_headers: Vec<HeaderName>,
    max_batch: usize,
    max_response_bytes: u64,
    unsent: UnsentResponses,
}

impl LookupService {
    /// Creates the service and its batcher, which calls `backend`. `background` owns the tasks that go
    /// on when their client leaves.
    pub fn new(
        config: &Config,
        backend: ProxyBackend,
        metrics: Arc<Metrics>,
        background: Supervisor,
        shutdown: Shutdown,
    ) -> Self {
        let (auth, store) = (Arc::clone(&backend.auth), backend.store.clone());
        let batcher = Batcher::new(backend, &config.upstream, &config.tasks, Arc::clone(&metrics), shutdown);
        let max_response_bytes = config.upstream.max_response_bytes;
        Self {
            auth,
            store,
            batcher,
            background,
            metrics,
            forward_headers: config.tasks.forward_headers.clone(),
            max_batch: config.upstream.max_batch,
            max_response_bytes,
            unsent: UnsentResponses::new(max_response_bytes),
        }
    }

    /// Batcher, for its background work and views, and to charge forwarded requests.
    pub fn batcher(&self) -> &Batcher<impl Backend> {
        &self.batcher
    }

    /// Performs a lookup. Cancel safe: dropping the future withdraws it.
    pub async fn look_up(&self, request: LookupRequest<'_>) -> LookupResponse {
        let (received_at, wait) = (request.received_at, request.options.wait);
        let mut summary =
            CacheSummary { requested: request.ids.positions().len(), ..CacheSummary::default() };
        let result = self.resolve(request, &mut summary).await;
        let result = self.unsent.count_single(result);
        let response = LookupResponse { result, summary };
        self.count(&response, wait.map(|_| received_at.elapsed()));
        response
    }

    /// Deletes a task for all readers, after the upstream confirmed that this caller deleted it.
    /// Without a grant of the caller, the stored task stays. In both cases, a response to a call
    /// that began earlier is not stored.
    ///
    /// # Errors
    /// If the delete could not be written. The task is hidden until it is.
    pub async fn delete(&self, caller: &Caller, service: &Service, id: &TaskId) -> Result<(), StoreError> {
        self.batcher.discard_cached(service, id);
        let scope = DeleteScope::ByReader { reader: caller.reader, service: service.clone(), id: id.clone() };
        self.store.delete(scope).await.map(|_| ())
    }

    /// Deletes tasks for all readers and returns the number of deleted records.
    ///
    /// # Errors
    /// If the delete could not be written. The tasks are hidden until it is.
    pub async fn delete_by_operator(&self, scope: DeleteScope) -> Result<u64, StoreError> {
        match &scope {
            DeleteScope::Task { service, id } | DeleteScope::ByReader { service, id, .. } => {
                self.batcher.discard_cached(service, id);
            }
            DeleteScope::Service(_) | DeleteScope::OlderThan(_) => self.batcher.discard_all_cached(),
        }
        self.store.delete(scope).await
    }

    async fn resolve(
        &self,
        request: LookupRequest<'_>,
        summary: &mut CacheSummary,
    ) -> Result<ResponseContent, LookupError> {
        let mut outcomes = match self.stored(&request).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                if matches!(error, LookupError::Failed(_)) {
                    // The recheck was an upstream call on behalf of all ids.
                    summary.misses = summary.requested;
                }
                return Err(error);
            }
        };
        let is_complete = outcomes.iter().all(Option::is_some);
        if !is_complete && !request.options.only_if_cached {
            // Boxed, so that a hit does not carry the size of this future.
            outcomes = Box::pin(self.fetch(&request, outcomes, summary)).await;
        }
        summary.count(request.ids.positions(), &outcomes);
        if !is_complete && request.options.only_if_cached {
            return Err(LookupError::NotStored);
        }
        match request.ids {
            LookupIds::Single(_) => single(outcomes.pop().flatten()),
            LookupIds::Batch { distinct, positions } => {
                self.batch(&distinct, positions, outcomes, request.options.handling)
            }
        }
    }

    /// Has the batcher fill in the outcomes that are `None`.
    async fn fetch(
        &self,
        request: &LookupRequest<'_>,
        outcomes: Vec<Option<TaskOutcome>>,
        summary: &mut CacheSummary,
    ) -> Vec<Option<TaskOutcome>> {
        let (key, credentials) = self.queue_key_and_credentials(request);
        let (ids, options) = (request.ids.distinct(), &request.options);
        let LookupResult { outcomes, enqueued, next_news } =
            self.batcher.look_up(key, &credentials, ids, options, outcomes).await;
        summary.is_collapsed = enqueued.joined > 0 && enqueued.added == 0;
        summary.is_outdated = enqueued.outdated > 0;
        let is_pending = |outcome: &TaskOutcome| matches!(outcome, TaskOutcome::Pending { .. });
        summary.retry_after = next_news.filter(|_| outcomes.iter().flatten().any(is_pending));
        outcomes
    }

    /// Returns the queue of a request and the credentials for its upstream calls.
    fn queue_key_and_credentials(&self, request: &LookupRequest<'_>) -> (QueueKey, Credentials) {
        let LookupRequest { service, caller, headers, .. } = *request;
        let forwarded = forwarded_headers(headers, &self.forward_headers);
        let credentials = Credentials { token: caller.token.clone(), forwarded: forwarded.clone() };
        (QueueKey { service: service.name.clone(), token: caller.digest, forwarded }, credentials)
    }

    fn batch(
        &self,
        ids: &[TaskId],
        positions: Vec<u32>,
        outcomes: Vec<Option<TaskOutcome>>,
        handling: Handling,
    ) -> Result<ResponseContent, LookupError> {
        let failure = outcomes.iter().flatten().find_map(|outcome| match outcome {
            TaskOutcome::Failed(failure) => Some(failure),
            _ => None,
        });
        if let Some(failure) = failure {
            let has_records = outcomes.iter().flatten().any(|outcome| outcome.record().is_some());
            if handling == Handling::Strict || !has_records {
                return Err(LookupError::Failed(failure.clone()));
            }
        }
        let is_missing = |outcome: &Option<TaskOutcome>| {
            matches!(outcome, None | Some(TaskOutcome::Failed(_) | TaskOutcome::Relayed(_)))
        };
        let missing: Vec<&TaskId> =
            ids.iter().zip(&outcomes).filter(|(_, outcome)| is_missing(outcome)).map(|(id, _)| id).collect();
        let body = BatchBody::new(positions, outcomes, &missing);
        let length = body.remaining() as u64;
        if length > self.max_response_bytes {
            return Err(LookupError::TooLarge);
        }
        let body = body.hold(self.unsent.reserve(length)?);
        Ok(ResponseContent::Batch(Box::new(body)))
    }

    /// Counts the ids by outcome, and the upstream calls that the client would have made without
    /// refrain.
    fn count(&self, LookupResponse { summary, result }: &LookupResponse, held: Option<Duration>) {
        // The client would have received the upstream's error without refrain as well.
        if matches!(result, Ok(_) | Err(LookupError::Failed(LookupFailure::Upstream(_)))) {
            self.metrics.count_lookup(summary.requested, self.max_batch, held);
        }
        let CacheSummary { requested, hits, pending, misses, failed, .. } = *summary;
        // In the order of `IdOutcome`: hit, pending, fetched, failed, refused.
        let counts = match result {
            Ok(_) => [hits, pending, misses.saturating_sub(failed), failed, 0],
            Err(LookupError::Failed(_)) => [0, 0, 0, requested, 0],
            Err(LookupError::NotStored | LookupError::TooLarge | LookupError::Busy) => {
                [0, 0, 0, 0, requested]
            }
        };
        for (outcome, ids) in IdOutcome::ALL.iter().zip(counts).filter(|(_, ids)| *ids > 0) {
            self.metrics.ids.inc_by(*outcome, ids as u64);
        }
    }
}

fn single(outcome: Option<TaskOutcome>) -> Result<ResponseContent, LookupError> {
    match outcome {
        Some(TaskOutcome::Final { record, .. } | TaskOutcome::Pending { record, .. }) => {
            Ok(ResponseContent::Record(record))
        }
        Some(TaskOutcome::Unknown { response: Some(response), .. } | TaskOutcome::Relayed(response)) => {
            Ok(ResponseContent::Upstream(response))
        }
        Some(TaskOutcome::Failed(failure)) => Err(LookupError::Failed(failure)),
        // Not possible: the batcher calls `retrieve` for an unknown id of a single lookup.
        Some(TaskOutcome::Unknown { response: None, .. }) | None => {
            Err(LookupError::Failed(LookupFailure::Internal))
        }
    }
}

/// Returns copies of the request's headers of the given names, in the order of `names`. They may
/// hold secrets.
fn forwarded_headers(headers: &HeaderMap, names: &[HeaderName]) -> Vec<(HeaderName, HeaderValue)> {
    names
        .iter()
        .flat_map(|name| headers.get_all(name).iter().map(|value| (name.clone(), headers::copy(value))))
        .map(|(name, mut value)| {
            value.set_sensitive(true);
            (name, value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_headers_do_not_hold_the_head_of_their_request() {
        let head = Bytes::from("x-a: 1\r\nx-b: 2\r\nx-a: 3\r\n".to_owned());
        let value = |at: usize| HeaderValue::from_maybe_shared(head.slice(at..=at)).unwrap();
        let (a, b) = (HeaderName::from_static("x-a"), HeaderName::from_static("x-b"));
        let mut headers = HeaderMap::new();
        for (name, at) in [(&a, 5), (&b, 13), (&a, 21)] {
            headers.append(name, value(at));
        }
        let forwarded = forwarded_headers(&headers, &[b, a]);
        drop(headers);
        assert!(head.is_unique());
        assert_eq!(forwarded.iter().map(|(_, value)| value).collect::<Vec<_>>(), ["2", "1", "3"]);
        assert!(forwarded.iter().all(|(_, value)| value.is_sensitive()));
    }
}
