//! Deleting tasks and their tombstones, inside a transaction of the caller.

use sqlx::SqliteConnection;

use crate::store::DeleteScope;
use crate::task::{Service, TaskId};

/// Largest number of rows that one step of a wide delete removes.
const ROWS_PER_STEP: i64 = 1000;

/// Result of one step of a delete.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DeleteStep {
    /// Number of rows removed.
    pub(super) rows: u64,
    /// Whether there may be more rows to remove, in a further transaction.
    pub(super) has_more: bool,
}

/// Inserts the tombstone of a delete and removes the first rows.
pub(super) async fn begin_delete(
    conn: &mut SqliteConnection,
    scope: &DeleteScope,
    now: i64,
) -> Result<DeleteStep, sqlx::Error> {
    let (service, id) = match scope {
        DeleteScope::ByReader { service, id, .. } | DeleteScope::Task { service, id } => {
            (Some(service), Some(id))
        }
        DeleteScope::Service(service) => (Some(service), None),
        DeleteScope::OlderThan(_) => (None, None),
    };
    insert_tombstone(conn, service, id).await?;
    continue_delete(conn, scope, now).await
}

/// Removes further rows of a wide delete.
pub(super) async fn continue_delete(
    conn: &mut SqliteConnection,
    scope: &DeleteScope,
    now: i64,
) -> Result<DeleteStep, sqlx::Error> {
    let rows = match scope {
        DeleteScope::ByReader { reader, service, id } => {
            let has_grant: bool = sqlx::query_scalar(
                "SELECT EXISTS (
                     SELECT 1 FROM task_grant g CROSS JOIN task t
                     ON t.task_id = g.task_id AND t.service = g.service AND t.id = g.id
                     WHERE g.service = ?1 AND g.id = ?2
                     AND g.reader_id = (SELECT reader_id FROM reader WHERE digest = ?3))",
            )
            .bind(service.as_str())
            .bind(id.as_str().as_bytes())
            .bind(reader.as_bytes().as_slice())
            .fetch_one(&mut *conn)
            .await?;
            if has_grant { delete_task(conn, service, id).await? } else { 0 }
        }
        DeleteScope::Task { service, id } => delete_task(conn, service, id).await?,
        DeleteScope::Service(service) => {
            let sql =
                "DELETE FROM task WHERE task_id IN (SELECT task_id FROM task WHERE service = ?1 LIMIT ?2)";
            let deleted = sqlx::query(sql).bind(service.as_str()).bind(ROWS_PER_STEP).execute(conn).await?;
            deleted.rows_affected()
        }
        DeleteScope::OlderThan(age) => {
            let limit = now.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
            let sql =
                "DELETE FROM task WHERE task_id IN (SELECT task_id FROM task WHERE stored_at <= ?1 LIMIT ?2)";
            let deleted = sqlx::query(sql).bind(limit).bind(ROWS_PER_STEP).execute(conn).await?;
            deleted.rows_affected()
        }
    };
    Ok(DeleteStep { rows, has_more: scope.is_wide() && rows >= ROWS_PER_STEP.unsigned_abs() })
}

/// Inserts a tombstone for an id in all services and removes its rows from `services`. Returns the
/// number of rows.
pub(super) async fn delete_everywhere(
    conn: &mut SqliteConnection,
    services: &[Service],
    id: &TaskId,
) -> Result<u64, sqlx::Error> {
    insert_tombstone(conn, None, Some(id)).await?;
    let mut rows = 0;
    for service in services {
        rows += delete_task(conn, service, id).await?;
    }
    Ok(rows)
}

/// Inserts a tombstone. `None` stands for all services, or all ids.
async fn insert_tombstone(
    conn: &mut SqliteConnection,
    service: Option<&Service>,
    id: Option<&TaskId>,
) -> Result<(), sqlx::Error> {
    let seq: i64 = sqlx::query_scalar("UPDATE meta SET delete_seq = delete_seq + 1 RETURNING delete_seq")
        .fetch_one(&mut *conn)
        .await?;
    sqlx::query("INSERT INTO tombstone (seq, service, id) VALUES (?1, ?2, ?3)")
        .bind(seq)
        .bind(service.map(Service::as_str))
        .bind(id.map(|id| id.as_str().as_bytes()))
        .execute(conn)
        .await?;
    Ok(())
}

/// Continues the sequence of deletes of a former file in a new one, and inserts a tombstone for
/// everything: what a call under way returns may have been deleted from the former file.
pub(super) async fn continue_sequence(
    conn: &mut SqliteConnection,
    former_seq: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE meta SET delete_seq = MAX(delete_seq, ?1)")
        .bind(former_seq)
        .execute(&mut *conn)
        .await?;
    insert_tombstone(conn, None, None).await
}

async fn delete_task(
    conn: &mut SqliteConnection,
    service: &Service,
    id: &TaskId,
) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query("DELETE FROM task WHERE service = ?1 AND id = ?2")
        .bind(service.as_str())
        .bind(id.as_str().as_bytes())
        .execute(conn)
        .await?;
    Ok(deleted.rows_affected())
}
