//! The tasks that the arguments of a command select.

use std::time::Duration;

use super::{StoreMaintenance, maintenance_error};
use crate::clock;
use crate::store::StoreError;
use crate::store::sqlite::listing::{COUNT_OF_SERVICE, end_of_prefix};
use crate::store::sqlite::records::{self, unsigned};
use crate::task::{Service, TaskId};

/// Number of rows that one statement counts: short ones let the write-ahead log be emptied.
const ROWS_PER_STATEMENT: i64 = 2000;

/// Number of different ids in a range.
pub(in crate::store::sqlite) const COUNT_IDS: &str = "
    SELECT COUNT(DISTINCT id) FROM task
    WHERE service IN (SELECT value FROM json_each(?1)) AND id >= ?2 AND id < ?3";

/// The first of them.
pub(in crate::store::sqlite) const FIRST_IDS: &str = "
    SELECT DISTINCT id FROM task
    WHERE service IN (SELECT value FROM json_each(?1)) AND id >= ?2 AND id < ?3 ORDER BY id LIMIT ?4";

/// The stored ids that begin with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMatches {
    /// Number of different ids.
    pub count: u64,
    /// The first ones, in order.
    pub first: Vec<TaskId>,
}

impl StoreMaintenance {
    /// Returns the stored ids that begin with `text`, of one service or of all, with the first
    /// `limit` of them. An id that is `text` itself is the only one.
    pub async fn ids_beginning_with(
        &mut self,
        service: Option<&Service>,
        text: &TaskId,
        limit: u32,
    ) -> Result<IdMatches, StoreError> {
        let conn = &mut self.conn;
        let prefix = text.as_str().as_bytes();
        let found = async {
            let services = match service {
                Some(service) => vec![service.clone()],
                None => records::services(conn).await?,
            };
            let names: Vec<&str> = services.iter().map(Service::as_str).collect();
            let services = serde_json::to_string(&names).expect("strings have a JSON form");
            let ids: Vec<Vec<u8>> = sqlx::query_scalar(FIRST_IDS)
                .bind(&services)
                .bind(prefix)
                .bind(end_of_prefix(prefix))
                .bind(limit)
                .fetch_all(&mut *conn)
                .await?;
            // The shortest one is the first.
            if ids.first().is_some_and(|id| id == prefix) {
                return Ok(IdMatches { count: 1, first: vec![text.clone()] });
            }
            let count = sqlx::query_scalar(COUNT_IDS)
                .bind(services)
                .bind(prefix)
                .bind(end_of_prefix(prefix))
                .fetch_one(&mut *conn)
                .await?;
            let id = |id: &Vec<u8>| TaskId::parse(str::from_utf8(id).ok()?);
            Ok(IdMatches { count: unsigned(count), first: ids.iter().filter_map(id).collect() })
        };
        found.await.map_err(|error| maintenance_error(&self.path, error))
    }

    /// Returns the number of records of a service.
    pub async fn count_of_service(&mut self, service: &Service) -> Result<u64, StoreError> {
        let query = sqlx::query_scalar(COUNT_OF_SERVICE).bind(service.as_str()).bind(i64::MAX);
        let count = query.fetch_one(&mut self.conn).await;
        count.map(unsigned).map_err(|error| maintenance_error(&self.path, error))
    }

    /// Returns the number of records that were stored at least `age` ago.
    pub async fn count_older_than(&mut self, age: Duration) -> Result<u64, StoreError> {
        let age = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        let stored_until = clock::unix_now().saturating_sub(age);
        let (mut total, mut cursor) = (0, 0);
        loop {
            let counted = sqlx::query_as(
                "SELECT COUNT(*) FILTER (WHERE stored_at <= ?3), MAX(task_id)
                 FROM (SELECT task_id, stored_at FROM task WHERE task_id > ?1 ORDER BY task_id LIMIT ?2)",
            )
            .bind(cursor)
            .bind(ROWS_PER_STATEMENT)
            .bind(stored_until)
            .fetch_one(&mut self.conn);
            let (count, last): (i64, Option<i64>) =
                counted.await.map_err(|error| maintenance_error(&self.path, error))?;
            let Some(last) = last else { return Ok(total) };
            total += unsigned(count);
            cursor = last;
        }
    }
}
