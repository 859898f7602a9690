//! The sweep enforces `max_bytes` and `max_age` in steps of one short transaction each, and removes
//! old tombstones and unused readers. Sizes come from a counter and the order from an index: no
//! step scans a table. A counter that another process may have changed is checked first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sqlx::SqliteConnection;

use super::json_array;
use crate::store::StoreLimits;
use crate::task::{Service, TaskId};

/// Largest number of rows that one step removes.
const ROWS_PER_STEP: usize = 256;

/// Time for which tombstones are stored: longer than any upstream call. Measured by the monotonic
/// clock, so that a change of the wall clock removes none early.
const TOMBSTONE_AGE: Duration = Duration::from_secs(3600);

/// Readers without grants are removed this long after they were last accepted.
const READER_AGE_SECS: i64 = 7 * 24 * 3600;

/// Result of one step.
#[derive(Default)]
pub(super) struct SweepStep {
    /// Tasks that were removed, which must leave the memory cache too.
    pub(super) removed: Vec<(Service, TaskId)>,
    /// Number of rows removed because of `max_bytes`.
    pub(super) over_max_bytes: u64,
    /// Number of rows removed because of `max_age`.
    pub(super) over_max_age: u64,
    /// Whether there may be more rows to remove.
    pub(super) has_more: bool,
}

/// Oldest tasks, from an index alone.
pub(super) const SELECT_OLDEST: &str =
    "SELECT task_id, size, used_hour FROM task ORDER BY used_hour, task_id LIMIT ?1";

/// Number of tasks and their size, from an index alone: about 0.1 s for a million tasks. A damaged
/// size must not make the sum overflow.
pub(super) const COUNT_TASKS: &str = "SELECT COUNT(*), CAST(TOTAL(size) AS INTEGER) FROM task";

/// Counts the tasks and corrects the counters. A damaged one would make the sweep remove every
/// task, or none.
pub(super) async fn recount(conn: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let (tasks, bytes): (i64, i64) = sqlx::query_as(COUNT_TASKS).fetch_one(&mut *conn).await?;
    let corrected =
        sqlx::query("UPDATE meta SET tasks = ?1, bytes = ?2 WHERE (tasks, bytes) IS NOT (?1, ?2)")
            .bind(tasks)
            .bind(bytes)
            .execute(conn)
            .await?;
    if corrected.rows_affected() > 0 {
        tracing::warn!(tasks, bytes, "the counters of the task store were damaged; they are corrected");
    }
    Ok(())
}

/// Removes the least recently used tasks beyond the limits.
pub(super) async fn evict(
    conn: &mut SqliteConnection,
    limits: &StoreLimits,
    now: i64,
) -> Result<SweepStep, sqlx::Error> {
    let bytes: i64 = sqlx::query_scalar("SELECT bytes FROM meta").fetch_one(&mut *conn).await?;
    let mut excess = match limits.max_bytes {
        0 => 0,
        max => bytes.saturating_sub(i64::try_from(max).unwrap_or(i64::MAX)),
    };
    // The age counts from the end of the hour of the last use, so that nothing is removed too
    // early.
    let oldest_hour = if limits.max_age.is_zero() {
        i64::MIN
    } else {
        now.saturating_sub_unsigned(limits.max_age.as_secs()).div_euclid(3600)
    };
    let candidates: Vec<(i64, i64, i64)> = sqlx::query_as(SELECT_OLDEST)
        .bind(i64::try_from(ROWS_PER_STEP).unwrap_or(i64::MAX))
        .fetch_all(&mut *conn)
        .await?;
    let candidate_count = candidates.len();
    let mut step = SweepStep::default();
    let rows: Vec<i64> = candidates
        .into_iter()
        .take_while(|&(_, size, used_hour)| {
            let (is_too_old, is_excess) = (used_hour < oldest_hour, excess > 0);
            step.over_max_age += u64::from(is_too_old);
            step.over_max_bytes += u64::from(is_excess && !is_too_old);
            excess -= size;
            is_too_old || is_excess
        })
        .map(|(row_id, ..)| row_id)
        .collect();
    if rows.is_empty() {
        return Ok(step);
    }
    let removed: Vec<(String, Vec<u8>)> = sqlx::query_as(
        "DELETE FROM task WHERE task_id IN (SELECT value FROM json_each(?1)) RETURNING service, id",
    )
    .bind(json_array::of_integers(&rows))
    .fetch_all(conn)
    .await?;
    step.removed = removed
        .into_iter()
        .filter_map(|(service, id)| {
            Some((Service::parse(&service)?, TaskId::parse(std::str::from_utf8(&id).ok()?)?))
        })
        .collect();
    step.has_more = rows.len() == candidate_count && candidate_count == ROWS_PER_STEP;
    Ok(step)
}

/// Removes tombstones up to a sequence number.
pub(super) async fn delete_old_tombstones(conn: &mut SqliteConnection, seq: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM tombstone WHERE seq <= ?1").bind(seq).execute(conn).await?;
    Ok(())
}

/// Removes readers that have no grants and were not accepted for a week.
pub(super) async fn delete_unused_readers(conn: &mut SqliteConnection, now: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM reader WHERE reader_id IN (
             SELECT r.reader_id FROM reader r WHERE COALESCE(r.accepted_at, 0) < ?1
             AND NOT EXISTS (SELECT 1 FROM reader_grants c WHERE c.reader_id = r.reader_id AND c.grants > 0)
             LIMIT 1000)",
    )
    .bind(now.saturating_sub(READER_AGE_SECS))
    .execute(conn)
    .await?;
    Ok(())
}

/// Times at which deletes were seen, to find the tombstones that are old enough to be removed.
#[derive(Default)]
pub(super) struct TombstoneAges(VecDeque<(Instant, i64)>);

impl TombstoneAges {
    /// Records the sequence number of the last delete. Returns the last one that is older than
    /// [`TOMBSTONE_AGE`].
    pub(super) fn record(&mut self, now: Instant, seq: i64) -> Option<i64> {
        self.0.push_back((now, seq));
        let mut old = None;
        while let Some(&(at, seq)) = self.0.front()
            && now.duration_since(at) > TOMBSTONE_AGE
        {
            old = Some(seq);
            self.0.pop_front();
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_are_kept_for_an_hour() {
        let mut ages = TombstoneAges::default();
        let start = Instant::now();
        assert_eq!(ages.record(start, 5), None);
        assert_eq!(ages.record(start + Duration::from_secs(1800), 6), None);
        assert_eq!(ages.record(start + Duration::from_secs(3601), 7), Some(5));
        assert_eq!(ages.record(start + Duration::from_secs(5401), 7), Some(6));
    }
}
