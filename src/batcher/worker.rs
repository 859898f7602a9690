//! The tasks behind a lane: a driver that takes the token's turns while anything is wanted, and one task for each
//! call. Both belong to the program, so that no caller's leaving ends them; both clean up on every way out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{BreakerDecision, HalfOpenPermit};
use super::decode::{self, DecodedResponse, Found};
use super::queue::{Call, FetchOutcome, Next, Queue};
use super::{Backend, LookupFailure, MAX_CALLS, QueueHandle};
use crate::task::{FinalRecord, TaskId};
use crate::telemetry::CallStatus;
use crate::upstream::{UpstreamError, UpstreamResponse};

/// How long after an id was first taken another try may still begin: the documented backoff of 1, 2, 4 and 8 s with
/// its jitter fits, an upstream that takes long to fail ends it sooner.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest pause of the documented backoff (1, 2, 4, 8, 16 s and up to 1 s of jitter).
const MAX_BACKOFF: Duration = Duration::from_secs(16);

impl<O: Backend> QueueHandle<O> {
    /// Starts a driver unless one runs. It ends by itself when nothing is wanted.
    pub(super) fn ensure_worker(self: &Arc<Self>, state: &mut Queue) {
        if state.worker_running {
            return;
        }
        state.worker_running = true;
        self.limiter.set_busy(true);
        let guard = WorkerGuard { queue: Arc::clone(self), is_done: false };
        let span = tracing::debug_span!("queue", service = %self.key.service, token = %self.key.token);
        span.in_scope(|| self.shared.supervisor.spawn("queue worker", drive(guard)));
    }
}

/// Clears `worker_running` on every exit path so that no waiter hangs.
struct WorkerGuard<O: Backend> {
    queue: Arc<QueueHandle<O>>,
    /// Whether the worker cleared `worker_running` itself; if not, it panicked.
    is_done: bool,
}

impl<O: Backend> Drop for WorkerGuard<O> {
    fn drop(&mut self) {
        self.queue.limiter.set_busy(false);
        if !self.is_done {
            let mut state = self.queue.lock();
            state.fail_waiting(&LookupFailure::Internal);
            state.worker_running = false;
        }
    }
}

async fn drive<O: Backend>(mut guard: WorkerGuard<O>) {
    let queue = &guard.queue;
    if queue.shared.shutdown.until_deadline(take_turns(queue)).await.is_none() {
        let mut state = queue.lock();
        state.fail_waiting(&LookupFailure::ShuttingDown);
        state.worker_running = false;
    }
    guard.is_done = true;
}

/// Takes the token's turns until nothing is wanted and no call is under way that may come back to be repeated.
async fn take_turns<O: Backend>(queue: &Arc<QueueHandle<O>>) {
    loop {
        let now = Instant::now();
        if let Some((error, retry_after)) = queue.shared.breaker.is_down(now) {
            queue.lock().fail_waiting(&LookupFailure::UpstreamDown { error, retry_after });
        }
        let (next, calls) = {
            let mut state = queue.lock();
            let next = state.next(now);
            // Under the same lock as the look, so that no caller comes in between and finds a driver that ends.
            state.worker_running = next != Next::Nothing || state.calls > 0;
            (next, state.calls)
        };
        match next {
            Next::Nothing if calls == 0 => return,
            Next::Nothing => queue.wake.notified().await,
            Next::Take if calls >= MAX_CALLS => queue.wake.notified().await,
            Next::Take => take_a_turn(queue).await,
            Next::At(at) => {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = queue.wake.notified() => {}
                }
            }
        }
    }
}

async fn take_a_turn<O: Backend>(queue: &Arc<QueueHandle<O>>) {
    let allowed = queue.limiter.wait().await;
    let Ok(place) = Arc::clone(&queue.shared.calls).acquire_owned().await else { return };
    let now = Instant::now();
    let probe = match queue.shared.breaker.permit(now) {
        BreakerDecision::Go(probe) => probe,
        BreakerDecision::Down(error, retry_after) => {
            queue.lock().fail_waiting(&LookupFailure::UpstreamDown { error, retry_after });
            return;
        }
    };
    let limits = queue.limits();
    let Some(call) = queue.lock().take(now, &limits) else { return };
    allowed.spend(now);
    let guard = CallGuard::new(queue, call, probe);
    let task = async move {
        guard.run().await;
        drop(place);
    };
    queue.shared.supervisor.spawn("upstream call", task);
}

