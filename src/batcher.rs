//! Batcher: as few upstream calls as the limit allows.
//!
//! One lane for each (service, token, forwarded headers), one bucket for each token. `retrieve` asks for the ids it
//! lacks; they join the lane's set of wanted ids, and when the token's turn comes the lane takes up to a batch of
//! them and makes one call. The call belongs to the program, never to its first caller, so that whoever hangs up
//! harms no one.
//!
//! - `caller`: a caller's wait
//! - `state`: the set of wanted ids, without clock or I/O, and `entry`, one of them
//! - `ticket`: what a caller holds
//! - `outcome`: what a look-up brings
//! - `answer`: what an upstream answer says, without I/O
//! - `drive`: the tasks that take turns and make calls
//! - `reach`: whether the upstream can be reached, for all lanes
//! - `turns`: the bucket of each token
//! - `totals`: what all of it comes to at the moment, for metrics
//! - `view`: what goes on, for people

mod breaker;
mod decode;
mod entry;
mod gauges;
mod outcome;
mod queue;
mod rate_limit;
#[cfg(test)]
mod tests;
mod view;
mod wait;
mod waiter;
mod worker;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use self::breaker::CircuitBreaker;
pub use self::outcome::{
    Enqueued, Freshness, Handling, LookupFailure, LookupKind, LookupOptions, LookupResult, RecordSource,
    TaskOutcome,
};
use self::queue::Queue;
use self::rate_limit::{TokenLimiter, TokenLimiters};
pub use self::view::{Listing, PendingView, QueueView};
use crate::config::{TasksConfig, UpstreamConfig};
use crate::lifecycle::{Shutdown, Supervisor};
use crate::task::{FinalRecord, Service, TaskId};
use crate::telemetry::Metrics;
use crate::token::Digest;
use crate::upstream::{Credentials, UpstreamError, UpstreamResponse};

/// Most lanes at a time; the longest idle leave first.
const MAX_QUEUES: usize = 10_000;

/// The share of the configured rate that is used. Calls sent exactly an interval apart arrive now and then a little
/// closer, and an upstream that counts strictly answers those with 429, which halves the rate.
const USED_SHARE: f64 = 0.98;

/// Ids that one lane may want, at the least; more where a single look-up may ask for more.
const MIN_QUEUE: usize = 20_000;

/// Most calls of one lane under way at a time: an upstream that answers slowly is not asked without end.
const MAX_CALLS: usize = 16;

/// Most look-up calls under way over all lanes.
const MAX_CALLS_OF_ALL: usize = 512;

/// Most ids wanted or remembered over all lanes.
const MAX_IDS_OF_ALL: usize = 250_000;

/// Bytes of pending answers remembered, over all lanes.
const MAX_REMEMBERED_BYTES: usize = 64 << 20;

/// How often what nobody will be shown any more is dropped.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What lanes need of the world. The program's side is the retriever's; a simulated one stands in the tests.
pub trait Backend: Send + Sync + 'static {
    /// A point in the order of deletes and look-ups.
    type Epoch: Copy + Send + Sync;

    /// Now, in the order of deletes and look-ups: taken before a call begins.
    fn epoch(&self) -> Self::Epoch;

    /// Makes one upstream call: `retrieve` for one id, `retrieve_batch` for more.
    fn look_up(
        &self,
        service: &Service,
        credentials: &Credentials,
        ids: &[TaskId],
    ) -> impl Future<Output = Result<UpstreamResponse, UpstreamError>> + Send;

    /// Stores final records before a client sees them. Returns for each record whether it is committed.
    fn insert(
        &self,
        key: &QueueKey,
        epoch: Self::Epoch,
        records: Vec<FinalRecord>,
    ) -> impl Future<Output = Vec<bool>> + Send;

    /// Reports the response to a lookup of a token, so that the token's access can be renewed or revoked.
    fn report_response(&self, key: &QueueKey, response: &UpstreamResponse);
}

/// Whose look-ups may share calls: those of one token, for one service, with the same forwarded headers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueueKey {
    /// The service asked.
    pub service: Service,
    /// The digest of the token that goes upstream.
    pub token: Digest,
    /// The forwarded headers, by name and in order.
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
}

/// Limits of a lane as of one moment.
#[derive(Clone, Copy, Debug)]
struct QueueLimits {
    max_batch: usize,
    max_wanted: usize,
    /// How many more ids there is room for over all lanes.
    room: usize,
    pending_max_age: Duration,
    pending_max_stale: Duration,
    /// The lane's share of its token's calls a second.
    rate: f64,
    /// What is left of a pause that the upstream asked for.
    held: Duration,
    /// Whether there is room for another pending answer.
    remembers: bool,
}

