//! Registry of queues, and the state that all queues share.

mod queue_map;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use self::queue_map::QueueMap;
use super::backend::{Backend, QueueKey};
use super::breaker::CircuitBreaker;
use super::outcome::{QueueLimit, RecordSource};
use super::queue::{Queue, QueueContext, SnapshotBytes, SweepScope};
use super::rate_limit::{LimiterLease, TokenLimiters};
use super::services::{ServiceState, ServiceStates};
use crate::config::{TasksConfig, UpstreamConfig};
use crate::lifecycle::{Shutdown, Supervisor};
use crate::task::{Durations, Service, TaskId};
use crate::telemetry::Metrics;
use crate::upstream::Credentials;

/// Smallest bound of the ids in one queue. The bound is larger where `tasks.max_ids` permits larger
/// lookups.
const MIN_QUEUE_CAPACITY: usize = 20_000;

/// Most lookup calls in flight over all queues.
const MAX_CALLS_IN_FLIGHT: usize = 512;

/// Most ids over all queues, those with cached results included.
const MAX_IDS: usize = 250_000;

/// Most bytes of snapshots over all queues.
const MAX_SNAPSHOT_BYTES: usize = 64 << 20;

/// Queues by key, and their shared state.
#[derive(Debug)]
pub(super) struct Registry<B> {
    pub(super) backend: B,
    pub(super) durations: Arc<Durations>,
    queues: Mutex<QueueMap<B>>,
    pub(super) limiters: TokenLimiters,
    pub(super) breaker: Arc<CircuitBreaker>,
    /// One permit for each lookup call in flight.
    pub(super) call_permits: Arc<Semaphore>,
    pub(super) settings: BatcherSettings,
    pub(super) services: ServiceStates,
    /// Bytes of snapshots: those counted by the last sweep and the changes since.
    snapshot_bytes: AtomicUsize,
    /// Number of ids: those counted by the last sweep and those added since.
    ids: AtomicUsize,
    /// Number of long polls (`prefer: wait`) over all queues.
    long_polls: AtomicUsize,
    pub(super) shutdown: Shutdown,
    /// Owner of workers and calls.
    pub(super) supervisor: Supervisor,
    pub(super) metrics: Arc<Metrics>,
}

/// Settings from the configuration.
#[derive(Clone, Debug)]
pub(super) struct BatcherSettings {
    /// Most ids in one queue.
    max_queue_ids: usize,
    pub(super) max_retries: u32,
    pending_max_age: Duration,
    pending_max_stale: Duration,
    pub(super) queue_timeout: Duration,
}

/// One queue with what its worker and its lookups share.
#[derive(Debug)]
pub(super) struct QueueHandle<B> {
    pub(super) key: QueueKey,
    pub(super) service: Arc<ServiceState>,
    pub(super) credentials: Credentials,
    pub(super) registry: Arc<Registry<B>>,
    pub(super) limiter: LimiterLease,
    queue: Mutex<Queue>,
    /// Notifies the worker of a change.
    pub(super) wake: Notify,
    /// Number of leases. A queue without one, without a worker and without calls is idle.
    leases: AtomicUsize,
    /// Number of long polls in this queue.
    long_polls: AtomicUsize,
    used_at: Mutex<Instant>,
}

/// Use of a queue by one lookup, which prevents its eviction.
#[derive(Debug)]
pub(super) struct QueueLease<B> {
    pub(super) handle: Arc<QueueHandle<B>>,
}

/// Final record of a fetch.
#[derive(Clone, Debug)]
pub(super) struct FetchedFinal {
    pub(super) id: TaskId,
    pub(super) record: Bytes,
    pub(super) source: RecordSource,
}

