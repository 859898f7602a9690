//! The SQL of tasks and rights: keep and forget; [`find`](super::find) has a room of its own. Called with the writer's
//! connection inside a transaction; no policy about failures here.

use std::collections::HashMap;
use std::fmt::Write as _;

use sqlx::SqliteConnection;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::DeleteScope;
use super::state::{CorruptRow, TakenWrites};
use crate::task::{FinalRecord, Service, TaskId};
use crate::token::Digest;

/// Rows that one statement of a wide forget removes.
const FORGET_STEP: i64 = 1000;

/// What is known of the ids of a batch before it is written. The row itself has to be of the id, as look-ups see it: an
/// index that says otherwise than its table is damaged, and the task would be missed and not stored again for ever.
const KNOWN: &str = "
    SELECT j.key, t.row, t.checksum, t.size, t.stored_at,
           EXISTS (SELECT 1 FROM task_right r
                   WHERE r.service = t.service AND r.id = t.id AND r.reader = ?3 AND r.task = t.row) AS held
    FROM json_each(?1) j
    CROSS JOIN task i INDEXED BY task_by_id ON i.service = ?2 AND i.id = unhex(j.value)
    CROSS JOIN task t ON t.row = i.row AND t.service = ?2 AND t.id = unhex(j.value)
    ORDER BY j.key, t.row";

/// XXH3-64 over service, id and body. Each part seeds the next and XXH3 takes in the length of each, so that no
/// byte can move from one part to another unseen.
pub(super) fn checksum(service: &Service, id: &TaskId, text: &[u8]) -> i64 {
    let service = xxh3_64(service.as_str().as_bytes());
    let id = xxh3_64_with_seed(id.as_str().as_bytes(), service);
    xxh3_64_with_seed(text, id).cast_signed()
}

/// The mark of a right: ties the reader's digest to the row and its checksum.
pub(super) fn mark(reader: &Digest, row: i64, checksum: i64) -> i64 {
    let mut bytes = [0; 48];
    bytes[..32].copy_from_slice(reader.as_bytes());
    bytes[32..40].copy_from_slice(&row.to_le_bytes());
    bytes[40..].copy_from_slice(&checksum.to_le_bytes());
    xxh3_64(&bytes).cast_signed()
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// A JSON array of bytes in hex, each element the parts one after the other: every id passes, NUL and all, and
/// nothing needs escaping.
pub(super) fn hex_array<'a, const PARTS: usize>(elements: impl Iterator<Item = [&'a [u8]; PARTS]>) -> String {
    let mut json = String::from("[");
    for parts in elements {
        json.push_str(if json.len() == 1 { "\"" } else { ",\"" });
        for byte in parts.into_iter().flatten() {
            json.push(char::from(HEX[usize::from(byte >> 4)]));
            json.push(char::from(HEX[usize::from(byte & 15)]));
        }
        json.push('"');
    }
    json.push(']');
    json
}

pub(super) fn number_array(numbers: &[i64]) -> String {
    let mut json = String::from("[");
    for number in numbers {
        if json.len() > 1 {
            json.push(',');
        }
        write!(json, "{number}").expect("a String takes everything");
    }
    json.push(']');
    json
}

/// What became of a task in [`keep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Forgotten since the call began.
    Forgotten,
    /// The reader had the right to a row of this id before.
    Already,
    /// In this row, with these bytes.
    Stored { row: i64, stored_at: i64 },
}

/// Stores `tasks` for `reader`, inside the caller's transaction. Rows are shared where the bytes are the same.
pub(super) async fn keep(
    conn: &mut SqliteConnection,
    reader: &Digest,
    service: &Service,
    seq: i64,
    tasks: &[FinalRecord],
    now: i64,
) -> Result<Vec<Kept>, sqlx::Error> {
    keep_dated(conn, reader, service, seq, tasks, |_| now, now).await
}

