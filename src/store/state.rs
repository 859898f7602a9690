//! What the [`Store`](super::Store) handle and its writer share: readers, memory tier, health, counters and the
//! small things that wait for the next transaction.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sqlx::sqlite::SqlitePool;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::find::ReadCoalescer;
use super::memory::Memory;
use super::pending_deletes::PendingDeletes;
use super::{Limits, TokenAcceptance};
use crate::clock;
use crate::telemetry::{Metrics, StoreErrorKind};
use crate::token::Digest;

/// Tokens whose acceptance may wait to be written, rows whose use may, and damaged rows to drop; more are let go,
/// which costs a recheck, an hour's precision or another checksum error.
const MAX_WAITING: usize = 10_000;

/// Between two log lines of one kind of failure.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// See the head of this file.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) limits: Limits,
    pub(super) metrics: Arc<Metrics>,
    pub(super) key: [u8; 32],
    /// None while the file is set aside and after close.
    readers: RwLock<Option<SqlitePool>>,
    pub(super) memory: Memory,
    pub(super) hidden: PendingDeletes,
    pub(super) health: HealthCell,
    pub(super) totals: Totals,
    pub(super) chores: DeferredWrites,
    pub(super) closing: CancellationToken,
    pub(super) background: TaskTracker,
    /// Look-ups that share their statements.
    pub(super) groups: ReadCoalescer,
    read_log: LogThrottle,
    write_log: LogThrottle,
    damage_log: LogThrottle,
}

impl Shared {
    pub(super) fn new(path: PathBuf, limits: Limits, metrics: Arc<Metrics>, key: [u8; 32]) -> Self {
        Self {
            path,
            memory: Memory::new(limits.memory_bytes),
            limits,
            metrics,
            key,
            readers: RwLock::new(None),
            hidden: PendingDeletes::default(),
            health: HealthCell::default(),
            totals: Totals::default(),
            chores: DeferredWrites::default(),
            closing: CancellationToken::new(),
            background: TaskTracker::new(),
            groups: ReadCoalescer::default(),
            read_log: LogThrottle::default(),
            write_log: LogThrottle::default(),
            damage_log: LogThrottle::default(),
        }
    }

    /// The pool of readers, while there is one.
    pub(super) fn readers(&self) -> Option<SqlitePool> {
        self.readers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another pool in place; the former one is to be closed, and has its connections back.
    pub(super) fn set_readers(&self, pool: Option<SqlitePool>) -> Option<SqlitePool> {
        let former =
            std::mem::replace(&mut *self.readers.write().unwrap_or_else(PoisonError::into_inner), pool);
        self.groups.release();
        former
    }

    pub(super) fn count(&self, kind: StoreErrorKind) {
        self.metrics.store_errors.count(kind);
    }

    /// Counts and logs a failed read; a corrupt file is handed to the writer.
    pub(super) fn read_failed(&self, error: &sqlx::Error) {
        self.count(StoreErrorKind::Read);
        if let Some(suppressed) = self.read_log.open() {
            tracing::warn!(error = %error, suppressed, "the task store could not be read; going on as if nothing were stored");
        }
        if super::error::is_corrupt(error) {
            self.report_corrupt();
        }
    }

    /// A read that took too long, because of a lock or a slow disk.
    pub(super) fn read_timed_out(&self) {
        self.count(StoreErrorKind::Read);
        if let Some(suppressed) = self.read_log.open() {
            tracing::warn!(
                suppressed,
                "reading the task store took too long; going on as if nothing were stored"
            );
        }
    }

    /// Counts and logs something damaged; what is known of it is handed to the writer to be dropped.
    pub(super) fn damaged(&self, damage: Option<CorruptRow>) {
        self.count(StoreErrorKind::Checksum);
        if let Some(suppressed) = self.damage_log.open() {
            tracing::warn!(
                ?damage,
                suppressed,
                "a stored task is damaged; it is dropped and will be fetched again"
            );
        }
        if let Some(damage) = damage {
            self.chores.report_damage(damage);
        }
    }

    /// Counts and logs a failed write.
    pub(super) fn write_failed(&self, error: &str) {
        self.count(StoreErrorKind::Write);
        if let Some(suppressed) = self.write_log.open() {
            tracing::warn!(
                error,
                suppressed,
                "the task store could not be written; going on without storing"
            );
        }
    }

    /// Lets the writer set the file aside.
    pub(super) fn report_corrupt(&self) {
        if self.health.replace_open(Health::Corrupt) {
            self.count(StoreErrorKind::Corrupt);
        }
        self.chores.wake.notify_one();
    }
}

/// How the store fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Health {
    Good = 0,
    WriteFailed = 1,
    WalFull = 2,
    Corrupt = 3,
    Stopped = 4,
    Closed = 5,
}

/// The current [`Health`]. `Stopped` and `Closed` are final.
#[derive(Default)]
pub(super) struct HealthCell(AtomicU8);

impl HealthCell {
    pub(super) fn get(&self) -> Health {
        match self.0.load(Ordering::Acquire) {
            0 => Health::Good,
            1 => Health::WriteFailed,
            2 => Health::WalFull,
            3 => Health::Corrupt,
            4 => Health::Stopped,
            _ => Health::Closed,
        }
    }

