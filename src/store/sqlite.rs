//! The SQLite backend: one database file, served by one process at a time.
//!
//! - `<file>.lock` and, on Linux, the file itself are locked by the process that serves the file.
//!   Other programs may read and write beside it; the serving process sees their changes within a
//!   second.
//! - The database is in WAL mode with `synchronous=FULL`. One writer commits in groups. A pool of
//!   connections reads; concurrent lookups share statements. Every read ends after 5.5 s at the
//!   latest, so that the write-ahead log can be emptied.
//! - Tasks and grants have checksums. A row that does not match is a miss; it is removed and
//!   counted.
//! - The space of removed rows is reused but not returned to the file system.

mod checksum;
mod coalescer;
mod connect;
mod deferred_writes;
mod delete;
mod durations;
mod error_code;
mod file;
mod health;
mod insert;
mod json_array;
mod listing;
mod lock;
mod log_throttle;
mod maintenance;
mod open;
mod read;
mod readers;
mod records;
mod schema;
mod select;
mod state;
mod sweep;
mod wal;
mod write_queue;
mod writer;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::SqliteConnection;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

pub use maintenance::{
    ExportPage, ExportedTask, IdMatches, ImportedTask, ServiceTotals, StoreMaintenance, StoreTotals,
};

pub(super) use select::FoundTask;

use super::{
    DeleteScope, ListCursor, ListedTask, LocalState, RecordDetails, StoreError, TaskFilter, TaskPage,
    TokenAcceptance,
};
use crate::task::{FinalRecord, SavedDurations, Service, TaskId};
use crate::telemetry::{StoreErrorKind, StoreStats};
use crate::token::Digest;
use coalescer::ReadCoalescer;
use health::Health;
use lock::StoreLock;
use open::OpenDatabase;
use readers::LISTINGS;
use records::RecordLimits;
use state::SqliteState;
use write_queue::WriteQueue;
use writer::Writer;

/// Longest time that [`Sqlite::close`] takes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Limits of [`Sqlite::records`].
const RECORD_LIMITS: RecordLimits = RecordLimits { records: 50, bytes: 32 << 20, readers: 100 };

/// Handle to an open database; cheap to clone. The methods with the names of those of
/// [`Store`](super::Store) do what is documented there.
#[derive(Clone)]
pub(super) struct Sqlite {
    state: Arc<SqliteState>,
    coalescer: Arc<ReadCoalescer>,
    writes: WriteQueue,
    listings: Arc<Semaphore>,
}

