//! The store of final task records: a memory cache in front of a database.
//!
//! [`Store`] is the interface that the rest of the program uses; [`StoreMaintenance`] is the one of
//! the commands that work on a database file. The modules below `sqlite` are the only ones with
//! SQL. The store does not depend on HTTP or the upstream, and does not decide which records are
//! final.
//!
//! A failing database never fails a lookup: reads become misses, inserts return `false`, and
//! [`Store::readiness`] returns the reason.

mod cache_entry;
mod error;
mod large_records;
mod listing;
mod memory;
mod pending_deletes;
mod sqlite;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use error::{DatabaseError, StoreError};
pub use listing::{ListCursor, ListedTask, RecordDetails, TaskFilter, TaskPage};
pub use sqlite::{
    ExportPage, ExportedTask, IdMatches, ImportedTask, ServiceTotals, StoreMaintenance, StoreTotals,
};

use crate::clock;
use crate::config::StoreConfig;
use crate::task::{FinalRecord, SavedDurations, Service, TaskId};
use crate::telemetry::{Metrics, StoreLookupResult, StoreStats};
use crate::token::Digest;
use cache_entry::CacheEntry;
use memory::MemoryCache;
use pending_deletes::PendingDeletes;
use sqlite::Sqlite;

/// Longest time between [`Store::epoch`] and [`Store::insert`]: half the time for which tombstones
/// are stored.
const MAX_EPOCH_AGE: Duration = Duration::from_secs(1800);

/// A final record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTask {
    /// The exact bytes that the upstream sent.
    pub record: Bytes,
    /// When it was stored, in seconds since the Unix epoch.
    pub stored_at: i64,
}

/// Error of [`Store::get`]: the records are longer together than the caller allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored records exceed the size limit of the request")]
pub struct ResultTooLarge;

/// A position in the sequence of deletes, to be taken before an upstream call begins. A task that
/// was deleted after it is not stored from the response of that call.
#[derive(Clone, Copy, Debug)]
pub struct DeleteEpoch {
    seq: i64,
    taken_at: Instant,
}

/// The tasks that a delete removes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeleteScope {
    /// One task whose deletion the upstream confirmed to `reader`. Its rows are removed, for all
    /// readers, if `reader` has a grant. Late responses do not store it in any case.
    ByReader {
        /// Digest of the token that deleted it.
        reader: Digest,
        /// Service of the task.
        service: Service,
        /// Id of the task.
        id: TaskId,
    },
    /// One task, on behalf of an operator.
    Task {
        /// Service of the task.
        service: Service,
        /// Id of the task.
        id: TaskId,
    },
    /// All tasks of a service, on behalf of an operator.
    Service(Service),
    /// All tasks stored at least this long ago, on behalf of an operator.
    OlderThan(Duration),
}

impl DeleteScope {
    /// Whether it may remove more rows than one short transaction should.
    fn is_wide(&self) -> bool {
        self.task().is_none()
    }

    /// The task, if the scope is a single one.
    fn task(&self) -> Option<(&Service, &TaskId)> {
        match self {
            Self::ByReader { service, id, .. } | Self::Task { service, id } => Some((service, id)),
            Self::Service(_) | Self::OlderThan(_) => None,
        }
    }
}

/// Last known acceptance or refusal of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenAcceptance {
    /// When the upstream accepted the token, in seconds since the Unix epoch.
    pub accepted_at: i64,
    /// Whether the upstream refused the token since.
    pub is_refused: bool,
}

/// Size and age limits, from the configuration and fixed ones.
#[derive(Clone, Debug)]
struct StoreLimits {
    memory_bytes: u64,
    /// Bytes of all records in the database; 0 for no limit.
    max_bytes: u64,
    /// Time since the last use of a record; zero for no limit.
    max_age: Duration,
    /// Size of the write-ahead log beyond which the writer checkpoints it actively.
    wal_soft_limit: u64,
    /// Size of the write-ahead log beyond which nothing is written.
    wal_hard_limit: u64,
}

impl From<&StoreConfig> for StoreLimits {
    fn from(config: &StoreConfig) -> Self {
        Self {
            memory_bytes: config.memory_bytes,
            max_bytes: config.max_bytes,
            max_age: config.max_age,
            wal_soft_limit: 32 << 20,
            wal_hard_limit: 256 << 20,
        }
    }
}

/// The part of the store that lives in this process, independent of the database.
struct LocalState {
    memory: MemoryCache,
    /// Deletes that are not in the database yet. Their tasks are hidden from all reads.
    pending_deletes: PendingDeletes,
    limits: StoreLimits,
    metrics: Arc<Metrics>,
}

