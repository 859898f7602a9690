//! The bounds of the write-ahead log.

use std::time::Instant;

use sqlx::SqliteConnection;

use super::{PROBE_EVERY, Writer};
use crate::store::open;
use crate::store::{BUSY_TIMEOUT, StoreError};

impl Writer {
    /// Refuses to write while the log is at its bound: a reader elsewhere that never ends keeps SQLite from
    /// starting the log anew.
    pub(super) async fn check_log(&mut self, conn: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.log_bytes() < self.shared.limits.wal_hard_limit {
            return Ok(());
        }
        checkpoint(conn).await?;
        if self.log_bytes() < self.shared.limits.wal_hard_limit {
            return Ok(());
        }
        Err(StoreError::WalFull { path: self.shared.path.clone() })
    }

    /// SQLite's own checkpoints never wait, so constant readers keep the log growing; past the soft bound this one
    /// waits for them a moment. New readers then use the file alone and the log starts anew.
    pub(super) async fn bound_log(&mut self, conn: &mut SqliteConnection) {
        if self.log_bytes() < self.shared.limits.wal_soft_limit
            || self.checkpoint_failed.is_some_and(|at| at.elapsed() < PROBE_EVERY)
        {
            return;
        }
        self.checkpoint_failed = match checkpoint(conn).await {
            Ok(true) => None,
            Ok(false) => Some(Instant::now()),
            Err(error) => {
                self.shared.write_failed(&error.to_string());
                Some(Instant::now())
            }
        };
    }

    pub(super) fn log_bytes(&self) -> u64 {
        std::fs::metadata(open::with_suffix(&self.shared.path, "-wal")).map_or(0, |log| log.len())
    }
}

/// Empties the log if no reader stands in the way for long; whether it did.
async fn checkpoint(conn: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    sqlx::query("PRAGMA busy_timeout = 100").fetch_optional(&mut *conn).await?;
    let busy: Result<i64, sqlx::Error> =
        sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *conn).await;
    const { assert!(BUSY_TIMEOUT.as_millis() == 2000, "the pragma below says the same") };
    sqlx::query("PRAGMA busy_timeout = 2000").fetch_optional(&mut *conn).await?;
    Ok(busy? == 0)
}
