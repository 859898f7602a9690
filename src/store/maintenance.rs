//! What commands do with a file that a running proxy may have open: no lock, one connection, one piece of work. The
//! proxy sees a change within half a second, and for what it stores at once.
//!
//! Called by the command line. Every statement ends before the next begins, so that no read keeps the write-ahead
//! log from being emptied; [`StoreMaintenance::copy_to`] alone reads for as long as the copy takes.

mod import;
mod read;

use std::path::{Path, PathBuf};

use sqlx::{Connection, SqliteConnection};

pub use import::ImportedTask;
pub use read::{ExportPage, ExportedTask, ServiceTotals, StoreTotals};

use super::error::is_busy;
use super::{DeleteScope, StoreError, listing, open, tasks};
use crate::clock;
use crate::config::StoreConfig;
use crate::task::TaskId;

/// Steps of SQLite's virtual machine between two looks at whether a copy goes on.
const LOOK_EVERY_STEPS: i32 = 1000;

/// A connection to a store that this process does not serve.
#[derive(Debug)]
pub struct StoreMaintenance {
    conn: SqliteConnection,
    path: PathBuf,
}

impl StoreMaintenance {
    /// Opens a store that is there.
    pub async fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        Self::open_file(&open::parse_url(&config.url)?).await
    }

    /// The same by the file's path.
    pub async fn open_file(path: &Path) -> Result<Self, StoreError> {
        let path = std::path::absolute(path)
            .map_err(|source| StoreError::Unwritable { path: path.to_owned(), source: source.into() })?;
        Ok(Self { conn: open::connect_beside(&path).await?, path })
    }

    /// Opens the store, or makes one with a digest key of its own where there is none.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if it would have to be made, or its schema brought up to date, and somebody else is
    /// at it.
    pub async fn open_or_create(config: &StoreConfig) -> Result<Self, StoreError> {
        let path = open::parse_url(&config.url)?;
        let conn = match open::connect_beside(&path).await {
            Err(StoreError::Missing { .. } | StoreError::NoSchema { .. }) => {
                open::create_beside(&path).await?
            }
            conn => conn?,
        };
        Ok(Self { conn, path })
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a proxy serves the file at this moment; yes where that cannot be told.
    pub fn is_served(&self) -> bool {
        open::is_served(&self.path)
    }

    /// Forgets as [`Store::delete`](super::Store::delete) does. The number of rows removed.
    pub async fn delete(&mut self, scope: &DeleteScope) -> Result<u64, StoreError> {
        let now = clock::unix_now();
        let (mut removed, mut more, mut first) = (0, true, true);
        while more {
            let step = async {
                let mut tx = self.conn.begin_with("BEGIN IMMEDIATE").await?;
                let step = match first {
                    true => tasks::forget(&mut tx, scope, now).await?,
                    false => tasks::forget_more(&mut tx, scope, now).await?,
                };
                tx.commit().await?;
                Ok(step)
            };
            let (count, again) = step.await.map_err(|error| failed(&self.path, error))?;
            removed += count;
            (first, more) = (false, again);
        }
        Ok(removed)
    }

    /// Forgets tasks by id in every service, all or none. The number of rows removed for each.
    pub async fn delete_ids(&mut self, ids: &[TaskId]) -> Result<Vec<u64>, StoreError> {
        let done = async {
            let mut tx = self.conn.begin_with("BEGIN IMMEDIATE").await?;
            let services = listing::services(&mut tx).await?;
            let mut removed = Vec::with_capacity(ids.len());
            for id in ids {
                removed.push(tasks::forget_everywhere(&mut tx, &services, id).await?);
            }
            tx.commit().await?;
            Ok(removed)
        };
        done.await.map_err(|error| failed(&self.path, error))
    }

    /// Writes a consistent copy to a file that is not there, or empty, until `goes_on` says no. It reads for as
    /// long as that takes: the proxy goes on, its write-ahead log grows meanwhile. Nothing is synced.
    pub async fn copy_to(
        &mut self,
        copy: &Path,
        goes_on: impl FnMut() -> bool + Send + 'static,
    ) -> Result<(), StoreError> {
        let broken = |source| StoreError::Copy { path: copy.to_owned(), source };
        // Absolute, so that SQLite cannot take the name for one of its `file:` URIs.
        let target = std::path::absolute(copy).map_err(|error| broken(error.into()))?;
        let target = target.to_str().ok_or_else(|| broken("its path is not UTF-8".into()))?;
        let watch = |error| failed(&self.path, error);
        self.conn.lock_handle().await.map_err(watch)?.set_progress_handler(LOOK_EVERY_STEPS, goes_on);
        let copied = sqlx::query("VACUUM INTO ?1").bind(target).execute(&mut self.conn).await;
        self.conn.lock_handle().await.map_err(watch)?.remove_progress_handler();
        copied.map_err(|error| broken(error.into()))?;
        Ok(())
    }

    /// Closes the connection; the last one to a file empties its write-ahead log.
    pub async fn close(self) -> Result<(), StoreError> {
        self.conn.close().await.map_err(|error| failed(&self.path, error))
    }
}

fn failed(path: &Path, error: sqlx::Error) -> StoreError {
    if is_busy(&error) { StoreError::Busy { path: path.to_owned() } } else { StoreError::Sqlx(error) }
}
