//! State that all connections of the simulator share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use fastrand::Rng;
use tokio::sync::watch;

use super::SimulatorConfig;
use super::calls::CallLog;
use super::clock;
use super::locked;
use super::response::Response;
use super::rule_set::RuleSet;
use super::task_json;
use super::tasks::{TaskDefaults, Tasks};
use super::tokens::Tokens;

/// State that all connections share. No lock is held across an `.await`.
pub(super) struct SharedState {
    pub(super) config: SimulatorConfig,
    pub(super) tasks: Mutex<Tasks>,
    pub(super) tokens: Mutex<Tokens>,
    pub(super) rules: Mutex<RuleSet>,
    pub(super) calls: CallLog,
    /// Notified when a test changes a task.
    task_changes: watch::Sender<()>,
    /// Number of errors so far; the trace id of each follows from it.
    errors: AtomicU64,
    rate_limited_calls: AtomicU64,
    paid_calls: AtomicU64,
    charged_lookups: AtomicU64,
    /// Items in a batch of ids without `limit`. `None` for all.
    default_batch_limit: Mutex<Option<usize>>,
    /// Number of connections so far.
    connections: AtomicU64,
    open_connections: AtomicUsize,
}

impl SharedState {
    pub(super) fn new(config: SimulatorConfig) -> Self {
        let defaults = TaskDefaults {
            seed: config.seed,
            duration: config.task_duration,
            retention: config.retention,
            failure_rate: config.failure_rate,
            max_tasks: config.max_tasks,
        };
        let rate = config.requests_per_second;
        Self {
            tasks: Mutex::new(Tasks::new(defaults, Instant::now(), clock::unix_now())),
            tokens: Mutex::new(Tokens::new(
                config.accepted_tokens.clone(),
                rate,
                config.burst,
                config.rate_tolerance,
            )),
            rules: Mutex::default(),
            calls: CallLog::new(config.max_recorded_bytes),
            task_changes: watch::Sender::new(()),
            errors: AtomicU64::new(0),
            rate_limited_calls: AtomicU64::new(0),
            paid_calls: AtomicU64::new(0),
            charged_lookups: AtomicU64::new(0),
            default_batch_limit: Mutex::new(config.default_batch_limit),
            connections: AtomicU64::new(0),
            open_connections: AtomicUsize::new(0),
            config,
        }
    }

    /// Returns an error in the documented shape with its own trace id.
    pub(super) fn error(&self, status: u16, code: &str) -> Response {
        let number = self.errors.fetch_add(1, Ordering::Relaxed);
        let trace_id = task_json::uuid(&mut Rng::with_seed(self.config.seed.wrapping_sub(number + 1)));
        Response::error(status, code, &trace_id)
    }

    /// Records the status of a response. Called before its first byte is sent.
    pub(super) fn record_status(&self, sequence: u64, status: u16) {
        if status == 429 {
            self.rate_limited_calls.fetch_add(1, Ordering::Relaxed);
        }
        self.calls.set_status(sequence, status);
    }

    pub(super) fn rate_limited_calls(&self) -> u64 {
        self.rate_limited_calls.load(Ordering::Relaxed)
    }

    pub(super) fn count_paid_call(&self) {
        self.paid_calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn paid_calls(&self) -> u64 {
        self.paid_calls.load(Ordering::Relaxed)
    }

    pub(super) fn count_charged_lookup(&self) {
        self.charged_lookups.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn charged_lookups(&self) -> u64 {
        self.charged_lookups.load(Ordering::Relaxed)
    }

    pub(super) fn default_batch_limit(&self) -> Option<usize> {
        *locked(&self.default_batch_limit)
    }

    pub(super) fn set_default_batch_limit(&self, limit: Option<usize>) {
        *locked(&self.default_batch_limit) = limit;
    }

    pub(super) fn open_connections(&self) -> usize {
        self.open_connections.load(Ordering::Relaxed)
    }

    /// Wakes the calls that wait for the end of a task.
    pub(super) fn task_changed(&self) {
        self.task_changes.send_replace(());
    }

    /// Returns a receiver that is notified of each later [`SharedState::task_changed`].
    pub(super) fn task_changes(&self) -> watch::Receiver<()> {
        self.task_changes.subscribe()
    }
}

/// Open connection, counted while this value exists.
pub(super) struct OpenConnection<'a> {
    state: &'a SharedState,
    /// Number of the connection, counted from 0.
    pub(super) number: u64,
}

impl<'a> OpenConnection<'a> {
    pub(super) fn new(state: &'a SharedState) -> Self {
        state.open_connections.fetch_add(1, Ordering::Relaxed);
        state.calls.notify();
        Self { state, number: state.connections.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.state.open_connections.fetch_sub(1, Ordering::Relaxed);
        self.state.calls.notify();
    }
}
