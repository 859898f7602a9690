//! From `store.url` to an open, migrated file: lock, connect options, schema, and setting broken files aside.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::error::{is_busy, is_unwritable};
use super::find::TURNS;
use super::{BESIDE_BUSY_TIMEOUT, BUSY_TIMEOUT, LISTINGS, StoreError};
use crate::clock;

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Reading connections, made when they are needed. Each has a thread and a page cache of 2 MB of its own. One is always
/// left for who reads neither in a shared statement nor a listing.
const READERS: u32 = (TURNS + LISTINGS + 1) as u32;

/// Between two tries to take the lock, which [`is_served`] of another process may hold for some microseconds.
const LOCK_AGAIN: Duration = Duration::from_millis(10);

/// Larger files are not looked through at open: a start must not take longer because much is stored.
const QUICK_CHECK_BYTES: u64 = 8 << 20;

/// An open file.
pub(super) struct Opened {
    pub(super) writer: SqliteConnection,
    pub(super) readers: SqlitePool,
    pub(super) key: [u8; 32],
}

/// The absolute path of a `sqlite://` URL. What follows the scheme is a path as it is; nothing is decoded.
pub(super) fn parse_url(url: &str) -> Result<PathBuf, StoreError> {
    let bad = || StoreError::BadUrl { url: url.to_owned() };
    let path = url.strip_prefix("sqlite://").ok_or_else(bad)?;
    if path.is_empty() || path.starts_with(':') || path.ends_with('/') || path.contains(['?', '#', '\0']) {
        return Err(bad());
    }
    // Absolute, so that SQLite cannot take the name for one of its `file:` URIs.
    std::path::absolute(path)
        .map_err(|source| StoreError::Unwritable { path: path.into(), source: source.into() })
}

/// Takes `<path>.lock`; the lock lasts as long as the file stays open, and ends with the process however it ends.
pub(super) async fn lock(path: &Path) -> Result<File, StoreError> {
    let unwritable =
        |source: std::io::Error| StoreError::Unwritable { path: path.to_owned(), source: source.into() };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(with_suffix(path, ".lock"))
        .map_err(unwritable)?;
    let mut taken = file.try_lock();
    if let Err(TryLockError::WouldBlock) = taken {
        tokio::time::sleep(LOCK_AGAIN).await;
        taken = file.try_lock();
    }
    match taken {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unwritable(source)),
    }
}

/// Whether some process holds the lock that [`lock`] takes; yes where that cannot be told.
pub(super) fn is_served(path: &Path) -> bool {
    match File::open(with_suffix(path, ".lock")) {
        // Taken for the blink of an eye: nothing tells of a lock but the attempt.
        Ok(file) => file.try_lock_shared().is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// The path with something appended to its last part.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Which file stands behind the path; `None` if none does, or where the system does not tell.
pub(super) fn file_identity(path: &Path) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Opens the file; one that is no database or is corrupt is set aside first. `key` for the file if it is new.
/// The second part tells whether a file was set aside.
pub(super) async fn open_or_set_aside(
    path: &Path,
    key: Option<[u8; 32]>,
) -> Result<(Opened, bool), StoreError> {
    match open(path, key).await {
        Err(error) if error.is_corrupt() => {
            set_aside(path, &error)?;
            Ok((open(path, key).await?, true))
        }
        opened => opened.map(|opened| (opened, false)),
    }
}

/// Renames the file with its `-wal` and `-shm`. Nothing of this process may have it open: a file renamed under
/// open connections swallows writes.
pub(super) fn set_aside(path: &Path, why: &StoreError) -> Result<(), StoreError> {
    let now = clock::unix_now();
    let target = (0..)
        .map(|n: u32| {
            with_suffix(path, &if n == 0 { format!(".corrupt-{now}") } else { format!(".corrupt-{now}-{n}") })
        })
        .find(|target| !target.exists())
        .expect("some number is free");
    for suffix in ["-wal", "-shm", ""] {
        match std::fs::rename(with_suffix(path, suffix), with_suffix(&target, suffix)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Unwritable { path: path.to_owned(), source: source.into() });
            }
            _ => {}
        }
    }
    tracing::error!(
        path = %path.display(),
        set_aside_as = %target.display(),
        error = why.chain(),
        "the task store is not a sound database; it was set aside and a fresh one is used"
    );
    Ok(())
}

/// What every connection has in common.
fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .pragma("temp_store", "MEMORY")
        .pragma("trusted_schema", "OFF")
        .disable_statement_logging()
}

