//! Worker of a queue: takes the token's permits while ids are queued, and starts a task for each
//! call.
//!
//! Workers and calls are background tasks. They continue when a client hangs up.

use std::sync::Arc;

use tokio::time::Instant;

use super::backend::Backend;
use super::breaker::{BreakerDecision, Rejection};
use super::call::CallInFlight;
use super::outcome::LookupFailure;
use super::queue::{Queue, WorkerStart, WorkerStep};
use super::registry::QueueHandle;

impl<B: Backend> QueueHandle<B> {
    /// Starts a worker unless one runs. It stops by itself when no id is queued.
    pub(super) fn ensure_worker(self: &Arc<Self>, queue: &mut Queue) {
        if queue.start_worker() == WorkerStart::Needed {
            let worker = Worker::new(self);
            let span = tracing::debug_span!("queue", service = %self.key.service, token = %self.key.token);
            span.in_scope(|| self.registry.supervisor.spawn("queue worker", worker.run()));
        }
    }
}

/// Running worker. On every exit path its `Drop` marks the queue as having no worker, so that no
/// waiter hangs.
struct Worker<B: Backend> {
    handle: Arc<QueueHandle<B>>,
    /// Whether the queue is marked already. If not, the worker panicked.
    has_stopped: bool,
}

impl<B: Backend> Drop for Worker<B> {
    fn drop(&mut self) {
        self.handle.limiter.remove_busy_queue();
        if !self.has_stopped {
            self.handle.lock().stop_worker(&LookupFailure::Internal);
        }
    }
}

impl<B: Backend> Worker<B> {
    fn new(handle: &Arc<QueueHandle<B>>) -> Self {
        handle.limiter.add_busy_queue();
        Self { handle: Arc::clone(handle), has_stopped: false }
    }

    async fn run(mut self) {
        let shutdown = self.handle.registry.shutdown.clone();
        if shutdown.until_deadline(self.take_calls()).await.is_none() {
            self.handle.lock().stop_worker(&LookupFailure::ShuttingDown);
        }
        self.has_stopped = true;
    }

    /// Takes calls until no id is queued and no call is in flight that may have to be repeated.
    async fn take_calls(&self) {
        let QueueHandle { registry, wake, .. } = &*self.handle;
        loop {
            let now = Instant::now();
            if let Some(rejection) = registry.breaker.rejection(now) {
                self.fail_waiting(rejection);
            }
            let step = self.handle.lock().next_step(now);
            match step {
                WorkerStep::TakeCall => self.take_call().await,
                WorkerStep::SleepUntil(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = wake.notified() => {}
                    }
                }
                WorkerStep::AwaitChange => wake.notified().await,
                WorkerStep::Stop => return,
            }
        }
    }

    /// Waits for the permits of a call and starts it.
    async fn take_call(&self) {
        let QueueHandle { registry, limiter, .. } = &*self.handle;
        let permit = limiter.acquire().await;
        let Ok(call_permit) = Arc::clone(&registry.call_permits).acquire_owned().await else { return };
        let now = Instant::now();
        let probe = match registry.breaker.decide(now) {
            BreakerDecision::Send => None,
            BreakerDecision::Probe(probe) => Some(probe),
            BreakerDecision::Reject(rejection) => return self.fail_waiting(rejection),
        };
        let context = self.handle.context();
        let Some(call) = self.handle.lock().take_call(&context) else { return };
        let call = CallInFlight::new(&self.handle, call, probe, call_permit);
        permit.spend(now);
        registry.supervisor.spawn("upstream call", call.run());
    }

    fn fail_waiting(&self, Rejection { error, retry_after }: Rejection) {
        self.handle.lock().fail_waiting(&LookupFailure::UpstreamDown { error, retry_after });
    }
}
