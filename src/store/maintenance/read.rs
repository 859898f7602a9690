//! Looking at a store page by page: listing, texts of an id, export, totals.

use std::collections::BTreeMap;

use super::{StoreMaintenance, failed};
use crate::store::StoreError;
use crate::store::listing::{self, ListCursor, RecordDetails, TaskFilter, TaskPage, TextLimits, unsigned};
use crate::store::tasks::checksum;
use crate::task::{Service, TaskId};

/// Tasks that one page of a listing holds at most.
const LIST_STEP: u64 = 100;

/// Rows that one page of an export holds at most.
const EXPORT_STEP: i64 = 256;

/// Bytes of text that one page of an export holds at most, unless one task alone is larger.
const EXPORT_BYTES: i64 = 8 << 20;

/// Rows that one statement of [`StoreMaintenance::totals`] adds up.
const TOTALS_STEP: i64 = 2000;

/// A task to be exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedTask {
    /// Its service.
    pub service: Service,
    /// Its id.
    pub id: TaskId,
    /// When it was stored, in seconds since the Unix epoch.
    pub stored_at: i64,
    /// The upstream's bytes.
    pub record: String,
}

/// A page of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportPage {
    /// The sound ones, oldest first.
    pub tasks: Vec<ExportedTask>,
    /// How many are damaged and left out.
    pub damaged: u64,
    /// Where to go on; `None` at the end.
    pub next: Option<i64>,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreTotals {
    /// Distinct texts.
    pub tasks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Tokens, or the team, that may read something.
    pub readers: u64,
    /// Each service's share.
    pub services: BTreeMap<String, ServiceTotals>,
    /// When the oldest was stored, in seconds since the Unix epoch.
    pub oldest: Option<i64>,
    /// When the newest was.
    pub newest: Option<i64>,
    /// Version of the schema.
    pub schema: i64,
}

/// A service's share of the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceTotals {
    /// Distinct texts.
    pub tasks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl StoreMaintenance {
    /// A page of stored tasks, last stored first: up to `limit` of them or 100, those after `cursor`. It may be short,
    /// and even empty, and have a next one.
    pub async fn list(
        &mut self,
        filter: &TaskFilter,
        cursor: Option<ListCursor>,
        limit: u64,
    ) -> Result<TaskPage, StoreError> {
        let limit = usize::try_from(limit.clamp(1, LIST_STEP)).unwrap_or(1);
        listing::page(&mut self.conn, filter, cursor, limit, |_| true)
            .await
            .map_err(|error| failed(&self.path, error))
    }

    /// All texts stored for an id, of one service or of all.
    pub async fn records(
        &mut self,
        service: Option<&Service>,
        id: &TaskId,
    ) -> Result<Vec<RecordDetails>, StoreError> {
        let conn = &mut self.conn;
        let texts = async {
            let services = match service {
                Some(service) => vec![service.clone()],
                None => listing::services(conn).await?,
            };
            let mut texts = Vec::new();
            for service in services {
                texts.extend(listing::texts(conn, &service, id, TextLimits::NONE).await?);
            }
            Ok(texts)
        };
        texts.await.map_err(|error| failed(&self.path, error))
    }

    /// A page of whole tasks, in the order in which they were stored.
    pub async fn page(&mut self, service: Option<&Service>, cursor: i64) -> Result<ExportPage, StoreError> {
        type Row = (String, Vec<u8>, i64, i64, Vec<u8>);
        let conn = &mut self.conn;
        let page = async {
            // Sizes first: bodies are read only as far as memory may hold them.
            let sizes: Vec<(i64, i64)> = sqlx::query_as(
                "SELECT row, size FROM task WHERE row > ?1 AND (?2 IS NULL OR service = ?2)
                 ORDER BY row LIMIT ?3",
            )
            .bind(cursor)
            .bind(service.map(Service::as_str))
            .bind(EXPORT_STEP)
            .fetch_all(&mut *conn)
            .await?;
            let mut bytes = 0_i64;
            let fitting = sizes.iter().take_while(|&&(_, size)| {
                let is_first = bytes == 0;
                bytes = bytes.saturating_add(size.max(1));
                is_first || bytes <= EXPORT_BYTES
            });
            let Some(&(last, _)) = fitting.last() else { return Ok(ExportPage::default()) };
            let rows: Vec<Row> = sqlx::query_as(
                "SELECT service, id, checksum, stored_at, body FROM task
                 WHERE row > ?1 AND row <= ?3 AND (?2 IS NULL OR service = ?2) ORDER BY row",
            )
            .bind(cursor)
            .bind(service.map(Service::as_str))
            .bind(last)
            .fetch_all(&mut *conn)
            .await?;
            let all = rows.len() as u64;
            let tasks: Vec<ExportedTask> = rows
                .into_iter()
                .filter_map(|(service, id, sum, stored_at, text)| {
                    let (service, id) = (Service::parse(&service)?, parse_id(&id)?);
                    let is_sound = checksum(&service, &id, &text) == sum;
                    let text = String::from_utf8(text).ok().filter(|_| is_sound)?;
                    Some(ExportedTask { service, id, stored_at, record: text })
                })
                .collect();
            Ok(ExportPage { damaged: all - tasks.len() as u64, tasks, next: Some(last) })
        };
        page.await.map_err(|error| failed(&self.path, error))
    }

    /// How many texts are stored; a maintained counter.
    pub async fn count(&mut self) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT tasks FROM meta")
            .fetch_one(&mut self.conn)
            .await
            .map_err(|error| failed(&self.path, error))?;
        Ok(unsigned(count))
    }

    /// What the store holds. Services, oldest and newest are added up page by page: while somebody writes they may
    /// differ a little from the counters.
    pub async fn totals(&mut self) -> Result<StoreTotals, StoreError> {
        let conn = &mut self.conn;
        let totals = async {
            let (tasks, bytes, readers, schema): (i64, i64, i64, i64) = sqlx::query_as(
                "SELECT tasks, bytes, (SELECT COUNT(*) FROM reader_rights WHERE rights > 0),
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
                    "SELECT row, service, size, stored_at FROM task WHERE row > ?1 ORDER BY row LIMIT ?2",
                )
                .bind(cursor)
                .bind(TOTALS_STEP)
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
        totals.await.map_err(|error| failed(&self.path, error))
    }
}

fn parse_id(id: &[u8]) -> Option<TaskId> {
    TaskId::parse(std::str::from_utf8(id).ok()?)
}
