//! One upstream call: sends it, distributes the records, and repeats or divides it after a failure.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::backend::Backend;
use super::breaker::HalfOpenPermit;
use super::decode::{DecodedRecord, DecodedResponse, decode, retry_after};
use super::outcome::{LookupFailure, RecordSource};
use super::queue::{Call, FetchOutcome};
use super::registry::{FetchedFinal, QueueHandle};
use crate::task::{FinalRecord, MIN_BATCH_LIMIT, TaskId};
use crate::telemetry::CallStatus;
use crate::upstream::{UpstreamError, UpstreamResponse};

/// Latest start of a retry, counted from when the ids were first taken. It leaves time for four
/// retries with the vendor's documented backoff, but not for four calls that are slow to fail.
const MAX_RETRY_TIME: Duration = Duration::from_secs(30);

/// Longest pause of the documented backoff (1, 2, 4, 8, 16 s), without jitter.
const MAX_BACKOFF: Duration = Duration::from_secs(16);

/// Call in flight. On every exit path each of its ids is completed or prepared for another call.
pub(super) struct CallInFlight<B: Backend> {
    handle: Arc<QueueHandle<B>>,
    call: Call,
    /// Ids that are neither completed nor prepared for another call.
    remaining: Vec<TaskId>,
    /// Present if the call probes the upstream.
    probe: Option<HalfOpenPermit>,
    _call_permit: OwnedSemaphorePermit,
}

/// Whether a failed call is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    Scheduled,
    Exhausted,
}

impl<B: Backend> Drop for CallInFlight<B> {
    fn drop(&mut self) {
        // Ids are left only after a panic.
        self.fail_remaining(&LookupFailure::Internal);
        self.handle.lock().end_call();
        self.handle.wake.notify_one();
    }
}

impl<B: Backend> CallInFlight<B> {
    pub(super) fn new(
        handle: &Arc<QueueHandle<B>>,
        call: Call,
        probe: Option<HalfOpenPermit>,
        call_permit: OwnedSemaphorePermit,
    ) -> Self {
        let remaining = call.ids.clone();
        Self { handle: Arc::clone(handle), call, remaining, probe, _call_permit: call_permit }
    }

    /// Sends the call and handles its result.
    pub(super) async fn run(mut self) {
        let handle = Arc::clone(&self.handle);
        let QueueHandle { registry, key, .. } = &*handle;
        let ids = &self.call.ids;
        let began = Instant::now();
        let epoch = registry.backend.epoch();
        let lookup = registry.backend.look_up(&key.service, &handle.credentials, ids);
        // No client waits after the deadline, and a lookup can be repeated.
        let Some(result) = registry.shutdown.until_deadline(lookup).await else {
            return self.fail_remaining(&LookupFailure::ShuttingDown);
        };
        let now = Instant::now();
        let status = match &result {
            Ok(response) => response.status.as_str().to_owned(),
            Err(error) => error.as_str().to_owned(),
        };
        let (attempt, took) = (self.call.attempts, now - began);
        tracing::debug!(ids = ids.len(), attempt, status, ?took, "upstream lookup call finished");
        let service = registry.metrics.service(key.service.as_str());
        registry.metrics.count_call(service, CallStatus::of(&status), ids.len(), took);
        match result {
            Ok(response) => {
                registry.breaker.record_success(now);
                if !response.connect_time.is_zero() {
                    handle.limiter.add_connect_delay(now, response.connect_time);
                }
                registry.backend.report_response(key, &response);
                self.handle_response(began, epoch, response).await;
            }
            Err(error) => {
                registry.breaker.record_failure(now, began, self.probe.as_ref(), error);
                self.handle_error(error);
            }
        }
    }