    /// Sets it, unless it is final already.
    pub(super) fn set(&self, health: Health) {
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
            (now < Health::Stopped as u8 || health == Health::Closed).then_some(health as u8)
        });
    }

    /// Sets it if that is a change and it is not final; whether it did.
    fn replace_open(&self, health: Health) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                (now < Health::Stopped as u8 && now != health as u8).then_some(health as u8)
            })
            .is_ok()
    }
}

/// Numbers kept in step with the `meta` row, and the hour.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) tasks: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) forget_seq: AtomicI64,
    hour: AtomicI64,
}

impl Totals {
    /// The hour since the Unix epoch, as of the writer's last tick: a hit should not read the clock.
    pub(super) fn hour(&self) -> i64 {
        self.hour.load(Ordering::Relaxed)
    }

    pub(super) fn set_hour(&self) {
        self.hour.store(clock::unix_now() / 3600, Ordering::Relaxed);
    }
}

/// Something a reader found that must not be served again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum CorruptRow {
    /// A row whose checksum does not fit. With the stored checksum, so that a later row of that number stays.
    Row { row: i64, checksum: i64 },
    /// A right whose mark does not fit.
    Right { row: i64, mark: i64 },
}

/// Small things that ride along in the writer's next transaction.
#[derive(Default)]
pub(super) struct DeferredWrites {
    touched: Mutex<HashSet<i64>>,
    damaged: Mutex<HashSet<CorruptRow>>,
    acceptances: Mutex<HashMap<Digest, TokenAcceptance>>,
    /// Wakes the writer for what should not wait for its next tick.
    pub(super) wake: Notify,
}

/// What [`DeferredWrites::take`] took, to be settled after the commit.
#[derive(Default)]
pub(super) struct TakenWrites {
    pub(super) touched: Vec<i64>,
    pub(super) damaged: Vec<CorruptRow>,
    pub(super) acceptances: Vec<(Digest, TokenAcceptance)>,
}

impl DeferredWrites {
    pub(super) fn touch(&self, row: i64) {
        let mut touched = lock(&self.touched);
        if touched.len() < MAX_WAITING * 10 {
            touched.insert(row);
        }
    }

    pub(super) fn report_damage(&self, damage: CorruptRow) {
        let mut damaged = lock(&self.damaged);
        if damaged.len() < MAX_WAITING {
            damaged.insert(damage);
        }
        drop(damaged);
        self.wake.notify_one();
    }

    pub(super) fn accept(&self, token: Digest, acceptance: TokenAcceptance) {
        let mut acceptances = lock(&self.acceptances);
        if acceptances.len() < MAX_WAITING || acceptances.contains_key(&token) {
            acceptances.insert(token, acceptance);
        }
        drop(acceptances);
        if acceptance.is_revoked {
            self.wake.notify_one();
        }
    }

    pub(super) fn acceptance(&self, token: &Digest) -> Option<TokenAcceptance> {
        lock(&self.acceptances).get(token).copied()
    }

    /// Whether something waits that is worth a transaction of its own.
    pub(super) fn waiting(&self) -> bool {
        !lock(&self.damaged).is_empty() || !lock(&self.acceptances).is_empty()
    }

    /// A batch of what waits. Acceptances stay visible until [`DeferredWrites::settle`].
    pub(super) fn take(&self, with_touched: bool) -> TakenWrites {
        let touched = if with_touched {
            let mut touched = lock(&self.touched);
            let rows: Vec<i64> = touched.iter().copied().take(MAX_WAITING).collect();
            for row in &rows {
                touched.remove(row);
            }
            rows
        } else {
            Vec::new()
        };
        TakenWrites {
            touched,
            damaged: lock(&self.damaged).drain().collect(),
            acceptances: lock(&self.acceptances)
                .iter()
                .map(|(token, acceptance)| (*token, *acceptance))
                .collect(),
        }
    }

    /// After the commit: what was written and has not changed since waits no more.
    pub(super) fn settle(&self, taken: &TakenWrites) {
        let mut acceptances = lock(&self.acceptances);
        for (token, acceptance) in &taken.acceptances {
            if acceptances.get(token) == Some(acceptance) {
                acceptances.remove(token);
            }
        }
    }

    /// After a failure: what was taken waits again.
    pub(super) fn put_back(&self, taken: TakenWrites) {
        lock(&self.touched).extend(taken.touched);
        lock(&self.damaged).extend(taken.damaged);
    }

    /// Row numbers mean nothing in another file.
    pub(super) fn forget_rows(&self) {
        lock(&self.touched).clear();
        lock(&self.damaged).clear();
    }
}

/// Lets one log line through in [`LOG_EVERY`] and counts the others.
#[derive(Default)]
struct LogThrottle(Mutex<(Option<Instant>, u64)>);

impl LogThrottle {
    /// How many lines were hushed since the last one, if this one may pass.
    fn open(&self) -> Option<u64> {
        let mut gate = lock(&self.0);
        if gate.0.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            gate.1 += 1;
            return None;
        }
        gate.0 = Some(Instant::now());
        Some(std::mem::take(&mut gate.1))
    }
}

/// Sections under these locks are a few instructions long and leave nothing half done if they panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
