//! Simulated upstream: an HTTP/1.1 server on the loopback interface that behaves like Ace Data
//! Cloud's task API.
//!
//! `refrain demo`, `refrain simulate`, the tests and the benchmarks use it. It knows nothing of the
//! proxy. By default it responds as the API is documented: tasks progress with time and belong to
//! the token that started them, each token may call once a second, and calls that start work count
//! as paid. A [`Rule`] makes it respond in another way, as badly as any server may. Every call is
//! recorded as a [`RecordedCall`].
//!
//! HTTP is written by hand: a test must see every byte received and be able to send any byte.
//! [`raw_http`] is the counterpart for tests: a peer that sends and receives raw bytes.

mod api;
mod calls;
mod clock;
mod connection;
mod example_json;
mod exchange;
mod hold;
mod matcher;
pub mod raw_http;
mod responder;
mod response;
mod rule_set;
mod rules;
mod server;
mod services;
mod songs;
mod state;
mod task_json;
mod tasks;
#[cfg(test)]
mod tests;
mod tokens;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use server::RunningServer;
use state::SharedState;
use tasks::NewTask;

pub use calls::{MAX_RECORDED_BODY, RecordedCall};
pub use hold::Hold;
pub use response::BatchItem;
pub use rules::Rule;

/// Longest time that the `wait_…` methods wait before they panic.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Initial behaviour of the simulated upstream.
#[derive(Clone, Debug)]
pub struct SimulatorConfig {
    /// Address of the listener. Port 0 takes a free port.
    pub listen: SocketAddr,
    /// Calls per second that each token may make. `None` for no limit.
    pub requests_per_second: Option<f64>,
    /// Capacity of a token's bucket, in calls.
    pub burst: u32,
    /// How much too early a call may arrive if the call before it was late. The mean rate stays the
    /// same.
    pub rate_tolerance: Duration,
    /// Whether a 429 response has the header `retry-after`.
    pub retry_after_on_429: bool,
    /// Time after which a task is deleted.
    pub retention: Duration,
    /// Time from the creation of a task to its end.
    pub task_duration: Duration,
    /// Share of tasks that fail, from 0 to 1.
    pub failure_rate: f64,
    /// The only tokens that are accepted. `None` accepts every token that is not refused.
    pub accepted_tokens: Option<Vec<String>>,
    /// Largest number of ids in a batch; a larger batch is a bad request. `None` for no limit.
    pub max_batch: Option<usize>,
    /// Largest number of items in a batch of ids without `limit`, as if the documented default of
    /// listings applied to ids too. `None`: such a batch has all its items.
    pub default_batch_limit: Option<usize>,
    /// Largest number of tasks. The oldest are deleted first.
    pub max_tasks: usize,
    /// Memory for recorded calls, in bytes. The oldest are dropped first.
    pub max_recorded_bytes: usize,
    /// Seed of the ids, songs and failures.
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
            default_batch_limit: None,
            max_tasks: 100_000,
            max_recorded_bytes: 128 * 1024 * 1024,
            seed: 1,
        }
    }
}

/// Running simulated upstream. Clones share it; it stops when the last of them is dropped.
#[derive(Clone)]
pub struct Simulator {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<SharedState>,
    address: SocketAddr,
    /// `None` while the simulator is stopped.
    server: Mutex<Option<RunningServer>>,
}

/// Start and stop.
impl Simulator {
    /// Starts to listen and to serve in the background.
    pub async fn start(config: SimulatorConfig) -> io::Result<Self> {
        let listen = config.listen;
        let state = Arc::new(SharedState::new(config));
        let (server, address) = RunningServer::start(listen, Arc::clone(&state)).await?;
        Ok(Self { inner: Arc::new(Inner { state, address, server: Mutex::new(Some(server)) }) })
    }

    /// Returns the address of the listener.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Returns `http://` and the address, without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.inner.address)
    }

    /// Closes the listener and every connection, so that new ones are refused. Tasks, rules and
    /// recorded calls stay.
    pub async fn stop(&self) {
        let server = locked(&self.inner.server).take();
        if let Some(server) = server {
            server.stop().await;
        }
    }

    /// Listens on the same address again after [`Simulator::stop`].
    pub async fn resume(&self) -> io::Result<()> {
        if locked(&self.inner.server).is_some() {
            return Ok(());
        }
        let (server, _) = RunningServer::start(self.inner.address, Arc::clone(&self.inner.state)).await?;
        *locked(&self.inner.server) = Some(server);
        Ok(())
    }
}

/// Tasks of the services that the simulator knows: those of `simulator/src/services.rs`. Calls to
/// others are 404.
impl Simulator {
    /// Creates a task that ends after the configured duration, and returns its id.
    pub fn create_task(&self, service: &str, token: &str) -> String {
        self.create(service, token, NewTask::Timed(None))
    }

    /// Creates a task that ends after `duration`, and returns its id.
    pub fn create_lasting(&self, service: &str, token: &str, duration: Duration) -> String {
        self.create(service, token, NewTask::Lasting(duration))
    }

    /// Creates a task that has already succeeded, and returns its id.
    pub fn create_finished(&self, service: &str, token: &str) -> String {
        self.create(service, token, NewTask::Finished)
    }

    /// Creates a task that is processing until [`Simulator::finish`] or
    /// [`Simulator::fail`]. Returns its id.
    pub fn create_pending(&self, service: &str, token: &str) -> String {
        self.create(service, token, NewTask::Pending)
    }

    fn create(&self, service: &str, token: &str, task: NewTask) -> String {
        locked(&self.inner.state.tasks).create(service, None, token, task, Instant::now())
    }