    async fn handle_response(&mut self, began: Instant, epoch: B::Epoch, response: UpstreamResponse) {
        let is_batch = self.call.ids.len() > 1;
        let decoded = decode(&response, &self.call.ids, &self.handle.service.rules);
        let retry_after = retry_after(response.retry_after.as_ref());
        let response = Arc::new(response);
        match decoded {
            DecodedResponse::Records { found, missing } => self.distribute(epoch, found, missing).await,
            DecodedResponse::Empty => {
                self.complete_remaining(|| FetchOutcome::Unknown(Some(Arc::clone(&response))));
            }
            DecodedResponse::Malformed if is_batch => {
                self.retry_or_fail(Duration::ZERO, &LookupFailure::InvalidResponse);
            }
            DecodedResponse::Malformed => self.complete_remaining(|| {
                FetchOutcome::Relayed(Arc::clone(&response), LookupFailure::InvalidResponse)
            }),
            DecodedResponse::Refused if is_batch => self.halve(),
            DecodedResponse::Refused | DecodedResponse::OtherError => {
                self.fail_remaining(&LookupFailure::Upstream(response));
            }
            DecodedResponse::InvalidToken => {
                let failure = LookupFailure::Upstream(response);
                self.fail_remaining(&failure);
                self.handle.lock().fail_waiting(&failure);
            }
            DecodedResponse::Redirect => self.fail_remaining(&LookupFailure::Redirect),
            DecodedResponse::TooManyRequests => {
                self.handle.limiter.slow_down(Instant::now(), began, retry_after);
                let is_awaited = self.handle.lock().is_awaited(&self.call.ids);
                let retry =
                    self.retry_or_fail(retry_after.unwrap_or_default(), &LookupFailure::Upstream(response));
                if retry == Retry::Scheduled || !is_awaited {
                    self.handle.registry.metrics.rate_limited_absorbed.inc();
                }
            }
            DecodedResponse::ServerError => {
                if let Some(pause) = retry_after {
                    self.handle.limiter.pause(Instant::now(), pause);
                }
                self.retry_or_fail(retry_after.unwrap_or_default(), &LookupFailure::Upstream(response));
            }
        }
    }

    fn handle_error(&mut self, error: UpstreamError) {
        let failure = LookupFailure::Transport(error);
        match error {
            UpstreamError::TooLarge if self.call.ids.len() > 1 => self.halve(),
            UpstreamError::TooLarge => self.fail_remaining(&failure),
            // An unreachable upstream is probed by later calls. A timeout is retried only where
            // `request_timeout` is well below `MAX_RETRY_TIME`.
            error if error.was_reached() => {
                self.retry_or_fail(Duration::ZERO, &failure);
            }
            _ => self.fail_remaining(&failure),
        }
    }

    /// Stores the final records, then completes all ids (Durability).
    async fn distribute(
        &mut self,
        epoch: B::Epoch,
        found: Vec<(TaskId, DecodedRecord)>,
        missing: Vec<TaskId>,
    ) {
        let handle = Arc::clone(&self.handle);
        let finals: Vec<FinalRecord> = found
            .iter()
            .filter_map(|(id, record)| match record {
                DecodedRecord::Final { record, .. } => {
                    Some(FinalRecord { id: id.clone(), json: record.clone() })
                }
                DecodedRecord::Pending { .. } | DecodedRecord::Conflicting(_) => None,
            })
            .collect();
        let stored = match finals.is_empty() {
            true => Vec::new(),
            false => handle.registry.backend.insert(&handle.key, epoch, finals).await,
        };
        let may_be_cut = self.call.ids.len() > 1 && found.len() >= MIN_BATCH_LIMIT;
        if let Some(records) = self.call.short_response.filter(|_| !found.is_empty()) {
            handle.service.learn_limit(&handle.key.service, records);
        }
        let missing = match may_be_cut {
            true => {
                self.request_again(&missing, found.len());
                Vec::new()
            }
            false => missing,
        };
        let mut stored = stored.into_iter();
        let mut fetched_finals = Vec::new();
        for (id, record) in found {
            let outcome = match record {
                DecodedRecord::Final { record, duration, kind } => {
                    let is_stored = stored.next().unwrap_or(false);
                    // A record that is not stored is fetched again and must not count twice.
                    if let Some(seconds) = duration.filter(|_| is_stored) {
                        let durations = &handle.registry.durations;
                        durations.record(&handle.key.service, kind.as_deref(), seconds);
                    }
                    let source = RecordSource::Upstream { is_stored };
                    if !handle.lock().is_discarded(&id) {
                        fetched_finals.push(FetchedFinal { id: id.clone(), record: record.clone(), source });
                    }
                    FetchOutcome::Final { record, source }
                }
                DecodedRecord::Pending { record, task_age, kind } => {
                    FetchOutcome::Pending { record, task_age, kind }
                }
                DecodedRecord::Conflicting(record) => FetchOutcome::Conflicting(record),
            };
            self.complete(&id, outcome);
        }
        for id in missing {
            let mut queue = handle.lock();
            if queue.needs_own_call(&id) {
                self.remaining.retain(|remaining| *remaining != id);
                let context = handle.context();
                queue.mark_missing(context.now, &id);
                queue.prepare_call(&context, Call::new(vec![id], self.call.taken_at, context.now));
            } else {
                drop(queue);
                self.complete(&id, FetchOutcome::Unknown(None));
            }
        }
        handle.registry.notify_long_polls(&handle.key, &fetched_finals);
    }

