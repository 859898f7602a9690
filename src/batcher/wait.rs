//! Wait of one lookup: it registers its ids, waits within its time limits, and leaves the queue.

use std::sync::Arc;

use tokio::time::Instant;

use super::backend::Backend;
use super::outcome::{Handling, LookupFailure, LookupOptions, LookupResult, TaskOutcome};
use super::queue::Departure;
use super::registry::QueueHandle;
use super::waiter::{Progress, Waiter};
use crate::task::TaskId;

/// Registration of a lookup. Removes the lookup from its queue when its future ends or is dropped.
struct Registration<'a, B> {
    handle: &'a QueueHandle<B>,
    ids: &'a [TaskId],
    waiter: Arc<Waiter>,
    is_long_poll: bool,
    departure: Departure,
}

/// Phase of a wait.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Waits for final records (`prefer: wait`).
    LongPoll { until: Instant },
    /// Waits for calls to take the ids.
    Queueing,
    /// Waits for calls in flight.
    Fetching,
}

impl<B> Drop for Registration<'_, B> {
    fn drop(&mut self) {
        if self.is_long_poll {
            self.handle.remove_long_poll();
        }
        if self.waiter.progress() != Progress::Done {
            let context = self.handle.context();
            self.handle.lock().leave(&context, self.ids, &self.waiter, self.departure);
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
        let is_long_poll = options.wait.is_some();
        if is_long_poll {
            self.add_long_poll();
        }
        let mut registration = Registration {
            handle: self,
            ids,
            waiter: Arc::clone(&waiter),
            is_long_poll,
            departure: Departure::HungUp,
        };
        let context = self.context();
        let enqueued = {
            let mut queue = self.lock();
            let before = queue.len();
            let enqueued = queue.enqueue(&context, ids, &waiter, options);
            self.count_ids(queue.len().saturating_sub(before));
            if waiter.progress() != Progress::Done {
                self.ensure_worker(&mut queue);
                self.wake.notify_one();
            }
            enqueued
        };
        self.wait(&registration, context.now, options).await;
        registration.departure = Departure::Returned;
        let cycle = self.lock().cycle(&context);
        drop(registration);
        LookupResult { outcomes: waiter.take(), enqueued, cycle }
    }

    /// Waits until the outcomes are as complete as they will be.
    async fn wait(&self, registration: &Registration<'_, B>, start: Instant, options: &LookupOptions) {
        let Registration { ids, waiter, .. } = registration;
        let shutdown = &self.registry.shutdown;
        let queue_end = start + self.registry.settings.queue_timeout;
        let mut phase = match options.wait {
            Some(wait) => Phase::LongPoll { until: start + wait },
            None => Phase::Queueing,
        };
        let mut is_draining = false;
        loop {
            let now = Instant::now();
            match (waiter.progress(), phase) {
                (Progress::Done, _) => return,
                (Progress::PartlyFailed, Phase::LongPoll { .. }) => {
                    phase = self.end_long_poll(ids, waiter);
                    continue;
                }
                (Progress::PartlyFailed, _) if options.handling == Handling::Strict => return,
                (_, Phase::LongPoll { until }) if until <= now => {
                    phase = self.end_long_poll(ids, waiter);
                    continue;
                }
                (_, Phase::Queueing) if queue_end <= now => {
                    self.lock().end_queueing(&self.context(), ids, waiter);
                    self.wake.notify_one();
                    phase = Phase::Fetching;
                    continue;
                }
                _ => {}
            }
            let timer = match phase {
                Phase::LongPoll { until } => Some(until),
                Phase::Queueing => Some(queue_end),
                Phase::Fetching => None,
            };
            tokio::select! {
                () = waiter.changed() => {}
                () = sleep_until(timer) => {}
                () = shutdown.draining(), if !is_draining => {
                    is_draining = true;
                    self.lock().resolve_cached(Instant::now(), ids, waiter);
                    if let Phase::LongPoll { .. } = phase {
                        phase = self.end_long_poll(ids, waiter);
                    }
                }
                () = shutdown.deadline() => {
                    self.lock().leave(&self.context(), ids, waiter, Departure::HungUp);
                    for slot in waiter.unresolved() {
                        waiter.resolve(slot, TaskOutcome::Failed(LookupFailure::ShuttingDown));
                    }
                }
            }
        }
    }

    fn end_long_poll(&self, ids: &[TaskId], waiter: &Arc<Waiter>) -> Phase {
        self.lock().end_long_poll(&self.context(), ids, waiter);
        self.wake.notify_one();
        Phase::Queueing
    }
}

async fn sleep_until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
