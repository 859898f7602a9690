//! What a reader may read of some ids: as few rows as can be, each text verified. Called with the readers' pool; no policy
//! about failures here, but in [`group`], through which all statements go but those for what has to be read alone.

mod coalescer;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Row, SqliteConnection};

use super::state::{CorruptRow, Shared};
use super::tasks::{checksum, hex_array, mark};
use crate::task::{Service, TaskId};
use crate::token::Digest;

pub(super) use coalescer::{ReadCoalescer, TURNS};

/// Ids that one statement of [`find`] asks for.
const FIND_STEP: usize = 64;

/// All ids as one JSON array of hex strings. `CROSS JOIN` keeps the order of the loops: ids outermost, never a
/// scan of `task` (<https://www.sqlite.org/optoverview.html#manual_control_of_query_plans_using_cross_join>).
pub(super) const FIND: &str = "
    SELECT j.key, t.row, t.checksum, t.stored_at, t.used_hour, r.mark, t.body
    FROM json_each(?1) j
    CROSS JOIN task_right r ON r.service = ?2 AND r.id = unhex(j.value)
                           AND r.reader = (SELECT id FROM reader WHERE digest = ?3)
    CROSS JOIN task t ON t.row = r.task AND t.service = r.service AND t.id = r.id";

/// What [`FIND`] finds, as one row: numbers of each task, and the texts one after the other. Each row that comes from SQLite's
/// thread costs two changes of thread, several times what reading it does. `format` takes anything for a number, so
/// that a damaged row cannot make its text come without its numbers.
pub(super) const FIND_JOINED: &str = "
    SELECT group_concat(format('%d,%d,%d,%d,%d,%d,%d', j.key, t.row, t.checksum, t.stored_at, t.used_hour, r.mark,
                               iif(t.size <= ?3, length(t.body), -1)), ';'),
           group_concat(iif(t.size <= ?3, t.body, NULL), '')
    FROM json_each(?1) j
    CROSS JOIN task_right r ON r.service = ?2 AND r.id = unhex(j.value)
                           AND r.reader = (SELECT id FROM reader WHERE digest = ?4)
    CROSS JOIN task t ON t.row = r.task AND t.service = r.service AND t.id = r.id";

/// The same where readers differ: an element is a reader's digest and the id.
pub(super) const FIND_FOR_EACH: &str = "
    SELECT group_concat(format('%d,%d,%d,%d,%d,%d,%d', j.key, t.row, t.checksum, t.stored_at, t.used_hour, r.mark,
                               iif(t.size <= ?3, length(t.body), -1)), ';'),
           group_concat(iif(t.size <= ?3, t.body, NULL), '')
    FROM json_each(?1) j
    CROSS JOIN task_right r ON r.service = ?2 AND r.id = substr(unhex(j.value), 33)
                           AND r.reader = (SELECT id FROM reader WHERE digest = substr(unhex(j.value), 1, 32))
    CROSS JOIN task t ON t.row = r.task AND t.service = r.service AND t.id = r.id";

/// A verified row.
pub(super) struct Found {
    /// Place in the list of ids.
    pub(super) index: usize,
    pub(super) row: i64,
    pub(super) stored_at: i64,
    pub(super) used_hour: i64,
    pub(super) text: Bytes,
}

/// What came joined with others. In place of a task the index of an id that has to be looked at alone: its text is
/// long, or something does not verify, which may be the fault of another.
pub(super) type Joined = Vec<Result<Found, usize>>;

/// An id, and who wants to read it.
type Wanted<'a> = (&'a Digest, &'a TaskId);

/// Reads what `reader` may read of `ids`, some of them a statement, and hands each verified row to `found`, each bad one to
/// `damaged`. A statement may outlive this future, but not [`group::LONGEST`].
pub(super) async fn find(
    shared: &Arc<Shared>,
    pool: &SqlitePool,
    reader: &Digest,
    service: &Service,
    ids: &[&TaskId],
    mut found: impl FnMut(Found) -> ControlFlow<()>,
    damaged: impl FnMut(Option<CorruptRow>),
) -> Result<(), sqlx::Error> {
    let mut alone = Vec::new();
    for (step, ids) in ids.chunks(FIND_STEP).enumerate() {
        let first = step * FIND_STEP;
        // None: it failed, or the store was closed; what is to be counted is counted there.
        let Some(joined) = coalescer::find(shared, reader, service, ids).await else { return Ok(()) };
        for joined in joined {
            match joined {
                Ok(task) => {
                    if found(Found { index: first + task.index, ..task }).is_break() {
                        return Ok(());
                    }
                }
                Err(index) => alone.push(first + index),
            }
        }
    }
    if alone.is_empty() {
        return Ok(());
    }
    let picked: Vec<&TaskId> = alone.iter().map(|index| ids[*index]).collect();
    let found = |task: Found| found(Found { index: alone[task.index], ..task });
    find_by_row(pool, reader, service, &picked, found, damaged).await
}

