//! The task store: the only room with SQL. Finished tasks on disk, who may read them, and a memory tier in front.
//!
//! Called by `retrieve` and `lane` (find, keep, forget), by `access` (acceptances, the digest key), by the
//! admin port, and by the store commands through [`StoreMaintenance`]. It knows nothing of HTTP, of the upstream or of what counts as finished.
//!
//! - One process at a time opens a file, held by `<file>.lock`; other programs may read and write beside it, and
//!   what they change is seen within a second.
//! - SQLite in WAL mode, `synchronous=FULL`. One writer (`writer`) commits in groups; a pool of readers whose
//!   statements end with the call that began them; look-ups share theirs, which end after 5.5 s at the latest. The
//!   write-ahead log stays below 256 MiB and one transaction:
//!   past 32 MiB it is emptied actively, at 256 MiB, with a foreign reader that never ends, nothing is stored.
//! - Rows and rights carry checksums; what does not fit is a miss, dropped and counted.
//! - A failing store never fails a caller: a look-up misses, a keep says `false`, and readiness tells why.
//! - Disk space of removed tasks is used again, not given back.

mod error;
mod find;
mod listing;
mod maintenance;
mod memory;
mod open;
mod pending_deletes;
mod state;
mod sweep;
mod tasks;
mod writer;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use error::StoreError;
pub use listing::{ListCursor, ListedTask, RecordDetails, TaskFilter, TaskPage};
pub use maintenance::{ExportPage, ExportedTask, ImportedTask, ServiceTotals, StoreMaintenance, StoreTotals};

use crate::config::StoreConfig;
use crate::task::{FinalRecord, Service, TaskId};
use crate::telemetry::{Metrics, StoreErrorKind, StoreLookupResult, StoreStats};
use crate::token::Digest;
use memory::Fill;
use state::{Health, Shared};
use writer::{Job, Writer};

/// How long a connection waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for a command beside a running proxy, which can wait longer than a client.
const BESIDE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest a look-up waits for SQLite before it is a miss.
const FIND_TIMEOUT: Duration = Duration::from_secs(5);

/// Listings and texts of an id that are read at a time.
const LISTINGS: usize = 2;

/// The longest [`Store::insert`] takes: the busy time-out and 5 s.
const KEEP_TIMEOUT: Duration = Duration::from_secs(7);

/// The longest [`Store::delete`] takes; wide ones remove much.
const FORGET_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest [`Store::close`] takes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// An epoch older than this is refused: half of how long tombstones hold.
const EPOCH_AGE: Duration = Duration::from_secs(1800);

/// Jobs that may wait for the writer.
const QUEUE: usize = 1024;

/// Texts that may wait for the writer, in KiB.
const QUEUE_KIB: u32 = 128 << 10;

/// A finished task as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTask {
    /// The upstream's bytes.
    pub record: Bytes,
    /// When it was stored, in seconds since the Unix epoch.
    pub stored_at: i64,
}

/// What was asked for is longer than the caller can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored texts are longer together than the caller allows")]
pub struct ResultTooLarge;

/// A point in the sequence of forgets, to be taken before an upstream call begins: what was forgotten after it is
/// not stored from that call's answer.
#[derive(Clone, Copy, Debug)]
pub struct DeleteEpoch {
    seq: i64,
    at: Instant,
}

/// What to forget.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeleteScope {
    /// The upstream confirmed to `reader` that it deleted the task: forgotten for all if that reader held the
    /// right to read it; kept out of late answers in any case.
    ByReader {
        /// Who deleted it.
        reader: Digest,
        /// Its service.
        service: Service,
        /// Its id.
        id: TaskId,
    },
    /// One task, by an operator.
    Task {
        /// Its service.
        service: Service,
        /// Its id.
        id: TaskId,
    },
    /// All tasks of a service, by an operator.
    Service(Service),
    /// All tasks stored longer ago than this, by an operator.
    OlderThan(Duration),
}

impl DeleteScope {
    /// Whether it may remove more rows than one short transaction should.
    fn is_wide(&self) -> bool {
        matches!(self, Self::Service(_) | Self::OlderThan(_))
    }
}

