//! Looking at what is stored: a page of a listing with filters, and the texts of one id. Used by the running store
//! and by the commands beside it; no policy about failures here.
//!
//! Every statement looks at a bounded number of tasks, however many are stored, and ends before the next begins: no
//! read keeps the write-ahead log from being emptied. The readers of a task are found among those of its id.

mod served;

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, SqliteConnection};

use super::tasks::{checksum, number_array};
use crate::task::{MAX_SUMMARIZED_BYTES, Service, TaskId, TaskSummary};
use crate::token::Digest;

/// Rows that one page looks at; fewer where titles are looked at, which means reading texts.
const LOOKS: usize = 10_000;
const LOOKS_WITH_TEXT: usize = 2_000;

/// Rows that one statement looks at.
const STEP: usize = 500;
const STEP_WITH_TEXT: usize = 100;

/// A service that has no more rows than this is listed without a look at the others'.
const FEW: i64 = 5000;

/// A page ends early after this, on a slow disk for example.
const PATIENCE: Duration = Duration::from_secs(1);

/// Readers of a task that are counted.
const MOST_READERS: i64 = 1000;

/// Rows in the order in which they were stored, last first.
pub(super) const NEWEST: &str =
    "SELECT row, service, stored_at FROM task WHERE row < ?1 ORDER BY row DESC LIMIT ?2";

/// Whether a service has more rows than a few, which are quickly read and sorted.
pub(super) const COUNT_OF_SERVICE: &str =
    "SELECT COUNT(*) FROM (SELECT 1 FROM task WHERE service = ?1 LIMIT ?2)";

/// The same of a service that has few.
pub(super) const NEWEST_OF_FEW: &str = "
    SELECT row, service, stored_at FROM task
    WHERE row IN (SELECT row FROM task INDEXED BY task_by_id WHERE service = ?3 LIMIT ?4) AND row < ?1
    ORDER BY row DESC LIMIT ?2";

/// Rows of a service whose ids lie in a range, in the order of ids.
pub(super) const BY_ID: &str = "
    SELECT row, id, stored_at FROM task WHERE service = ?1 AND (id, row) > (?2, ?3) AND id < ?4
    ORDER BY id, row LIMIT ?5";

/// What a listing tells of rows. `CROSS JOIN` keeps the rows outermost.
pub(super) const DETAILS: &str = "
    SELECT t.row, t.service, t.id, t.size, t.stored_at,
           (SELECT COUNT(*) FROM (SELECT 1 FROM task_right r
                                  WHERE r.service = t.service AND r.id = t.id AND r.task = t.row LIMIT ?2)),
           CASE WHEN t.size <= ?3 THEN t.body END
    FROM json_each(?1) j CROSS JOIN task t ON t.row = j.value";

/// Texts of an id.
pub(super) const TEXTS: &str = "
    SELECT row, checksum, size, stored_at FROM task WHERE service = ?1 AND id = ?2 ORDER BY row LIMIT ?3";

/// The next service in the order of names.
pub(super) const NEXT_SERVICE: &str = "SELECT service FROM task WHERE service > ?1 ORDER BY service LIMIT 1";

/// What to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Tasks of this service alone.
    pub service: Option<Service>,
    /// Tasks whose id begins with this, byte for byte.
    pub id_prefix: Option<String>,
    /// Tasks stored at this second or later, in seconds since the Unix epoch.
    pub stored_after: Option<i64>,
    /// Tasks stored before this second.
    pub stored_before: Option<i64>,
    /// Tasks whose title contains this, whatever the case.
    pub title: Option<String>,
}

/// Where a page of a listing ends. As text for the next request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListCursor {
    /// After this row, in a listing of the last stored first.
    Row(i64),
    /// After this row of an id, in a listing by id.
    Id {
        /// The service.
        service: Service,
        /// The id's bytes.
        id: Vec<u8>,
        /// The row.
        row: i64,
    },
}

impl ListCursor {
    /// Reads what [`fmt::Display`] wrote; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let row = |text: &str| text.parse().ok().filter(|row| *row >= 0 && !text.starts_with('+'));
        match text.split('.').collect::<Vec<_>>()[..] {
            [text] => Some(Self::Row(row(text)?)),
            [service, id, text] => {
                Some(Self::Id { service: Service::parse(service)?, id: from_hex(id)?, row: row(text)? })
            }
            _ => None,
        }
    }
}

