//! Pages of stored tasks, for the running store and for commands.
//!
//! Every statement examines a bounded number of rows, however many are stored, and ends before the
//! next one begins, so that no read keeps the write-ahead log from being emptied.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, SqliteConnection};

use super::json_array;
use super::records::{next_service, unsigned};
use crate::store::{ListCursor, ListedTask, TaskFilter, TaskPage};
use crate::task::{MAX_SUMMARIZED_BYTES, Service, TaskId, TaskSummary};

/// Largest number of rows that one page examines, and one statement.
const ROW_BUDGET: Budget = Budget { page: 10_000, statement: 500 };

/// The same for a filter by title, which reads records.
const RECORD_BUDGET: Budget = Budget { page: 2_000, statement: 100 };

/// Largest number of tasks for which a service is listed without examining the rows of other
/// services.
const SMALL_SERVICE: i64 = 5000;

/// Time after which a page ends early, for example on a slow disk.
const PAGE_TIMEOUT: Duration = Duration::from_secs(1);

/// Largest number of readers of a task that are counted.
const MAX_READERS: i64 = 1000;

/// Rows in the order in which they were stored, last first.
pub(super) const NEWEST: &str =
    "SELECT task_id, service, stored_at FROM task WHERE task_id < ?1 ORDER BY task_id DESC LIMIT ?2";

/// Number of rows of a service, up to a limit.
pub(super) const COUNT_OF_SERVICE: &str =
    "SELECT COUNT(*) FROM (SELECT 1 FROM task WHERE service = ?1 LIMIT ?2)";

/// As [`NEWEST`], for a service with few rows.
pub(super) const NEWEST_OF_SMALL_SERVICE: &str = "
    SELECT task_id, service, stored_at FROM task
    WHERE task_id IN (SELECT task_id FROM task INDEXED BY task_by_id WHERE service = ?3 LIMIT ?4)
      AND task_id < ?1
    ORDER BY task_id DESC LIMIT ?2";

/// Rows of a service whose ids are in a range, in the order of ids.
pub(super) const BY_ID: &str = "
    SELECT task_id, id, stored_at FROM task WHERE service = ?1 AND (id, task_id) > (?2, ?3) AND id < ?4
    ORDER BY id, task_id LIMIT ?5";

/// What a listing shows of some rows. `CROSS JOIN` makes the rows the outer loop.
pub(super) const DETAILS: &str = "
    SELECT t.task_id, t.service, t.id, t.size, t.stored_at,
           (SELECT COUNT(*) FROM (
               SELECT 1 FROM task_grant g
               WHERE g.service = t.service AND g.id = t.id AND g.task_id = t.task_id LIMIT ?2)),
           CASE WHEN t.size <= ?3 THEN t.record END
    FROM json_each(?1) j CROSS JOIN task t ON t.task_id = j.value";

#[derive(Clone, Copy)]
struct Budget {
    page: usize,
    statement: usize,
}

