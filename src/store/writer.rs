//! The writer: owns the one connection that writes, and commits everything that queued up meanwhile at once.
//!
//! Nothing counts as stored before its commit. After any failure the transaction is gone, its rows are not
//! stored, and the connection is opened anew before the next try. While the disk refuses, `keep` fails without
//! queueing, and one small write a second finds out when the disk takes writes again.

mod log;
mod recover;
mod steps;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::memory::Fill;
use super::open;
use super::state::{Health, Shared, TakenWrites};
use super::sweep::TombstoneAges;
use super::tasks::{self, Kept};
use super::{BUSY_TIMEOUT, DeleteScope, StoreError};
use crate::clock;
use crate::task::{FinalRecord, Service};
use crate::token::Digest;

/// Between two looks at what other processes wrote, and at what waits.
const TICK: Duration = Duration::from_millis(500);

/// Between two tries while the disk refuses.
const PROBE_EVERY: Duration = Duration::from_millis(900);

/// Acceptances may wait this long for a transaction of their own.
const CHORES_EVERY: Duration = Duration::from_secs(5);

/// Between two sweeps, and two writes of last uses.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// One transaction takes at most this many jobs.
const BATCH_JOBS: usize = 256;

/// And about this many bytes.
const BATCH_BYTES: usize = 16 << 20;

/// Work for the writer.
pub(super) enum Job {
    Keep {
        reader: Digest,
        service: Service,
        seq: i64,
        tasks: Vec<FinalRecord>,
        answer: oneshot::Sender<Vec<bool>>,
        /// The queue's share of memory, given back when the job is done.
        _room: OwnedSemaphorePermit,
    },
    Delete {
        scope: DeleteScope,
        answer: oneshot::Sender<Result<u64, StoreError>>,
    },
}

/// What a job came to inside the transaction.
enum Outcome {
    Kept(Vec<Kept>),
    Forgotten(u64),
}