impl fmt::Display for ListCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(row) => write!(f, "{row}"),
            Self::Id { service, id, row } => {
                write!(f, "{service}.")?;
                id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                write!(f, ".{row}")
            }
        }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks_exact(2);
    let whole = pairs.remainder().is_empty() && text.len() <= 2048;
    whole.then(|| pairs.map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect())?
}

/// A task in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedTask {
    /// Its row.
    pub row: i64,
    /// Its service.
    pub service: Service,
    /// Its id.
    pub id: TaskId,
    /// Bytes of its text.
    pub size: u64,
    /// When it was stored, in seconds since the Unix epoch.
    pub stored_at: i64,
    /// How many may read it, counted up to 1,000.
    pub readers: u64,
    /// Its text, if that is at most 64 KiB.
    pub record: Option<Bytes>,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskPage {
    /// Last stored first; with an id prefix by service and id.
    pub tasks: Vec<ListedTask>,
    /// Where to go on; `None` at the end.
    pub next: Option<ListCursor>,
}

/// One of the texts that are stored for an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordDetails {
    /// Its service.
    pub service: Service,
    /// When it was stored, in seconds since the Unix epoch.
    pub stored_at: i64,
    /// Bytes of it.
    pub size: u64,
    /// Who may read it.
    pub readers: Vec<Digest>,
    /// The upstream's bytes; `None` if they are damaged, or more than was asked for.
    pub record: Option<Bytes>,
    /// Whether they are damaged.
    pub is_damaged: bool,
}

/// How much of an id's texts is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextLimits {
    /// Texts.
    pub(super) texts: i64,
    /// Bytes of them together.
    pub(super) bytes: u64,
    /// Readers of each.
    pub(super) readers: i64,
}

impl TextLimits {
    /// Everything.
    pub(super) const NONE: Self = Self { texts: i64::MAX, bytes: u64::MAX, readers: i64::MAX };
}

/// One page: up to `limit` tasks that the filter and `may_be_shown` let through. It ends early when it has looked at
/// many rows or for long, so that it may be short and still have a next one.
pub(super) async fn page(
    conn: &mut SqliteConnection,
    filter: &TaskFilter,
    cursor: Option<ListCursor>,
    limit: usize,
    may_be_shown: impl Fn(&ListedTask) -> bool,
) -> Result<TaskPage, sqlx::Error> {
    let start = Instant::now();
    let title = filter.title.as_ref().map(|title| title.to_lowercase());
    let (mut looks, step) = if title.is_some() { (LOOKS_WITH_TEXT, STEP_WITH_TEXT) } else { (LOOKS, STEP) };
    let mut listed = TaskPage { tasks: Vec::new(), next: cursor };
    while looks > 0 && start.elapsed() < PATIENCE {
        let Looked { rows, next } = look(conn, filter, listed.next.as_ref(), step.min(looks)).await?;
        // Also where there was nothing: going on to the next service is a look too.
        looks -= rows.len().max(1);
        let candidates: Vec<i64> =
            rows.iter().filter(|row| filter.lets_through(row)).map(|row| row.row).collect();
        let mut candidates = &candidates[..];
        while !candidates.is_empty() {
            let wanted = limit - listed.tasks.len();
            let count = if title.is_some() { STEP_WITH_TEXT } else { STEP_WITH_TEXT.min(wanted) };
            let (now, later) = candidates.split_at(count.min(candidates.len()));
            for seen in details(conn, now).await? {
                if !may_be_shown(&seen) || title.as_ref().is_some_and(|title| !has_title(&seen, title)) {
                    continue;
                }
                let at = rows.iter().position(|row| row.row == seen.row);
                listed.tasks.push(seen);
                if listed.tasks.len() == limit {
                    // Of the last row looked at it is known whether there is more.
                    listed.next = match at {
                        Some(at) if at + 1 < rows.len() => Some(rows[at].cursor.clone()),
                        _ => next,
                    };
                    return Ok(listed);
                }
            }
            if title.is_some() {
                // Reading texts takes a while, and clients wait for this thread too.
                tokio::task::yield_now().await;
            }
            candidates = later;
        }
        listed.next = next;
        if listed.next.is_none() {
            break;
        }
    }
    Ok(listed)
}

fn has_title(seen: &ListedTask, lower_case: &str) -> bool {
    let title = seen.record.as_ref().and_then(|text| TaskSummary::parse(text).title);
    title.is_some_and(|title| title.to_lowercase().contains(lower_case))
}

/// A row that is looked at.
struct Row {
    row: i64,
    /// `None` where it is the one that was asked for.
    service: Option<String>,
    stored_at: i64,
    /// Where to go on behind it.
    cursor: ListCursor,
}

