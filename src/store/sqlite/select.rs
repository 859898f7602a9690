//! The statements that read stored tasks for lookups, and the verification of what they return.

use std::ops::ControlFlow;

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::checksum::{grant_checksum, record_checksum};
use super::deferred_writes::CorruptRow;
use super::json_array;
use crate::task::{Service, TaskId};
use crate::token::Digest;

/// Reads tasks as one row each. The ids are a JSON array of hexadecimal strings.
///
/// `CROSS JOIN` fixes the order of the loops: ids outermost, never a scan of `task`
/// (<https://www.sqlite.org/optoverview.html#manual_control_of_query_plans_using_cross_join>).
pub(super) const SELECT_ROWS: &str = "
    SELECT j.key, t.task_id, t.checksum, t.stored_at, t.used_hour, g.grant_checksum, t.record
    FROM json_each(?1) j
    CROSS JOIN task_grant g ON g.service = ?2 AND g.id = unhex(j.value)
                           AND g.reader_id = (SELECT reader_id FROM reader WHERE digest = ?3)
    CROSS JOIN task t ON t.task_id = g.task_id AND t.service = g.service AND t.id = g.id";

/// Reads the same tasks as a single row: the numbers of each task, and all records one after the
/// other. Every row that comes from SQLite's thread costs two thread switches, several times as
/// much as reading it.
///
/// `format` converts any value to a number, so that a damaged row cannot return its record without
/// its numbers.
pub(super) const SELECT_JOINED: &str = "
    SELECT group_concat(format('%d,%d,%d,%d,%d,%d,%d', j.key, t.task_id, t.checksum, t.stored_at, t.used_hour,
                               g.grant_checksum, iif(t.size <= ?3, length(t.record), -1)), ';'),
           group_concat(iif(t.size <= ?3, t.record, NULL), '')
    FROM json_each(?1) j
    CROSS JOIN task_grant g ON g.service = ?2 AND g.id = unhex(j.value)
                           AND g.reader_id = (SELECT reader_id FROM reader WHERE digest = ?4)
    CROSS JOIN task t ON t.task_id = g.task_id AND t.service = g.service AND t.id = g.id";

/// As [`SELECT_JOINED`], for different readers: each element is a reader's digest followed by the
/// id.
pub(super) const SELECT_JOINED_BY_READER: &str = "
    SELECT group_concat(format('%d,%d,%d,%d,%d,%d,%d', j.key, t.task_id, t.checksum, t.stored_at, t.used_hour,
                               g.grant_checksum, iif(t.size <= ?3, length(t.record), -1)), ';'),
           group_concat(iif(t.size <= ?3, t.record, NULL), '')
    FROM json_each(?1) j
    CROSS JOIN task_grant g ON g.service = ?2 AND g.id = substr(unhex(j.value), 33)
                           AND g.reader_id = (SELECT reader_id FROM reader
                                              WHERE digest = substr(unhex(j.value), 1, 32))
    CROSS JOIN task t ON t.task_id = g.task_id AND t.service = g.service AND t.id = g.id";

/// A task that was read and verified.
pub(in crate::store) struct FoundTask {
    /// Position in the list of ids.
    pub(in crate::store) index: usize,
    /// Column `task_id`.
    pub(in crate::store) row_id: i64,
    pub(in crate::store) stored_at: i64,
    pub(in crate::store) used_hour: i64,
    pub(in crate::store) record: Bytes,
}

/// Result of a joined statement for one id. There is none for an id without a stored task.
pub(super) enum JoinedResult {
    Found(FoundTask),
    /// Position of an id that must be read by itself: its record is too long for a joined
    /// statement, or it failed verification, which can be the fault of another one.
    ReadSeparately(usize),
}

impl JoinedResult {
    pub(super) fn index(&self) -> usize {
        match self {
            Self::Found(task) => task.index,
            Self::ReadSeparately(index) => *index,
        }
    }

    pub(super) fn with_index(self, index: usize) -> Self {
        match self {
            Self::Found(task) => Self::Found(FoundTask { index, ..task }),
            Self::ReadSeparately(_) => Self::ReadSeparately(index),
        }
    }
}

/// Reads tasks in one row, each for its own reader. Records longer than `max_record_bytes` are not
/// included.
pub(super) async fn select_joined(
    conn: &mut SqliteConnection,
    service: &Service,
    wanted: &[(&Digest, &TaskId)],
    max_record_bytes: i64,
) -> Result<Vec<JoinedResult>, sqlx::Error> {
    let Some(&(reader, _)) = wanted.first() else { return Ok(Vec::new()) };
    let query = if wanted.iter().all(|(other, _)| *other == reader) {
        sqlx::query(SELECT_JOINED)
            .bind(json_array::of_hex(wanted.iter().map(|(_, id)| [id.as_str().as_bytes()])))
            .bind(service.as_str())
            .bind(max_record_bytes)
            .bind(reader.as_bytes().as_slice())
    } else {
        let elements = wanted.iter().map(|(reader, id)| [reader.as_bytes(), id.as_str().as_bytes()]);
        sqlx::query(SELECT_JOINED_BY_READER)
            .bind(json_array::of_hex(elements))
            .bind(service.as_str())
            .bind(max_record_bytes)
    };
    split_joined(&query.fetch_one(conn).await?, service, wanted)
}

