//! Inserting tasks and grants, inside a transaction of the caller.

use std::collections::HashMap;

use sqlx::SqliteConnection;

use super::checksum::{grant_checksum, record_checksum};
use super::json_array;
use crate::task::{FinalRecord, Service, TaskId};
use crate::token::Digest;

/// Reads the rows that exist for the ids of a batch. The row itself must have the id, not only its
/// index entry. If they differ, the file is damaged: lookups miss the task, and it must be stored
/// again.
const SELECT_EXISTING: &str = "
    SELECT j.key, t.task_id, t.checksum, t.size, t.stored_at,
           EXISTS (SELECT 1 FROM task_grant g
                   WHERE g.service = t.service AND g.id = t.id AND g.reader_id = ?3
                   AND g.task_id = t.task_id) AS is_granted
    FROM json_each(?1) j
    CROSS JOIN task i INDEXED BY task_by_id ON i.service = ?2 AND i.id = unhex(j.value)
    CROSS JOIN task t ON t.task_id = i.task_id AND t.service = ?2 AND t.id = unhex(j.value)
    ORDER BY j.key, t.task_id";

/// Tasks of one upstream response.
pub(super) struct NewTasks<'a> {
    pub(super) reader: &'a Digest,
    pub(super) service: &'a Service,
    /// Sequence number of the last delete when the upstream call began. What was deleted since is
    /// not stored.
    pub(super) delete_seq: i64,
    pub(super) tasks: &'a [FinalRecord],
}

/// Result of an insert for one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InsertResult {
    /// Deleted since the upstream call began; not stored.
    Deleted,
    /// The reader had a grant for a record of this id already.
    AlreadyGranted,
    /// Stored in this row, or the same bytes were found there.
    Stored { row_id: i64, stored_at: i64 },
}

/// Inserts tasks. Readers with the same bytes share a row. `stored_at` returns the date of a task
/// by its index.
pub(super) async fn insert_tasks(
    conn: &mut SqliteConnection,
    new: &NewTasks<'_>,
    stored_at: impl Fn(usize) -> i64,
    now: i64,
) -> Result<Vec<InsertResult>, sqlx::Error> {
    let NewTasks { reader, service, delete_seq, tasks } = *new;
    let tombstones: Vec<(Option<String>, Option<Vec<u8>>)> =
        sqlx::query_as("SELECT service, id FROM tombstone WHERE seq > ?1")
            .bind(delete_seq)
            .fetch_all(&mut *conn)
            .await?;
    let is_deleted = |id: &TaskId| {
        tombstones.iter().any(|(deleted_service, deleted_id)| {
            deleted_service.as_deref().is_none_or(|deleted| deleted == service.as_str())
                && deleted_id.as_deref().is_none_or(|deleted| deleted == id.as_str().as_bytes())
        })
    };
    let reader_id = find_or_insert_reader(conn, reader).await?;
    let existing = select_existing(conn, reader_id, service, tasks).await?;

    let mut results: Vec<InsertResult> = Vec::with_capacity(tasks.len());
    let mut seen: HashMap<&TaskId, usize> = HashMap::with_capacity(tasks.len());
    for (index, task) in tasks.iter().enumerate() {
        if is_deleted(&task.id) {
            results.push(InsertResult::Deleted);
            continue;
        }
        if seen.insert(&task.id, index).is_some() || existing[index].iter().any(|row| row.is_granted) {
            results.push(InsertResult::AlreadyGranted);
            continue;
        }
        let checksum = record_checksum(service, &task.id, &task.json);
        let size = i64::try_from(task.json.len()).unwrap_or(i64::MAX);
        let mut shared_row = None;
        for row in existing[index].iter().filter(|row| row.checksum == checksum && row.size == size) {
            // Isolation demands equal bytes; equal checksums do not prove them.
            let record: Option<Vec<u8>> = sqlx::query_scalar("SELECT record FROM task WHERE task_id = ?1")
                .bind(row.row_id)
                .fetch_optional(&mut *conn)
                .await?;
            if record.as_deref() == Some(&task.json[..]) {
                shared_row = Some((row.row_id, row.stored_at));
                break;
            }
        }
        let (row_id, stored_at) = match shared_row {
            Some(row) => row,
            None => {
                let stored_at = stored_at(index);
                let inserted = sqlx::query(
                    "INSERT INTO task (service, id, checksum, size, stored_at, used_hour, record)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )
                .bind(service.as_str())
                .bind(task.id.as_str().as_bytes())
                .bind(checksum)
                .bind(size)
                .bind(stored_at)
                .bind(now / 3600)
                .bind(&task.json[..])
                .execute(&mut *conn)
                .await?;
                (inserted.last_insert_rowid(), stored_at)
            }
        };
        // An existing grant points to no row of this id; otherwise the task would be granted
        // already.
        sqlx::query(
            "INSERT INTO task_grant (service, id, reader_id, task_id, grant_checksum)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET task_id = excluded.task_id, grant_checksum = excluded.grant_checksum",
        )
        .bind(service.as_str())
        .bind(task.id.as_str().as_bytes())
        .bind(reader_id)
        .bind(row_id)
        .bind(grant_checksum(reader, row_id, checksum))
        .execute(&mut *conn)
        .await?;
        results.push(InsertResult::Stored { row_id, stored_at });
    }
    Ok(results)
}

struct ExistingRow {
    row_id: i64,
    checksum: i64,
    size: i64,
    stored_at: i64,
    /// Whether the reader has a grant for this row.
    is_granted: bool,
}

/// Returns the existing rows of each task.
async fn select_existing(
    conn: &mut SqliteConnection,
    reader_id: i64,
    service: &Service,
    tasks: &[FinalRecord],
) -> Result<Vec<Vec<ExistingRow>>, sqlx::Error> {
    let rows: Vec<(i64, i64, i64, i64, i64, bool)> = sqlx::query_as(SELECT_EXISTING)
        .bind(json_array::of_hex(tasks.iter().map(|task| [task.id.as_str().as_bytes()])))
        .bind(service.as_str())
        .bind(reader_id)
        .fetch_all(&mut *conn)
        .await?;
    let mut existing: Vec<Vec<ExistingRow>> = tasks.iter().map(|_| Vec::new()).collect();
    for (index, row_id, checksum, size, stored_at, is_granted) in rows {
        if let Some(rows) = usize::try_from(index).ok().and_then(|index| existing.get_mut(index)) {
            rows.push(ExistingRow { row_id, checksum, size, stored_at, is_granted });
        }
    }
    Ok(existing)
}

async fn find_or_insert_reader(conn: &mut SqliteConnection, reader: &Digest) -> Result<i64, sqlx::Error> {
    let digest = reader.as_bytes().as_slice();
    let known = sqlx::query_scalar("SELECT reader_id FROM reader WHERE digest = ?1")
        .bind(digest)
        .fetch_optional(&mut *conn)
        .await?;
    match known {
        Some(reader_id) => Ok(reader_id),
        None => {
            sqlx::query_scalar("INSERT INTO reader (digest) VALUES (?1) RETURNING reader_id")
                .bind(digest)
                .fetch_one(conn)
                .await
        }
    }
}
