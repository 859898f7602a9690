//! A simulated upstream: a real HTTP/1.1 server on the loopback that behaves as Ace Data Cloud's task API is known
//! to, and on request as badly as any server may.
//!
//! Used by `refrain demo`, `refrain simulate` and the tests; it knows nothing of the proxy. By default it answers
//! as documented: tasks move on with time and belong to the token that started them, each token may call once a
//! second, starting work is counted as paid. A [`Rule`] makes it answer otherwise, every call is kept as a
//! [`RecordedCall`]. HTTP is written by hand, since a test must be able to see every byte sent and to send any.

mod answers;
mod api;
mod clock;
mod connection;
mod exchange;
mod hold;
pub mod raw_http;
mod record;
mod rulebook;
mod rules;
mod server;
mod songs;
mod tasks;
#[cfg(test)]
mod tests;
mod text;
mod tokens;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use server::{Listening, State};
use tasks::Start;

pub use answers::BatchItem;
pub use hold::Hold;
pub use record::{MAX_RECORDED_BODY, RecordedCall};
pub use rules::Rule;

/// How long the `wait_…` helpers wait before they panic.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the simulated upstream behaves from the start.
#[derive(Clone, Debug)]
pub struct SimulatorConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How often each token may call; `None` for no limit.
    pub requests_per_second: Option<f64>,
    /// How many calls a token's bucket holds.
    pub burst: u32,
    /// How much too early a call may come because the one before it was late; the mean rate stays the same.
    pub rate_tolerance: Duration,
    /// Whether a 429 says when to come again.
    pub retry_after_on_429: bool,
    /// After this time a task is forgotten.
    pub retention: Duration,
    /// How long a task takes.
    pub task_duration: Duration,
    /// The share of tasks that fail, from 0 to 1.
    pub failure_rate: f64,
    /// The only good tokens; `None` for any that is not refused.
    pub accepted_tokens: Option<Vec<String>>,
    /// A batch of more ids is a bad request; `None` for no limit.
    pub max_batch: Option<usize>,
    /// How many tasks are kept; the oldest leave first.
    pub max_tasks: usize,
    /// How much memory the record of calls takes; the oldest leave first.
    pub max_recorded_bytes: usize,
    /// Decides ids, songs and failures.
    pub seed: u64,
}

impl Default for SimulatorConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            requests_per_second: Some(1.0),
            burst: 1,
            rate_tolerance: Duration::from_millis(100),
            retry_after_on_429: false,
            retention: Duration::from_secs(7 * 24 * 3600),
            task_duration: Duration::from_secs(40),
            failure_rate: 0.0,
            accepted_tokens: None,
            max_batch: None,
            max_tasks: 100_000,
            max_recorded_bytes: 128 * 1024 * 1024,
            seed: 1,
        }
    }
}

/// A running simulated upstream. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub struct Simulator {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    address: SocketAddr,
    listening: Mutex<Option<Listening>>,
}