impl LocalState {
    fn new(limits: StoreLimits, metrics: Arc<Metrics>) -> Self {
        Self {
            memory: MemoryCache::new(limits.memory_bytes),
            pending_deletes: PendingDeletes::default(),
            limits,
            metrics,
        }
    }
}

/// Handle to an open store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    local: Arc<LocalState>,
    sqlite: Sqlite,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database for serving: takes its lock, creates or migrates the schema and starts
    /// the writer. A corrupt file is set aside under another name, with an error in the log.
    ///
    /// # Errors
    /// A file that another process serves, that a later version wrote or that belongs to another
    /// program is refused and left as it is.
    pub async fn open(config: &StoreConfig, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        Self::open_with_limits(&config.url, StoreLimits::from(config), metrics).await
    }

    async fn open_with_limits(
        url: &str,
        limits: StoreLimits,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let local = Arc::new(LocalState::new(limits, metrics));
        Ok(Self { sqlite: Sqlite::open(url, Arc::clone(&local)).await?, local })
    }

    /// Path of the database file.
    pub fn path(&self) -> &Path {
        self.sqlite.path()
    }

    /// Key of the HMAC digests under which this store knows tokens.
    pub fn digest_key(&self) -> &[u8; 32] {
        self.sqlite.digest_key()
    }

    /// Returns the stored tasks that `reader` may read, in the order of `ids`, which must be
    /// distinct. Reads memory first and the rest from the database. If that fails, the tasks count
    /// as missing; it takes at most 5 s.
    ///
    /// # Errors
    /// If the records are longer than `max_bytes` together. At most one statement more than that is
    /// read.
    pub async fn get(
        &self,
        reader: &Digest,
        service: &Service,
        ids: &[TaskId],
        max_bytes: u64,
    ) -> Result<Vec<Option<StoredTask>>, ResultTooLarge> {
        let hour = current_hour();
        let LocalState { memory, pending_deletes, metrics, .. } = &*self.local;
        let mut found: Vec<Option<StoredTask>> =
            ids.iter().map(|id| self.get_from_memory(reader, service, id, hour)).collect();
        let (positions, missing): (Vec<usize>, Vec<&TaskId>) =
            ids.iter().enumerate().filter(|&(position, _)| found[position].is_none()).unzip();
        metrics.store_lookups.inc_by(StoreLookupResult::Memory, (ids.len() - missing.len()) as u64);
        let mut bytes: u64 = found.iter().flatten().map(|task| task.record.len() as u64).sum();
        if !missing.is_empty() {
            let generation = memory.generation();
            let mut on_disk = 0;
            let visit = |task: sqlite::FoundTask| {
                if task.used_hour < hour {
                    self.sqlite.mark_used(task.row_id);
                }
                let (id, slot) = (missing[task.index], &mut found[positions[task.index]]);
                if slot.is_some() || pending_deletes.covers(service, id) {
                    return ControlFlow::Continue(());
                }
                on_disk += 1;
                bytes += task.record.len() as u64;
                if bytes > max_bytes {
                    return ControlFlow::Break(());
                }
                let entry = CacheEntry {
                    reader,
                    service,
                    id,
                    row_id: task.row_id,
                    record: task.record,
                    stored_at: task.stored_at,
                    used_hour: hour,
                };
                let record = memory.insert(generation, entry);
                *slot = Some(StoredTask { record, stored_at: task.stored_at });
                ControlFlow::Continue(())
            };
            self.sqlite.read(reader, service, &missing, visit).await;
            metrics.store_lookups.inc_by(StoreLookupResult::Disk, on_disk);
            metrics
                .store_lookups
                .inc_by(StoreLookupResult::Miss, (missing.len() as u64).saturating_sub(on_disk));
        }
        if bytes > max_bytes { Err(ResultTooLarge) } else { Ok(found) }
    }

    /// Returns the same as [`Store::get`], without waiting, if all of `ids` are in memory and
    /// within `max_bytes`. `convert` is applied to each task, so that a hit allocates one list
    /// only.
    pub fn get_cached<T>(
        &self,
        reader: &Digest,
        service: &Service,
        ids: &[TaskId],
        max_bytes: u64,
        convert: impl Fn(StoredTask) -> T,
    ) -> Option<Vec<T>> {
        let hour = current_hour();
        let mut bytes = 0;
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let task = self.get_from_memory(reader, service, id, hour)?;
            bytes += task.record.len() as u64;
            found.push(convert(task));
        }
        if bytes > max_bytes {
            return None;
        }
        self.local.metrics.store_lookups.inc_by(StoreLookupResult::Memory, ids.len() as u64);
        Some(found)
    }

    fn get_from_memory(
        &self,
        reader: &Digest,
        service: &Service,
        id: &TaskId,
        hour: i64,
    ) -> Option<StoredTask> {
        let hit = self.local.memory.get(reader, service, id, hour)?;
        if self.local.pending_deletes.covers(service, id) {
            return None;
        }
        if let Some(row_id) = hit.first_use {
            self.sqlite.mark_used(row_id);
        }
        Some(hit.task)
    }

    /// Returns the current position in the sequence of deletes. It may lag behind a delete of
    /// another process; then a record is not stored although it could be, never the other way
    /// round.
    pub fn epoch(&self) -> DeleteEpoch {
        DeleteEpoch { seq: self.sqlite.delete_seq(), taken_at: Instant::now() }
    }

    /// Stores final records for `reader`. For each of them, `true` means that it is committed to
    /// disk and that `reader` may read it, from now on or since earlier; `false` means that the
    /// disk failed or that the task was deleted after `epoch`. Takes at most 7 s, and no time while
    /// the database is known to fail.
    ///
    /// If the future is dropped, the records may be stored nevertheless.
    pub async fn insert(
        &self,
        reader: &Digest,
        service: &Service,
        epoch: DeleteEpoch,
        tasks: Vec<FinalRecord>,
    ) -> Vec<bool> {
        if tasks.is_empty() || epoch.taken_at.elapsed() > MAX_EPOCH_AGE {
            return vec![false; tasks.len()];
        }
        self.sqlite.insert(reader, service, epoch.seq, tasks).await
    }

    /// Deletes tasks and returns the number of rows removed. After an error the rows may still be
    /// in the database, but this process no longer serves them and repeats the delete until it
    /// succeeds.
    pub async fn delete(&self, scope: DeleteScope) -> Result<u64, StoreError> {
        self.sqlite.delete(scope).await
    }

    /// Returns what is known about a token; `None` too if the database cannot be read.
    pub async fn acceptance(&self, token: &Digest) -> Option<TokenAcceptance> {
        self.sqlite.acceptance(token).await
    }

    /// Records what a response showed about a token. [`Store::acceptance`] returns it at once; it
    /// is written within seconds. The refusal of a token that was never accepted is not written.
    pub fn record_acceptance(&self, token: Digest, acceptance: TokenAcceptance) {
        self.sqlite.record_acceptance(token, acceptance);
    }

    /// Returns the saved durations of tasks, last saved first. Damaged ones are left out, as are all
    /// if the database cannot be read.
    pub async fn durations(&self) -> Vec<SavedDurations> {
        self.sqlite.durations().await
    }

    /// Saves durations in place of those of the same service and type. Takes at most 7 s.
    ///
    /// # Errors
    /// If they could not be written. Nothing is saved then, unless the time was over.
    pub async fn save_durations(&self, durations: Vec<SavedDurations>) -> Result<(), StoreError> {
        self.sqlite.save_durations(durations).await
    }

    /// Returns a page of up to `limit` stored tasks, last stored first, or by service and id if the
    /// filter has an id prefix. A page that has a next one may be short, and even empty.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`], after at most 5 s.
    pub async fn list(
        &self,
        filter: &TaskFilter,
        cursor: Option<ListCursor>,
        limit: usize,
    ) -> Result<TaskPage, StoreError> {
        self.sqlite.list(filter, cursor, limit).await
    }

    /// Returns the records stored for an id: at most 50, up to 32 MiB together, each with at most
    /// 100 readers.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn records(&self, service: &Service, id: &TaskId) -> Result<Vec<RecordDetails>, StoreError> {
        if self.local.pending_deletes.covers(service, id) {
            return Ok(Vec::new());
        }
        self.sqlite.records(service, id).await
    }

    /// Version of the SQLite library.
    pub async fn sqlite_version(&self) -> Option<String> {
        self.sqlite.version().await
    }

    /// Whether the database accepts writes; the error is the reason why not.
    pub fn readiness(&self) -> Result<(), &'static str> {
        self.sqlite.readiness()
    }

    /// Counters and file sizes. Reads nothing from the database.
    pub fn stats(&self) -> StoreStats {
        let (memory_tasks, memory_bytes) = self.local.memory.size();
        StoreStats {
            max_bytes: self.local.limits.max_bytes,
            memory_tasks,
            memory_bytes,
            memory_max_bytes: self.local.limits.memory_bytes,
            ..self.sqlite.stats()
        }
    }

    /// Writes what is queued, empties and removes the write-ahead log and releases the lock. Takes
    /// at most 15 s. Later reads find nothing and later writes are refused.
    pub async fn close(&self) {
        self.sqlite.close().await;
    }
}

/// The current time in hours since the Unix epoch.
fn current_hour() -> i64 {
    clock::unix_now() / 3600
}
