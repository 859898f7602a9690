//! The one connection that writes: transactions, and another file in place of one that is corrupt
//! or was removed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sqlx::{Connection, SqliteConnection};

use crate::store::StoreError;
use crate::store::sqlite::connect::{self, BUSY_TIMEOUT, connect_writer};
use crate::store::sqlite::lock::StoreLock;
use crate::store::sqlite::open::{self, OpenDatabase};
use crate::store::sqlite::state::SqliteState;
use crate::store::sqlite::wal::{self, OpenFiles, WalGuard};
use crate::store::sqlite::{delete, file};

/// Why the file is replaced by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReopenReason {
    /// The file is corrupt.
    Corrupt,
    /// The file, its write-ahead log or the index of that was removed or replaced while it was
    /// open. What is written through the open connections is lost.
    FileReplaced,
}

/// See the module documentation.
pub(super) struct WriterConnection {
    state: Arc<SqliteState>,
    /// `None` after a failure, until the next transaction opens it again.
    conn: Option<SqliteConnection>,
    /// `PRAGMA data_version` of this connection, which changes when another connection commits.
    data_version: Option<i64>,
    /// Whether the counters in the database were counted since another connection committed.
    are_counters_exact: bool,
    /// The files behind the connections.
    files: OpenFiles,
    /// Whether the corrupt file was set aside but a new one could not be opened yet.
    is_set_aside: bool,
    wal: WalGuard,
    /// Dropped with this value, after the connections were closed.
    lock: StoreLock,
}

impl WriterConnection {
    pub(super) fn new(state: Arc<SqliteState>, conn: SqliteConnection, lock: StoreLock) -> Self {
        Self {
            conn: Some(conn),
            data_version: None,
            are_counters_exact: false,
            files: OpenFiles::at(&state.path),
            is_set_aside: false,
            wal: WalGuard::new(&state.path, &state.local.limits),
            lock,
            state,
        }
    }

    /// Whether one of the files was removed or replaced.
    pub(super) fn is_file_replaced(&self) -> bool {
        self.files.are_replaced(&OpenFiles::at(&self.state.path))
    }

    /// Takes the lock file again if it was removed. Fails if another process has taken it.
    pub(super) fn renew_lock(&mut self) -> Result<(), StoreError> {
        self.lock.renew()
    }

    /// Whether the connection is open.
    pub(super) fn is_open(&self) -> bool {
        self.conn.is_some()
    }

    /// Whether nothing but the triggers has changed the counters since
    /// [`WriterConnection::confirm_counters`].
    pub(super) fn are_counters_exact(&self) -> bool {
        self.are_counters_exact
    }

    /// Records that the last transaction counted the tasks.
    pub(super) fn confirm_counters(&mut self) {
        self.are_counters_exact = true;
    }

    /// Clears the memory cache and reads the counters if another process wrote to the database.
    pub(super) async fn refresh(&mut self) -> Result<(), sqlx::Error> {
        let mut conn = self.take().await?;
        match self.check_data_version(&mut conn).await {
            Ok(()) => {
                self.conn = Some(conn);
                Ok(())
            }
            Err(error) => {
                self.discard(conn).await;
                Err(error)
            }
        }
    }