impl<B: Backend> Registry<B> {
    pub(super) fn new(
        backend: B,
        upstream: &UpstreamConfig,
        tasks: &TasksConfig,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            durations: Arc::clone(backend.durations()),
            backend,
            queues: Mutex::default(),
            limiters: TokenLimiters::new(upstream.requests_per_second, upstream.burst),
            breaker: Arc::default(),
            call_permits: Arc::new(Semaphore::new(MAX_CALLS_IN_FLIGHT)),
            settings: BatcherSettings {
                max_queue_ids: tasks.max_ids.saturating_mul(2).max(MIN_QUEUE_CAPACITY),
                max_retries: upstream.max_retries,
                pending_max_age: tasks.pending_max_age,
                pending_max_stale: tasks.pending_max_stale,
                queue_timeout: tasks.queue_timeout,
            },
            services: ServiceStates::new(&tasks.interpreted_services(), upstream.max_batch),
            snapshot_bytes: AtomicUsize::new(0),
            ids: AtomicUsize::new(0),
            long_polls: AtomicUsize::new(0),
            shutdown,
            supervisor: Supervisor::new(metrics.panics.clone()),
            metrics,
        }
    }

    /// Returns the queue of a key, a new one if there is none.
    ///
    /// # Errors
    /// If there are too many busy queues.
    pub(super) fn lease(
        self: &Arc<Self>,
        key: QueueKey,
        credentials: &Credentials,
    ) -> Result<QueueLease<B>, QueueLimit> {
        let now = Instant::now();
        let mut queues = lock(&self.queues);
        if let Some(handle) = queues.get(&key) {
            *lock(&handle.used_at) = now;
            return Ok(QueueLease::new(handle));
        }
        queues.make_room(&key.token)?;
        let service = self.services.get(&key.service).expect("only interpreted services have lookups");
        let handle = Arc::new(QueueHandle {
            service: Arc::clone(service),
            limiter: self.limiters.lease(&key.token, now),
            key: key.clone(),
            credentials: credentials.clone(),
            registry: Arc::clone(self),
            queue: Mutex::default(),
            wake: Notify::new(),
            leases: AtomicUsize::new(0),
            long_polls: AtomicUsize::new(0),
            used_at: Mutex::new(now),
        });
        let lease = QueueLease::new(&handle);
        queues.insert(key, handle);
        Ok(lease)
    }

    /// Returns all queues. Each is locked on its own afterwards, so that lookups wait for one of
    /// them at most.
    pub(super) fn queues(&self) -> Vec<Arc<QueueHandle<B>>> {
        lock(&self.queues).values().cloned().collect()
    }

    /// Drops the cached results of a task, for all tokens.
    pub(super) fn discard(&self, service: &Service, id: &TaskId) {
        let is_concerned = |handle: &&Arc<QueueHandle<B>>| handle.key.service == *service;
        let handles: Vec<_> = lock(&self.queues).values().filter(is_concerned).cloned().collect();
        for handle in handles {
            handle.lock().discard(id);
        }
    }

    /// Drops cached results that are too old to be served, and idle queues and limiters. Beyond the
    /// memory bound, it drops the cached results of the longest unused queues.
    pub(super) fn sweep(&self, now: Instant) {
        let mut handles = self.queues();
        let (mut bytes, mut ids) = (0, 0);
        for handle in &handles {
            let context = handle.context();
            let mut queue = handle.lock();
            bytes += queue.sweep(&context, SweepScope::Expired);
            ids += queue.len();
        }
        self.ids.store(ids, Ordering::Relaxed);
        if bytes > MAX_SNAPSHOT_BYTES {
            handles.sort_by_cached_key(|handle| *lock(&handle.used_at));
            for handle in &handles {
                if bytes <= MAX_SNAPSHOT_BYTES / 4 * 3 {
                    break;
                }
                let context = handle.context();
                let mut queue = handle.lock();
                let before = queue.sweep(&context, SweepScope::Expired);
                bytes = bytes.saturating_sub(before) + queue.sweep(&context, SweepScope::Unawaited);
            }
        }
        self.snapshot_bytes.store(bytes, Ordering::Relaxed);
        drop(handles);
        let mut queues = lock(&self.queues);
        queues.retain(|handle| handle.is_leased() || !handle.lock().is_empty());
        drop(queues);
        self.limiters.sweep(now);
    }

    /// Counts the change of a snapshot.
    pub(super) fn count_snapshot(&self, bytes: SnapshotBytes) {
        self.snapshot_bytes.fetch_add(bytes.after, Ordering::Relaxed);
        // A sweep may have set the sum meanwhile, so the difference may be below zero.
        let subtract = |sum: usize| Some(sum.saturating_sub(bytes.before));
        let _ = self.snapshot_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
    }

    /// Passes final records on to the long polls of the token's other queues.
    pub(super) fn notify_long_polls(&self, from: &QueueKey, finals: &[FetchedFinal]) {
        if finals.is_empty() || self.long_polls.load(Ordering::Relaxed) == 0 {
            return;
        }
        let is_concerned = |handle: &&Arc<QueueHandle<B>>| {
            handle.key.service == from.service
                && handle.key.token == from.token
                && handle.key != *from
                && handle.long_polls.load(Ordering::Relaxed) > 0
        };
        let concerned: Vec<_> = lock(&self.queues).values().filter(is_concerned).cloned().collect();
        for handle in concerned {
            for FetchedFinal { id, record, source } in finals {
                handle.lock().resolve_final(id, record, *source);
            }
            handle.wake.notify_one();
        }
    }
}

