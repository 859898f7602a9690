//! `max_bytes` and `max_age`, in steps of one short transaction each. The size comes from the maintained counter,
//! the order from an index: nothing here reads the whole table.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sqlx::SqliteConnection;

use super::Limits;
use crate::task::{Service, TaskId};

/// Rows that one step removes at most.
const STEP: usize = 256;

/// How long a tombstone holds: longer than any call to the upstream lasts. By the monotonic clock, so that a wall
/// clock set forward forgets none early.
pub(super) const TOMBSTONE_AGE: Duration = Duration::from_secs(3600);

/// Tokens without a single task are let go after this.
const READER_AGE_SECS: i64 = 7 * 24 * 3600;

/// What a step did.
pub(super) struct Step {
    /// What is no longer stored, for the memory tier.
    pub(super) removed: Vec<(Service, TaskId)>,
    /// Rows that left because there were too many bytes.
    pub(super) for_bytes: u64,
    /// Rows that left because they were too old.
    pub(super) for_age: u64,
    /// Whether there is more to remove.
    pub(super) more: bool,
}

/// Removes the longest unused tasks, if there are too many bytes or too old ones.
pub(super) async fn step(
    conn: &mut SqliteConnection,
    limits: &Limits,
    now: i64,
) -> Result<Step, sqlx::Error> {
    let bytes: i64 = sqlx::query_scalar("SELECT bytes FROM meta").fetch_one(&mut *conn).await?;
    let mut excess = match limits.max_bytes {
        0 => 0,
        max => bytes.saturating_sub(i64::try_from(max).unwrap_or(i64::MAX)),
    };
    // The last use lies somewhere in its hour; counted from that hour's end, nothing leaves too early.
    let oldest_hour = if limits.max_age.is_zero() {
        i64::MIN
    } else {
        now.saturating_sub_unsigned(limits.max_age.as_secs()).div_euclid(3600)
    };
    let candidates: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT row, size, used_hour FROM task ORDER BY used_hour, row LIMIT ?1")
            .bind(i64::try_from(STEP).unwrap_or(i64::MAX))
            .fetch_all(&mut *conn)
            .await?;
    let all = candidates.len();
    let (mut for_bytes, mut for_age) = (0, 0);
    let rows: Vec<String> = candidates
        .into_iter()
        .take_while(|&(_, size, used_hour)| {
            let (too_old, too_many) = (used_hour < oldest_hour, excess > 0);
            for_age += u64::from(too_old);
            for_bytes += u64::from(too_many && !too_old);
            excess -= size;
            too_old || too_many
        })
        .map(|(row, ..)| row.to_string())
        .collect();
    if rows.is_empty() {
        return Ok(Step { removed: Vec::new(), for_bytes, for_age, more: false });
    }
    let removed: Vec<(String, Vec<u8>)> = sqlx::query_as(
        "DELETE FROM task WHERE row IN (SELECT value FROM json_each(?1)) RETURNING service, id",
    )
    .bind(format!("[{}]", rows.join(",")))
    .fetch_all(conn)
    .await?;
    let removed = removed
        .into_iter()
        .filter_map(|(service, id)| {
            Some((Service::parse(&service)?, TaskId::parse(std::str::from_utf8(&id).ok()?)?))
        })
        .collect();
    Ok(Step { removed, for_bytes, for_age, more: rows.len() == all && all == STEP })
}

/// Forgets old tombstones: those that existed [`TOMBSTONE_AGE`] ago by this process's own clock.
pub(super) async fn prune_tombstones(conn: &mut SqliteConnection, seq: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM forgotten WHERE seq <= ?1").bind(seq).execute(conn).await?;
    Ok(())
}

/// Lets go of tokens that have nothing stored and were not accepted for long.
pub(super) async fn prune_readers(conn: &mut SqliteConnection, now: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM reader WHERE id IN (
             SELECT r.id FROM reader r WHERE COALESCE(r.accepted_at, 0) < ?1
             AND NOT EXISTS (SELECT 1 FROM reader_rights c WHERE c.reader = r.id AND c.rights > 0) LIMIT 1000)",
    )
    .bind(now.saturating_sub(READER_AGE_SECS))
    .execute(conn)
    .await?;
    Ok(())
}

/// Remembers which forgets are how old.
#[derive(Default)]
pub(super) struct TombstoneAges(VecDeque<(Instant, i64)>);

impl TombstoneAges {
    /// Notes the newest forget; gives the newest of those that are old enough to go.
    pub(super) fn note(&mut self, now: Instant, seq: i64) -> Option<i64> {
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
    fn tombstones_hold_an_hour() {
        let mut ages = TombstoneAges::default();
        let start = Instant::now();
        assert_eq!(ages.note(start, 5), None);
        assert_eq!(ages.note(start + Duration::from_secs(1800), 6), None);
        assert_eq!(ages.note(start + Duration::from_secs(3601), 7), Some(5));
        assert_eq!(ages.note(start + Duration::from_secs(5401), 7), Some(6));
    }
}