/// All lanes. Clones are the same lanes.
#[derive(Debug)]
pub struct Batcher<O> {
    shared: Arc<Shared<O>>,
}

impl<O> Clone for Batcher<O> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<O> {
    backend: O,
    queues: Mutex<HashMap<QueueKey, Arc<QueueHandle<O>>>>,
    limiters: TokenLimiters,
    breaker: Arc<CircuitBreaker>,
    /// Places for look-up calls under way.
    calls: Arc<Semaphore>,
    settings: Settings,
    /// Bytes of pending answers, as of the last sweep and what came since.
    remembered_bytes: AtomicUsize,
    /// Ids wanted or remembered, as of the last sweep and what came since.
    ids: AtomicUsize,
    /// Callers that hold out (`prefer: wait`), over all lanes.
    long_polling: AtomicUsize,
    shutdown: Shutdown,
    /// Workers and upstream calls.
    supervisor: Supervisor,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Debug)]
struct Settings {
    max_batch: usize,
    max_wanted: usize,
    max_retries: u32,
    pending_max_age: Duration,
    pending_max_stale: Duration,
    queue_timeout: Duration,
}

#[derive(Debug)]
struct QueueHandle<O> {
    key: QueueKey,
    credentials: Credentials,
    shared: Arc<Shared<O>>,
    limiter: Arc<TokenLimiter>,
    state: Mutex<Queue>,
    /// Tells the driver that something changed.
    wake: Notify,
    /// Callers that wait here.
    callers: AtomicUsize,
    /// Those of them that hold out.
    long_polling: AtomicUsize,
    used_at: Mutex<Instant>,
}

impl<O: Backend> Batcher<O> {
    /// No lanes yet. `ending` of the two tokens comes last: `draining` answers waiters with what is remembered, `ending`
    /// answers the rest with an error.
    pub fn new(
        backend: O,
        upstream: &UpstreamConfig,
        tasks: &TasksConfig,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        let shared = Arc::new(Shared {
            backend,
            queues: Mutex::default(),
            limiters: TokenLimiters::new(upstream.requests_per_second * USED_SHARE, upstream.burst),
            breaker: Arc::default(),
            calls: Arc::new(Semaphore::new(MAX_CALLS_OF_ALL)),
            settings: Settings {
                max_batch: upstream.max_batch,
                max_wanted: tasks.max_ids.saturating_mul(2).max(MIN_QUEUE),
                max_retries: upstream.max_retries,
                pending_max_age: tasks.pending_max_age,
                pending_max_stale: tasks.pending_max_stale,
                queue_timeout: tasks.queue_timeout,
            },
            remembered_bytes: AtomicUsize::new(0),
            ids: AtomicUsize::new(0),
            long_polling: AtomicUsize::new(0),
            shutdown,
            supervisor: Supervisor::new(metrics.panics.clone()),
            metrics,
        });
        Self { shared }
    }

    /// Looks up the ids whose outcome is `None`; `outcomes` has one place for each of `ids`.
    ///
    /// Ids that are queued or in flight already are joined. Cancel safe: dropping the future withdraws the lookup, and
    /// calls in flight go on.
    pub async fn look_up(
        &self,
        key: QueueKey,
        credentials: &Credentials,
        ids: &[TaskId],
        options: &LookupOptions,
        outcomes: Vec<Option<TaskOutcome>>,
    ) -> LookupResult {
        match self.shared.queue(key, credentials) {
            Some(queue) => queue.look_up(ids, options, outcomes).await,
            None => LookupResult::too_many_queues(outcomes),
        }
    }

    /// A request of this token passed through: it spends from the token's bucket and does not wait.
    pub fn charge(&self, token: &Digest) {
        let now = Instant::now();
        self.shared.limiters.of(token, now).spend(now);
    }

    /// Forgets what is remembered of a task, for all tokens.
    pub fn discard_cached(&self, service: &Service, id: &TaskId) {
        for queue in self.shared.lanes_of(service) {
            queue.lock().forget(id);
        }
    }

    /// Forgets every remembered answer of every lane.
    pub fn discard_all_cached(&self) {
        for queue in self.shared.queues() {
            queue.lock().forget_all();
            queue.wake.notify_one();
        }
    }

    /// Drops what nobody will be shown any more, every few seconds, until `ending`.
    pub async fn run_sweep(&self) {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.shared.shutdown.until_deadline(interval.tick()).await.is_some() {
            self.shared.sweep(Instant::now());
        }
    }

    /// Waits until no lane has a call under way. Call it after `ending`.
    pub async fn stopped(&self) {
        self.shared.supervisor.wait().await;
    }
}