/// What every writing connection has besides.
fn writing_options(path: &Path) -> SqliteConnectOptions {
    options(path)
        // Readers do without: what they find is verified by its own checksum, and they can spread no damage.
        .pragma("cell_size_check", "ON")
        // A look-up reads a page for each step of its way, and tasks of most sizes fill small pages as well as large ones:
        // docs/benchmarks.md. A file that is there keeps what it was made with.
        .page_size(4096)
        .synchronous(SqliteSynchronous::Full)
        .pragma("fullfsync", "ON")
        .pragma("checkpoint_fullfsync", "ON")
        .pragma("wal_autocheckpoint", "2000")
        .pragma("journal_size_limit", "16777216")
}

/// The writer's connection. `journal_mode` stays in the file and is set by [`open`], after a look at whose file
/// it is.
pub(super) async fn connect_writer(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    writing_options(path).create_if_missing(true).thread_name(|_| "refrain-writer".to_owned()).connect().await
}

/// A connection beside a running proxy, to a file that is there and has our schema.
pub(super) async fn connect_beside(path: &Path) -> Result<SqliteConnection, StoreError> {
    if matches!(path.try_exists(), Ok(false)) {
        return Err(StoreError::Missing { path: path.to_owned() });
    }
    let options = writing_options(path).busy_timeout(BESIDE_BUSY_TIMEOUT);
    let mut conn = options.connect().await.map_err(|error| at_open(path, error))?;
    if check_owner(&mut conn, path).await? < newest_known() {
        let _ = conn.close().await;
        return Err(StoreError::NoSchema { path: path.to_owned() });
    }
    Ok(conn)
}

/// Makes the file, or brings its schema up to date, under the lock of those who serve it; then as
/// [`connect_beside`].
pub(super) async fn create_beside(path: &Path) -> Result<SqliteConnection, StoreError> {
    let _lock = lock(path).await?;
    let mut conn = connect_writer(path).await.map_err(|error| at_open(path, error))?;
    prepare(&mut conn, path, None).await?;
    conn.close().await.map_err(|error| at_open(path, error))?;
    connect_beside(path).await
}

async fn connect_readers(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    // Rows wait for the reader; each holds a whole task.
    let options =
        options(path).read_only(true).row_buffer_size(16).thread_name(|n| format!("refrain-reader-{n}"));
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(1)
        .acquire_timeout(BUSY_TIMEOUT)
        // Nothing between us and the file can time out; a ping for each look-up would only cost.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
}

/// What one statement found, some hundred kB in three copies, is not to be fresh memory from the system each time: that took
/// a fifth to a quarter of what a batch of 50 costs. glibc gives the free end of its heap back once that is more than
/// twice the largest block freed so far of those that it had mapped (`M_TRIM_THRESHOLD`, `M_MMAP_THRESHOLD` in
/// mallopt(3)). So one is made and freed, which holds for the whole process. It takes some 2 ms, for which no start has to wait.
/// Other C libraries do as they always do.
pub(super) async fn keep_freed_memory(readers: SqlitePool) {
    // The cast makes bytes of what is a mere number so far. 4 MiB, so that 8 MiB are kept: a statement that look-ups
    // share brings at most 1 MiB. Only speed hangs on it, so that its failure is none.
    let _ = sqlx::query("SELECT length(CAST(zeroblob(4194304) AS TEXT))")
        .persistent(false)
        .execute(&readers)
        .await;
}

/// A migrated file with a proven write, or the reason why not.
async fn open(path: &Path, key: Option<[u8; 32]>) -> Result<Opened, StoreError> {
    let mut writer = connect_writer(path).await.map_err(|error| at_open(path, error))?;
    let key = match prepare(&mut writer, path, key).await {
        Ok(key) => key,
        Err(error) => {
            // Closed for good before anybody renames the file.
            let _ = writer.close().await;
            return Err(error);
        }
    };
    match connect_readers(path).await {
        Ok(readers) => Ok(Opened { writer, readers, key }),
        Err(error) => {
            let _ = writer.close().await;
            Err(at_open(path, error))
        }
    }
}

