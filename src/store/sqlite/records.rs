//! The records stored for one id with their readers, and the services that have tasks.

use bytes::Bytes;
use sqlx::SqliteConnection;

use super::checksum::record_checksum;
use crate::store::RecordDetails;
use crate::task::{Service, TaskId};
use crate::token::Digest;

/// The rows of an id.
pub(super) const ROWS_OF_ID: &str = "
    SELECT task_id, checksum, size, stored_at FROM task WHERE service = ?1 AND id = ?2
    ORDER BY task_id LIMIT ?3";

/// The next service in alphabetical order.
pub(super) const NEXT_SERVICE: &str = "SELECT service FROM task WHERE service > ?1 ORDER BY service LIMIT 1";

/// How much of the records of an id is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordLimits {
    /// Number of records.
    pub(super) records: i64,
    /// Total size of the records in bytes.
    pub(super) bytes: u64,
    /// Number of readers of each record.
    pub(super) readers: i64,
}

impl RecordLimits {
    /// No limit.
    pub(super) const NONE: Self = Self { records: i64::MAX, bytes: u64::MAX, readers: i64::MAX };
}

/// Returns the records stored for an id, oldest first.
pub(super) async fn of_id(
    conn: &mut SqliteConnection,
    service: &Service,
    id: &TaskId,
    limits: RecordLimits,
) -> Result<Vec<RecordDetails>, sqlx::Error> {
    let rows: Vec<(i64, i64, i64, i64)> = sqlx::query_as(ROWS_OF_ID)
        .bind(service.as_str())
        .bind(id.as_str().as_bytes())
        .bind(limits.records)
        .fetch_all(&mut *conn)
        .await?;
    let (mut details, mut bytes) = (Vec::with_capacity(rows.len()), 0_u64);
    for (row_id, checksum, size, stored_at) in rows {
        let size = unsigned(size);
        bytes = bytes.saturating_add(size);
        let is_read = bytes <= limits.bytes;
        let mut record: Option<Vec<u8>> = None;
        if is_read {
            let query = sqlx::query_scalar("SELECT record FROM task WHERE task_id = ?1 AND checksum = ?2");
            record = query.bind(row_id).bind(checksum).fetch_optional(&mut *conn).await?;
            if record.is_none() {
                // Removed since the first statement.
                continue;
            }
        }
        let readers: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT r.digest FROM task_grant g CROSS JOIN reader r ON r.reader_id = g.reader_id
             WHERE g.service = ?1 AND g.id = ?2 AND g.task_id = ?3 ORDER BY g.reader_id LIMIT ?4",
        )
        .bind(service.as_str())
        .bind(id.as_str().as_bytes())
        .bind(row_id)
        .bind(limits.readers)
        .fetch_all(&mut *conn)
        .await?;
        let digests = readers.into_iter().filter_map(|digest| <[u8; 32]>::try_from(digest).ok());
        let record = record.filter(|record| record_checksum(service, id, record) == checksum);
        details.push(RecordDetails {
            service: service.clone(),
            stored_at,
            size,
            readers: digests.map(Digest::from).collect(),
            is_damaged: is_read && record.is_none(),
            record: record.map(Bytes::from),
        });
    }
    Ok(details)
}

/// Returns the first service after `after` in alphabetical order.
pub(super) async fn next_service(
    conn: &mut SqliteConnection,
    after: &str,
) -> Result<Option<Service>, sqlx::Error> {
    let mut after = after.to_owned();
    loop {
        let next: Option<String> =
            sqlx::query_scalar(NEXT_SERVICE).bind(&after).fetch_optional(&mut *conn).await?;
        let Some(next) = next else { return Ok(None) };
        // An invalid name is damage, and is skipped.
        match Service::parse(&next) {
            Some(service) => return Ok(Some(service)),
            None => after = next,
        }
    }
}

/// Returns all services that have tasks, with one index search for each.
pub(super) async fn services(conn: &mut SqliteConnection) -> Result<Vec<Service>, sqlx::Error> {
    let mut services: Vec<Service> = Vec::new();
    while let Some(service) = next_service(conn, services.last().map_or("", Service::as_str)).await? {
        services.push(service);
    }
    Ok(services)
}

/// Converts a count or size; 0 for a negative one, which only damage can cause.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