/// Reads in one row what may come joined with others: texts of at most `longest` bytes.
async fn find_joined(
    conn: &mut SqliteConnection,
    service: &Service,
    wanted: &[Wanted<'_>],
    longest: i64,
) -> Result<Joined, sqlx::Error> {
    let Some(&(reader, _)) = wanted.first() else { return Ok(Vec::new()) };
    let query = if wanted.iter().all(|(other, _)| *other == reader) {
        sqlx::query(FIND_JOINED)
            .bind(hex_array(wanted.iter().map(|(_, id)| [id.as_str().as_bytes()])))
            .bind(service.as_str())
            .bind(longest)
            .bind(reader.as_bytes().as_slice())
    } else {
        sqlx::query(FIND_FOR_EACH)
            .bind(hex_array(wanted.iter().map(|(reader, id)| [reader.as_bytes(), id.as_str().as_bytes()])))
            .bind(service.as_str())
            .bind(longest)
    };
    take_apart(&query.fetch_one(conn).await?, service, wanted)
}

/// Verifies each text for the one who asked for it.
fn take_apart(row: &SqliteRow, service: &Service, wanted: &[Wanted<'_>]) -> Result<Joined, sqlx::Error> {
    // Bytes whatever SQLite calls them: joined blobs are text to it.
    let numbers: Option<&[u8]> = row.try_get_unchecked(0)?;
    let texts: &[u8] = row.try_get_unchecked::<Option<&[u8]>, _>(1)?.unwrap_or_default();
    let Some(numbers) = numbers else { return Ok(Vec::new()) };
    let parsed: Option<Vec<[i64; 7]>> = numbers.split(|byte| *byte == b';').map(seven).collect();
    let Some(parsed) = parsed else { return Ok((0..wanted.len()).map(Err).collect()) };
    let mut start = 0_usize;
    let found = parsed.into_iter().map(|[index, row, sum, stored_at, used_hour, right, length]| {
        let index = usize::try_from(index).ok().filter(|index| *index < wanted.len()).unwrap_or(0);
        let (reader, id) = wanted[index];
        let Ok(length) = usize::try_from(length) else { return Err(index) };
        let text = start.checked_add(length).and_then(|end| texts.get(start..end));
        start = start.saturating_add(length);
        let text = text.filter(|text| checksum(service, id, text) == sum).ok_or(index)?;
        if mark(reader, row, sum) != right {
            return Err(index);
        }
        Ok(Found { index, row, stored_at, used_hour, text: Bytes::copy_from_slice(text) })
    });
    Ok(found.collect())
}

fn seven(numbers: &[u8]) -> Option<[i64; 7]> {
    let mut seven = [0; 7];
    let mut numbers = std::str::from_utf8(numbers).ok()?.split(',');
    for number in &mut seven {
        *number = numbers.next()?.parse().ok()?;
    }
    Some(seven)
}

/// Reads row by row.
async fn find_by_row(
    pool: &SqlitePool,
    reader: &Digest,
    service: &Service,
    ids: &[&TaskId],
    mut found: impl FnMut(Found) -> ControlFlow<()>,
    mut damaged: impl FnMut(Option<CorruptRow>),
) -> Result<(), sqlx::Error> {
    let mut rows = sqlx::query(FIND)
        .bind(hex_array(ids.iter().map(|id| [id.as_str().as_bytes()])))
        .bind(service.as_str())
        .bind(reader.as_bytes().as_slice())
        .fetch(pool);
    while let Some(row) = rows.try_next().await? {
        match verify(&row, reader, service, ids) {
            Ok(Ok(verified)) => {
                if found(verified).is_break() {
                    break;
                }
            }
            Ok(Err(damage)) => damaged(Some(damage)),
            // A value of another type than was written: flipped bits in the row's header.
            Err(_) => damaged(
                row.try_get(1)
                    .and_then(|row_number| Ok(CorruptRow::Row { row: row_number, checksum: row.try_get(2)? }))
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
) -> Result<Result<Found, CorruptRow>, sqlx::Error> {
    let index = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
    let Some(id) = ids.get(index) else { return Err(sqlx::Error::RowNotFound) };
    let (row_number, stored_checksum, stored_mark) = (row.try_get(1)?, row.try_get(2)?, row.try_get(5)?);
    let text: &[u8] = row.try_get(6)?;
    if checksum(service, id, text) != stored_checksum {
        return Ok(Err(CorruptRow::Row { row: row_number, checksum: stored_checksum }));
    }
    if mark(reader, row_number, stored_checksum) != stored_mark {
        return Ok(Err(CorruptRow::Right { row: row_number, mark: stored_mark }));
    }
    Ok(Ok(Found {
        index,
        row: row_number,
        stored_at: row.try_get(3)?,
        used_hour: row.try_get(4)?,
        text: Bytes::copy_from_slice(text),
    }))
}
