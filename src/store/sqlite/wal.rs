//! The write-ahead log: its limits, and whether it is still the one that is open.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::SqliteConnection;

use super::connect::BUSY_TIMEOUT;
use super::file::{self, FileIdentity};
use crate::store::{StoreError, StoreLimits};

/// Shortest time between two attempts to checkpoint the log while a reader prevents it.
const RETRY_INTERVAL: Duration = Duration::from_millis(900);

/// Path of the write-ahead log of a database.
pub(super) fn path(database: &Path) -> PathBuf {
    file::with_suffix(database, "-wal")
}

/// The files behind the open connections: the database, its write-ahead log and the index of that,
/// `-shm`. SQLite creates the last two with the first read or write and removes them with the last
/// connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenFiles {
    database: Option<FileIdentity>,
    wal: Option<FileIdentity>,
    shm: Option<FileIdentity>,
}

impl OpenFiles {
    /// Returns the files that are there now.
    pub(super) fn at(database: &Path) -> Self {
        Self {
            database: file::identity(database),
            wal: file::identity(&path(database)),
            shm: file::identity(&file::with_suffix(database, "-shm")),
        }
    }

    /// Adds files that did not exist before.
    pub(super) fn add_created(&mut self, database: &Path) {
        if self.wal.is_none() || self.shm.is_none() {
            let Self { wal, shm, .. } = Self::at(database);
            (self.wal, self.shm) = (self.wal.or(wal), self.shm.or(shm));
        }
    }

    /// Whether one of the files is not among `current` any more.
    pub(super) fn are_replaced(&self, current: &Self) -> bool {
        self.database != current.database
            || (self.wal.is_some() && self.wal != current.wal)
            || (self.shm.is_some() && self.shm != current.shm)
    }

    /// Whether the write-ahead log is the only such file.
    pub(super) fn is_only_wal_replaced(&self, current: &Self) -> bool {
        self.are_replaced(current) && !self.are_replaced(&Self { wal: self.wal, ..*current })
    }
}

/// Keeps the write-ahead log below its limits.
///
/// SQLite's own checkpoints never wait for readers, so that constant reading makes the log grow.
/// Beyond the soft limit a checkpoint waits for readers for a moment. At the hard limit, which
/// needs a reader in another process that does not end, nothing is written.
pub(super) struct WalGuard {
    database: PathBuf,
    soft_limit: u64,
    hard_limit: u64,
    failed_at: Option<Instant>,
}

impl WalGuard {
    pub(super) fn new(database: &Path, limits: &StoreLimits) -> Self {
        Self {
            database: database.to_owned(),
            soft_limit: limits.wal_soft_limit,
            hard_limit: limits.wal_hard_limit,
            failed_at: None,
        }
    }

    /// Refuses a write while the log is at its hard limit.
    pub(super) async fn before_write(&self, conn: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.size() < self.hard_limit {
            return Ok(());
        }
        checkpoint(conn).await?;
        if self.size() < self.hard_limit {
            return Ok(());
        }
        Err(StoreError::WalFull(self.database.clone()))
    }

    /// Empties the log if it is beyond its soft limit.
    pub(super) async fn after_write(&mut self, conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        if self.size() < self.soft_limit || self.failed_at.is_some_and(|at| at.elapsed() < RETRY_INTERVAL) {
            return Ok(());
        }
        let emptied = checkpoint(conn).await;
        self.failed_at = if matches!(emptied, Ok(true)) { None } else { Some(Instant::now()) };
        emptied.map(|_| ())
    }

    fn size(&self) -> u64 {
        file::size(&path(&self.database))
    }
}

/// Empties the log, waiting for readers for 100 ms. Returns whether it succeeded.
pub(super) async fn checkpoint(conn: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    sqlx::query("PRAGMA busy_timeout = 100").fetch_optional(&mut *conn).await?;
    let busy: Result<i64, sqlx::Error> =
        sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *conn).await;
    const { assert!(BUSY_TIMEOUT.as_millis() == 2000, "the pragma below restores this value") };
    sqlx::query("PRAGMA busy_timeout = 2000").fetch_optional(&mut *conn).await?;
    Ok(busy? == 0)
}
