//! The schema: whose database it is, migrations, and the checks before a file is used.

use std::path::Path;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection, SqliteConnection};

use super::connect::open_error;
use super::error_code::{is_busy, is_corrupt, is_unwritable};
use super::file;
use crate::clock;
use crate::store::StoreError;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

/// Largest file that is checked for corruption when it is opened, in bytes. The time to start must
/// not grow with the file.
const MAX_CHECKED_BYTES: u64 = 8 << 20;

/// Newest schema version that this program supports.
pub(super) fn newest_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Returns the schema version of a database, 0 for an empty one. Refuses databases of other
/// programs and of later versions before anything is written to them.
pub(super) async fn check_owner(conn: &mut SqliteConnection, path: &Path) -> Result<i64, StoreError> {
    let failed = |error| open_error(path, error);
    let (tables, migration_tables): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(*), COUNT(*) FILTER (WHERE name = '_sqlx_migrations')
         FROM sqlite_schema WHERE type = 'table'",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(failed)?;
    if tables == 0 {
        return Ok(0);
    }
    if migration_tables == 0 {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    let applied: Vec<(i64, String)> =
        sqlx::query_as("SELECT version, description FROM _sqlx_migrations ORDER BY version")
            .fetch_all(&mut *conn)
            .await
            .map_err(failed)?;
    match applied.last() {
        Some(&(found, _)) if found > newest_version() => {
            Err(StoreError::NewerSchema { path: path.to_owned(), found, known: newest_version() })
        }
        // Another program that uses a table of the same name for its migrations.
        Some((_, description))
            if applied.len() == 1
                && MIGRATIONS.iter().next().is_some_and(|first| first.description != *description) =>
        {
            Err(StoreError::Foreign(path.to_owned()))
        }
        last => Ok(last.map_or(0, |&(version, _)| version)),
    }
}

/// Checks and migrates the database and proves that it accepts writes. Returns its digest key; a
/// new database gets `digest_key`, or a random one.
pub(super) async fn prepare(
    conn: &mut SqliteConnection,
    path: &Path,
    digest_key: Option<[u8; 32]>,
) -> Result<[u8; 32], StoreError> {
    let failed = |error| open_error(path, error);
    let corrupt = |reason: &str| {
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        StoreError::Corrupt { path: path.to_owned(), reason }
    };
    check_owner(conn, path).await?;
    let size = file::size(path);
    if size > 0 && size <= MAX_CHECKED_BYTES {
        let result: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *conn).await.map_err(failed)?;
        if result != "ok" {
            return Err(corrupt(&result));
        }
    }
    // Before the first transaction in the write-ahead log, so that a new file has it from the start.
    let application_id: i32 =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *conn).await.map_err(failed)?;
    if application_id != file::APPLICATION_ID {
        let statement = format!("PRAGMA application_id = {}", file::APPLICATION_ID);
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut *conn).await.map_err(failed)?;
    }
    let mode: String =
        sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(&mut *conn).await.map_err(failed)?;
    if mode != "wal" {
        let source = "its file system does not support SQLite's write-ahead log".into();
        return Err(StoreError::Unwritable { path: path.to_owned(), source });
    }
    MIGRATIONS.run_direct(None, conn, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
            if is_busy(&error) || is_unwritable(&error) || is_corrupt(&error) =>
        {
            open_error(path, error)
        }
        error => StoreError::Migrate { path: path.to_owned(), source: Box::new(error) },
    })?;
    let mut new_key = [0; 32];
    match digest_key {
        Some(key) => new_key = key,
        None => getrandom::fill(&mut new_key).map_err(|_| StoreError::Random)?,
    }
    let stored_key = write_meta(conn, &new_key).await.map_err(failed)?;
    stored_key.try_into().map_err(|_| corrupt("the digest key has a wrong length"))
}

/// Creates the row of `meta` in a new database. Returns the stored digest key.
async fn write_meta(conn: &mut SqliteConnection, new_key: &[u8]) -> Result<Vec<u8>, sqlx::Error> {
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("INSERT INTO meta (singleton, digest_key) VALUES (1, ?1) ON CONFLICT DO NOTHING")
        .bind(new_key)
        .execute(&mut *tx)
        .await?;
    // Tombstones concern upstream calls under way, and this process has none yet.
    sqlx::query("DELETE FROM tombstone").execute(&mut *tx).await?;
    sqlx::query("UPDATE meta SET probed_at = ?1").bind(clock::unix_now()).execute(&mut *tx).await?;
    let key = sqlx::query_scalar("SELECT digest_key FROM meta").fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(key)
}