impl<B> QueueHandle<B> {
    /// A panic elsewhere is handled by the guards of worker and calls, so poisoning is ignored.
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Returns the present time and limits.
    pub(super) fn context(&self) -> QueueContext<'_> {
        let Registry { settings, ids, snapshot_bytes, durations, .. } = &*self.registry;
        let now = Instant::now();
        QueueContext {
            now,
            service: &self.key.service,
            durations,
            max_batch: self.service.max_batch(),
            max_ids: settings.max_queue_ids,
            free_ids: MAX_IDS.saturating_sub(ids.load(Ordering::Relaxed)),
            pending_max_age: settings.pending_max_age,
            pending_max_stale: settings.pending_max_stale,
            queue_timeout: settings.queue_timeout,
            rate: self.limiter.rate_per_queue(now),
            paused_for: self.limiter.paused_for(now),
            is_empty_while_pending: self.service.rules.is_empty_while_pending,
            caches_snapshots: snapshot_bytes.load(Ordering::Relaxed) < MAX_SNAPSHOT_BYTES,
        }
    }

    /// Counts ids that were added to the queue.
    pub(super) fn count_ids(&self, added: usize) {
        self.registry.ids.fetch_add(added, Ordering::Relaxed);
    }

    pub(super) fn add_long_poll(&self) {
        self.registry.long_polls.fetch_add(1, Ordering::Relaxed);
        self.long_polls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_long_poll(&self) {
        self.registry.long_polls.fetch_sub(1, Ordering::Relaxed);
        self.long_polls.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of lookups that use the queue.
    pub(super) fn waiters(&self) -> usize {
        self.leases.load(Ordering::Acquire)
    }

    pub(super) fn used_at(&self) -> Instant {
        *lock(&self.used_at)
    }

    fn is_leased(&self) -> bool {
        self.waiters() > 0
    }

    /// Returns when the queue was last used; `None` while it is in use.
    fn idle_since(&self) -> Option<Instant> {
        (!self.is_leased() && !self.lock().is_working()).then(|| self.used_at())
    }
}

impl<B> QueueLease<B> {
    /// Leases are created under the lock of the map, so that a queue without one can be removed
    /// safely.
    fn new(handle: &Arc<QueueHandle<B>>) -> Self {
        handle.leases.fetch_add(1, Ordering::Relaxed);
        Self { handle: Arc::clone(handle) }
    }
}

impl<B> Drop for QueueLease<B> {
    fn drop(&mut self) {
        self.handle.leases.fetch_sub(1, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