/// What the upstream last said of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenAcceptance {
    /// When, in seconds since the Unix epoch.
    pub accepted_at: i64,
    /// Whether it refused the token for good.
    pub is_revoked: bool,
}

/// Bounds, from the configuration and fixed ones.
#[derive(Clone, Debug)]
struct Limits {
    memory_bytes: u64,
    max_bytes: u64,
    max_age: Duration,
    /// The write-ahead log is emptied actively past this.
    wal_soft_limit: u64,
    /// Nothing is written past this.
    wal_hard_limit: u64,
}

impl From<&StoreConfig> for Limits {
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

/// The store; a handle that is cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    listings: Arc<Semaphore>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the file for serving: takes its lock, brings the schema up to date and starts the writer. A file that
    /// is no sound database is set aside, loudly; one of a later version or another program is refused.
    pub async fn open(config: &StoreConfig, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        Self::open_within(&config.url, Limits::from(config), metrics).await
    }

    async fn open_within(url: &str, limits: Limits, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let path = open::parse_url(url)?;
        let lock = open::lock(&path).await?;
        let (opened, set_aside) = open::open_or_set_aside(&path, None).await?;
        let shared = Arc::new(Shared::new(path, limits, metrics, opened.key));
        if set_aside {
            shared.count(StoreErrorKind::Corrupt);
        }
        shared.background.spawn(open::keep_freed_memory(opened.readers.clone()));
        shared.set_readers(Some(opened.readers));
        let (jobs, queue) = mpsc::channel(QUEUE);
        let mut writer = Writer::new(Arc::clone(&shared), queue, opened.writer, lock);
        writer.start().await?;
        shared.background.spawn(watch(Arc::clone(&shared), tokio::spawn(writer.run())));
        shared.background.close();
        Ok(Self {
            shared,
            jobs,
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            listings: Arc::new(Semaphore::new(LISTINGS)),
        })
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The key of the digests by which this store knows tokens.
    pub fn digest_key(&self) -> &[u8; 32] {
        &self.shared.key
    }

    /// What is stored of `ids` and may be shown to `reader`, in the order of `ids`, which are distinct. Memory
    /// first, the rest some dozens a statement. A failing store is a miss; it takes at most 5 s to find out.
    ///
    /// # Errors
    /// If the texts are longer than `max_bytes` together; at most one statement more than that is read.
    pub async fn get(
        &self,
        reader: &Digest,
        service: &Service,
        ids: &[TaskId],
        max_bytes: u64,
    ) -> Result<Vec<Option<StoredTask>>, ResultTooLarge> {
        let mut found: Vec<Option<StoredTask>> =
            ids.iter().map(|id| self.get_from_memory(reader, service, id)).collect();
        let (places, missing): (Vec<usize>, Vec<&TaskId>) =
            ids.iter().enumerate().filter(|&(place, _)| found[place].is_none()).unzip();
        self.shared.metrics.store_lookups.add(StoreLookupResult::Memory, (ids.len() - missing.len()) as u64);
        let readers = if missing.is_empty() { None } else { self.shared.readers() };
        let mut bytes: u64 = found.iter().flatten().map(|task| task.record.len() as u64).sum();
        let Some(readers) = readers else {
            return if bytes > max_bytes { Err(ResultTooLarge) } else { Ok(found) };
        };

        let shared = &self.shared;
        let hour = shared.totals.hour();
        let generation = shared.memory.generation();
        let (asked, mut on_disk) = (missing.len() as u64, 0);
        let reading = find::find(
            shared,
            &readers,
            reader,
            service,
            &missing,
            |task| {
                if task.used_hour < hour {
                    shared.chores.touch(task.row);
                }
                let (id, place) = (missing[task.index], &mut found[places[task.index]]);
                if place.is_some() || shared.hidden.covers(service, id) {
                    return ControlFlow::Continue(());
                }
                on_disk += 1;
                bytes += task.text.len() as u64;
                if bytes > max_bytes {
                    return ControlFlow::Break(());
                }
                let fill = Fill {
                    reader,
                    service,
                    id,
                    row: task.row,
                    text: task.text.clone(),
                    stored_at: task.stored_at,
                    used_hour: hour,
                };
                shared.memory.fill(generation, fill);
                *place = Some(StoredTask { record: task.text, stored_at: task.stored_at });
                ControlFlow::Continue(())
            },
            |damage| shared.damaged(damage),
        );
        match tokio::time::timeout(FIND_TIMEOUT, reading).await {
            Ok(Ok(())) => {}
            // Closed under our hands, by `close` or to set the file aside.
            Ok(Err(sqlx::Error::PoolClosed)) => {}
            Ok(Err(error)) => shared.read_failed(&error),
            Err(_) => shared.read_timed_out(),
        }
        shared.metrics.store_lookups.add(StoreLookupResult::Disk, on_disk);
        shared.metrics.store_lookups.add(StoreLookupResult::Miss, asked.saturating_sub(on_disk));
        if bytes > max_bytes { Err(ResultTooLarge) } else { Ok(found) }
    }

    /// What [`Store::get`] would give, if all of it is in memory: no waiting.
    pub fn get_cached(
        &self,
        reader: &Digest,
        service: &Service,
        ids: &[TaskId],
        max_bytes: u64,
    ) -> Option<Vec<Option<StoredTask>>> {
        let mut bytes = 0;
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let task = self.get_from_memory(reader, service, id)?;
            bytes += task.record.len() as u64;
            found.push(Some(task));
        }
        if bytes > max_bytes {
            return None;
        }
        self.shared.metrics.store_lookups.add(StoreLookupResult::Memory, ids.len() as u64);
        Some(found)
    }

