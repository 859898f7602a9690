//! Connections to the database file and their settings.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::error_code::{is_busy, is_unwritable};
use super::readers::CONNECTIONS;
use crate::store::{DatabaseError, StoreError};

/// Longest time a connection waits for a lock that another process holds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for a command beside a running proxy, which can wait longer than a client.
pub(super) const MAINTENANCE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time that closing the readers, or the writer, takes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of every connection.
fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .pragma("temp_store", "MEMORY")
        .pragma("trusted_schema", "OFF")
        .disable_statement_logging()
}

/// Settings of every connection that writes.
pub(super) fn writing_options(path: &Path) -> SqliteConnectOptions {
    options(path)
        // Not for readers: they verify what they read by its own checksum, and cannot spread
        // damage.
        .pragma("cell_size_check", "ON")
        // A lookup reads one page per level of a tree, and records of most sizes fill small pages
        // as well as large ones; see docs/decisions/002-grants-by-id.md. An existing file keeps its
        // page size.
        .page_size(4096)
        .synchronous(SqliteSynchronous::Full)
        .pragma("fullfsync", "ON")
        .pragma("checkpoint_fullfsync", "ON")
        .pragma("wal_autocheckpoint", "2000")
        .pragma("journal_size_limit", "16777216")
}

/// Opens the writer's connection. The caller sets `journal_mode`, which stays in the file, once it
/// has checked whose file it is.
pub(super) async fn connect_writer(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    writing_options(path).create_if_missing(true).thread_name(|_| "refrain-writer".to_owned()).connect().await
}

/// Opens a pool of up to [`CONNECTIONS`] readers, which are connected when they are needed. Each
/// has a thread and a page cache of 2 MB.
pub(super) async fn connect_readers(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    // Each buffered row holds a whole record.
    let options =
        options(path).read_only(true).row_buffer_size(16).thread_name(|n| format!("refrain-reader-{n}"));
    SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .min_connections(1)
        .acquire_timeout(BUSY_TIMEOUT)
        // A connection to a file cannot time out, so that a check before each use has no benefit.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
}

/// Makes glibc keep freed memory instead of returning it to the system.
///
/// Each statement of a batch allocates some hundred kB. Fresh memory from the system for each of
/// them took a fifth to a quarter of the time of a batch of 50. glibc returns the free end of its
/// heap once that is larger than twice the largest mapped block that was ever freed
/// (`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` in mallopt(3)). Allocating and freeing one block of 4
/// MiB therefore keeps 8 MiB for the whole process. It takes about 2 ms, which the start does not
/// wait for, and has no effect with other C libraries.
pub(super) async fn retain_freed_memory(readers: SqlitePool) {
    // The cast makes SQLite allocate the blob. A failure affects only speed.
    let _ = sqlx::query("SELECT length(CAST(zeroblob(4194304) AS TEXT))")
        .persistent(false)
        .execute(&readers)
        .await;
}

/// Closes readers first and the writer last: the last connection empties and removes the
/// write-ahead log, which a reading connection cannot do.
pub(super) async fn close(readers: Option<SqlitePool>, writer: Option<SqliteConnection>) {
    if let Some(readers) = readers
        && tokio::time::timeout(CLOSE_TIMEOUT, readers.close()).await.is_err()
    {
        tracing::warn!("a read of the task store does not end; closing the store without waiting for it");
    }
    if let Some(writer) = writer
        && let Ok(Err(error)) = tokio::time::timeout(CLOSE_TIMEOUT, writer.close()).await
    {
        tracing::warn!(%error, "the task store could not be closed cleanly");
    }
}

/// Classifies an error of opening the file.
pub(super) fn open_error(path: &Path, error: sqlx::Error) -> StoreError {
    let path = path.to_owned();
    if is_busy(&error) {
        StoreError::Busy(path)
    } else if is_unwritable(&error) {
        StoreError::Unwritable { path, source: Box::new(DatabaseError(error)) }
    } else {
        StoreError::Database { path, source: DatabaseError(error) }
    }
}
