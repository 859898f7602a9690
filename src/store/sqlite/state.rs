//! State that the handle, the readers and the writer of one database share, and the reports of its
//! failures.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::deferred_writes::{CorruptRow, DeferredWrites};
use super::error_code;
use super::health::HealthCell;
use super::log_throttle::LogThrottle;
use super::readers::Readers;
use crate::store::LocalState;
use crate::telemetry::StoreErrorKind;

/// Longest time a client waits for a read. After it, the tasks count as missing.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module documentation.
pub(super) struct SqliteState {
    pub(super) path: PathBuf,
    pub(super) digest_key: [u8; 32],
    pub(super) local: Arc<LocalState>,
    pub(super) readers: Readers,
    pub(super) deferred: DeferredWrites,
    pub(super) health: HealthCell,
    pub(super) counters: Counters,
    /// Cancelled when the store is closed.
    pub(super) closing: CancellationToken,
    /// The writer and the coalesced reads; [`Store::close`](crate::store::Store::close) waits for
    /// them.
    pub(super) background: TaskTracker,
    read_failures: LogThrottle,
    write_failures: LogThrottle,
    corrupt_rows: LogThrottle,
}

/// The row of table `meta` as of the last transaction.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) tasks: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) delete_seq: AtomicI64,
}

impl Counters {
    pub(super) fn set(&self, (tasks, bytes, delete_seq): (i64, i64, i64)) {
        self.tasks.store(u64::try_from(tasks).unwrap_or(0), Ordering::Relaxed);
        self.bytes.store(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        self.delete_seq.store(delete_seq, Ordering::Release);
    }
}

impl SqliteState {
    pub(super) fn new(path: PathBuf, digest_key: [u8; 32], local: Arc<LocalState>) -> Self {
        Self {
            path,
            digest_key,
            local,
            readers: Readers::default(),
            deferred: DeferredWrites::default(),
            health: HealthCell::default(),
            counters: Counters::default(),
            closing: CancellationToken::new(),
            background: TaskTracker::new(),
            read_failures: LogThrottle::default(),
            write_failures: LogThrottle::default(),
            corrupt_rows: LogThrottle::default(),
        }
    }

    /// Counts an error in the metrics.
    pub(super) fn count(&self, kind: StoreErrorKind) {
        self.local.metrics.store_errors.inc(kind);
    }

    /// Runs a read for at most [`READ_TIMEOUT`]. Returns `None` after a failure, which is counted
    /// and logged here.
    pub(super) async fn read<T>(&self, read: impl Future<Output = Result<T, sqlx::Error>>) -> Option<T> {
        match tokio::time::timeout(READ_TIMEOUT, read).await {
            Ok(Ok(value)) => return Some(value),
            // The store was closed, or its file is being replaced.
            Ok(Err(sqlx::Error::PoolClosed)) => {}
            Ok(Err(error)) => self.record_read_failure(&error),
            Err(_) => {
                self.count(StoreErrorKind::Read);
                if let Some(suppressed) = self.read_failures.admit() {
                    tracing::warn!(
                        suppressed,
                        "reading the task store timed out; its tasks count as missing"
                    );
                }
            }
        }
        None
    }

    /// Counts and logs a failed read. A corrupt file is reported to the writer.
    pub(super) fn record_read_failure(&self, error: &sqlx::Error) {
        self.count(StoreErrorKind::Read);
        if let Some(suppressed) = self.read_failures.admit() {
            tracing::warn!(
                path = %self.path.display(),
                %error,
                suppressed,
                "the task store could not be read; its tasks count as missing"
            );
        }
        if error_code::is_corrupt(error) {
            self.report_corrupt_file();
        }
    }

    /// Counts and logs a row that failed verification. It is removed if its key is known.
    pub(super) fn record_corrupt_row(&self, row: Option<CorruptRow>) {
        self.count(StoreErrorKind::Checksum);
        if let Some(suppressed) = self.corrupt_rows.admit() {
            tracing::warn!(
                ?row,
                suppressed,
                "a stored task is damaged; it is removed and will be fetched again"
            );
        }
        if let Some(row) = row {
            self.deferred.remove_corrupt(row);
        }
    }

    /// Counts and logs a failed write.
    pub(super) fn record_write_failure(&self, error: &str) {
        self.count(StoreErrorKind::Write);
        if let Some(suppressed) = self.write_failures.admit() {
            tracing::warn!(
                path = %self.path.display(),
                error,
                suppressed,
                "the task store could not be written; records are served but not stored"
            );
        }
    }

    /// Has the writer set the file aside.
    pub(super) fn report_corrupt_file(&self) {
        if self.health.set_corrupt() {
            self.count(StoreErrorKind::Corrupt);
        }
        self.deferred.wake.notify_one();
    }
}
