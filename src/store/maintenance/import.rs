//! Tasks from an export, and the right to read them.

use sqlx::Connection;

use super::{StoreMaintenance, failed};
use crate::clock;
use crate::store::StoreError;
use crate::store::tasks::{self, Kept};
use crate::task::{FinalRecord, Service};
use crate::token::Digest;

/// A finished task with its date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedTask {
    /// Its service.
    pub service: Service,
    /// Its id and text.
    pub task: FinalRecord,
    /// When it was first stored, in seconds since the Unix epoch; not after now.
    pub stored_at: i64,
}

impl StoreMaintenance {
    /// The key of the digests by which this store knows tokens.
    pub async fn digest_key(&mut self) -> Result<[u8; 32], StoreError> {
        let key: Vec<u8> = sqlx::query_scalar("SELECT digest_key FROM meta")
            .fetch_one(&mut self.conn)
            .await
            .map_err(|error| failed(&self.path, error))?;
        key.try_into().map_err(|_| StoreError::NoSchema { path: self.path.clone() })
    }

    /// Stores tasks for `reader` in one transaction: all of them or none. The number of those that it could not
    /// read before; what it could read stays as it is. Nothing is noted of whether the upstream accepts the
    /// reader's token, so that it is asked before the first of them is served.
    pub async fn import(&mut self, reader: &Digest, batch: &[ImportedTask]) -> Result<u64, StoreError> {
        let now = clock::unix_now();
        let stored = async {
            let mut tx = self.conn.begin_with("BEGIN IMMEDIATE").await?;
            let mut stored = 0;
            for run in batch.chunk_by(|one, other| one.service == other.service) {
                let list: Vec<FinalRecord> = run.iter().map(|dated| dated.task.clone()).collect();
                let date = |index: usize| run[index].stored_at.clamp(0, now);
                // What was forgotten earlier is wanted again: no tombstone is newer than this.
                let kept =
                    tasks::keep_dated(&mut tx, reader, &run[0].service, i64::MAX, &list, date, now).await?;
                stored += kept.iter().filter(|kept| matches!(kept, Kept::Stored { .. })).count() as u64;
            }
            tx.commit().await?;
            Ok(stored)
        };
        stored.await.map_err(|error| failed(&self.path, error))
    }
}