impl<O: Backend> Shared<O> {
    /// The lane of a key; `None` where all there may be are busy.
    fn queue(self: &Arc<Self>, key: QueueKey, credentials: &Credentials) -> Option<Arc<QueueHandle<O>>> {
        let now = Instant::now();
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(&key) {
            queue.touch(now);
            return Some(Arc::clone(queue));
        }
        if queues.len() >= MAX_QUEUES {
            make_room(&mut queues);
            if queues.len() >= MAX_QUEUES {
                return None;
            }
        }
        let queue = Arc::new(QueueHandle {
            limiter: self.limiters.of(&key.token, now),
            key: key.clone(),
            credentials: credentials.clone(),
            shared: Arc::clone(self),
            state: Mutex::default(),
            wake: Notify::new(),
            callers: AtomicUsize::new(0),
            long_polling: AtomicUsize::new(0),
            used_at: Mutex::new(now),
        });
        queues.insert(key, Arc::clone(&queue));
        Some(queue)
    }

    fn queues(&self) -> Vec<Arc<QueueHandle<O>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn lanes_of(&self, service: &Service) -> Vec<Arc<QueueHandle<O>>> {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.values().filter(|queue| queue.key.service == *service).cloned().collect()
    }

    fn sweep(&self, now: Instant) {
        let mut queues = self.queues();
        let (mut bytes, mut ids) = (0, 0);
        for queue in &queues {
            let mut state = queue.lock();
            bytes += state.sweep(now, &queue.limits(), false);
            ids += state.len();
        }
        self.ids.store(ids, Ordering::Relaxed);
        if bytes > MAX_REMEMBERED_BYTES {
            queues.sort_by_cached_key(|queue| queue.used_at());
            for queue in &queues {
                if bytes <= MAX_REMEMBERED_BYTES / 4 * 3 {
                    break;
                }
                let mut state = queue.lock();
                let before = state.sweep(now, &queue.limits(), false);
                bytes = bytes.saturating_sub(before) + state.sweep(now, &queue.limits(), true);
            }
        }
        self.remembered_bytes.store(bytes, Ordering::Relaxed);
        drop(queues);
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, queue| Arc::strong_count(queue) > 1 || !queue.lock().is_empty());
        if queues.capacity() > 4 * queues.len() + 64 {
            queues.shrink_to_fit();
        }
        drop(queues);
        self.limiters.sweep(now);
    }

    /// Finishes are known: whoever holds out for one of the tasks elsewhere learns it, from its text where the token is
    /// the same, else by a look of its own. Each comes with whether it is on disk.
    fn announce(&self, from: &QueueKey, finished: &[(TaskId, Bytes, bool)]) {
        if finished.is_empty() || self.long_polling.load(Ordering::Relaxed) == 0 {
            return;
        }
        let concerned: Vec<Arc<QueueHandle<O>>> = {
            let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            let is_concerned = |queue: &&Arc<QueueHandle<O>>| {
                queue.key.service == from.service
                    && queue.key != *from
                    && queue.long_polling.load(Ordering::Relaxed) > 0
            };
            queues.values().filter(is_concerned).cloned().collect()
        };
        for queue in concerned {
            for (id, text, stored) in finished {
                let text = (queue.key.token == from.token).then_some(text);
                queue.lock().finished_elsewhere(id, text, *stored);
            }
            queue.wake.notify_one();
        }
    }
}

/// The longest unused tenth of the lanes that do nothing leaves.
fn make_room<O>(queues: &mut HashMap<QueueKey, Arc<QueueHandle<O>>>) {
    let mut unused: Vec<(Instant, QueueKey)> = queues
        .values()
        .filter(|queue| Arc::strong_count(queue) == 1)
        .map(|queue| (queue.used_at(), queue.key.clone()))
        .collect();
    unused.sort_by_key(|(used_at, _)| *used_at);
    for (_, key) in unused.into_iter().take(MAX_QUEUES / 10) {
        queues.remove(&key);
    }
}

impl<O> QueueHandle<O> {
    fn touch(&self, now: Instant) {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn used_at(&self) -> Instant {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Short sections only, never held over an await; a panic elsewhere is answered by the guards in [`drive`].
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> QueueLimits {
        let settings = &self.shared.settings;
        let now = Instant::now();
        QueueLimits {
            max_batch: settings.max_batch,
            max_wanted: settings.max_wanted,
            room: MAX_IDS_OF_ALL.saturating_sub(self.shared.ids.load(Ordering::Relaxed)),
            pending_max_age: settings.pending_max_age,
            pending_max_stale: settings.pending_max_stale,
            rate: self.limiter.share(now),
            held: self.limiter.held(now),
            remembers: self.shared.remembered_bytes.load(Ordering::Relaxed) < MAX_REMEMBERED_BYTES,
        }
    }
}
