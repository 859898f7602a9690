//! The writer task: commits everything that was queued meanwhile in one transaction, and does the
//! work that is due from time to time.
//!
//! Nothing counts as stored before its commit. After a failure the transaction is rolled back, its
//! tasks are not stored, and the connection is opened again. While writes fail, inserts are refused
//! without queueing, and one small write per second finds out when the database accepts writes
//! again.

mod connection;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::SqliteConnection;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::delete::{DeleteStep, begin_delete, continue_delete};
use super::durations;
use super::error_code;
use super::health::Health;
use super::insert::{InsertResult, NewTasks, insert_tasks};
use super::lock::StoreLock;
use super::state::SqliteState;
use super::sweep::{self, TombstoneAges};
use super::write_queue::Job;
use crate::clock;
use crate::store::cache_entry::CacheEntry;
use crate::store::{DeleteScope, StoreError};
use crate::telemetry::EvictionReason;
use connection::{ReopenReason, WriterConnection};

/// Time between two checks for writes of other processes and for due work.
const TICK: Duration = Duration::from_millis(500);

/// Shortest time between two attempts to write while writes fail.
const RETRY_INTERVAL: Duration = Duration::from_millis(900);

/// Time after which waiting acceptances get a transaction of their own.
const DEFERRED_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two sweeps, which also write last uses.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Unused readers are removed once in this number of sweep steps.
const STEPS_PER_READER_CLEANUP: u64 = 60;

/// Largest number of jobs in one transaction.
const BATCH_JOBS: usize = 256;

/// Approximate limit of the records in one transaction, in bytes.
const BATCH_BYTES: usize = 16 << 20;

/// Result of a job inside its transaction.
enum JobResult {
    Inserted(Vec<InsertResult>),
    Deleted(u64),
    Saved,
}

/// Additional content of a commit, pending deletes and deferred writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extra {
    Nothing,
    /// The last uses of rows.
    LastUses,
    /// A value without meaning, which proves that the database accepts writes.
    Probe,
}

/// Owner of the write connection.
pub(super) struct Writer {
    state: Arc<SqliteState>,
    jobs: mpsc::Receiver<Job>,
    connection: WriterConnection,
    last_attempt: Instant,
    last_deferred: Instant,
    last_sweep: Instant,
    sweep_steps: u64,
    is_sweep_due: bool,
    tombstone_ages: TombstoneAges,
}

impl Writer {
    /// Creates the writer and reads the counters. `lock` is the lock of the database file.
    pub(super) async fn new(
        state: Arc<SqliteState>,
        jobs: mpsc::Receiver<Job>,
        conn: SqliteConnection,
        lock: StoreLock,
    ) -> Result<Self, StoreError> {
        let now = Instant::now();
        let mut connection = WriterConnection::new(Arc::clone(&state), conn, lock);
        connection.refresh().await?;
        Ok(Self {
            state,
            jobs,
            connection,
            last_attempt: now,
            last_deferred: now,
            last_sweep: now,
            sweep_steps: 0,
            is_sweep_due: true,
            tombstone_ages: TombstoneAges::default(),
        })
    }