/// The same for tasks that were stored before somewhere else; `date` tells when, by place in `tasks`.
pub(super) async fn keep_dated(
    conn: &mut SqliteConnection,
    reader: &Digest,
    service: &Service,
    seq: i64,
    tasks: &[FinalRecord],
    date: impl Fn(usize) -> i64,
    now: i64,
) -> Result<Vec<Kept>, sqlx::Error> {
    let tombstones: Vec<(Option<String>, Option<Vec<u8>>)> =
        sqlx::query_as("SELECT service, id FROM forgotten WHERE seq > ?1")
            .bind(seq)
            .fetch_all(&mut *conn)
            .await?;
    let is_forgotten = |id: &TaskId| {
        tombstones.iter().any(|(of, one)| {
            of.as_deref().is_none_or(|of| of == service.as_str())
                && one.as_deref().is_none_or(|one| one == id.as_str().as_bytes())
        })
    };
    let reader_row = reader_row(conn, reader).await?;
    let known = known(conn, reader_row, service, tasks).await?;

    let mut kept: Vec<Kept> = Vec::with_capacity(tasks.len());
    let mut seen: HashMap<&TaskId, usize> = HashMap::with_capacity(tasks.len());
    for (index, task) in tasks.iter().enumerate() {
        if is_forgotten(&task.id) {
            kept.push(Kept::Forgotten);
            continue;
        }
        if seen.insert(&task.id, index).is_some() || known[index].iter().any(|row| row.held) {
            kept.push(Kept::Already);
            continue;
        }
        let sum = checksum(service, &task.id, &task.json);
        let size = i64::try_from(task.json.len()).unwrap_or(i64::MAX);
        let mut home = None;
        for row in known[index].iter().filter(|row| row.checksum == sum && row.size == size) {
            // A checksum is no proof: law 1 asks for the bytes.
            let body: Option<Vec<u8>> = sqlx::query_scalar("SELECT body FROM task WHERE row = ?1")
                .bind(row.row)
                .fetch_optional(&mut *conn)
                .await?;
            if body.as_deref() == Some(&task.json[..]) {
                home = Some((row.row, row.stored_at));
                break;
            }
        }
        let (row, stored_at) = match home {
            Some(home) => home,
            None => {
                let new = NewRow { checksum: sum, size, stored_at: date(index), used_hour: now / 3600 };
                (insert(conn, service, task, &new).await?, new.stored_at)
            }
        };
        // Where there is a right already, it leads to no row of this id: it would be held otherwise.
        sqlx::query(
            "INSERT INTO task_right (service, id, reader, task, mark) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET task = excluded.task, mark = excluded.mark",
        )
        .bind(service.as_str())
        .bind(task.id.as_str().as_bytes())
        .bind(reader_row)
        .bind(row)
        .bind(mark(reader, row, sum))
        .execute(&mut *conn)
        .await?;
        kept.push(Kept::Stored { row, stored_at });
    }
    Ok(kept)
}

struct KnownRow {
    row: i64,
    checksum: i64,
    size: i64,
    stored_at: i64,
    held: bool,
}

async fn known(
    conn: &mut SqliteConnection,
    reader_row: i64,
    service: &Service,
    tasks: &[FinalRecord],
) -> Result<Vec<Vec<KnownRow>>, sqlx::Error> {
    let rows: Vec<(i64, i64, i64, i64, i64, bool)> = sqlx::query_as(KNOWN)
        .bind(hex_array(tasks.iter().map(|task| [task.id.as_str().as_bytes()])))
        .bind(service.as_str())
        .bind(reader_row)
        .fetch_all(&mut *conn)
        .await?;
    let mut known: Vec<Vec<KnownRow>> = tasks.iter().map(|_| Vec::new()).collect();
    for (index, row, checksum, size, stored_at, held) in rows {
        if let Some(list) = usize::try_from(index).ok().and_then(|index| known.get_mut(index)) {
            list.push(KnownRow { row, checksum, size, stored_at, held });
        }
    }
    Ok(known)
}

async fn reader_row(conn: &mut SqliteConnection, reader: &Digest) -> Result<i64, sqlx::Error> {
    let digest = reader.as_bytes().as_slice();
    let known = sqlx::query_scalar("SELECT id FROM reader WHERE digest = ?1")
        .bind(digest)
        .fetch_optional(&mut *conn)
        .await?;
    match known {
        Some(row) => Ok(row),
        None => {
            sqlx::query_scalar("INSERT INTO reader (digest) VALUES (?1) RETURNING id")
                .bind(digest)
                .fetch_one(conn)
                .await
        }
    }
}

struct NewRow {
    checksum: i64,
    size: i64,
    stored_at: i64,
    used_hour: i64,
}

async fn insert(
    conn: &mut SqliteConnection,
    service: &Service,
    task: &FinalRecord,
    new: &NewRow,
) -> Result<i64, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO task (service, id, checksum, size, stored_at, used_hour, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .bind(service.as_str())
    .bind(task.id.as_str().as_bytes())
    .bind(new.checksum)
    .bind(new.size)
    .bind(new.stored_at)
    .bind(new.used_hour)
    .bind(&task.json[..])
    .execute(conn)
    .await?;
    Ok(inserted.last_insert_rowid())
}

/// Leaves a tombstone and removes the rows, inside the caller's transaction. Of a wide scope it removes one step
/// only: to be called again, in a new transaction, through [`forget_more`] while the answer's second part holds.
pub(super) async fn forget(
    conn: &mut SqliteConnection,
    scope: &DeleteScope,
    now: i64,
) -> Result<(u64, bool), sqlx::Error> {
    let (service, id) = match scope {
        DeleteScope::ByReader { service, id, .. } | DeleteScope::Task { service, id } => {
            (Some(service), Some(id))
        }
        DeleteScope::Service(service) => (Some(service), None),
        DeleteScope::OlderThan(_) => (None, None),
    };
    bury(conn, service, id).await?;
    forget_more(conn, scope, now).await
}