/// Some rows of a listing.
struct Looked {
    rows: Vec<Row>,
    /// Where to go on; `None` at the end.
    next: Option<ListCursor>,
}

impl TaskFilter {
    /// Whether a cursor is one of such a listing.
    pub fn takes(&self, cursor: &ListCursor) -> bool {
        match cursor {
            ListCursor::Row(_) => self.id_prefix.is_none(),
            ListCursor::Id { service, .. } => {
                self.id_prefix.is_some() && self.service.as_ref().is_none_or(|wanted| wanted == service)
            }
        }
    }

    fn lets_through(&self, row: &Row) -> bool {
        let of_service = match (&self.service, &row.service) {
            (Some(wanted), Some(service)) => wanted.as_str() == service,
            _ => true,
        };
        of_service
            && self.stored_after.is_none_or(|after| row.stored_at >= after)
            && self.stored_before.is_none_or(|before| row.stored_at < before)
    }
}

/// Looks at the next rows of a listing, at most `count`.
async fn look(
    conn: &mut SqliteConnection,
    filter: &TaskFilter,
    cursor: Option<&ListCursor>,
    count: usize,
) -> Result<Looked, sqlx::Error> {
    let Some(prefix) = &filter.id_prefix else {
        let from = match cursor {
            Some(ListCursor::Row(row)) => *row,
            _ => i64::MAX,
        };
        return look_at_newest(conn, filter.service.as_ref(), from, count).await;
    };
    let (service, id, row) = match (cursor, &filter.service) {
        (Some(ListCursor::Id { service, id, row }), _) => (service.clone(), id.clone(), *row),
        (_, Some(service)) => (service.clone(), Vec::new(), 0),
        _ => match next_service(conn, "").await? {
            Some(service) => (service, Vec::new(), 0),
            None => return Ok(Looked { rows: Vec::new(), next: None }),
        },
    };
    let looked = look_at_ids(conn, &service, prefix.as_bytes(), (id, row), count).await?;
    if looked.next.is_some() || filter.service.is_some() {
        return Ok(looked);
    }
    let next = next_service(conn, service.as_str()).await?;
    let next = next.map(|service| ListCursor::Id { service, id: Vec::new(), row: 0 });
    Ok(Looked { next, ..looked })
}

async fn look_at_newest(
    conn: &mut SqliteConnection,
    service: Option<&Service>,
    from: i64,
    count: usize,
) -> Result<Looked, sqlx::Error> {
    let mut few = None;
    if let Some(service) = service {
        let count = sqlx::query_scalar(COUNT_OF_SERVICE).bind(service.as_str()).bind(FEW + 1);
        let count: i64 = count.fetch_one(&mut *conn).await?;
        few = (count <= FEW).then_some(service);
    }
    let rows = match few {
        Some(service) => {
            sqlx::query_as(NEWEST_OF_FEW).bind(from).bind(one_more(count)).bind(service.as_str()).bind(FEW)
        }
        None => sqlx::query_as(NEWEST).bind(from).bind(one_more(count)),
    };
    let rows: Vec<(i64, String, i64)> = rows.fetch_all(conn).await?;
    let row = |(row, service, stored_at)| Row {
        row,
        service: Some(service),
        stored_at,
        cursor: ListCursor::Row(row),
    };
    Ok(Looked::new(rows.into_iter().map(row).collect(), count))
}

async fn look_at_ids(
    conn: &mut SqliteConnection,
    service: &Service,
    prefix: &[u8],
    after: (Vec<u8>, i64),
    count: usize,
) -> Result<Looked, sqlx::Error> {
    let (id, row) = if after.0.as_slice() < prefix { (prefix.to_vec(), 0) } else { after };
    let rows: Vec<(i64, Vec<u8>, i64)> = sqlx::query_as(BY_ID)
        .bind(service.as_str())
        .bind(id)
        .bind(row)
        .bind(end_of_prefix(prefix))
        .bind(one_more(count))
        .fetch_all(conn)
        .await?;
    let row = |(row, id, stored_at)| Row {
        row,
        service: None,
        stored_at,
        cursor: ListCursor::Id { service: service.clone(), id, row },
    };
    Ok(Looked::new(rows.into_iter().map(row).collect(), count))
}

/// One row more than is wanted tells whether there is more.
fn one_more(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX).saturating_add(1)
}

impl Looked {
    fn new(mut rows: Vec<Row>, count: usize) -> Self {
        let more = rows.len() > count;
        rows.truncate(count);
        let next = rows.last().filter(|_| more).map(|row| row.cursor.clone());
        Self { rows, next }
    }
}