impl Sqlite {
    /// Opens the database and starts the writer.
    pub(super) async fn open(url: &str, local: Arc<LocalState>) -> Result<Self, StoreError> {
        let path = file::parse_url(url)?;
        file::check_origin(&path)?;
        let mut lock = StoreLock::acquire(&path).await?;
        let OpenDatabase { writer, readers, digest_key, was_set_aside } =
            open::open(&path, &mut lock, None).await?;
        let state = Arc::new(SqliteState::new(path, digest_key, local));
        if was_set_aside {
            state.count(StoreErrorKind::Corrupt);
        }
        state.background.spawn(connect::retain_freed_memory(readers.clone()));
        state.readers.replace(Some(readers));
        let (writes, jobs) = WriteQueue::new(Arc::clone(&state));
        let writer = Writer::new(Arc::clone(&state), jobs, writer, lock).await?;
        state.background.spawn(watch(Arc::clone(&state), tokio::spawn(writer.run())));
        state.background.close();
        Ok(Self {
            coalescer: Arc::new(ReadCoalescer::new(Arc::clone(&state))),
            state,
            writes,
            listings: Arc::new(Semaphore::new(LISTINGS)),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.state.path
    }

    pub(super) fn digest_key(&self) -> &[u8; 32] {
        &self.state.digest_key
    }

    /// Passes the tasks of `ids` that `reader` may read to `visit`, until it returns `Break`. After
    /// a failure, which is counted and logged here, the rest is missing. Takes at most 5 s.
    pub(super) async fn read(
        &self,
        reader: &Digest,
        service: &Service,
        ids: &[&TaskId],
        visit: impl FnMut(FoundTask) -> ControlFlow<()>,
    ) {
        let reading = read::read_tasks(&self.state, &self.coalescer, reader, service, ids, visit);
        self.state.read(reading).await;
    }

    /// Records the use of a row, to be written later.
    pub(super) fn mark_used(&self, row_id: i64) {
        self.state.deferred.mark_used(row_id);
    }

    /// Sequence number of the last delete.
    pub(super) fn delete_seq(&self) -> i64 {
        self.state.counters.delete_seq.load(Ordering::Acquire)
    }

    pub(super) async fn insert(
        &self,
        reader: &Digest,
        service: &Service,
        delete_seq: i64,
        tasks: Vec<FinalRecord>,
    ) -> Vec<bool> {
        self.writes.insert(reader, service, delete_seq, tasks).await
    }

    pub(super) async fn delete(&self, scope: DeleteScope) -> Result<u64, StoreError> {
        self.writes.delete(scope).await
    }

    pub(super) async fn acceptance(&self, token: &Digest) -> Option<TokenAcceptance> {
        if let Some(acceptance) = self.state.deferred.acceptance(token) {
            return Some(acceptance);
        }
        let pool = self.state.readers.pool()?;
        let reading = sqlx::query_as(
            "SELECT accepted_at, is_refused FROM reader WHERE digest = ?1 AND accepted_at IS NOT NULL",
        )
        .bind(token.as_bytes().as_slice())
        .fetch_optional(&pool);
        let (accepted_at, is_refused) = self.state.read(reading).await??;
        Some(TokenAcceptance { accepted_at, is_refused })
    }

    pub(super) fn record_acceptance(&self, token: Digest, acceptance: TokenAcceptance) {
        self.state.deferred.record_acceptance(token, acceptance);
    }

    pub(super) async fn durations(&self) -> Vec<SavedDurations> {
        let Ok(loaded) = self.read_for_operator(durations::load).await else { return Vec::new() };
        for _ in 0..loaded.damaged {
            self.state.count(StoreErrorKind::Checksum);
        }
        if loaded.damaged > 0 {
            tracing::warn!(rows = loaded.damaged, "stored task durations are damaged; they are learnt again");
        }
        loaded.durations
    }

    pub(super) async fn save_durations(&self, durations: Vec<SavedDurations>) -> Result<(), StoreError> {
        self.writes.save_durations(durations).await
    }

    pub(super) async fn list(
        &self,
        filter: &TaskFilter,
        cursor: Option<ListCursor>,
        limit: usize,
    ) -> Result<TaskPage, StoreError> {
        let pending_deletes = &self.state.local.pending_deletes;
        self.read_for_operator(async |conn| {
            let is_visible = |task: &ListedTask| !pending_deletes.covers(&task.service, &task.id);
            listing::page(conn, filter, cursor, limit, is_visible).await
        })
        .await
    }

    pub(super) async fn records(
        &self,
        service: &Service,
        id: &TaskId,
    ) -> Result<Vec<RecordDetails>, StoreError> {
        self.read_for_operator(async |conn| records::of_id(conn, service, id, RECORD_LIMITS).await).await
    }

    pub(super) async fn version(&self) -> Option<String> {
        let version = async |conn: &mut SqliteConnection| {
            sqlx::query_scalar("SELECT sqlite_version()").fetch_one(conn).await
        };
        self.read_for_operator(version).await.ok()
    }

    /// Reads with one of the connections for listings. Unlike lookups, the caller learns of a
    /// failure.
    async fn read_for_operator<T>(
        &self,
        read: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let _permit = self.listings.acquire().await;
        let pool = self.state.readers.pool().ok_or(StoreError::Unreadable)?;
        let reading = async { read(&mut *pool.acquire().await?).await };
        self.state.read(reading).await.ok_or(StoreError::Unreadable)
    }

    pub(super) fn readiness(&self) -> Result<(), &'static str> {
        self.state.health.readiness()
    }

    /// Fills in the fields that concern the database.
    pub(super) fn stats(&self) -> StoreStats {
        let counters = &self.state.counters;
        StoreStats {
            tasks: counters.tasks.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            database_bytes: file::size(&self.state.path),
            wal_bytes: file::size(&wal::path(&self.state.path)),
            queued_jobs: self.writes.jobs(),
            queued_bytes: self.writes.bytes(),
            ..StoreStats::default()
        }
    }

    pub(super) async fn close(&self) {
        self.state.closing.cancel();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.state.background.wait()).await.is_err() {
            tracing::warn!("the task store could not be closed in time");
        }
    }
}

/// Logs a panic of the writer and reports it in the readiness.
async fn watch(state: Arc<SqliteState>, writer: JoinHandle<()>) {
    if let Err(error) = writer.await {
        state.health.set(Health::Stopped);
        if error.is_panic() {
            state.local.metrics.panics.inc();
        }
        tracing::error!(%error, "the task store's writer has stopped; nothing is stored any more");
    }
}