    /// Prepares calls for ids that a response of `records` records left out, because it may have been
    /// cut. Usually it is one call.
    fn request_again(&mut self, ids: &[TaskId], records: usize) {
        self.remaining.retain(|remaining| !ids.contains(remaining));
        let now = Instant::now();
        let calls = ids.chunks(self.handle.service.max_batch()).map(|ids| {
            let call = Call::new(ids.to_vec(), self.call.taken_at, now);
            Call { short_response: Some(records), ..call }
        });
        self.prepare(calls);
    }

    /// Sends a refused batch again in halves, until the refused id is the only one in its call.
    fn halve(&mut self) {
        let mut ids = std::mem::take(&mut self.remaining);
        let second = ids.split_off(ids.len() / 2);
        self.prepare([ids, second].map(|ids| Call { ids, ..self.call }));
    }

    /// Schedules the call again after the documented backoff, at least after `min_pause`, or fails
    /// its ids.
    fn retry_or_fail(&mut self, min_pause: Duration, failure: &LookupFailure) -> Retry {
        let now = Instant::now();
        let not_before = now + backoff(self.call.attempts).max(min_pause);
        if self.call.attempts >= self.handle.registry.settings.max_retries
            || not_before > self.call.taken_at + MAX_RETRY_TIME
        {
            self.fail_remaining(failure);
            return Retry::Exhausted;
        }
        let ids = std::mem::take(&mut self.remaining);
        let call = Call { ids, attempts: self.call.attempts + 1, not_before, ..self.call };
        self.prepare([call]);
        Retry::Scheduled
    }

    /// Adds calls for ids of this call.
    fn prepare(&self, calls: impl IntoIterator<Item = Call>) {
        let context = self.handle.context();
        let mut queue = self.handle.lock();
        for call in calls {
            queue.prepare_call(&context, call);
        }
        // There is none after a panic of the worker.
        self.handle.ensure_worker(&mut queue);
    }

    fn fail_remaining(&mut self, failure: &LookupFailure) {
        self.complete_remaining(|| FetchOutcome::Failed(failure.clone()));
    }

    fn complete_remaining(&mut self, outcome: impl Fn() -> FetchOutcome) {
        for id in std::mem::take(&mut self.remaining) {
            self.complete(&id, outcome());
        }
    }

    fn complete(&mut self, id: &TaskId, outcome: FetchOutcome) {
        self.remaining.retain(|remaining| remaining != id);
        let context = self.handle.context();
        let bytes = self.handle.lock().complete(&context, id, outcome);
        self.handle.registry.count_snapshot(bytes);
    }
}

/// Returns the documented pause after the given number of earlier attempts: 1, 2, 4, 8, 16 s plus
/// up to 1 s of jitter.
fn backoff(attempts: u32) -> Duration {
    let seconds = 1_u64.checked_shl(attempts).unwrap_or(u64::MAX);
    Duration::from_secs(seconds).min(MAX_BACKOFF) + Duration::from_millis(fastrand::u64(0..1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_the_documented_one() {
        for (attempts, seconds) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 16), (80, 16)] {
            let pause = backoff(attempts);
            assert!((seconds..seconds + 1).contains(&pause.as_secs()), "{attempts}: {pause:?}");
        }
    }
}