    /// The task if it is in memory and `reader` may see it. `None` says nothing about the disk.
    fn get_from_memory(&self, reader: &Digest, service: &Service, id: &TaskId) -> Option<StoredTask> {
        let hit = self.shared.memory.find(reader, service, id, self.shared.totals.hour())?;
        if self.shared.hidden.covers(service, id) {
            return None;
        }
        if let Some(row) = hit.first_use {
            self.shared.chores.touch(row);
        }
        Some(hit.task)
    }

    /// The current epoch. It may lag behind a forget just made, which costs a chance to store, never a mistake.
    pub fn epoch(&self) -> DeleteEpoch {
        DeleteEpoch { seq: self.shared.totals.forget_seq.load(Ordering::Acquire), at: Instant::now() }
    }

    /// Stores finished tasks for `reader`. `true`: committed to disk and readable by `reader`, now or before.
    /// `false`: the disk failed, or the task was forgotten after `epoch`. Takes at most 7 s, and no time while
    /// the store is known to fail. Dropping the future does not undo what is queued.
    pub async fn insert(
        &self,
        reader: &Digest,
        service: &Service,
        epoch: DeleteEpoch,
        tasks: Vec<FinalRecord>,
    ) -> Vec<bool> {
        let refused = vec![false; tasks.len()];
        if tasks.is_empty() || epoch.at.elapsed() > EPOCH_AGE || self.shared.health.get() != Health::Good {
            return refused;
        }
        let bytes: usize = tasks.iter().map(|task| task.json.len()).sum();
        let room = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(QUEUE_KIB);
        let kept = tokio::time::timeout(KEEP_TIMEOUT, async {
            let room = Arc::clone(&self.room).acquire_many_owned(room).await.ok()?;
            let (answer, answered) = oneshot::channel();
            let job = Job::Keep {
                reader: *reader,
                service: service.clone(),
                seq: epoch.seq,
                tasks,
                answer,
                _room: room,
            };
            self.jobs.send(job).await.ok()?;
            answered.await.ok()
        });
        match kept.await {
            Ok(kept) => kept.unwrap_or(refused),
            Err(_) => {
                // The next callers should not wait as long; the writer's next success makes it good again.
                self.shared.write_failed("the write took too long");
                self.shared.health.set(Health::WriteFailed);
                refused
            }
        }
    }