/// The first bytes behind everything that begins with `prefix`, which is UTF-8 and so has no byte 255.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    match end.last_mut() {
        Some(last) => *last = last.saturating_add(1),
        None => end.push(u8::MAX),
    }
    end
}

async fn next_service(conn: &mut SqliteConnection, after: &str) -> Result<Option<Service>, sqlx::Error> {
    let mut after = after.to_owned();
    loop {
        let next: Option<String> =
            sqlx::query_scalar(NEXT_SERVICE).bind(&after).fetch_optional(&mut *conn).await?;
        let Some(next) = next else { return Ok(None) };
        // One that is none is damage; what is behind it is sound.
        match Service::parse(&next) {
            Some(service) => return Ok(Some(service)),
            None => after = next,
        }
    }
}

/// All services that have tasks: one step through the index for each.
pub(super) async fn services(conn: &mut SqliteConnection) -> Result<Vec<Service>, sqlx::Error> {
    let mut services: Vec<Service> = Vec::new();
    while let Some(service) = next_service(conn, services.last().map_or("", Service::as_str)).await? {
        services.push(service);
    }
    Ok(services)
}

/// What a listing tells of these rows, in their order. Those that are gone or damaged beyond reading are left out.
async fn details(conn: &mut SqliteConnection, rows: &[i64]) -> Result<Vec<ListedTask>, sqlx::Error> {
    let found = sqlx::query(DETAILS)
        .bind(number_array(rows))
        .bind(MOST_READERS)
        .bind(i64::try_from(MAX_SUMMARIZED_BYTES).unwrap_or(i64::MAX))
        .fetch_all(conn)
        .await?;
    let mut found: Vec<ListedTask> = found.iter().filter_map(seen).collect();
    found.sort_by_key(|seen| rows.iter().position(|row| *row == seen.row));
    Ok(found)
}

fn seen(row: &SqliteRow) -> Option<ListedTask> {
    type Columns = (i64, String, Vec<u8>, i64, i64, i64, Option<Vec<u8>>);
    let (row, service, id, size, stored_at, readers, text) = Columns::from_row(row).ok()?;
    Some(ListedTask {
        row,
        service: Service::parse(&service)?,
        id: TaskId::parse(std::str::from_utf8(&id).ok()?)?,
        size: unsigned(size),
        stored_at,
        readers: unsigned(readers),
        record: text.map(Bytes::from),
    })
}

/// Texts stored for an id, oldest first, within `limits`.
pub(super) async fn texts(
    conn: &mut SqliteConnection,
    service: &Service,
    id: &TaskId,
    limits: TextLimits,
) -> Result<Vec<RecordDetails>, sqlx::Error> {
    let rows: Vec<(i64, i64, i64, i64)> = sqlx::query_as(TEXTS)
        .bind(service.as_str())
        .bind(id.as_str().as_bytes())
        .bind(limits.texts)
        .fetch_all(&mut *conn)
        .await?;
    let (mut texts, mut bytes) = (Vec::with_capacity(rows.len()), 0_u64);
    for (row, sum, size, stored_at) in rows {
        let size = unsigned(size);
        bytes = bytes.saturating_add(size);
        let is_read = bytes <= limits.bytes;
        let mut text: Option<Vec<u8>> = None;
        if is_read {
            let body = sqlx::query_scalar("SELECT body FROM task WHERE row = ?1 AND checksum = ?2");
            text = body.bind(row).bind(sum).fetch_optional(&mut *conn).await?;
            if text.is_none() {
                // Removed since.
                continue;
            }
        }
        let readers: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT r.digest FROM task_right t CROSS JOIN reader r ON r.id = t.reader
             WHERE t.service = ?1 AND t.id = ?2 AND t.task = ?3 ORDER BY t.reader LIMIT ?4",
        )
        .bind(service.as_str())
        .bind(id.as_str().as_bytes())
        .bind(row)
        .bind(limits.readers)
        .fetch_all(&mut *conn)
        .await?;
        let digests = readers.into_iter().filter_map(|digest| <[u8; 32]>::try_from(digest).ok());
        let text = text.filter(|text| checksum(service, id, text) == sum);
        texts.push(RecordDetails {
            service: service.clone(),
            stored_at,
            size,
            readers: digests.map(Digest::from).collect(),
            is_damaged: is_read && text.is_none(),
            record: text.map(Bytes::from),
        });
    }
    Ok(texts)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