/// Returns one page of up to `limit` tasks that match the filter and are visible. The page ends
/// early after many rows or a long time. It can therefore be short and still have a next one.
pub(super) async fn page(
    conn: &mut SqliteConnection,
    filter: &TaskFilter,
    cursor: Option<ListCursor>,
    limit: usize,
    is_visible: impl Fn(&ListedTask) -> bool,
) -> Result<TaskPage, sqlx::Error> {
    let start = Instant::now();
    let title = filter.title.as_ref().map(|title| title.to_lowercase());
    let budget = if title.is_some() { RECORD_BUDGET } else { ROW_BUDGET };
    let mut rows_left = budget.page;
    let mut page = TaskPage { tasks: Vec::new(), next: cursor };
    while rows_left > 0 && start.elapsed() < PAGE_TIMEOUT {
        let Candidates { rows, next } =
            candidates(conn, filter, page.next.as_ref(), budget.statement.min(rows_left)).await?;
        // An empty result counts too: the step to the next service is a statement.
        rows_left -= rows.len().max(1);
        let matching: Vec<i64> =
            rows.iter().filter(|row| row.matches(filter)).map(|row| row.row_id).collect();
        let mut matching = &matching[..];
        while !matching.is_empty() {
            let wanted = limit - page.tasks.len();
            let count =
                if title.is_some() { RECORD_BUDGET.statement } else { RECORD_BUDGET.statement.min(wanted) };
            let (now, later) = matching.split_at(count.min(matching.len()));
            for task in details(conn, now).await? {
                if !is_visible(&task) || title.as_ref().is_some_and(|title| !has_title(&task, title)) {
                    continue;
                }
                let position = rows.iter().position(|row| row.row_id == task.row_id);
                page.tasks.push(task);
                if page.tasks.len() == limit {
                    page.next = match position {
                        Some(position) if position + 1 < rows.len() => Some(rows[position].cursor.clone()),
                        // The last row of the statement: `next` is set if there are further rows.
                        _ => next,
                    };
                    return Ok(page);
                }
            }
            if title.is_some() {
                // Parsing records takes time that other tasks of this thread need too.
                tokio::task::yield_now().await;
            }
            matching = later;
        }
        page.next = next;
        if page.next.is_none() {
            break;
        }
    }
    Ok(page)
}

fn has_title(task: &ListedTask, lower_case: &str) -> bool {
    let title = task.record.as_ref().and_then(|record| TaskSummary::parse(record).title);
    title.is_some_and(|title| title.to_lowercase().contains(lower_case))
}

/// A row before its details are read.
struct CandidateRow {
    row_id: i64,
    /// `None` if the statement selected only the requested service.
    service: Option<String>,
    stored_at: i64,
    /// The cursor of a page that ends with this row.
    cursor: ListCursor,
}

impl CandidateRow {
    fn matches(&self, filter: &TaskFilter) -> bool {
        let is_of_service = match (&filter.service, &self.service) {
            (Some(wanted), Some(service)) => wanted.as_str() == service,
            _ => true,
        };
        is_of_service
            && filter.stored_after.is_none_or(|after| self.stored_at >= after)
            && filter.stored_before.is_none_or(|before| self.stored_at < before)
    }
}

/// Result of one statement of a listing.
struct Candidates {
    rows: Vec<CandidateRow>,
    /// Where the next statement continues; `None` at the end.
    next: Option<ListCursor>,
}

impl Candidates {
    /// `rows` has one more row than `count` if there are further rows; see [`one_more`].
    fn new(mut rows: Vec<CandidateRow>, count: usize) -> Self {
        let has_more = rows.len() > count;
        rows.truncate(count);
        let next = rows.last().filter(|_| has_more).map(|row| row.cursor.clone());
        Self { rows, next }
    }
}

/// Reads the next rows of a listing, at most `count`.
async fn candidates(
    conn: &mut SqliteConnection,
    filter: &TaskFilter,
    cursor: Option<&ListCursor>,
    count: usize,
) -> Result<Candidates, sqlx::Error> {
    let Some(prefix) = &filter.id_prefix else {
        let before = match cursor {
            Some(ListCursor::Row(row_id)) => *row_id,
            _ => i64::MAX,
        };
        return newest(conn, filter.service.as_ref(), before, count).await;
    };
    let (service, id, row_id) = match (cursor, &filter.service) {
        (Some(ListCursor::Id { service, id, row_id }), _) => (service.clone(), id.clone(), *row_id),
        (_, Some(service)) => (service.clone(), Vec::new(), 0),
        _ => match next_service(conn, "").await? {
            Some(service) => (service, Vec::new(), 0),
            None => return Ok(Candidates { rows: Vec::new(), next: None }),
        },
    };
    let found = by_id(conn, &service, prefix.as_bytes(), (id, row_id), count).await?;
    if found.next.is_some() || filter.service.is_some() {
        return Ok(found);
    }
    let next = next_service(conn, service.as_str()).await?;
    let next = next.map(|service| ListCursor::Id { service, id: Vec::new(), row_id: 0 });
    Ok(Candidates { next, ..found })
}