/// One call under way. However it ends, each of its ids is answered, put back or given up.
struct CallGuard<O: Backend> {
    queue: Arc<QueueHandle<O>>,
    call: Call,
    /// Ids that nothing was said of yet.
    open: Vec<TaskId>,
    probe: HalfOpenPermit,
}

impl<O: Backend> Drop for CallGuard<O> {
    fn drop(&mut self) {
        if !self.open.is_empty() {
            let open = self.resolve_all();
            self.fail(open, &LookupFailure::Internal);
        }
        self.queue.lock().calls -= 1;
        self.queue.wake.notify_one();
    }
}

impl<O: Backend> CallGuard<O> {
    fn new(queue: &Arc<QueueHandle<O>>, call: Call, probe: HalfOpenPermit) -> Self {
        queue.lock().calls += 1;
        Self { queue: Arc::clone(queue), open: call.ids.clone(), call, probe }
    }

    async fn run(mut self) {
        let shared = &self.queue.shared;
        let began = Instant::now();
        let epoch = shared.backend.epoch();
        let look_up =
            shared.backend.look_up(&self.queue.key.service, &self.queue.credentials, &self.call.ids);
        // Nobody is there for the answer after `ending`, and a look-up given up costs nothing.
        let Some(result) = shared.shutdown.until_deadline(look_up).await else {
            let ids = self.resolve_all();
            return self.fail(ids, &LookupFailure::ShuttingDown);
        };
        let now = Instant::now();
        let status = match &result {
            Ok(answer) => answer.status.as_str().to_owned(),
            Err(error) => error.as_str().to_owned(),
        };
        tracing::debug!(ids = self.call.ids.len(), attempt = self.call.attempts, status, took = ?(now - began), "asked");
        let service = shared.metrics.service(self.queue.key.service.as_str());
        shared.metrics.count_call(service, CallStatus::of(&status), self.call.ids.len(), now - began);
        match result {
            Ok(answer) => {
                shared.breaker.record_success(now);
                if !answer.connect_time.is_zero() {
                    self.queue.limiter.add_connect_delay(now, answer.connect_time);
                }
                shared.backend.report_response(&self.queue.key, &answer);
                self.use_answer(began, epoch, answer).await;
            }
            Err(error) => {
                shared.breaker.failed(now, began, &self.probe, &error);
                self.use_error(error);
            }
        }
    }

    async fn use_answer(&mut self, began: Instant, epoch: O::Epoch, answer: UpstreamResponse) {
        let folded = self.call.ids.len() > 1;
        let response = decode::read(&answer, &self.call.ids);
        let answer = Arc::new(answer);
        match response {
            DecodedResponse::Tasks { found, left_out } => self.distribute(epoch, found, left_out).await,
            DecodedResponse::Empty => {
                let ids = self.resolve_all();
                self.complete(ids, || FetchOutcome::Unknown(Some(answer.clone())));
            }
            DecodedResponse::Strange if folded => {
                self.retry_or_fail(Duration::ZERO, &LookupFailure::InvalidResponse);
            }
            DecodedResponse::Strange => {
                let ids = self.resolve_all();
                self.complete(ids, || FetchOutcome::Relayed(answer.clone(), LookupFailure::InvalidResponse));
            }
            DecodedResponse::Refused if folded => self.halve(),
            DecodedResponse::Refused | DecodedResponse::Error => {
                let ids = self.resolve_all();
                self.fail(ids, &LookupFailure::Upstream(answer));
            }
            DecodedResponse::InvalidToken => {
                let ids = self.resolve_all();
                let failure = LookupFailure::Upstream(answer);
                self.fail(ids, &failure);
                self.queue.lock().fail_waiting(&failure);
            }
            DecodedResponse::Redirect => {
                let ids = self.resolve_all();
                self.fail(ids, &LookupFailure::Redirect);
            }
            DecodedResponse::TooManyRequests => {
                let wait = decode::retry_after(answer.retry_after.as_ref());
                self.queue.limiter.slow_down(Instant::now(), began, wait);
                let is_awaited = self.queue.lock().is_awaited(&self.call.ids);
                if self.retry_or_fail(wait.unwrap_or_default(), &LookupFailure::Upstream(answer))
                    || !is_awaited
                {
                    self.queue.shared.metrics.count_rate_limited_absorbed();
                }
            }
            DecodedResponse::Trouble => {
                let wait = decode::retry_after(answer.retry_after.as_ref());
                if let Some(pause) = wait {
                    self.queue.limiter.hold(Instant::now(), pause);
                }
                self.retry_or_fail(wait.unwrap_or_default(), &LookupFailure::Upstream(answer));
            }
        }
    }