async fn prepare(
    conn: &mut SqliteConnection,
    path: &Path,
    key: Option<[u8; 32]>,
) -> Result<[u8; 32], StoreError> {
    let failed = |error| at_open(path, error);
    check_owner(conn, path).await?;
    let size = std::fs::metadata(path).map_or(0, |file| file.len());
    if size > 0 && size <= QUICK_CHECK_BYTES {
        let verdict: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *conn).await.map_err(failed)?;
        if verdict != "ok" {
            return Err(StoreError::Sqlx(sqlx::Error::Database(Box::new(QuickCheckFailed(verdict)))));
        }
    }
    let mode: String =
        sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(&mut *conn).await.map_err(failed)?;
    if mode != "wal" {
        let source = "its file system does not support SQLite's write-ahead log".into();
        return Err(StoreError::Unwritable { path: path.to_owned(), source });
    }
    MIGRATIONS.run_direct(None, conn, false).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(error)
        | sqlx::migrate::MigrateError::ExecuteMigration(error, _)
            if is_busy(&error) || is_unwritable(&error) =>
        {
            at_open(path, error)
        }
        error => StoreError::Migrate { path: path.to_owned(), source: Box::new(error) },
    })?;
    let mut fresh = [0; 32];
    match key {
        Some(key) => fresh = key,
        None => getrandom::fill(&mut fresh).map_err(|_| StoreError::Random)?,
    }
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    sqlx::query("INSERT INTO meta (one, digest_key) VALUES (1, ?1) ON CONFLICT DO NOTHING")
        .bind(&fresh[..])
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    // Tombstones hold against calls under way; none of this process is.
    sqlx::query("DELETE FROM forgotten").execute(&mut *tx).await.map_err(failed)?;
    sqlx::query("UPDATE meta SET probed_at = ?1")
        .bind(clock::unix_now())
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    let key: Vec<u8> =
        sqlx::query_scalar("SELECT digest_key FROM meta").fetch_one(&mut *tx).await.map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    key.try_into().map_err(|_| {
        let wrong = "the digest key has a wrong length".to_owned();
        StoreError::Sqlx(sqlx::Error::Database(Box::new(QuickCheckFailed(wrong))))
    })
}

/// The newest schema that this program knows.
fn newest_known() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Refuses databases of others and of later versions before anything is written to them. The version of the
/// schema, 0 for an empty file.
async fn check_owner(conn: &mut SqliteConnection, path: &Path) -> Result<i64, StoreError> {
    let failed = |error| at_open(path, error);
    let (tables, ours): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(*), COUNT(*) FILTER (WHERE name = '_sqlx_migrations')
         FROM sqlite_schema WHERE type = 'table'",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(failed)?;
    if tables == 0 {
        return Ok(0);
    }
    if ours == 0 {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    let applied: Vec<(i64, String)> =
        sqlx::query_as("SELECT version, description FROM _sqlx_migrations ORDER BY version")
            .fetch_all(&mut *conn)
            .await
            .map_err(failed)?;
    match applied.last() {
        Some(&(found, _)) if found > newest_known() => {
            Err(StoreError::NewerSchema { path: path.to_owned(), found, known: newest_known() })
        }
        // Another program that keeps its migrations in a table of the same name.
        Some((_, description))
            if applied.len() == 1
                && MIGRATIONS.iter().next().is_some_and(|first| first.description != *description) =>
        {
            Err(StoreError::Foreign { path: path.to_owned() })
        }
        last => Ok(last.map_or(0, |&(version, _)| version)),
    }
}

fn at_open(path: &Path, error: sqlx::Error) -> StoreError {
    let path = path.to_owned();
    if is_busy(&error) {
        StoreError::Busy { path }
    } else if is_unwritable(&error) {
        StoreError::Unwritable { path, source: error.into() }
    } else {
        StoreError::Sqlx(error)
    }
}

/// A failed check in the shape of `SQLITE_CORRUPT`, which it means.
#[derive(Debug)]
struct QuickCheckFailed(String);

impl std::fmt::Display for QuickCheckFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.lines().next().unwrap_or_default())
    }
}

impl std::error::Error for QuickCheckFailed {}

impl sqlx::error::DatabaseError for QuickCheckFailed {
    fn message(&self) -> &str {
        &self.0
    }

    fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some("11".into())
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> sqlx::error::ErrorKind {
        sqlx::error::ErrorKind::Other
    }
}

/// Closes readers first and the writer last: the last connection empties and removes the write-ahead log, which a
/// reading one cannot.
pub(super) async fn close(readers: Option<SqlitePool>, writer: Option<SqliteConnection>) {
    const PATIENCE: Duration = Duration::from_secs(5);
    if let Some(readers) = readers
        && tokio::time::timeout(PATIENCE, readers.close()).await.is_err()
    {
        tracing::warn!("some read of the task store does not end; closing without it");
    }
    if let Some(writer) = writer
        && let Ok(Err(error)) = tokio::time::timeout(PATIENCE, writer.close()).await
    {
        tracing::warn!(error = %error, "the task store could not be closed cleanly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_paths_and_nothing_else() {
        assert_eq!(parse_url("sqlite:///data/refrain.db").unwrap(), Path::new("/data/refrain.db"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(parse_url("sqlite://refrain.db").unwrap(), here.join("refrain.db"));
        assert_eq!(parse_url("sqlite://file:a%20b").unwrap(), here.join("file:a%20b"));
        for bad in [
            "",
            "refrain.db",
            "sqlite:refrain.db",
            "sqlite://",
            "sqlite://:memory:",
            "sqlite://a?mode=ro",
            "sqlite://a#b",
            "sqlite://a/",
            "postgres://a",
        ] {
            assert!(matches!(parse_url(bad), Err(StoreError::BadUrl { .. })), "{bad}");
        }
    }
}
