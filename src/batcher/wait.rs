//! Wait of one lookup: it registers its ids, waits within its time limits, and leaves the queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backend::Backend;
use super::outcome::{Handling, LookupFailure, LookupOptions, LookupResult, TaskOutcome};
use super::queue::{POLL_INTERVAL, WaitingLookup};
use super::registry::QueueHandle;
use super::waiter::{Progress, Waiter};
use crate::task::TaskId;

/// Longest wait of a lookup that could receive a cached result.
const CACHED_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after which a client that hangs up is expected to come back. It did not cancel its request,
/// it timed out.
const CANCEL_PERIOD: Duration = Duration::from_secs(1);

/// Registration of a lookup. Removes the lookup from its queue when its future ends or is dropped.
struct Registration<'a, B> {
    handle: &'a QueueHandle<B>,
    lookup: WaitingLookup<'a>,
    /// Time for which ids stay queued that are not resolved when the lookup ends. `None` while its
    /// end would mean that the client hung up.
    keep_for: Option<Duration>,
}

/// Phase of a wait.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Polls for final records (`prefer: wait`).
    LongPoll { until: Instant, next_poll: Instant },
    /// Waits for calls. From `cached_at` on, it accepts cached results.
    Queueing { cached_at: Option<Instant>, until: Instant },
    /// Waits for calls in flight and prepared calls.
    Fetching,
}

impl Phase {
    /// Returns the phase of a lookup that arrives now, or whose long poll ends now.
    fn queueing(now: Instant, queue_timeout: Duration) -> Self {
        let cached_at = now + CACHED_TIMEOUT.min(queue_timeout);
        Self::Queueing { cached_at: Some(cached_at), until: now + queue_timeout }
    }

    /// Returns when the next step is due.
    fn timer(self) -> Option<Instant> {
        match self {
            Self::LongPoll { until, next_poll } => Some(until.min(next_poll)),
            Self::Queueing { cached_at, until } => Some(cached_at.unwrap_or(until)),
            Self::Fetching => None,
        }
    }
}

impl<B> Drop for Registration<'_, B> {
    fn drop(&mut self) {
        if self.lookup.options.wait.is_some() {
            self.handle.remove_long_poll();
        }
        if self.lookup.waiter.progress() != Progress::Done {
            let context = self.handle.context();
            let has_timed_out = context.now.saturating_duration_since(self.lookup.arrived_at) > CANCEL_PERIOD;
            let keep_for = self.keep_for.or(has_timed_out.then_some(context.pending_max_stale));
            self.handle.lock().leave(&context, &self.lookup, keep_for);
            self.handle.wake.notify_one();
        }
    }
}

impl<B: Backend> QueueHandle<B> {
    /// Looks up the ids whose outcome is `None`. Cancel safe: dropping the future withdraws the
    /// lookup.
    pub(super) async fn look_up(
        self: &Arc<Self>,
        ids: &[TaskId],
        options: &LookupOptions,
        outcomes: Vec<Option<TaskOutcome>>,
    ) -> LookupResult {
        let waiter = Waiter::new(outcomes);
        if options.wait.is_some() {
            self.add_long_poll();
        }
        let context = self.context();
        let lookup = WaitingLookup { ids, waiter: &waiter, options, arrived_at: context.now };
        let mut registration = Registration { handle: self, lookup, keep_for: None };
        let enqueued = {
            let mut queue = self.lock();
            let before = queue.len();
            let enqueued = queue.enqueue(&context, &lookup);
            self.count_ids(queue.len().saturating_sub(before));
            if waiter.progress() != Progress::Done || enqueued.retry_after.is_some() {
                self.ensure_worker(&mut queue);
                self.wake.notify_one();
            }
            enqueued
        };
        self.wait(&lookup).await;
        registration.keep_for = Some(enqueued.retry_after.unwrap_or_default() + context.pending_max_stale);
        let next_news = self.lock().next_news(&self.context(), ids);
        drop(registration);
        LookupResult { outcomes: waiter.take(), enqueued, next_news }
    }

    /// Waits until the outcomes are as complete as they will be.
    async fn wait(self: &Arc<Self>, lookup: &WaitingLookup<'_>) {
        let WaitingLookup { waiter, options, arrived_at: start, .. } = *lookup;
        let shutdown = &self.registry.shutdown;
        let queue_timeout = self.registry.settings.queue_timeout;
        let mut phase = match options.wait {
            Some(wait) => Phase::LongPoll { until: start + wait, next_poll: start + POLL_INTERVAL },
            None => Phase::queueing(start, queue_timeout),
        };
        let mut is_draining = false;
        loop {
            let now = Instant::now();
            match (waiter.progress(), phase) {
                (Progress::Done, _) => return,
                (Progress::PartlyFailed, Phase::LongPoll { .. }) => {
                    phase = self.end_long_poll(lookup);
                    continue;
                }
                (Progress::PartlyFailed, _) if options.handling == Handling::Strict => return,
                _ => {}
            }
            if phase.timer().is_some_and(|at| at <= now) {
                phase = self.advance(lookup, phase);
                continue;
            }
            let limit = waiter.limit();
            if limit.is_some_and(|at| at <= now) && !matches!(phase, Phase::LongPoll { .. }) {
                self.lock().end_queueing(&self.context(), lookup, true);
            }
            let timer = phase.timer().into_iter().chain(limit.filter(|at| *at > now)).min();
            tokio::select! {
                () = waiter.changed() => {}
                () = sleep_until(timer) => {}
                () = shutdown.draining(), if !is_draining => {
                    is_draining = true;
                    self.lock().serve_any_cached(&self.context(), lookup);
                    if let Phase::LongPoll { .. } = phase {
                        phase = self.end_long_poll(lookup);
                    }
                }
                () = shutdown.deadline() => {
                    self.lock().leave(&self.context(), lookup, None);
                    for slot in waiter.unresolved() {
                        waiter.resolve(slot, TaskOutcome::Failed(LookupFailure::ShuttingDown));
                    }
                }
            }
        }
    }

    /// Performs the step for which the phase's timer was set. Returns the next phase.
    fn advance(self: &Arc<Self>, lookup: &WaitingLookup<'_>, phase: Phase) -> Phase {
        let context = self.context();
        let mut queue = self.lock();
        match phase {
            Phase::LongPoll { until, .. } if until <= context.now => {
                drop(queue);
                self.end_long_poll(lookup)
            }
            Phase::LongPoll { until, next_poll } => {
                queue.poll(&context, lookup);
                self.ensure_worker(&mut queue);
                self.wake.notify_one();
                Phase::LongPoll { until, next_poll: next_poll + POLL_INTERVAL }
            }
            Phase::Queueing { cached_at: Some(_), until } => {
                queue.serve_cached(&context, lookup);
                Phase::Queueing { cached_at: None, until }
            }
            Phase::Queueing { cached_at: None, .. } | Phase::Fetching => {
                queue.end_queueing(&context, lookup, false);
                self.wake.notify_one();
                Phase::Fetching
            }
        }
    }

    fn end_long_poll(self: &Arc<Self>, lookup: &WaitingLookup<'_>) -> Phase {
        let context = self.context();
        let mut queue = self.lock();
        lookup.waiter.clear_limit();
        queue.end_long_poll(&context, lookup);
        self.ensure_worker(&mut queue);
        self.wake.notify_one();
        Phase::queueing(context.now, self.registry.settings.queue_timeout)
    }
}

async fn sleep_until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