async fn newest(
    conn: &mut SqliteConnection,
    service: Option<&Service>,
    before: i64,
    count: usize,
) -> Result<Candidates, sqlx::Error> {
    let mut small_service = None;
    if let Some(service) = service {
        let query = sqlx::query_scalar(COUNT_OF_SERVICE).bind(service.as_str()).bind(SMALL_SERVICE + 1);
        let tasks: i64 = query.fetch_one(&mut *conn).await?;
        small_service = (tasks <= SMALL_SERVICE).then_some(service);
    }
    let query = match small_service {
        Some(service) => sqlx::query_as(NEWEST_OF_SMALL_SERVICE)
            .bind(before)
            .bind(one_more(count))
            .bind(service.as_str())
            .bind(SMALL_SERVICE),
        None => sqlx::query_as(NEWEST).bind(before).bind(one_more(count)),
    };
    let rows: Vec<(i64, String, i64)> = query.fetch_all(conn).await?;
    let row = |(row_id, service, stored_at)| CandidateRow {
        row_id,
        service: Some(service),
        stored_at,
        cursor: ListCursor::Row(row_id),
    };
    Ok(Candidates::new(rows.into_iter().map(row).collect(), count))
}

async fn by_id(
    conn: &mut SqliteConnection,
    service: &Service,
    prefix: &[u8],
    after: (Vec<u8>, i64),
    count: usize,
) -> Result<Candidates, sqlx::Error> {
    let (id, row_id) = if after.0.as_slice() < prefix { (prefix.to_vec(), 0) } else { after };
    let rows: Vec<(i64, Vec<u8>, i64)> = sqlx::query_as(BY_ID)
        .bind(service.as_str())
        .bind(id)
        .bind(row_id)
        .bind(end_of_prefix(prefix))
        .bind(one_more(count))
        .fetch_all(conn)
        .await?;
    let row = |(row_id, id, stored_at)| CandidateRow {
        row_id,
        service: None,
        stored_at,
        cursor: ListCursor::Id { service: service.clone(), id, row_id },
    };
    Ok(Candidates::new(rows.into_iter().map(row).collect(), count))
}

/// A limit that shows by one further row whether there are more.
fn one_more(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX).saturating_add(1)
}

/// Returns the smallest bytes that are greater than everything that begins with `prefix`. The
/// prefix is UTF-8, which has no byte 255.
pub(super) fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    match end.last_mut() {
        Some(last) => *last = last.saturating_add(1),
        None => end.push(u8::MAX),
    }
    end
}

/// Returns the details of rows, in the order of `row_ids`. Removed and unreadable rows are left
/// out.
async fn details(conn: &mut SqliteConnection, row_ids: &[i64]) -> Result<Vec<ListedTask>, sqlx::Error> {
    let rows = sqlx::query(DETAILS)
        .bind(json_array::of_integers(row_ids))
        .bind(MAX_READERS)
        .bind(i64::try_from(MAX_SUMMARIZED_BYTES).unwrap_or(i64::MAX))
        .fetch_all(conn)
        .await?;
    let mut tasks: Vec<ListedTask> = rows.iter().filter_map(listed_task).collect();
    tasks.sort_by_key(|task| row_ids.iter().position(|row_id| *row_id == task.row_id));
    Ok(tasks)
}

fn listed_task(row: &SqliteRow) -> Option<ListedTask> {
    type Columns = (i64, String, Vec<u8>, i64, i64, i64, Option<Vec<u8>>);
    let (row_id, service, id, size, stored_at, readers, record) = Columns::from_row(row).ok()?;
    Some(ListedTask {
        row_id,
        service: Service::parse(&service)?,
        id: TaskId::parse(std::str::from_utf8(&id).ok()?)?,
        size: unsigned(size),
        stored_at,
        readers: unsigned(readers),
        record: record.map(Bytes::from),
    })
}