/// See the head of this file.
pub(super) struct Writer {
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<Job>,
    conn: Option<SqliteConnection>,
    /// `PRAGMA data_version` of this connection; changes when another connection commits.
    data_version: Option<i64>,
    last_try: Instant,
    last_chores: Instant,
    last_sweep: Instant,
    sweeps: u64,
    sweep_due: bool,
    checkpoint_failed: Option<Instant>,
    /// The file behind the connections, to notice when it was moved away.
    file: Option<(u64, u64)>,
    /// Whether the corrupt file is out of the way and only a fresh one is missing.
    is_set_aside: bool,
    ages: TombstoneAges,
    /// Released when the writer ends.
    _lock: File,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        jobs: mpsc::Receiver<Job>,
        conn: SqliteConnection,
        lock: File,
    ) -> Self {
        let now = Instant::now();
        Self {
            file: open::file_identity(&shared.path),
            is_set_aside: false,
            shared,
            jobs,
            conn: Some(conn),
            data_version: None,
            last_try: now,
            last_chores: now,
            last_sweep: now,
            sweeps: 0,
            sweep_due: true,
            checkpoint_failed: None,
            ages: TombstoneAges::default(),
            _lock: lock,
        }
    }

    /// Reads the counters for the first time; before the store is handed out.
    pub(super) async fn start(&mut self) -> Result<(), StoreError> {
        self.shared.totals.set_hour();
        let Some(mut conn) = self.conn.take() else { return Err(StoreError::Unavailable) };
        let looked = self.look_around(&mut conn).await;
        self.conn = Some(conn);
        Ok(looked?)
    }

    /// Serves until the store is closed or nobody has a handle to it any more.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = Arc::clone(&self.shared);
        loop {
            tokio::select! {
                job = self.jobs.recv() => match job {
                    Some(job) => self.serve(job).await,
                    None => break,
                },
                () = shared.closing.cancelled() => {
                    self.jobs.close();
                    while let Some(job) = self.jobs.recv().await {
                        self.serve(job).await;
                    }
                    break;
                }
                () = shared.chores.wake.notified() => self.woken().await,
                _ = tick.tick() => self.tick().await,
                () = std::future::ready(()), if self.sweep_due => self.sweep().await,
            }
        }
        self.close().await;
    }

    async fn close(mut self) {
        if self.shared.health.get() == Health::Good
            && let Err(error) = self.commit(&[], false, true).await
        {
            self.shared.write_failed(&error.chain());
        }
        self.shared.health.set(Health::Closed);
        self.shared.memory.clear();
        open::close(self.shared.set_readers(None), self.conn.take()).await;
    }

    /// Takes what else is queued and does it in one transaction. Wide forgets come after it, each on its own, as
    /// they are many transactions.
    async fn serve(&mut self, first: Job) {
        let mut bytes = first.bytes();
        let mut batch = vec![first];
        while batch.len() < BATCH_JOBS && bytes < BATCH_BYTES && !batch.last().is_some_and(Job::is_wide) {
            let Ok(job) = self.jobs.try_recv() else { break };
            bytes += job.bytes();
            batch.push(job);
        }
        let wide = batch.pop_if(|last| last.is_wide());
        if self.shared.health.get() != Health::Good {
            return self.refuse(batch.into_iter().chain(wide));
        }
        if !batch.is_empty() {
            match self.commit(&batch, false, false).await {
                Ok(outcomes) => self.answer(batch, outcomes),
                Err(error) => {
                    self.failed(&error);
                    self.refuse(batch);
                }
            }
        }
        if let Some(Job::Delete { scope, answer }) = wide {
            let done = match self.shared.health.get() {
                Health::Good => self.forget_wide(&scope).await,
                _ => Err(StoreError::Unavailable),
            };
            if done.is_err() {
                self.shared.hidden.add(scope);
            }
            let _ = answer.send(done);
        }
    }

    /// After the commit: memory first, then the callers, in the order of the jobs.
    fn answer(&mut self, batch: Vec<Job>, outcomes: Vec<Outcome>) {
        let hour = self.shared.totals.hour();
        let memory = &self.shared.memory;
        for (job, outcome) in batch.into_iter().zip(outcomes) {
            match (job, outcome) {
                (Job::Keep { reader, service, tasks, answer, .. }, Outcome::Kept(kept)) => {
                    for (task, kept) in tasks.iter().zip(&kept).filter(|_| memory.is_on()) {
                        if let Kept::Stored { row, stored_at } = *kept {
                            let fill = Fill {
                                reader: &reader,
                                service: &service,
                                id: &task.id,
                                row,
                                text: Bytes::copy_from_slice(&task.json),
                                stored_at,
                                used_hour: hour,
                            };
                            memory.fill(memory.generation(), fill);
                        }
                    }
                    let _ = answer.send(kept.iter().map(|kept| *kept != Kept::Forgotten).collect());
                }
                (Job::Delete { scope, answer }, Outcome::Forgotten(removed)) => {
                    match &scope {
                        DeleteScope::ByReader { service, id, .. } | DeleteScope::Task { service, id } => {
                            memory.remove(service, id);
                        }
                        DeleteScope::Service(_) | DeleteScope::OlderThan(_) => memory.clear(),
                    }
                    let _ = answer.send(Ok(removed));
                }
                _ => unreachable!("outcomes are made in the order of the jobs"),
            }
        }
    }

    /// Not stored, and hidden where it was to be forgotten.
    fn refuse(&self, batch: impl IntoIterator<Item = Job>) {
        for job in batch {
            match job {
                Job::Keep { tasks, answer, .. } => {
                    let _ = answer.send(vec![false; tasks.len()]);
                }
                Job::Delete { scope, answer } => {
                    self.shared.hidden.add(scope);
                    let _ = answer.send(Err(StoreError::Unavailable));
                }
            }
        }
    }

    /// One transaction: forgets that still wait, chores, the jobs in their order. `probe` writes something in any
    /// case. On failure the connection is gone and with it whatever was half done.
    async fn commit(
        &mut self,
        jobs: &[Job],
        probe: bool,
        with_touched: bool,
    ) -> Result<Vec<Outcome>, StoreError> {
        self.last_try = Instant::now();
        if self.is_moved() {
            self.recover(false).await;
        }
        let mut conn = self.connection().await?;
        let waiting = self.shared.hidden.waiting();
        let narrow: Vec<DeleteScope> = waiting.iter().filter(|scope| !scope.is_wide()).cloned().collect();
        let chores = self.shared.chores.take(with_touched);
        match self.transact(&mut conn, jobs, &narrow, &chores, probe).await {
            Ok(outcomes) => {
                self.shared.chores.settle(&chores);
                for scope in &narrow {
                    if let DeleteScope::ByReader { service, id, .. } | DeleteScope::Task { service, id } =
                        scope
                    {
                        self.shared.memory.remove(service, id);
                    }
                }
                self.shared.hidden.settle(&narrow);
                self.bound_log(&mut conn).await;
                self.conn = Some(conn);
                for scope in waiting.iter().filter(|scope| scope.is_wide()) {
                    self.forget_wide(scope).await?;
                    self.shared.hidden.settle(std::slice::from_ref(scope));
                }
                Ok(outcomes)
            }
            Err(error) => {
                self.shared.chores.put_back(chores);
                drop_connection(conn).await;
                Err(error)
            }
        }
    }

    async fn transact(
        &mut self,
        conn: &mut SqliteConnection,
        jobs: &[Job],
        waiting: &[DeleteScope],
        chores: &TakenWrites,
        probe: bool,
    ) -> Result<Vec<Outcome>, StoreError> {
        self.look_around(conn).await?;
        self.check_log(conn).await?;
        let now = clock::unix_now();
        let (start, mut stored, mut forgotten) = (Instant::now(), 0, 0);
        let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
        for scope in waiting {
            forgotten += tasks::forget(&mut tx, scope, now).await?.0;
        }
        tasks::chores(&mut tx, chores, now / 3600).await?;
        let mut outcomes = Vec::with_capacity(jobs.len());
        for job in jobs {
            outcomes.push(match job {
                Job::Keep { reader, service, seq, tasks, .. } => {
                    let kept = tasks::keep(&mut tx, reader, service, *seq, tasks, now).await?;
                    stored += kept.iter().filter(|kept| matches!(kept, Kept::Stored { .. })).count() as u64;
                    Outcome::Kept(kept)
                }
                Job::Delete { scope, .. } => {
                    let removed = tasks::forget(&mut tx, scope, now).await?.0;
                    forgotten += removed;
                    Outcome::Forgotten(removed)
                }
            });
        }
        if probe {
            sqlx::query("UPDATE meta SET probed_at = ?1").bind(now).execute(&mut *tx).await?;
        }
        let totals = read_totals(&mut tx).await?;
        tx.commit().await?;
        let metrics = &self.shared.metrics;
        metrics.commit_seconds.observe(start.elapsed());
        metrics.tasks_stored.inc_by(stored);
        metrics.tasks_deleted.inc_by(forgotten);
        self.set_totals(totals);
        Ok(outcomes)
    }

    /// The connection, opened anew after a failure.
    async fn connection(&mut self) -> Result<SqliteConnection, StoreError> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => {
                self.data_version = None;
                Ok(open::connect_writer(&self.shared.path).await?)
            }
        }
    }

    /// Whether another connection wrote: then nothing in memory is sure any more.
    async fn look_around(&mut self, conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let version: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut *conn).await?;
        if self.data_version != Some(version) {
            self.data_version = Some(version);
            self.shared.memory.clear();
            let totals = read_totals(conn).await?;
            self.set_totals(totals);
        }
        Ok(())
    }

    fn set_totals(&mut self, (tasks, bytes, forget_seq): (i64, i64, i64)) {
        let totals = &self.shared.totals;
        let bytes = u64::try_from(bytes).unwrap_or(0);
        totals.tasks.store(u64::try_from(tasks).unwrap_or(0), Ordering::Relaxed);
        totals.bytes.store(bytes, Ordering::Relaxed);
        totals.forget_seq.store(forget_seq, Ordering::Release);
        let max = self.shared.limits.max_bytes;
        if max > 0 && bytes > max {
            self.sweep_due = true;
        }
    }

    fn failed(&mut self, error: &StoreError) {
        if error.is_corrupt() {
            self.shared.report_corrupt();
        } else {
            self.shared.write_failed(&error.chain());
            let full = matches!(error, StoreError::WalFull { .. });
            self.shared.health.set(if full { Health::WalFull } else { Health::WriteFailed });
        }
    }

    async fn woken(&mut self) {
        match self.shared.health.get() {
            Health::Good if self.shared.chores.waiting() => self.do_chores().await,
            Health::Corrupt => self.recover(true).await,
            _ => {}
        }
    }

    async fn do_chores(&mut self) {
        self.last_chores = Instant::now();
        if let Err(error) = self.commit(&[], false, false).await {
            self.failed(&error);
        }
    }

    async fn tick(&mut self) {
        self.shared.totals.set_hour();
        match self.shared.health.get() {
            Health::Good if self.is_moved() => self.recover(false).await,
            Health::Good => {
                if self.last_sweep.elapsed() >= SWEEP_EVERY {
                    self.last_sweep = Instant::now();
                    self.sweep_due = true;
                }
                let due = self.last_chores.elapsed() >= CHORES_EVERY && self.shared.chores.waiting();
                if due || !self.shared.hidden.waiting().is_empty() {
                    self.do_chores().await;
                } else if let Some(mut conn) = self.conn.take() {
                    match self.look_around(&mut conn).await {
                        Ok(()) => self.conn = Some(conn),
                        Err(error) => {
                            drop_connection(conn).await;
                            self.shared.read_failed(&error);
                        }
                    }
                } else if let Err(error) = self.commit(&[], true, false).await {
                    self.failed(&error);
                }
            }
            Health::WriteFailed | Health::WalFull if self.last_try.elapsed() >= PROBE_EVERY => {
                match self.commit(&[], true, false).await {
                    Ok(_) => {
                        self.shared.health.set(Health::Good);
                        tracing::info!("the task store takes writes again");
                    }
                    Err(error) => self.failed(&error),
                }
            }
            Health::Corrupt if self.last_try.elapsed() >= PROBE_EVERY => self.recover(true).await,
            _ => {}
        }
    }
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Keep { tasks, .. } => tasks.iter().map(|task| task.json.len()).sum(),
            Self::Delete { .. } => 0,
        }
    }

    fn is_wide(&self) -> bool {
        matches!(self, Self::Delete { scope, .. } if scope.is_wide())
    }
}

/// Tasks, bytes and the newest forget.
async fn read_totals(conn: &mut SqliteConnection) -> Result<(i64, i64, i64), sqlx::Error> {
    sqlx::query_as("SELECT tasks, bytes, forget_seq FROM meta").fetch_one(conn).await
}

/// Ends a connection in an unknown state, within a bound.
async fn drop_connection(conn: SqliteConnection) {
    let _ = tokio::time::timeout(BUSY_TIMEOUT, conn.close()).await;
}