    /// Runs `work` in a transaction, and keeps the counters and the write-ahead log in order. After
    /// a failure nothing is written, and the connection is closed because its state is unknown.
    pub(super) async fn transaction<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let mut conn = self.take().await?;
        match self.run(&mut conn, work).await {
            Ok(value) => {
                if let Err(error) = self.wal.after_write(&mut conn).await {
                    self.state.record_write_failure(&error.to_string());
                }
                self.conn = Some(conn);
                Ok(value)
            }
            Err(error) => {
                self.discard(conn).await;
                Err(error)
            }
        }
    }

    async fn run<T>(
        &mut self,
        conn: &mut SqliteConnection,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.check_data_version(conn).await?;
        self.wal.before_write(conn).await?;
        let start = Instant::now();
        let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
        let value = work(&mut tx).await?;
        let counters = read_counters(&mut tx).await?;
        tx.commit().await?;
        self.files.add_created(&self.state.path);
        self.state.local.metrics.store_commit_duration.observe(start.elapsed());
        self.state.counters.set(counters);
        Ok(value)
    }

    /// Returns the connection, opened again after a failure.
    async fn take(&mut self) -> Result<SqliteConnection, sqlx::Error> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => {
                self.data_version = None;
                connect_writer(&self.state.path).await
            }
        }
    }

    async fn check_data_version(&mut self, conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let version: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut *conn).await?;
        if self.data_version != Some(version) {
            self.data_version = Some(version);
            self.are_counters_exact = false;
            self.state.local.memory.clear();
            self.state.counters.set(read_counters(conn).await?);
        }
        Ok(())
    }

    /// Closes a connection in an unknown state, within a time limit.
    async fn discard(&mut self, conn: SqliteConnection) {
        let are_replaced = self.is_file_replaced();
        let _ = tokio::time::timeout(BUSY_TIMEOUT, conn.close()).await;
        if !are_replaced {
            // If no reader has read yet, SQLite removes the write-ahead log.
            self.files = OpenFiles::at(&self.state.path);
        }
    }

    /// Closes all connections, the writing one last.
    pub(super) async fn close(&mut self) {
        connect::close(self.state.readers.replace(None), self.conn.take()).await;
    }

    /// Copies the write-ahead log to the database if only the log was removed or replaced: its
    /// commits are still readable through this connection.
    async fn rescue_wal(&mut self) {
        if self.files.is_only_wal_replaced(&OpenFiles::at(&self.state.path))
            && let Some(conn) = &mut self.conn
            && let Err(error) = wal::checkpoint(conn).await
        {
            self.state.record_write_failure(&error.to_string());
        }
    }

    /// Closes all connections and goes on with another file and the same digest key, under which
    /// other modules know tokens. A corrupt file is set aside first. A file that was removed or
    /// replaced no longer belongs to this process and is not touched.
    pub(super) async fn reopen(&mut self, reason: ReopenReason) -> Result<(), StoreError> {
        self.state.local.memory.clear();
        self.rescue_wal().await;
        self.close().await;
        self.data_version = None;
        self.state.deferred.clear_rows();
        let state = Arc::clone(&self.state);
        match reason {
            ReopenReason::FileReplaced => tracing::error!(
                path = %state.path.display(),
                "a file of the task store was removed or replaced; the store that is there now is used"
            ),
            // Set aside even if it can be opened: a broken page would be reported again and again.
            ReopenReason::Corrupt if !self.is_set_aside => {
                let reason = "corruption was found while the store was in use".to_owned();
                file::set_aside(&state.path, &StoreError::Corrupt { path: state.path.clone(), reason })?;
                self.is_set_aside = true;
            }
            ReopenReason::Corrupt => {}
        }
        let OpenDatabase { mut writer, readers, .. } =
            open::open(&state.path, &mut self.lock, Some(state.digest_key)).await?;
        let former_seq = state.counters.delete_seq.load(Ordering::Relaxed);
        let continued = continue_deletes(&mut writer, former_seq).await;
        self.conn = Some(writer);
        self.files = OpenFiles::at(&state.path);
        state.readers.replace(Some(readers));
        continued?;
        self.refresh().await?;
        self.is_set_aside = false;
        Ok(())
    }
}

async fn continue_deletes(conn: &mut SqliteConnection, former_seq: i64) -> Result<(), sqlx::Error> {
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    delete::continue_sequence(&mut tx, former_seq).await?;
    tx.commit().await
}

async fn read_counters(conn: &mut SqliteConnection) -> Result<(i64, i64, i64), sqlx::Error> {
    sqlx::query_as("SELECT tasks, bytes, delete_seq FROM meta").fetch_one(conn).await
}
