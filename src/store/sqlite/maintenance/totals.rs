//! Totals of a store.

use std::collections::BTreeMap;

use super::{StoreMaintenance, maintenance_error};
use crate::store::StoreError;
use crate::store::sqlite::records::unsigned;

/// Number of rows that one statement adds up.
const ROWS_PER_STATEMENT: i64 = 2000;

/// Contents of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreTotals {
    /// Number of distinct records.
    pub tasks: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Number of tokens that may read a task. A team that shares one token counts as one.
    pub readers: u64,
    /// Totals of each service.
    pub services: BTreeMap<String, ServiceTotals>,
    /// When the oldest record was stored, in seconds since the Unix epoch.
    pub oldest: Option<i64>,
    /// When the newest record was stored, in seconds since the Unix epoch.
    pub newest: Option<i64>,
    /// Version of the schema.
    pub schema: i64,
}

/// Totals of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceTotals {
    /// Number of distinct records.
    pub tasks: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

impl StoreMaintenance {
    /// Returns the number of distinct records, from a counter.
    pub async fn count(&mut self) -> Result<u64, StoreError> {
        let count = sqlx::query_scalar("SELECT tasks FROM meta").fetch_one(&mut self.conn).await;
        count.map(unsigned).map_err(|error| maintenance_error(&self.path, error))
    }

    /// Returns the contents of the store. Services, oldest and newest are added up in several
    /// statements: while another process writes, they can differ slightly from the counters.
    pub async fn totals(&mut self) -> Result<StoreTotals, StoreError> {
        let conn = &mut self.conn;
        let totals = async {
            let (tasks, bytes, readers, schema): (i64, i64, i64, i64) = sqlx::query_as(
                "SELECT tasks, bytes, (SELECT COUNT(*) FROM reader_grants WHERE grants > 0),
                        (SELECT MAX(version) FROM _sqlx_migrations)
                 FROM meta",
            )
            .fetch_one(&mut *conn)
            .await?;
            let mut totals = StoreTotals {
                tasks: unsigned(tasks),
                bytes: unsigned(bytes),
                readers: unsigned(readers),
                schema,
                ..StoreTotals::default()
            };
            let mut cursor = 0;
            loop {
                let rows: Vec<(i64, String, i64, i64)> = sqlx::query_as(
                    "SELECT task_id, service, size, stored_at FROM task WHERE task_id > ?1
                     ORDER BY task_id LIMIT ?2",
                )
                .bind(cursor)
                .bind(ROWS_PER_STATEMENT)
                .fetch_all(&mut *conn)
                .await?;
                let Some(&(last, ..)) = rows.last() else { return Ok(totals) };
                cursor = last;
                for (_, service, size, stored_at) in rows {
                    let share = totals.services.entry(service).or_default();
                    share.tasks += 1;
                    share.bytes += unsigned(size);
                    totals.oldest = Some(totals.oldest.map_or(stored_at, |oldest| oldest.min(stored_at)));
                    totals.newest = Some(totals.newest.map_or(stored_at, |newest| newest.max(stored_at)));
                }
            }
        };
        totals.await.map_err(|error| maintenance_error(&self.path, error))
    }
}
