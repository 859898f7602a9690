//! Lanes: as few upstream calls as the limit allows.
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

mod answer;
mod caller;
mod drive;
mod entry;
mod outcome;
mod reach;
mod state;
#[cfg(test)]
mod tests;
mod ticket;
mod totals;
mod turns;
mod view;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::outcome::{Answer, Failure, Outcome};
use self::reach::Reach;
use self::state::State;
use self::turns::{Turn, Turns};
pub use self::view::{LaneView, PendingView};
use crate::config::{TasksConfig, UpstreamConfig};
use crate::observe::Metrics;
use crate::task::{Digest, FinishedTask, Service, TaskId};
use crate::upstream::{Credentials, UpstreamAnswer, UpstreamError};

/// Most lanes at a time; the longest idle leave first.
const MAX_LANES: usize = 10_000;

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
pub trait Outside: Send + Sync + 'static {
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
    ) -> impl Future<Output = Result<UpstreamAnswer, UpstreamError>> + Send;

    /// Keeps finished tasks before anyone sees them; for each, whether it is on disk now.
    fn keep(
        &self,
        key: &LaneKey,
        epoch: Self::Epoch,
        tasks: Vec<FinishedTask>,
    ) -> impl Future<Output = Vec<bool>> + Send;

    /// The upstream's word on a token: the status and body of an answer to one of its look-ups.
    fn answered(&self, key: &LaneKey, answer: &UpstreamAnswer);
}

/// Whose look-ups may share calls: those of one token, for one service, with the same forwarded headers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The service asked.
    pub service: Service,
    /// The digest of the token that goes upstream.
    pub token: Digest,
    /// The forwarded headers, by name and in order.
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
}

/// A caller's question.
#[derive(Clone, Debug)]
pub struct LookUp {
    /// Distinct ids, at least one.
    pub ids: Vec<TaskId>,
    /// A single look-up, which is owed the upstream's verbatim answer.
    pub lone: bool,
    /// `prefer: wait`: how long to hold out for everything to be finished.
    pub wait: Option<Duration>,
    /// Go on after a failure of some ids and wait for the others (`prefer: handling=lenient`).
    pub lenient: bool,
    /// Remembered answers older than this do not serve the caller; zero for none at all.
    pub max_age: Option<Duration>,
}

/// Limits of a lane as of one moment.
#[derive(Clone, Copy, Debug)]
struct LaneLimits {
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
pub struct Lanes<O> {
    shared: Arc<Shared<O>>,
}

impl<O> Clone for Lanes<O> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<O> {
    outside: O,
    lanes: Mutex<HashMap<LaneKey, Arc<Lane<O>>>>,
    turns: Turns,
    reach: Arc<Reach>,
    /// Places for look-up calls under way.
    calls: Arc<Semaphore>,
    settings: Settings,
    /// Bytes of pending answers, as of the last sweep and what came since.
    remembered_bytes: AtomicUsize,
    /// Ids wanted or remembered, as of the last sweep and what came since.
    ids: AtomicUsize,
    /// Callers that hold out (`prefer: wait`), over all lanes.
    holding_out: AtomicUsize,
    /// Waiters get their last pending answer at once.
    draining: CancellationToken,
    /// Waiters get an error at once.
    ending: CancellationToken,
    tasks: TaskTracker,
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
struct Lane<O> {
    key: LaneKey,
    credentials: Credentials,
    shared: Arc<Shared<O>>,
    turn: Arc<Turn>,
    state: Mutex<State>,
    /// Tells the driver that something changed.
    wake: Notify,
    /// Callers that wait here.
    callers: AtomicUsize,
    /// Those of them that hold out.
    holding_out: AtomicUsize,
    used_at: Mutex<Instant>,
}

impl<O: Outside> Lanes<O> {
    /// No lanes yet. `ending` of the two tokens comes last: `draining` answers waiters with what is remembered, `ending`
    /// answers the rest with an error.
    pub fn new(
        outside: O,
        upstream: &UpstreamConfig,
        tasks: &TasksConfig,
        metrics: Arc<Metrics>,
        draining: CancellationToken,
        ending: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared {
            outside,
            lanes: Mutex::default(),
            turns: Turns::new(upstream.requests_per_second * USED_SHARE, upstream.burst),
            reach: Arc::default(),
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
            holding_out: AtomicUsize::new(0),
            draining,
            ending,
            tasks: TaskTracker::new(),
            metrics,
        });
        Self { shared }
    }

    /// Looks ids up: joins what is wanted or under way, waits for the rest. Dropping the future withdraws the question;
    /// calls under way go on.
    pub async fn look_up(&self, key: LaneKey, credentials: &Credentials, look_up: LookUp) -> Answer {
        match self.shared.lane(key, credentials) {
            Some(lane) => lane.look_up(look_up).await,
            None => Answer::full(look_up.ids.len()),
        }
    }

    /// A request of this token passed through: it spends from the token's bucket and does not wait.
    pub fn passed_through(&self, token: &Digest) {
        let now = Instant::now();
        self.shared.turns.of(token, now).spend(now);
    }

    /// Forgets what is remembered of a task, for all tokens.
    pub fn forget(&self, service: &Service, id: &TaskId) {
        for lane in self.shared.lanes_of(service) {
            lane.lock().forget(id);
        }
    }

