//! Operations of commands on a database file that a running proxy may have open: one connection, no
//! lock. The proxy sees a change within half a second, and before it stores anything.
//!
//! Every statement ends before the next one begins, so that no read keeps the write-ahead log from
//! being emptied. The exception is [`StoreMaintenance::copy_to`].

mod export;
mod import;
pub(super) mod selection;
mod totals;

use std::path::{Path, PathBuf};

use sqlx::{Connection, SqliteConnection};

pub use export::{ExportPage, ExportedTask};
pub use import::ImportedTask;
pub use selection::IdMatches;
pub use totals::{ServiceTotals, StoreTotals};

use super::delete::{DeleteStep, begin_delete, continue_delete, delete_everywhere};
use super::error_code::is_busy;
use super::records::{self, RecordLimits};
use super::{file, listing, lock, open};
use crate::clock;
use crate::config::StoreConfig;
use crate::store::{DatabaseError, DeleteScope, ListCursor, RecordDetails, StoreError, TaskFilter, TaskPage};
use crate::task::{Service, TaskId};

/// Largest number of tasks in one page of a listing.
const MAX_PAGE: u64 = 100;

/// Number of steps of SQLite's virtual machine between two calls of the progress handler.
const PROGRESS_STEPS: i32 = 1000;

/// A connection to a database that this process does not serve.
#[derive(Debug)]
pub struct StoreMaintenance {
    conn: SqliteConnection,
    path: PathBuf,
}

impl StoreMaintenance {
    /// Opens an existing store.
    pub async fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        Self::open_file(&file::parse_url(&config.url)?).await
    }

    /// Opens an existing store by the path of its file.
    pub async fn open_file(path: &Path) -> Result<Self, StoreError> {
        let path = file::resolve(path)?;
        Ok(Self { conn: open::open_unlocked(&path).await?, path })
    }

    /// Opens the store. Creates it, with a new digest key, if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if it must be created or migrated while another process holds its
    /// lock.
    pub async fn open_or_create(config: &StoreConfig) -> Result<Self, StoreError> {
        let path = file::parse_url(&config.url)?;
        let conn = match open::open_unlocked(&path).await {
            Err(StoreError::Missing(_) | StoreError::NoSchema(_)) => open::create_unlocked(&path).await?,
            conn => conn?,
        };
        Ok(Self { conn, path })
    }

    /// Path of the database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a proxy serves the file at this moment; true if that cannot be determined.
    pub fn is_served(&self) -> bool {
        lock::is_served(&self.path)
    }

    /// Returns the key of the HMAC digests under which this store knows tokens.
    pub async fn digest_key(&mut self) -> Result<[u8; 32], StoreError> {
        let query = sqlx::query_scalar("SELECT digest_key FROM meta").fetch_one(&mut self.conn).await;
        let key: Vec<u8> = query.map_err(|error| maintenance_error(&self.path, error))?;
        key.try_into().map_err(|_| StoreError::NoSchema(self.path.clone()))
    }

    /// Deletes tasks as [`Store::delete`](crate::store::Store::delete) does. Returns the number of
    /// rows removed.
    pub async fn delete(&mut self, scope: &DeleteScope) -> Result<u64, StoreError> {
        let now = clock::unix_now();
        let (mut rows, mut is_first) = (0, true);
        loop {
            let step = async {
                let mut tx = self.conn.begin_with("BEGIN IMMEDIATE").await?;
                let step = match is_first {
                    true => begin_delete(&mut tx, scope, now).await?,
                    false => continue_delete(&mut tx, scope, now).await?,
                };
                tx.commit().await?;
                Ok(step)
            };
            let step = step.await.map_err(|error| maintenance_error(&self.path, error))?;
            let DeleteStep { rows: removed, has_more } = step;
            rows += removed;
            if !has_more {
                return Ok(rows);
            }
            is_first = false;
        }
    }

    /// Deletes tasks by id in every service, all or none. Returns the number of rows removed for
    /// each id.
    pub async fn delete_ids(&mut self, ids: &[TaskId]) -> Result<Vec<u64>, StoreError> {
        let deleted = async {
            let mut tx = self.conn.begin_with("BEGIN IMMEDIATE").await?;
            let services = records::services(&mut tx).await?;
            let mut removed = Vec::with_capacity(ids.len());
            for id in ids {
                removed.push(delete_everywhere(&mut tx, &services, id).await?);
            }
            tx.commit().await?;
            Ok(removed)
        };
        deleted.await.map_err(|error| maintenance_error(&self.path, error))
    }

    /// Returns a page of up to `limit` stored tasks, at most 100, in the order of
    /// [`Store::list`](crate::store::Store::list). A page that has a next one may be short, and
    /// even empty.
    pub async fn list(
        &mut self,
        filter: &TaskFilter,
        cursor: Option<ListCursor>,
        limit: u64,
    ) -> Result<TaskPage, StoreError> {
        let limit = usize::try_from(limit.clamp(1, MAX_PAGE)).unwrap_or(1);
        let page = listing::page(&mut self.conn, filter, cursor, limit, |_| true).await;
        page.map_err(|error| maintenance_error(&self.path, error))
    }

    /// Returns all records stored for an id, of one service or of all.
    pub async fn records(
        &mut self,
        service: Option<&Service>,
        id: &TaskId,
    ) -> Result<Vec<RecordDetails>, StoreError> {
        let conn = &mut self.conn;
        let found = async {
            let services = match service {
                Some(service) => vec![service.clone()],
                None => records::services(conn).await?,
            };
            let mut found = Vec::new();
            for service in services {
                found.extend(records::of_id(conn, &service, id, RecordLimits::NONE).await?);
            }
            Ok(found)
        };
        found.await.map_err(|error| maintenance_error(&self.path, error))
    }

    /// Writes a consistent copy to a new or empty file, until `may_continue` returns false. The
    /// copy is one long read: the proxy goes on, and its write-ahead log grows meanwhile. The copy
    /// is not synced to disk.
    pub async fn copy_to(
        &mut self,
        copy: &Path,
        may_continue: impl FnMut() -> bool + Send + 'static,
    ) -> Result<(), StoreError> {
        let failed = |source| StoreError::Copy { path: copy.to_owned(), source };
        // An absolute path cannot be mistaken for one of SQLite's `file:` URIs.
        let target = std::path::absolute(copy).map_err(|error| failed(error.into()))?;
        let target = target.to_str().ok_or_else(|| failed("its path is not UTF-8".into()))?;
        let handle_failed = |error| maintenance_error(&self.path, error);
        let mut handle = self.conn.lock_handle().await.map_err(handle_failed)?;
        handle.set_progress_handler(PROGRESS_STEPS, may_continue);
        drop(handle);
        let copied = sqlx::query("VACUUM INTO ?1").bind(target).execute(&mut self.conn).await;
        self.conn.lock_handle().await.map_err(handle_failed)?.remove_progress_handler();
        copied.map_err(|error| failed(Box::new(DatabaseError(error))))?;
        Ok(())
    }

    /// Closes the connection. The last connection to a file empties its write-ahead log.
    pub async fn close(self) -> Result<(), StoreError> {
        self.conn.close().await.map_err(|error| maintenance_error(&self.path, error))
    }
}

/// Classifies an error of a statement.
fn maintenance_error(path: &Path, error: sqlx::Error) -> StoreError {
    let path = path.to_owned();
    match is_busy(&error) {
        true => StoreError::Busy(path),
        false => StoreError::Database { path, source: DatabaseError(error) },
    }
}