    /// Runs until the store is closed or its last handle is dropped.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let state = Arc::clone(&self.state);
        loop {
            tokio::select! {
                job = self.jobs.recv() => match job {
                    Some(job) => self.serve(job).await,
                    None => break,
                },
                () = state.closing.cancelled() => {
                    self.jobs.close();
                    while let Some(job) = self.jobs.recv().await {
                        self.serve(job).await;
                    }
                    break;
                }
                () = state.deferred.wake.notified() => self.on_wake().await,
                _ = tick.tick() => self.on_tick().await,
                () = std::future::ready(()), if self.is_sweep_due => self.sweep().await,
            }
        }
        self.close().await;
    }

    async fn close(mut self) {
        if self.state.health.is_good()
            && let Err(error) = self.commit(&[], Extra::LastUses).await
        {
            self.state.record_write_failure(&error.chain());
        }
        self.state.health.set(Health::Closed);
        self.state.local.memory.clear();
        self.connection.close().await;
    }

    /// Takes further queued jobs and commits them in one transaction. A wide delete needs many
    /// transactions and follows after it.
    async fn serve(&mut self, first: Job) {
        let mut bytes = first.bytes();
        let mut batch = vec![first];
        while batch.len() < BATCH_JOBS && bytes < BATCH_BYTES && !batch.last().is_some_and(Job::is_wide) {
            let Ok(job) = self.jobs.try_recv() else { break };
            bytes += job.bytes();
            batch.push(job);
        }
        let wide = batch.pop_if(|last| last.is_wide());
        if !self.state.health.is_good() {
            return self.refuse(batch.into_iter().chain(wide));
        }
        if !batch.is_empty() {
            match self.commit(&batch, Extra::Nothing).await {
                Ok(results) => self.complete(batch, results),
                Err(error) => {
                    self.record_failure(&error);
                    self.refuse(batch);
                }
            }
        }
        if let Some(Job::Delete { scope, result }) = wide {
            let deleted = match self.state.health.get() {
                Health::Good => self.delete_wide(&scope).await,
                _ => Err(StoreError::Unavailable),
            };
            if deleted.is_err() {
                self.state.local.pending_deletes.add(scope);
            }
            let _ = result.send(deleted);
        }
    }

    /// Updates the memory cache and then sends the results, in the order of the jobs.
    fn complete(&self, batch: Vec<Job>, results: Vec<JobResult>) {
        let hour = clock::unix_now() / 3600;
        let memory = &self.state.local.memory;
        for (job, job_result) in batch.into_iter().zip(results) {
            match (job, job_result) {
                (Job::Insert { reader, service, tasks, result, .. }, JobResult::Inserted(inserted)) => {
                    for (task, inserted) in tasks.iter().zip(&inserted).filter(|_| memory.is_enabled()) {
                        if let InsertResult::Stored { row_id, stored_at } = *inserted {
                            let entry = CacheEntry {
                                reader: &reader,
                                service: &service,
                                id: &task.id,
                                row_id,
                                record: Bytes::copy_from_slice(&task.json),
                                stored_at,
                                used_hour: hour,
                            };
                            memory.insert(memory.generation(), entry);
                        }
                    }
                    let _ = result.send(inserted.iter().map(|it| *it != InsertResult::Deleted).collect());
                }
                (Job::Delete { scope, result }, JobResult::Deleted(rows)) => {
                    if let Some((service, id)) = scope.task() {
                        memory.remove(service, id);
                    }
                    let _ = result.send(Ok(rows));
                }
                (Job::SaveDurations { result, .. }, JobResult::Saved) => {
                    let _ = result.send(Ok(()));
                }
                _ => unreachable!("results are in the order of the jobs"),
            }
        }
    }

    /// Reports jobs as failed. The tasks of deletes are hidden.
    fn refuse(&self, batch: impl IntoIterator<Item = Job>) {
        for job in batch {
            match job {
                Job::Insert { tasks, result, .. } => {
                    let _ = result.send(vec![false; tasks.len()]);
                }
                Job::Delete { scope, result } => {
                    self.state.local.pending_deletes.add(scope);
                    let _ = result.send(Err(StoreError::Unavailable));
                }
                Job::SaveDurations { result, .. } => {
                    let _ = result.send(Err(StoreError::Unavailable));
                }
            }
        }
    }

    /// Commits pending deletes, deferred writes and the jobs, in this order, in one transaction.
    /// Wide pending deletes follow after it.
    async fn commit(&mut self, jobs: &[Job], extra: Extra) -> Result<Vec<JobResult>, StoreError> {
        self.last_attempt = Instant::now();
        self.connection.renew_lock()?;
        if self.connection.is_file_replaced() {
            self.reopen(ReopenReason::FileReplaced).await;
        }
        let state = Arc::clone(&self.state);
        let (wide, narrow): (Vec<DeleteScope>, Vec<DeleteScope>) =
            state.local.pending_deletes.scopes().into_iter().partition(DeleteScope::is_wide);
        let deferred = state.deferred.take(extra == Extra::LastUses);
        let now = clock::unix_now();
        let committed = self.connection.transaction(async |tx| {
            let (mut stored, mut deleted) = (0, 0);
            for scope in &narrow {
                deleted += begin_delete(tx, scope, now).await?.rows;
            }
            deferred.write(tx, now / 3600).await?;
            let mut results = Vec::with_capacity(jobs.len());
            for job in jobs {
                results.push(match job {
                    Job::Insert { reader, service, delete_seq, tasks, .. } => {
                        let new = NewTasks { reader, service, delete_seq: *delete_seq, tasks };
                        let inserted = insert_tasks(tx, &new, |_| now, now).await?;
                        let is_stored = |it: &&InsertResult| matches!(it, InsertResult::Stored { .. });
                        stored += inserted.iter().filter(is_stored).count() as u64;
                        JobResult::Inserted(inserted)
                    }
                    Job::Delete { scope, .. } => {
                        let rows = begin_delete(tx, scope, now).await?.rows;
                        deleted += rows;
                        JobResult::Deleted(rows)
                    }
                    Job::SaveDurations { durations, .. } => {
                        durations::save(tx, durations, now).await?;
                        JobResult::Saved
                    }
                });
            }
            if extra == Extra::Probe {
                sqlx::query("UPDATE meta SET probed_at = ?1").bind(now).execute(tx).await?;
            }
            Ok((results, stored, deleted))
        });
        let (results, stored, deleted) = match committed.await {
            Ok(committed) => committed,
            Err(error) => {
                state.deferred.put_back(deferred);
                return Err(error);
            }
        };
        state.local.metrics.store_tasks_stored.inc_by(stored);
        state.local.metrics.store_tasks_deleted.inc_by(deleted);
        self.check_max_bytes();
        state.deferred.complete(&deferred);
        for (service, id) in narrow.iter().filter_map(DeleteScope::task) {
            state.local.memory.remove(service, id);
        }
        state.local.pending_deletes.complete(&narrow);
        for scope in wide {
            self.delete_wide(&scope).await?;
            state.local.pending_deletes.complete(&[scope]);
        }
        Ok(results)
    }

    /// Deletes in short transactions, so that the write-ahead log stays small.
    async fn delete_wide(&mut self, scope: &DeleteScope) -> Result<u64, StoreError> {
        let now = clock::unix_now();
        let (mut rows, mut is_first) = (0, true);
        loop {
            let step = self.connection.transaction(async |tx| match is_first {
                true => begin_delete(tx, scope, now).await,
                false => continue_delete(tx, scope, now).await,
            });
            match step.await {
                Ok(DeleteStep { rows: removed, has_more }) => {
                    rows += removed;
                    self.state.local.metrics.store_tasks_deleted.inc_by(removed);
                    self.state.local.memory.clear();
                    if !has_more {
                        return Ok(rows);
                    }
                    is_first = false;
                }
                Err(error) => {
                    self.record_failure(&error);
                    return Err(StoreError::Unavailable);
                }
            }
        }
    }

    /// Runs one step of the sweep. The next one follows after queued jobs.
    async fn sweep(&mut self) {
        self.is_sweep_due = false;
        if !self.state.health.is_good() {
            return;
        }
        // Last uses first: a row that was just used must not be removed as unused.
        let swept = match self.commit(&[], Extra::LastUses).await {
            Ok(_) => self.sweep_step().await,
            Err(error) => Err(error),
        };
        match swept {
            Ok(has_more) => self.is_sweep_due = has_more,
            Err(error) => self.record_failure(&error),
        }
    }

    /// Returns whether there may be more to remove.
    async fn sweep_step(&mut self) -> Result<bool, StoreError> {
        let state = Arc::clone(&self.state);
        let now = clock::unix_now();
        let delete_seq = state.counters.delete_seq.load(Ordering::Relaxed);
        let old_tombstones = self.tombstone_ages.record(Instant::now(), delete_seq);
        let is_reader_cleanup = self.sweep_steps.is_multiple_of(STEPS_PER_READER_CLEANUP);
        self.sweep_steps += 1;
        let is_recount = !self.connection.are_counters_exact();
        let step = self.connection.transaction(async |tx| {
            if is_recount {
                sweep::recount(tx).await?;
            }
            let step = sweep::evict(tx, &state.local.limits, now).await?;
            if let Some(seq) = old_tombstones {
                sweep::delete_old_tombstones(tx, seq).await?;
            }
            if is_reader_cleanup {
                sweep::delete_unused_readers(tx, now).await?;
            }
            Ok(step)
        });
        let step = step.await?;
        if is_recount {
            self.connection.confirm_counters();
        }
        let evicted = &state.local.metrics.store_tasks_evicted;
        evicted.inc_by(EvictionReason::MaxBytes, step.over_max_bytes);
        evicted.inc_by(EvictionReason::MaxAge, step.over_max_age);
        for (service, id) in &step.removed {
            state.local.memory.remove(service, id);
        }
        Ok(step.has_more)
    }

    /// Schedules the sweep if the records exceed `max_bytes`.
    fn check_max_bytes(&mut self) {
        let max_bytes = self.state.local.limits.max_bytes;
        if max_bytes > 0 && self.state.counters.bytes.load(Ordering::Relaxed) > max_bytes {
            self.is_sweep_due = true;
        }
    }

    async fn on_wake(&mut self) {
        match self.state.health.get() {
            Health::Good if self.state.deferred.is_due() => self.commit_deferred().await,
            Health::Corrupt => self.reopen(ReopenReason::Corrupt).await,
            _ => {}
        }
    }

    async fn on_tick(&mut self) {
        if self.state.health.is_good()
            && let Err(error) = self.connection.renew_lock()
        {
            self.record_failure(&error);
        }
        match self.state.health.get() {
            Health::Good if self.connection.is_file_replaced() => {
                self.reopen(ReopenReason::FileReplaced).await;
            }
            Health::Good => {
                if self.last_sweep.elapsed() >= SWEEP_INTERVAL {
                    self.last_sweep = Instant::now();
                    self.is_sweep_due = true;
                }
                let is_due =
                    self.last_deferred.elapsed() >= DEFERRED_INTERVAL && self.state.deferred.is_due();
                if is_due || !self.state.local.pending_deletes.scopes().is_empty() {
                    self.commit_deferred().await;
                } else if !self.connection.is_open() {
                    if let Err(error) = self.commit(&[], Extra::Probe).await {
                        self.record_failure(&error);
                    }
                } else if let Err(error) = self.connection.refresh().await {
                    self.state.record_read_failure(&error);
                } else {
                    self.check_max_bytes();
                }
            }
            Health::WriteFailed | Health::WalFull if self.last_attempt.elapsed() >= RETRY_INTERVAL => {
                match self.commit(&[], Extra::Probe).await {
                    Ok(_) => {
                        self.state.health.set(Health::Good);
                        tracing::info!("the task store accepts writes again");
                    }
                    Err(error) => self.record_failure(&error),
                }
            }
            Health::Corrupt if self.last_attempt.elapsed() >= RETRY_INTERVAL => {
                self.reopen(ReopenReason::Corrupt).await;
            }
            _ => {}
        }
    }

    async fn commit_deferred(&mut self) {
        self.last_deferred = Instant::now();
        if let Err(error) = self.commit(&[], Extra::Nothing).await {
            self.record_failure(&error);
        }
    }

    /// Goes on with another file.
    async fn reopen(&mut self, reason: ReopenReason) {
        self.last_attempt = Instant::now();
        match self.connection.reopen(reason).await {
            Ok(()) => {
                self.state.health.set(Health::Good);
                tracing::info!("the task store works again, with another file");
            }
            Err(error) => {
                self.state.record_write_failure(&error.chain());
                if reason == ReopenReason::FileReplaced {
                    self.state.health.set(Health::WriteFailed);
                }
            }
        }
    }

    fn record_failure(&self, error: &StoreError) {
        if error_code::means_corrupt_file(error) {
            self.state.report_corrupt_file();
        } else {
            self.state.record_write_failure(&error.chain());
            let is_wal_full = matches!(error, StoreError::WalFull(_));
            self.state.health.set(if is_wal_full { Health::WalFull } else { Health::WriteFailed });
        }
    }
}
