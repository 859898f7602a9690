//! Storing tasks of an export together with the right to read them.

use sqlx::Connection;

use super::{StoreMaintenance, maintenance_error};
use crate::clock;
use crate::store::StoreError;
use crate::store::sqlite::insert::{InsertResult, NewTasks, insert_tasks};
use crate::task::{FinalRecord, Service};
use crate::token::Digest;

/// A final record with its date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedTask {
    /// Service of the task.
    pub service: Service,
    /// Id and record.
    pub task: FinalRecord,
    /// When it was first stored, in seconds since the Unix epoch. A time in the future counts as
    /// now.
    pub stored_at: i64,
}

impl StoreMaintenance {
    /// Stores tasks for `reader` in one transaction, all or none. Returns the number of those that
    /// it could not read before; the others stay as they are. The reader's acceptance is not
    /// recorded, so that the proxy rechecks its token before it serves the first of them.
    pub async fn import(&mut self, reader: &Digest, batch: &[ImportedTask]) -> Result<u64, StoreError> {
        let now = clock::unix_now();
        let stored = async {
            let mut tx = self.conn.begin_with("BEGIN IMMEDIATE").await?;
            let mut stored = 0;
            for run in batch.chunk_by(|one, other| one.service == other.service) {
                let tasks: Vec<FinalRecord> = run.iter().map(|imported| imported.task.clone()).collect();
                let stored_at = |index: usize| run[index].stored_at.clamp(0, now);
                // Tombstones do not apply: an import restores deleted tasks too.
                let new = NewTasks { reader, service: &run[0].service, delete_seq: i64::MAX, tasks: &tasks };
                let inserted = insert_tasks(&mut tx, &new, stored_at, now).await?;
                stored +=
                    inserted.iter().filter(|it| matches!(it, InsertResult::Stored { .. })).count() as u64;
            }
            tx.commit().await?;
            Ok(stored)
        };
        stored.await.map_err(|error| maintenance_error(&self.path, error))
    }
}
