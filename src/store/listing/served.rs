//! The same on the store that is being served: through its readers, with its time-outs and its count of failures.

use sqlx::SqliteConnection;

use super::{ListCursor, RecordDetails, TaskFilter, TaskPage, TextLimits};
use crate::store::{FIND_TIMEOUT, Store, StoreError};
use crate::task::{Service, TaskId};

/// What is read of one id.
const TEXT_LIMITS: TextLimits = TextLimits { texts: 50, bytes: 32 << 20, readers: 100 };

impl Store {
    /// A page of what is stored, up to `limit` tasks: last stored first, with an id prefix by service and id. It may be
    /// short, and even empty, and have a next one.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`]; it takes at most 5 s to find out.
    pub async fn list(
        &self,
        filter: &TaskFilter,
        cursor: Option<ListCursor>,
        limit: usize,
    ) -> Result<TaskPage, StoreError> {
        let hidden = &self.shared.hidden;
        self.read(async |conn| {
            super::page(conn, filter, cursor, limit, |seen| !hidden.covers(&seen.service, &seen.id)).await
        })
        .await
    }

    /// The texts stored for an id: at most 50, read up to 32 MiB together, each with at most 100 readers.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn records(&self, service: &Service, id: &TaskId) -> Result<Vec<RecordDetails>, StoreError> {
        if self.shared.hidden.covers(service, id) {
            return Ok(Vec::new());
        }
        self.read(async |conn| super::texts(conn, service, id, TEXT_LIMITS).await).await
    }

    /// Version of the SQLite library.
    pub async fn sqlite_version(&self) -> Option<String> {
        self.read(async |conn| sqlx::query_scalar("SELECT sqlite_version()").fetch_one(conn).await).await.ok()
    }

    /// Reads for somebody who can wait and be told of a failure.
    async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let _place = self.listings.acquire().await;
        let readers = self.shared.readers().ok_or(StoreError::Unreadable)?;
        let reading = async { work(&mut *readers.acquire().await?).await };
        match tokio::time::timeout(FIND_TIMEOUT, reading).await {
            Ok(Ok(read)) => return Ok(read),
            Ok(Err(sqlx::Error::PoolClosed)) => {}
            Ok(Err(error)) => self.shared.read_failed(&error),
            Err(_) => self.shared.read_timed_out(),
        }
        Err(StoreError::Unreadable)
    }
}
