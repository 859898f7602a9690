//! Batcher: coalesces lookups into as few upstream calls as the rate limit allows.
//!
//! There is one queue per [`QueueKey`] (service, token, forwarded headers) and one rate limiter per
//! token. A lookup that needs the upstream adds its ids to the queue. The queue's worker waits for
//! the rate limiter, takes up to a batch of ids and starts one call. Workers and calls are
//! background tasks. They continue when a client hangs up.
//!
//! | file | responsibility |
//! |---|---|
//! | `backend` | what the batcher needs from upstream, store, token status and learnt durations |
//! | `outcome` | options and outcomes of a lookup |
//! | `queue` | ids, waiters and cached results of one queue; order of the ids |
//! | `waiter` | outcomes of one lookup while calls resolve its ids |
//! | `wait` | time limits of one lookup |
//! | `worker`, `call` | permits, upstream calls, retries |
//! | `decode` | meaning of an upstream response |
//! | `rate_limit`, `breaker` | when a call may be sent |
//! | `services` | rules of the services, and the learnt size of their batches |
//! | `registry` | all queues, their shared state and bounds |
//! | `view` | state for metrics and the admin API |

mod backend;
mod breaker;
mod call;
mod decode;
mod outcome;
mod queue;
mod rate_limit;
mod registry;
mod services;
#[cfg(test)]
mod tests;
mod view;
mod wait;
mod waiter;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::backend::{Backend, QueueKey};
pub use self::outcome::{
    Enqueued, Freshness, Handling, LookupFailure, LookupKind, LookupOptions, LookupResult, QueueLimit,
    RecordSource, TaskOutcome,
};
use self::registry::Registry;
pub use self::view::{Listing, OutageView, PendingView, QueueView, ServiceView};
use crate::config::{TasksConfig, UpstreamConfig};
use crate::lifecycle::Shutdown;
use crate::task::{Service, TaskId};
use crate::telemetry::Metrics;
use crate::token::Digest;
use crate::upstream::Credentials;

/// Time between two sweeps of cached results, idle queues and idle rate limiters.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// All queues. Clones share them.
#[derive(Debug)]
pub struct Batcher<B> {
    registry: Arc<Registry<B>>,
}

impl<B> Clone for Batcher<B> {
    fn clone(&self) -> Self {
        Self { registry: Arc::clone(&self.registry) }
    }
}

impl<B: Backend> Batcher<B> {
    /// Creates a batcher without queues. When `shutdown` starts to drain, waiting lookups receive
    /// cached results. At its deadline the others fail.
    pub fn new(
        backend: B,
        upstream: &UpstreamConfig,
        tasks: &TasksConfig,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        Self { registry: Arc::new(Registry::new(backend, upstream, tasks, metrics, shutdown)) }
    }

    /// Looks up the ids whose outcome is `None`; `outcomes` has one place for each of `ids`.
    ///
    /// Ids that are queued or in flight already are joined. Cancel safe: dropping the future
    /// withdraws the lookup, and calls in flight go on.
    pub async fn look_up(
        &self,
        key: QueueKey,
        credentials: &Credentials,
        ids: &[TaskId],
        options: &LookupOptions,
        outcomes: Vec<Option<TaskOutcome>>,
    ) -> LookupResult {
        match self.registry.lease(key, credentials) {
            Ok(lease) => lease.handle.look_up(ids, options, outcomes).await,
            Err(limit) => LookupResult::too_many_queues(limit, outcomes),
        }
    }

    /// Charges a request that was passed through to the token's rate limiter. Never waits.
    pub fn charge(&self, token: &Digest) {
        let now = Instant::now();
        self.registry.limiters.lease(token, now).charge(now);
    }

    /// Drops the cached results of a task, for all tokens.
    pub fn discard_cached(&self, service: &Service, id: &TaskId) {
        self.registry.discard(service, id);
    }

    /// Drops all cached results.
    pub fn discard_all_cached(&self) {
        for handle in self.registry.queues() {
            handle.lock().discard_all();
            handle.wake.notify_one();
        }
    }

    /// Sweeps every few seconds until the shutdown deadline.
    pub async fn run_sweep(&self) {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.registry.shutdown.until_deadline(interval.tick()).await.is_some() {
            self.registry.sweep(Instant::now());
        }
    }

    /// Waits until no worker runs and no call is in flight, after the shutdown deadline.
    pub async fn stopped(&self) {
        self.registry.supervisor.wait().await;
    }
}