    fn use_error(&mut self, error: UpstreamError) {
        if error == UpstreamError::TooLarge && self.call.ids.len() > 1 {
            return self.halve();
        }
        // An upstream that cannot be reached is probed by later calls. A time-out is worth another try only where
        // `request_timeout` is shorter than its callers' patience.
        let again = error.was_reached() && error != UpstreamError::TooLarge;
        let failure = LookupFailure::Transport(error);
        if again {
            self.retry_or_fail(Duration::ZERO, &failure);
        } else {
            let ids = self.resolve_all();
            self.fail(ids, &failure);
        }
    }

    /// Finished tasks are on disk before anyone is answered.
    async fn distribute(&mut self, epoch: O::Epoch, found: Vec<(TaskId, Found)>, left_out: Vec<TaskId>) {
        let finished: Vec<FinalRecord> = found
            .iter()
            .filter_map(|(id, found)| match found {
                Found::Finished(text) => Some(FinalRecord { id: id.clone(), json: text.clone() }),
                _ => None,
            })
            .collect();
        let stored = match finished.is_empty() {
            true => Vec::new(),
            false => self.queue.shared.backend.insert(&self.queue.key, epoch, finished).await,
        };
        let mut stored = stored.into_iter();
        let mut announced = Vec::new();
        for (id, found) in found {
            self.resolve(&id);
            let news = match found {
                Found::Finished(text) => {
                    let stored = stored.next().unwrap_or(false);
                    announced.push((id.clone(), text.clone(), stored));
                    FetchOutcome::Finished { text, stored }
                }
                Found::Pending(text, task_age) => FetchOutcome::Pending { text, task_age },
                Found::Disputed(text) => FetchOutcome::Disputed(text),
            };
            self.complete_one(&id, news);
        }
        for id in left_out {
            self.resolve(&id);
            let mut state = self.queue.lock();
            if state.is_owed_its_own_answer(&id) {
                let now = Instant::now();
                state.leave_out(now, &id);
                state.prepare(Call {
                    ids: vec![id],
                    attempts: 0,
                    taken_at: self.call.taken_at,
                    not_before: now,
                });
            } else {
                drop(state);
                self.complete_one(&id, FetchOutcome::Unknown(None));
            }
        }
        self.queue.shared.announce(&self.queue.key, &announced);
    }

    /// A refused folded call goes again in halves, until the culprit stands alone.
    fn halve(&mut self) {
        let ids = self.resolve_all();
        let (first, second) = ids.split_at(ids.len() / 2);
        let mut state = self.queue.lock();
        for half in [first, second] {
            state.prepare(Call { ids: half.to_vec(), ..self.call.clone() });
        }
    }

    /// Puts the call back for another try after the documented backoff, or gives its callers the failure; whether there
    /// will be another try.
    fn retry_or_fail(&mut self, at_least: Duration, failure: &LookupFailure) -> bool {
        let now = Instant::now();
        let pause = backoff(self.call.attempts).max(at_least);
        let ids = self.resolve_all();
        if self.call.attempts >= self.queue.shared.settings.max_retries
            || now + pause > self.call.taken_at + PATIENCE
        {
            self.fail(ids, failure);
            return false;
        }
        let call = Call { ids, attempts: self.call.attempts + 1, not_before: now + pause, ..self.call };
        self.queue.lock().prepare(call);
        true
    }

    fn fail(&self, ids: Vec<TaskId>, failure: &LookupFailure) {
        self.complete(ids, || FetchOutcome::Failed(failure.clone()));
    }

    fn complete(&self, ids: Vec<TaskId>, news: impl Fn() -> FetchOutcome) {
        for id in ids {
            self.complete_one(&id, news());
        }
    }

    fn complete_one(&self, id: &TaskId, news: FetchOutcome) {
        let limits = self.queue.limits();
        let (before, after) = self.queue.lock().complete(Instant::now(), &limits, id, news);
        let remembered = &self.queue.shared.remembered_bytes;
        remembered.fetch_add(after, Ordering::Relaxed);
        // The sweep sets the sum anew meanwhile, so a difference may pass zero.
        let _ = remembered
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| Some(sum.saturating_sub(before)));
    }

    fn resolve(&mut self, id: &TaskId) {
        self.open.retain(|open| open != id);
    }

    fn resolve_all(&mut self) -> Vec<TaskId> {
        std::mem::take(&mut self.open)
    }
}

/// The documented pause before try number `attempts + 2`: 1, 2, 4, 8, 16 s plus up to a second.
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