    /// Forgets every remembered answer of every lane.
    pub fn forget_all(&self) {
        for lane in self.shared.lanes() {
            lane.lock().forget_all();
            lane.wake.notify_one();
        }
    }

    /// Drops what nobody will be shown any more, every few seconds, until `ending`.
    pub async fn sweep_for_ever(&self) {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.shared.ending.run_until_cancelled(interval.tick()).await.is_some() {
            self.shared.sweep(Instant::now());
        }
    }

    /// Waits until no lane has a call under way. Call it after `ending`.
    pub async fn finished(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl<O: Outside> Shared<O> {
    /// The lane of a key; `None` where all there may be are busy.
    fn lane(self: &Arc<Self>, key: LaneKey, credentials: &Credentials) -> Option<Arc<Lane<O>>> {
        let now = Instant::now();
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&key) {
            lane.touch(now);
            return Some(Arc::clone(lane));
        }
        if lanes.len() >= MAX_LANES {
            make_room(&mut lanes);
            if lanes.len() >= MAX_LANES {
                return None;
            }
        }
        let lane = Arc::new(Lane {
            turn: self.turns.of(&key.token, now),
            key: key.clone(),
            credentials: credentials.clone(),
            shared: Arc::clone(self),
            state: Mutex::default(),
            wake: Notify::new(),
            callers: AtomicUsize::new(0),
            holding_out: AtomicUsize::new(0),
            used_at: Mutex::new(now),
        });
        lanes.insert(key, Arc::clone(&lane));
        Some(lane)
    }

    fn lanes(&self) -> Vec<Arc<Lane<O>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn lanes_of(&self, service: &Service) -> Vec<Arc<Lane<O>>> {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.values().filter(|lane| lane.key.service == *service).cloned().collect()
    }

    fn sweep(&self, now: Instant) {
        let mut lanes = self.lanes();
        let (mut bytes, mut ids) = (0, 0);
        for lane in &lanes {
            let mut state = lane.lock();
            bytes += state.sweep(now, &lane.limits(), false);
            ids += state.len();
        }
        self.ids.store(ids, Ordering::Relaxed);
        if bytes > MAX_REMEMBERED_BYTES {
            lanes.sort_by_cached_key(|lane| lane.used_at());
            for lane in &lanes {
                if bytes <= MAX_REMEMBERED_BYTES / 4 * 3 {
                    break;
                }
                let mut state = lane.lock();
                let before = state.sweep(now, &lane.limits(), false);
                bytes = bytes.saturating_sub(before) + state.sweep(now, &lane.limits(), true);
            }
        }
        self.remembered_bytes.store(bytes, Ordering::Relaxed);
        drop(lanes);
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|_, lane| Arc::strong_count(lane) > 1 || !lane.lock().is_empty());
        if lanes.capacity() > 4 * lanes.len() + 64 {
            lanes.shrink_to_fit();
        }
        drop(lanes);
        self.turns.sweep(now);
    }

    /// Finishes are known: whoever holds out for one of the tasks elsewhere learns it, from its text where the token is
    /// the same, else by a look of its own. Each comes with whether it is on disk.
    fn announce(&self, from: &LaneKey, finished: &[(TaskId, Bytes, bool)]) {
        if finished.is_empty() || self.holding_out.load(Ordering::Relaxed) == 0 {
            return;
        }
        let concerned: Vec<Arc<Lane<O>>> = {
            let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            let is_concerned = |lane: &&Arc<Lane<O>>| {
                lane.key.service == from.service
                    && lane.key != *from
                    && lane.holding_out.load(Ordering::Relaxed) > 0
            };
            lanes.values().filter(is_concerned).cloned().collect()
        };
        for lane in concerned {
            for (id, text, stored) in finished {
                let text = (lane.key.token == from.token).then_some(text);
                lane.lock().finished_elsewhere(id, text, *stored);
            }
            lane.wake.notify_one();
        }
    }
}

/// The longest unused tenth of the lanes that do nothing leaves.
fn make_room<O>(lanes: &mut HashMap<LaneKey, Arc<Lane<O>>>) {
    let mut unused: Vec<(Instant, LaneKey)> = lanes
        .values()
        .filter(|lane| Arc::strong_count(lane) == 1)
        .map(|lane| (lane.used_at(), lane.key.clone()))
        .collect();
    unused.sort_by_key(|(used_at, _)| *used_at);
    for (_, key) in unused.into_iter().take(MAX_LANES / 10) {
        lanes.remove(&key);
    }
}

impl<O> Lane<O> {
    fn touch(&self, now: Instant) {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn used_at(&self) -> Instant {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Short sections only, never held over an await; a panic elsewhere is answered by the guards in [`drive`].
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> LaneLimits {
        let settings = &self.shared.settings;
        let now = Instant::now();
        LaneLimits {
            max_batch: settings.max_batch,
            max_wanted: settings.max_wanted,
            room: MAX_IDS_OF_ALL.saturating_sub(self.shared.ids.load(Ordering::Relaxed)),
            pending_max_age: settings.pending_max_age,
            pending_max_stale: settings.pending_max_stale,
            rate: self.turn.share(now),
            held: self.turn.held(now),
            remembers: self.shared.remembered_bytes.load(Ordering::Relaxed) < MAX_REMEMBERED_BYTES,
        }
    }
}