/// Leaves a tombstone for an id in all services and removes it from those given; the number of rows removed.
pub(super) async fn forget_everywhere(
    conn: &mut SqliteConnection,
    services: &[Service],
    id: &TaskId,
) -> Result<u64, sqlx::Error> {
    bury(conn, None, Some(id)).await?;
    let mut removed = 0;
    for service in services {
        removed += forget_task(conn, service, id).await?;
    }
    Ok(removed)
}

/// A tombstone: `None` stands for all services, or all ids.
async fn bury(
    conn: &mut SqliteConnection,
    service: Option<&Service>,
    id: Option<&TaskId>,
) -> Result<(), sqlx::Error> {
    let seq: i64 = sqlx::query_scalar("UPDATE meta SET forget_seq = forget_seq + 1 RETURNING forget_seq")
        .fetch_one(&mut *conn)
        .await?;
    sqlx::query("INSERT INTO forgotten (seq, service, id) VALUES (?1, ?2, ?3)")
        .bind(seq)
        .bind(service.map(Service::as_str))
        .bind(id.map(|id| id.as_str().as_bytes()))
        .execute(conn)
        .await?;
    Ok(())
}

/// Removes rows of `scope`: how many, and whether there may be more.
pub(super) async fn forget_more(
    conn: &mut SqliteConnection,
    scope: &DeleteScope,
    now: i64,
) -> Result<(u64, bool), sqlx::Error> {
    let removed = match scope {
        DeleteScope::ByReader { reader, service, id } => {
            let held: bool = sqlx::query_scalar(
                "SELECT EXISTS (
                     SELECT 1 FROM task_right r CROSS JOIN task t
                     ON t.row = r.task AND t.service = r.service AND t.id = r.id
                     WHERE r.service = ?1 AND r.id = ?2
                     AND r.reader = (SELECT id FROM reader WHERE digest = ?3))",
            )
            .bind(service.as_str())
            .bind(id.as_str().as_bytes())
            .bind(reader.as_bytes().as_slice())
            .fetch_one(&mut *conn)
            .await?;
            if !held {
                return Ok((0, false));
            }
            forget_task(conn, service, id).await?
        }
        DeleteScope::Task { service, id } => forget_task(conn, service, id).await?,
        DeleteScope::Service(service) => {
            sqlx::query("DELETE FROM task WHERE row IN (SELECT row FROM task WHERE service = ?1 LIMIT ?2)")
                .bind(service.as_str())
                .bind(FORGET_STEP)
                .execute(&mut *conn)
                .await?
                .rows_affected()
        }
        DeleteScope::OlderThan(age) => {
            let limit = now.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
            sqlx::query("DELETE FROM task WHERE row IN (SELECT row FROM task WHERE stored_at <= ?1 LIMIT ?2)")
                .bind(limit)
                .bind(FORGET_STEP)
                .execute(&mut *conn)
                .await?
                .rows_affected()
        }
    };
    Ok((removed, scope.is_wide() && removed >= FORGET_STEP.unsigned_abs()))
}

async fn forget_task(
    conn: &mut SqliteConnection,
    service: &Service,
    id: &TaskId,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query("DELETE FROM task WHERE service = ?1 AND id = ?2")
        .bind(service.as_str())
        .bind(id.as_str().as_bytes())
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// Writes last uses, acceptances, and drops what was found damaged.
pub(super) async fn chores(
    conn: &mut SqliteConnection,
    chores: &TakenWrites,
    hour: i64,
) -> Result<(), sqlx::Error> {
    for damage in &chores.damaged {
        let (sql, row, sum) = match *damage {
            CorruptRow::Row { row, checksum } => {
                ("DELETE FROM task WHERE row = ?1 AND checksum = ?2", row, checksum)
            }
            CorruptRow::Right { row, mark } => {
                let sql = "DELETE FROM task_right
                           WHERE (service, id) = (SELECT service, id FROM task WHERE row = ?1)
                           AND task = ?1 AND mark = ?2";
                (sql, row, mark)
            }
        };
        sqlx::query(sql).bind(row).bind(sum).execute(&mut *conn).await?;
    }
    for (token, acceptance) in &chores.acceptances {
        // A token that never was accepted leaves no trace: anyone can send random ones.
        let sql = if acceptance.is_revoked {
            "UPDATE reader SET accepted_at = ?2, ended = ?3 WHERE digest = ?1"
        } else {
            "INSERT INTO reader (digest, accepted_at, ended) VALUES (?1, ?2, ?3)
             ON CONFLICT (digest) DO UPDATE SET accepted_at = excluded.accepted_at, ended = excluded.ended"
        };
        sqlx::query(sql)
            .bind(token.as_bytes().as_slice())
            .bind(acceptance.accepted_at)
            .bind(acceptance.is_revoked)
            .execute(&mut *conn)
            .await?;
    }
    if !chores.touched.is_empty() {
        sqlx::query(
            "UPDATE task SET used_hour = ?1
             WHERE used_hour < ?1 AND row IN (SELECT value FROM json_each(?2))",
        )
        .bind(hour)
        .bind(number_array(&chores.touched))
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}
