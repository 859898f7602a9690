//! Reading all tasks page by page, with their exact bytes.

use super::{StoreMaintenance, maintenance_error};
use crate::store::StoreError;
use crate::store::sqlite::checksum::record_checksum;
use crate::task::{Service, TaskId};

/// Largest number of rows in one page.
const MAX_ROWS: i64 = 256;

/// Largest size of the records in one page, in bytes, unless a single one is longer.
const MAX_BYTES: i64 = 8 << 20;

/// A task to be exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedTask {
    /// Service of the task.
    pub service: Service,
    /// Id of the task.
    pub id: TaskId,
    /// When it was stored, in seconds since the Unix epoch.
    pub stored_at: i64,
    /// The exact bytes that the upstream sent.
    pub record: String,
}

/// A page of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportPage {
    /// The undamaged tasks, oldest first.
    pub tasks: Vec<ExportedTask>,
    /// Number of damaged tasks, which are left out.
    pub damaged: u64,
    /// Cursor of the next page; `None` after the last one.
    pub next: Option<i64>,
}

impl StoreMaintenance {
    /// Returns a page of whole tasks in the order in which they were stored. The cursor of the
    /// first page is 0.
    pub async fn export_page(
        &mut self,
        service: Option<&Service>,
        cursor: i64,
    ) -> Result<ExportPage, StoreError> {
        type Row = (String, Vec<u8>, i64, i64, Vec<u8>);
        let conn = &mut self.conn;
        let page = async {
            // Sizes first, so that only as many records are read as may be in memory.
            let sizes: Vec<(i64, i64)> = sqlx::query_as(
                "SELECT task_id, size FROM task WHERE task_id > ?1 AND (?2 IS NULL OR service = ?2)
                 ORDER BY task_id LIMIT ?3",
            )
            .bind(cursor)
            .bind(service.map(Service::as_str))
            .bind(MAX_ROWS)
            .fetch_all(&mut *conn)
            .await?;
            let mut bytes = 0_i64;
            let fitting = sizes.iter().take_while(|&&(_, size)| {
                let is_first = bytes == 0;
                bytes = bytes.saturating_add(size.max(1));
                is_first || bytes <= MAX_BYTES
            });
            let Some(&(last, _)) = fitting.last() else { return Ok(ExportPage::default()) };
            let rows: Vec<Row> = sqlx::query_as(
                "SELECT service, id, checksum, stored_at, record FROM task
                 WHERE task_id > ?1 AND task_id <= ?3 AND (?2 IS NULL OR service = ?2) ORDER BY task_id",
            )
            .bind(cursor)
            .bind(service.map(Service::as_str))
            .bind(last)
            .fetch_all(&mut *conn)
            .await?;
            let all = rows.len() as u64;
            let tasks: Vec<ExportedTask> = rows
                .into_iter()
                .filter_map(|(service, id, checksum, stored_at, record)| {
                    let service = Service::parse(&service)?;
                    let id = TaskId::parse(std::str::from_utf8(&id).ok()?)?;
                    let is_undamaged = record_checksum(&service, &id, &record) == checksum;
                    let record = String::from_utf8(record).ok().filter(|_| is_undamaged)?;
                    Some(ExportedTask { service, id, stored_at, record })
                })
                .collect();
            Ok(ExportPage { damaged: all - tasks.len() as u64, tasks, next: Some(last) })
        };
        page.await.map_err(|error| maintenance_error(&self.path, error))
    }
}