    /// Forgets, and gives the number of rows removed. On an error nothing of it may be written yet, but it is
    /// hidden in this process from now on and tried again until it is.
    pub async fn delete(&self, scope: DeleteScope) -> Result<u64, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job = Job::Delete { scope: scope.clone(), answer };
        let done = tokio::time::timeout(FORGET_TIMEOUT, async {
            self.jobs.send(job).await.ok()?;
            answered.await.ok()
        });
        done.await.ok().flatten().unwrap_or_else(|| {
            // No word from the writer, which else hides it itself.
            self.shared.hidden.add(scope);
            Err(StoreError::Unavailable)
        })
    }

    /// What the upstream last said of a token, if that is known.
    pub async fn acceptance(&self, token: &Digest) -> Option<TokenAcceptance> {
        if let Some(acceptance) = self.shared.chores.acceptance(token) {
            return Some(acceptance);
        }
        let readers = self.shared.readers()?;
        let reading = sqlx::query_as(
            "SELECT accepted_at, ended FROM reader WHERE digest = ?1 AND accepted_at IS NOT NULL",
        )
        .bind(token.as_bytes().as_slice())
        .fetch_optional(&readers);
        match tokio::time::timeout(FIND_TIMEOUT, reading).await {
            Ok(Ok(row)) => row.map(|(accepted_at, is_revoked)| TokenAcceptance { accepted_at, is_revoked }),
            Ok(Err(sqlx::Error::PoolClosed)) => None,
            Ok(Err(error)) => {
                self.shared.read_failed(&error);
                None
            }
            Err(_) => {
                self.shared.read_timed_out();
                None
            }
        }
    }

    /// Notes what the upstream said of a token: seen by [`Store::acceptance`] at once, written within seconds. A
    /// refusal of a token that was never accepted is not written.
    pub fn record_acceptance(&self, token: Digest, acceptance: TokenAcceptance) {
        self.shared.chores.accept(token, acceptance);
    }

    /// Whether writes work, and if not, why.
    pub fn readiness(&self) -> Result<(), &'static str> {
        match self.shared.health.get() {
            Health::Good => Ok(()),
            Health::WriteFailed => Err("the task store cannot be written"),
            Health::WalFull => {
                Err("the task store's write-ahead log is full: some program reads it without end")
            }
            Health::Corrupt => Err("the task store is corrupt and is being set aside"),
            Health::Stopped => Err("the task store's writer has stopped"),
            Health::Closed => Err("the task store is closed"),
        }
    }

    /// Counters, and the sizes of the files; nothing else is asked of the disk.
    pub fn stats(&self) -> StoreStats {
        let shared = &self.shared;
        let (memory_tasks, memory_bytes) = shared.memory.size();
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let queued_kib = (QUEUE_KIB as usize).saturating_sub(self.room.available_permits()) as u64;
        StoreStats {
            tasks: shared.totals.tasks.load(Ordering::Relaxed),
            bytes: shared.totals.bytes.load(Ordering::Relaxed),
            max_bytes: shared.limits.max_bytes,
            database_bytes: size(&shared.path),
            wal_bytes: size(&open::with_suffix(&shared.path, "-wal")),
            queued_jobs: self.jobs.max_capacity() - self.jobs.capacity(),
            queued_bytes: queued_kib * 1024,
            memory_tasks,
            memory_bytes,
            memory_max_bytes: shared.limits.memory_bytes,
        }
    }

    /// Writes what waits, empties and removes the write-ahead log, releases the lock. Takes at most 15 s; to be
    /// called once nobody looks up any more.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.shared.background.wait()).await.is_err() {
            tracing::warn!("the task store could not be closed in time");
        }
    }
}

/// A writer that ends in a panic is logged and shows in readiness.
async fn watch(shared: Arc<Shared>, writer: tokio::task::JoinHandle<()>) {
    if let Err(error) = writer.await {
        shared.health.set(Health::Stopped);
        if error.is_panic() {
            shared.metrics.panics.inc();
        }
        tracing::error!(error = %error, "the task store's writer has stopped; nothing is stored any more");
    }
}