/// Splits a joined row and verifies each record for the reader that requested it.
fn split_joined(
    row: &SqliteRow,
    service: &Service,
    wanted: &[(&Digest, &TaskId)],
) -> Result<Vec<JoinedResult>, sqlx::Error> {
    // Read as bytes without a check of the type: SQLite calls joined blobs text.
    let numbers: Option<&[u8]> = row.try_get_unchecked(0)?;
    let records: &[u8] = row.try_get_unchecked::<Option<&[u8]>, _>(1)?.unwrap_or_default();
    let Some(numbers) = numbers else { return Ok(Vec::new()) };
    let parsed: Option<Vec<[i64; 7]>> = numbers.split(|byte| *byte == b';').map(parse_numbers).collect();
    let Some(parsed) = parsed else {
        return Ok((0..wanted.len()).map(JoinedResult::ReadSeparately).collect());
    };
    let mut start = 0_usize;
    let results =
        parsed.into_iter().map(|[index, row_id, checksum, stored_at, used_hour, granted, length]| {
            let index = usize::try_from(index).ok().filter(|index| *index < wanted.len()).unwrap_or(0);
            let (reader, id) = wanted[index];
            let Ok(length) = usize::try_from(length) else { return JoinedResult::ReadSeparately(index) };
            let record = start.checked_add(length).and_then(|end| records.get(start..end));
            start = start.saturating_add(length);
            match record {
                Some(record)
                    if record_checksum(service, id, record) == checksum
                        && grant_checksum(reader, row_id, checksum) == granted =>
                {
                    let record = Bytes::copy_from_slice(record);
                    JoinedResult::Found(FoundTask { index, row_id, stored_at, used_hour, record })
                }
                _ => JoinedResult::ReadSeparately(index),
            }
        });
    Ok(results.collect())
}

fn parse_numbers(text: &[u8]) -> Option<[i64; 7]> {
    let mut numbers = [0; 7];
    let mut parts = std::str::from_utf8(text).ok()?.split(',');
    for number in &mut numbers {
        *number = parts.next()?.parse().ok()?;
    }
    Some(numbers)
}

/// Reads tasks one row each. Passes verified ones to `visit`, and damaged ones to `report_corrupt`,
/// with their row if it is known.
pub(super) async fn select_rows(
    conn: &mut SqliteConnection,
    reader: &Digest,
    service: &Service,
    ids: &[&TaskId],
    mut visit: impl FnMut(FoundTask) -> ControlFlow<()>,
    mut report_corrupt: impl FnMut(Option<CorruptRow>),
) -> Result<(), sqlx::Error> {
    let mut rows = sqlx::query(SELECT_ROWS)
        .bind(json_array::of_hex(ids.iter().map(|id| [id.as_str().as_bytes()])))
        .bind(service.as_str())
        .bind(reader.as_bytes().as_slice())
        .fetch(conn);
    while let Some(row) = rows.try_next().await? {
        match verify(&row, reader, service, ids) {
            Ok(Ok(task)) => {
                if visit(task).is_break() {
                    break;
                }
            }
            Ok(Err(corrupt)) => report_corrupt(Some(corrupt)),
            // A value has another type than was written: flipped bits in the header of the row.
            Err(_) => report_corrupt(
                row.try_get(1)
                    .and_then(|row_id| Ok(CorruptRow::Task { row_id, checksum: row.try_get(2)? }))
                    .ok(),
            ),
        }
    }
    Ok(())
}

fn verify(
    row: &SqliteRow,
    reader: &Digest,
    service: &Service,
    ids: &[&TaskId],
) -> Result<Result<FoundTask, CorruptRow>, sqlx::Error> {
    let index = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
    let Some(id) = ids.get(index) else { return Err(sqlx::Error::RowNotFound) };
    let (row_id, checksum, granted) = (row.try_get(1)?, row.try_get(2)?, row.try_get(5)?);
    let record: &[u8] = row.try_get(6)?;
    if record_checksum(service, id, record) != checksum {
        return Ok(Err(CorruptRow::Task { row_id, checksum }));
    }
    if grant_checksum(reader, row_id, checksum) != granted {
        return Ok(Err(CorruptRow::Grant { row_id, checksum: granted }));
    }
    Ok(Ok(FoundTask {
        index,
        row_id,
        stored_at: row.try_get(3)?,
        used_hour: row.try_get(4)?,
        record: Bytes::copy_from_slice(record),
    }))
}
