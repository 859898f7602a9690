//! The running server: what all connections share, the accept loop, and its end.
//!
//! Used by [`super::Simulator`]; what is said on a connection is [`super::exchange`]'s.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answers::Answer;
use super::connection::Connection;
use super::exchange::{End, exchange, refuse_head};
use super::record::Record;
use super::rulebook::Rules;
use super::tasks::{Habits, Tasks};
use super::tokens::Tokens;
use super::{SimulatorConfig, text};
use crate::clock;

/// What all connections share. The locks are held for plain computing only, never over an `.await`.
pub(super) struct State {
    pub(super) config: SimulatorConfig,
    pub(super) tasks: Mutex<Tasks>,
    pub(super) tokens: Mutex<Tokens>,
    pub(super) rules: Mutex<Rules>,
    pub(super) record: Record,
    task_changes: watch::Sender<()>,
    errors: AtomicU64,
    too_many_requests: AtomicU64,
    paid_starts: AtomicU64,
    connections: AtomicU64,
    open_connections: AtomicUsize,
}

impl State {
    pub(super) fn new(config: SimulatorConfig) -> Self {
        let habits = Habits {
            seed: config.seed,
            duration: config.task_duration,
            retention: config.retention,
            failure_rate: config.failure_rate,
            max_tasks: config.max_tasks,
        };
        let rate = config.requests_per_second;
        Self {
            tasks: Mutex::new(Tasks::new(habits, Instant::now(), clock::unix_now())),
            tokens: Mutex::new(Tokens::new(
                config.accepted_tokens.clone(),
                rate,
                config.burst,
                config.rate_tolerance,
            )),
            rules: Mutex::default(),
            record: Record::new(config.max_recorded_bytes),
            task_changes: watch::Sender::new(()),
            errors: AtomicU64::new(0),
            too_many_requests: AtomicU64::new(0),
            paid_starts: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open_connections: AtomicUsize::new(0),
            config,
        }
    }

    /// An error in the documented shape, with a trace id of its own.
    pub(super) fn error(&self, status: u16, code: &str) -> Answer {
        let number = self.errors.fetch_add(1, Ordering::Relaxed);
        let trace_id = text::uuid(&mut Rng::with_seed(self.config.seed.wrapping_sub(number + 1)));
        Answer::error(status, code, &trace_id)
    }

    /// Notes what a call is answered, before the first byte is sent.
    pub(super) fn answered(&self, sequence: u64, status: u16) {
        if status == 429 {
            self.too_many_requests.fetch_add(1, Ordering::Relaxed);
        }
        self.record.set_status(sequence, status);
    }

    pub(super) fn count_paid_start(&self) {
        self.paid_starts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn paid_calls(&self) -> u64 {
        self.paid_starts.load(Ordering::Relaxed)
    }

    pub(super) fn too_many_requests(&self) -> u64 {
        self.too_many_requests.load(Ordering::Relaxed)
    }

    pub(super) fn open_connections(&self) -> usize {
        self.open_connections.load(Ordering::Relaxed)
    }

    /// Wakes the calls that wait for a task to settle.
    pub(super) fn task_changed(&self) {
        self.task_changes.send_replace(());
    }

    /// Tells of tasks changed by hand from now on.
    pub(super) fn task_changes(&self) -> watch::Receiver<()> {
        self.task_changes.subscribe()
    }
}

/// A listener with its connections.
pub(super) struct Listening {
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Listening {
    /// Listens at the address; the one given back has the real port.
    pub(super) async fn start(address: SocketAddr, state: Arc<State>) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let listening = Self { cancel: CancellationToken::new(), tracker: TaskTracker::new() };
        let (cancel, tracker) = (listening.cancel.clone(), listening.tracker.clone());
        listening.tracker.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = accept(listener, &state, &cancel, &tracker) => {}
            }
        });
        Ok((listening, address))
    }

    /// Closes the listener and every connection, and returns once all are closed.
    pub(super) async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    state: &Arc<State>,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, or the client left already: give it a moment.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (state, cancel) = (Arc::clone(state), cancel.clone());
        tracker.spawn(async move {
            let open = OpenConnection::new(&state);
            tokio::select! {
                () = cancel.cancelled() => {}
                () = serve(&state, Connection::new(stream), open.number) => {}
            }
        });
    }
}

async fn serve(state: &State, mut connection: Connection, number: u64) {
    loop {
        let end = match connection.read_head().await {
            Ok(Some(head)) => exchange(state, &mut connection, number, head).await,
            Ok(None) => End::Close,
            Err(error) if error.kind() == ErrorKind::InvalidData => refuse_head(state, &mut connection).await,
            Err(_) => return,
        };
        match end {
            End::KeepAlive => {}
            End::Close => return connection.close().await,
            End::Reset => return connection.reset(),
        }
    }
}

/// Counts a connection as open while it lives.
struct OpenConnection<'a> {
    state: &'a State,
    number: u64,
}

impl<'a> OpenConnection<'a> {
    fn new(state: &'a State) -> Self {
        state.open_connections.fetch_add(1, Ordering::Relaxed);
        state.record.notify();
        Self { state, number: state.connections.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.state.open_connections.fetch_sub(1, Ordering::Relaxed);
        self.state.record.notify();
    }
}