/// Its life.
impl Simulator {
    /// Listens and serves in the background.
    pub async fn start(config: SimulatorConfig) -> io::Result<Self> {
        let listen = config.listen;
        let state = Arc::new(State::new(config));
        let (listening, address) = Listening::start(listen, Arc::clone(&state)).await?;
        Ok(Self { inner: Arc::new(Inner { state, address, listening: Mutex::new(Some(listening)) }) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// `http://` and its address, without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.inner.address)
    }

    /// Closes the listener and every connection: new ones are refused. Tasks, rules and record stay.
    pub async fn stop(&self) {
        let listening = locked(&self.inner.listening).take();
        if let Some(listening) = listening {
            listening.stop().await;
        }
    }

    /// Listens again at the same address after [`Simulator::stop`].
    pub async fn resume(&self) -> io::Result<()> {
        if locked(&self.inner.listening).is_some() {
            return Ok(());
        }
        let (listening, _) = Listening::start(self.inner.address, Arc::clone(&self.inner.state)).await?;
        *locked(&self.inner.listening) = Some(listening);
        Ok(())
    }
}

/// Its tasks.
impl Simulator {
    /// A task that settles by itself after the configured duration; gives its id.
    pub fn create_task(&self, service: &str, token: &str) -> String {
        self.create(service, token, Start::Timed(None))
    }

    /// A task that succeeded already.
    pub fn create_finished(&self, service: &str, token: &str) -> String {
        self.create(service, token, Start::Finished)
    }

    /// A task that is processing, with previews, until it is told otherwise.
    pub fn create_pending(&self, service: &str, token: &str) -> String {
        self.create(service, token, Start::Pending)
    }

    fn create(&self, service: &str, token: &str, start: Start) -> String {
        locked(&self.inner.state.tasks).create(service, "audios", token, start, Instant::now())
    }

    /// The task succeeds now, if it has not settled yet.
    pub fn finish(&self, id: &str) {
        self.settle(id, false);
    }

    /// The task fails now, if it has not settled yet.
    pub fn fail(&self, id: &str) {
        self.settle(id, true);
    }

    fn settle(&self, id: &str, failed: bool) {
        locked(&self.inner.state.tasks).settle(id, failed, Instant::now());
        self.inner.state.task_changed();
    }

    /// Exactly these bytes as what `retrieve` answers this token for the id, and as an item of its batches. Other
    /// tokens may have other bytes under the same id.
    pub fn put_record(&self, service: &str, token: &str, id: &str, text: impl Into<Bytes>) {
        locked(&self.inner.state.tasks).put_record(service, token, id, text.into(), Instant::now());
        self.inner.state.task_changed();
    }

    /// Lets one more token see the task.
    pub fn share(&self, id: &str, token: &str) {
        locked(&self.inner.state.tasks).share(id, token);
    }

    /// The task is forgotten.
    pub fn remove(&self, id: &str) {
        locked(&self.inner.state.tasks).remove(id);
        self.inner.state.task_changed();
    }

    /// What `retrieve` would answer the task's owner now.
    pub fn task_record(&self, id: &str) -> Option<Bytes> {
        let now = Instant::now();
        let mut tasks = locked(&self.inner.state.tasks);
        let task = tasks.find_any(id, now)?.sequence();
        Some(tasks.text_of(task, now))
    }
}

/// How it answers.
impl Simulator {
    /// Adds a rule; of all that match a call the one added first decides.
    pub fn add_rule(&self, rule: Rule) {
        locked(&self.inner.state.rules).add(rule);
    }

    /// Drops all rules; calls that are being answered keep theirs.
    pub fn clear_rules(&self) {
        locked(&self.inner.state.rules).clear();
    }

    /// How often each token may call from now on; all buckets start full.
    pub fn set_rate(&self, requests_per_second: Option<f64>) {
        locked(&self.inner.state.tokens).set_rate(requests_per_second);
    }

    /// Refuses a token on every path with this status and code.
    pub fn refuse_token(&self, token: &str, status: u16, code: &str) {
        locked(&self.inner.state.tokens).refuse(token, status, code);
    }

    /// Accepts a token again, or a new one where the configuration names the good ones.
    pub fn accept_token(&self, token: &str) {
        locked(&self.inner.state.tokens).accept(token);
    }
}

/// What it saw.
impl Simulator {
    /// Every call, in the order in which they had come whole, malformed ones included.
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.inner.state.record.calls()
    }

    /// How many calls came since the last [`Simulator::clear_calls`].
    pub fn call_count(&self) -> usize {
        self.inner.state.record.count()
    }

    /// Forgets the calls and starts counting them from 0; the other counters go on.
    pub fn clear_calls(&self) {
        self.inner.state.record.clear();
    }

    /// The calls that retrieve tasks, alone or in batches.
    pub fn lookup_calls(&self) -> Vec<RecordedCall> {
        self.calls().into_iter().filter(RecordedCall::is_lookup).collect()
    }

    /// How many calls were answered 429, by the token's bucket or by a rule.
    pub fn rate_limited_calls(&self) -> u64 {
        self.inner.state.too_many_requests()
    }

    /// How many calls to start paid work were let in, whatever became of their answers.
    pub fn paid_calls(&self) -> u64 {
        self.inner.state.paid_calls()
    }

    /// How many clients hung up before they had sent their call, or before it was answered whole.
    pub fn aborted_calls(&self) -> u64 {
        self.inner.state.record.aborted_calls()
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.inner.state.open_connections()
    }

    /// Returns once [`Simulator::call_count`] is at least this.
    ///
    /// # Panics
    /// After 10 seconds.
    pub async fn wait_for_calls(&self, at_least: usize) {
        let reached = self.reached(|| self.call_count() >= at_least).await;
        assert!(reached, "the simulator saw {} calls within 10 s, not {at_least}", self.call_count());
    }

    /// Returns once the condition holds; it is looked at whenever a call or connection comes, changes or ends.
    ///
    /// # Panics
    /// After 10 seconds, naming what was waited for.
    pub async fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        assert!(self.reached(|| condition(self)).await, "the simulator waited 10 s for: {what}");
    }

    async fn reached(&self, condition: impl Fn() -> bool) -> bool {
        let mut changes = self.inner.state.record.changes();
        let wait = async {
            while !condition() {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.is_ok() || condition()
    }
}

/// Locks for plain computing. A panic elsewhere leaves nothing half done that would matter to a simulator.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
