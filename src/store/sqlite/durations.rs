//! Reading and writing the learnt durations of tasks.

use sqlx::SqliteConnection;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::task::{SavedDurations, Service};

/// Largest number of rows that are read. `task::Durations` bounds the number of those written.
const MAX_ROWS: i64 = 2000;

/// Time after which the durations of a service or type that no longer occurs are removed, in
/// seconds: 90 days.
const MAX_AGE: i64 = 90 * 24 * 3600;

/// What [`load`] found.
pub(super) struct LoadedDurations {
    pub(super) durations: Vec<SavedDurations>,
    /// Number of rows that do not match their checksum.
    pub(super) damaged: usize,
}

#[derive(sqlx::FromRow)]
struct DurationRow {
    service: String,
    r#type: String,
    samples: i64,
    weights: Vec<u8>,
    checksum: i64,
}

/// Reads all rows, last written first.
pub(super) async fn load(conn: &mut SqliteConnection) -> Result<LoadedDurations, sqlx::Error> {
    let rows: Vec<DurationRow> = sqlx::query_as(
        "SELECT service, type, samples, weights, checksum FROM duration ORDER BY updated_at DESC LIMIT ?1",
    )
    .bind(MAX_ROWS)
    .fetch_all(conn)
    .await?;
    let total = rows.len();
    let durations: Vec<SavedDurations> = rows.into_iter().filter_map(verified).collect();
    Ok(LoadedDurations { damaged: total - durations.len(), durations })
}

/// Returns the content of a row. `None` if it is damaged.
fn verified(row: DurationRow) -> Option<SavedDurations> {
    let is_intact = checksum(&row.service, &row.r#type, row.samples, &row.weights) == row.checksum;
    Some(SavedDurations {
        service: Service::parse(&row.service).filter(|_| is_intact)?,
        kind: row.r#type.into(),
        samples: u64::try_from(row.samples).ok()?,
        weights: row.weights,
    })
}

/// Writes durations in place of those of the same service and type, inside the caller's transaction.
/// Removes rows that were not written for 90 days.
pub(super) async fn save(
    conn: &mut SqliteConnection,
    durations: &[SavedDurations],
    now: i64,
) -> Result<(), sqlx::Error> {
    for SavedDurations { service, kind, samples, weights } in durations {
        let samples = i64::try_from(*samples).unwrap_or(i64::MAX);
        sqlx::query(
            "INSERT INTO duration (service, type, samples, weights, updated_at, checksum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (service, type) DO UPDATE SET samples = excluded.samples,
                 weights = excluded.weights, updated_at = excluded.updated_at, checksum = excluded.checksum",
        )
        .bind(service.as_str())
        .bind(&**kind)
        .bind(samples)
        .bind(weights.as_slice())
        .bind(now)
        .bind(checksum(service.as_str(), kind, samples, weights))
        .execute(&mut *conn)
        .await?;
    }
    sqlx::query("DELETE FROM duration WHERE updated_at < ?1").bind(now - MAX_AGE).execute(conn).await?;
    Ok(())
}

/// XXH3-64 of the columns that are read. The hash of each seeds the next one, as in the checksums
/// of tasks.
fn checksum(service: &str, kind: &str, samples: i64, weights: &[u8]) -> i64 {
    let service = xxh3_64(service.as_bytes());
    let kind = xxh3_64_with_seed(kind.as_bytes(), service);
    let samples = xxh3_64_with_seed(&samples.to_le_bytes(), kind);
    xxh3_64_with_seed(weights, samples).cast_signed()
}