    /// Lets a task succeed now if it has not ended.
    pub fn finish(&self, id: &str) {
        self.end_task(id, false);
    }

    /// Lets a task fail now if it has not ended.
    pub fn fail(&self, id: &str) {
        self.end_task(id, true);
    }

    fn end_task(&self, id: &str, failed: bool) {
        locked(&self.inner.state.tasks).end(id, failed, Instant::now());
        self.inner.state.task_changed();
    }

    /// Sets the exact bytes that `retrieve` returns to this token for this id, also as an item of
    /// its batches. They have status 200 and no envelope around them. Other tokens may have other bytes under the same id.
    pub fn put_record(&self, service: &str, token: &str, id: &str, record: impl Into<Bytes>) {
        locked(&self.inner.state.tasks).put_record(service, token, id, record.into(), Instant::now());
        self.inner.state.task_changed();
    }

    /// Lets one more token see a task.
    pub fn share(&self, id: &str, token: &str) {
        locked(&self.inner.state.tasks).share(id, token);
    }

    /// Deletes a task.
    pub fn remove(&self, id: &str) {
        locked(&self.inner.state.tasks).remove(id);
        self.inner.state.task_changed();
    }

    /// Returns the record that `retrieve` would return to the task's owner now, without an envelope
    /// around it.
    pub fn task_record(&self, id: &str) -> Option<Bytes> {
        let now = Instant::now();
        let mut tasks = locked(&self.inner.state.tasks);
        let task = tasks.find_any(id, now)?.sequence();
        tasks.record_of(task, now)
    }
}

/// Behaviour.
impl Simulator {
    /// Adds a rule. The first rule that matches a call decides.
    pub fn add_rule(&self, rule: Rule) {
        locked(&self.inner.state.rules).add(rule);
    }

    /// Removes all rules. Calls that already have a rule keep it.
    pub fn clear_rules(&self) {
        locked(&self.inner.state.rules).clear();
    }

    /// Sets the rate of each token, in calls per second. All buckets start full.
    pub fn set_rate(&self, requests_per_second: Option<f64>) {
        locked(&self.inner.state.tokens).set_rate(requests_per_second);
    }

    /// Sets [`SimulatorConfig::default_batch_limit`] for later calls.
    pub fn set_default_batch_limit(&self, limit: Option<usize>) {
        self.inner.state.set_default_batch_limit(limit);
    }

    /// Refuses a token on every path with this status and error code.
    pub fn refuse_token(&self, token: &str, status: u16, code: &str) {
        locked(&self.inner.state.tokens).refuse(token, status, code);
    }

    /// Accepts a refused token again, or adds a token to [`SimulatorConfig::accepted_tokens`].
    pub fn accept_token(&self, token: &str) {
        locked(&self.inner.state.tokens).accept(token);
    }
}

/// Observations.
impl Simulator {
    /// Returns all recorded calls in the order in which they were complete, malformed ones
    /// included.
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.inner.state.calls.calls()
    }

    /// Returns the number of calls since the last [`Simulator::clear_calls`].
    pub fn call_count(&self) -> usize {
        self.inner.state.calls.count()
    }

    /// Returns the number of calls of this token that its rate limit admitted or refused, since the
    /// start or the last [`Simulator::set_rate`]. 0 without a rate limit.
    pub fn call_count_of(&self, token: &str) -> u64 {
        locked(&self.inner.state.tokens).call_count(token)
    }

    /// Drops the recorded calls and counts them from 0 again. The other counters continue.
    pub fn clear_calls(&self) {
        self.inner.state.calls.clear();
    }

    /// Returns the recorded `retrieve` and `retrieve_batch` calls.
    pub fn lookup_calls(&self) -> Vec<RecordedCall> {
        self.calls().into_iter().filter(RecordedCall::is_lookup).collect()
    }

    /// Returns the number of 429 responses, whether a token's bucket or a rule caused them.
    pub fn rate_limited_calls(&self) -> u64 {
        self.inner.state.rate_limited_calls()
    }

    /// Returns the number of admitted calls that start paid work, whatever the response was.
    pub fn paid_calls(&self) -> u64 {
        self.inner.state.paid_calls()
    }

    /// Returns the number of lookups that cost money: the first of each captcha result.
    pub fn charged_lookups(&self) -> u64 {
        self.inner.state.charged_lookups()
    }

    /// Returns the number of calls whose client closed the connection before the response was sent
    /// completely.
    pub fn aborted_calls(&self) -> u64 {
        self.inner.state.calls.aborted_calls()
    }

    /// Returns the number of open connections.
    pub fn open_connections(&self) -> usize {
        self.inner.state.open_connections()
    }

    /// Returns once [`Simulator::call_count`] is at least this.
    ///
    /// # Panics
    /// After 10 seconds.
    pub async fn wait_for_calls(&self, at_least: usize) {
        let reached = self.reached(|| self.call_count() >= at_least).await;
        assert!(reached, "the simulator received {} calls within 10 s, not {at_least}", self.call_count());
    }

    /// Returns once the condition holds. The condition is checked whenever a call or connection
    /// starts, changes or ends.
    ///
    /// # Panics
    /// After 10 seconds, with `what` in the message.
    pub async fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        assert!(self.reached(|| condition(self)).await, "the simulator waited 10 s for: {what}");
    }

    async fn reached(&self, condition: impl Fn() -> bool) -> bool {
        let mut changes = self.inner.state.calls.changes();
        let wait = async {
            while !condition() {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, wait).await.is_ok() || condition()
    }
}

/// Locks a mutex. A panic of another holder leaves no state that a simulator could not continue
/// with.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
