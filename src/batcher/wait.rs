//! A caller's side of a lane: it registers its ids, waits as long as it may, and withdraws when it goes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::waiter::{Progress, Waiter};
use super::{Backend, Handling, LookupFailure, LookupOptions, LookupResult, QueueHandle, TaskOutcome};
use crate::task::TaskId;

/// Withdraws a caller's question when its future ends or is dropped.
struct PendingLookup<'a, O> {
    queue: &'a QueueHandle<O>,
    ids: &'a [TaskId],
    waiter: Arc<Waiter>,
    long_poll: bool,
    /// The caller gets an answer; without, it hung up.
    answered: bool,
}

impl<O> Drop for PendingLookup<'_, O> {
    fn drop(&mut self) {
        self.queue.callers.fetch_sub(1, Ordering::Relaxed);
        if self.long_poll {
            self.queue.shared.long_polling.fetch_sub(1, Ordering::Relaxed);
            self.queue.long_polling.fetch_sub(1, Ordering::Relaxed);
        }
        if self.waiter.progress() != Progress::Done {
            let limits = self.queue.limits();
            self.queue.lock().leave(Instant::now(), &limits, self.ids, &self.waiter, self.answered);
            self.queue.wake.notify_one();
        }
    }
}

impl<O: Backend> QueueHandle<O> {
    pub(super) async fn look_up(
        self: &Arc<Self>,
        ids: &[TaskId],
        options: &LookupOptions,
        outcomes: Vec<Option<TaskOutcome>>,
    ) -> LookupResult {
        let start = Instant::now();
        let waiter = Waiter::new(outcomes);
        let long_poll = options.wait.is_some();
        if long_poll {
            self.shared.long_polling.fetch_add(1, Ordering::Relaxed);
            self.long_polling.fetch_add(1, Ordering::Relaxed);
        }
        self.callers.fetch_add(1, Ordering::Relaxed);
        let mut question = PendingLookup { queue: self, ids, waiter, long_poll, answered: false };
        let limits = self.limits();
        let enqueued = {
            let mut state = self.lock();
            let before = state.len();
            let enqueued = state.arrive(start, &limits, ids, &question.waiter, options);
            self.shared.ids.fetch_add(state.len().saturating_sub(before), Ordering::Relaxed);
            if question.waiter.progress() != Progress::Done {
                self.ensure_worker(&mut state);
                self.wake.notify_one();
            }
            enqueued
        };
        self.wait_for(&question, start, options).await;
        question.answered = true;
        let cycle = self.lock().cycle(&limits);
        let waiter = Arc::clone(&question.waiter);
        drop(question);
        let outcomes = waiter.take();
        LookupResult { outcomes, enqueued, cycle }
    }

    /// Waits until the question is answered as far as it will be.
    async fn wait_for(&self, question: &PendingLookup<'_, O>, start: Instant, options: &LookupOptions) {
        let (wait, lenient) = (options.wait, options.handling == Handling::Lenient);
        let PendingLookup { ids, waiter, .. } = question;
        let queue_end = start + self.shared.settings.queue_timeout;
        let wait_end = wait.map(|wait| start + wait);
        let (mut queueing, mut long_polling, mut remembered) = (true, wait.is_some(), true);
        loop {
            let progress = waiter.progress();
            if progress == Progress::Done || (progress == Progress::Failed && !lenient && !long_polling) {
                return;
            }
            let now = Instant::now();
            if long_polling && (progress == Progress::Failed || wait_end.is_some_and(|end| end <= now)) {
                long_polling = false;
                let limits = self.limits();
                self.lock().stop_holding_out(now, &limits, ids, waiter);
                self.wake.notify_one();
                continue;
            }
            if queueing && !long_polling && queue_end <= now {
                queueing = false;
                let limits = self.limits();
                self.lock().stop_queueing(now, &limits, ids, waiter);
                self.wake.notify_one();
                continue;
            }
            tokio::select! {
                () = waiter.changed() => {}
                () = until(wait_end), if long_polling => {}
                () = tokio::time::sleep_until(queue_end), if queueing && !long_polling => {}
                () = self.shared.shutdown.draining(), if remembered => {
                    remembered = false;
                    long_polling = false;
                    let (now, limits) = (Instant::now(), self.limits());
                    let mut state = self.lock();
                    state.answer_with_last_seen(now, ids, waiter);
                    state.stop_holding_out(now, &limits, ids, waiter);
                    self.wake.notify_one();
                }
                () = self.shared.shutdown.deadline() => {
                    let limits = self.limits();
                    self.lock().leave(Instant::now(), &limits, ids, waiter, false);
                    for slot in waiter.open_slots() {
                        waiter.fill(slot, TaskOutcome::Failed(LookupFailure::ShuttingDown));
                    }
                }
            }
        }
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
