//! Small writes that wait for the writer's next transaction: last uses, token acceptances, and the
//! removal of damaged rows.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sqlx::SqliteConnection;
use tokio::sync::Notify;

use super::json_array;
use crate::store::TokenAcceptance;
use crate::token::Digest;

/// Largest number of waiting acceptances, and of damaged rows. More are dropped, which costs a
/// recheck of the token or another checksum error.
const MAX_WAITING: usize = 10_000;

/// Largest number of rows whose last use waits. More are dropped, which makes their last use less
/// precise.
const MAX_USED_ROWS: usize = 100_000;

/// A row that failed verification and must not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum CorruptRow {
    /// A row of `task`. Its stored checksum makes sure that a later row with the same key stays.
    Task { row_id: i64, checksum: i64 },
    /// A row of `task_grant`.
    Grant { row_id: i64, checksum: i64 },
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct DeferredWrites {
    used_rows: Mutex<HashSet<i64>>,
    corrupt_rows: Mutex<HashSet<CorruptRow>>,
    acceptances: Mutex<HashMap<Digest, TokenAcceptance>>,
    /// Wakes the writer for writes that should not wait for its next tick.
    pub(super) wake: Notify,
}

/// What [`DeferredWrites::take`] returned, to be written in a transaction.
#[derive(Default)]
pub(super) struct TakenWrites {
    used_rows: Vec<i64>,
    corrupt_rows: Vec<CorruptRow>,
    acceptances: Vec<(Digest, TokenAcceptance)>,
}

impl DeferredWrites {
    /// Records the use of a row.
    pub(super) fn mark_used(&self, row_id: i64) {
        let mut rows = lock(&self.used_rows);
        if rows.len() < MAX_USED_ROWS {
            rows.insert(row_id);
        }
    }

    /// Has a damaged row removed soon.
    pub(super) fn remove_corrupt(&self, row: CorruptRow) {
        let mut rows = lock(&self.corrupt_rows);
        if rows.len() < MAX_WAITING {
            rows.insert(row);
        }
        drop(rows);
        self.wake.notify_one();
    }

    /// Records an acceptance. A refusal is written soon.
    pub(super) fn record_acceptance(&self, token: Digest, acceptance: TokenAcceptance) {
        let mut acceptances = lock(&self.acceptances);
        if acceptances.len() < MAX_WAITING || acceptances.contains_key(&token) {
            acceptances.insert(token, acceptance);
        }
        drop(acceptances);
        if acceptance.is_refused {
            self.wake.notify_one();
        }
    }

    /// Returns an acceptance that is not written yet.
    pub(super) fn acceptance(&self, token: &Digest) -> Option<TokenAcceptance> {
        lock(&self.acceptances).get(token).copied()
    }

    /// Whether there is anything that deserves a transaction of its own.
    pub(super) fn is_due(&self) -> bool {
        !lock(&self.corrupt_rows).is_empty() || !lock(&self.acceptances).is_empty()
    }

    /// Takes the waiting writes, for a transaction; last uses only on request. Acceptances stay
    /// visible until [`DeferredWrites::complete`].
    pub(super) fn take(&self, with_used_rows: bool) -> TakenWrites {
        let mut taken = TakenWrites::default();
        if with_used_rows {
            let mut rows = lock(&self.used_rows);
            taken.used_rows = rows.iter().copied().take(MAX_WAITING).collect();
            for row_id in &taken.used_rows {
                rows.remove(row_id);
            }
        }
        taken.corrupt_rows = lock(&self.corrupt_rows).drain().collect();
        taken.acceptances = lock(&self.acceptances).iter().map(|(token, last)| (*token, *last)).collect();
        taken
    }

    /// Removes acceptances that were committed and have not changed since.
    pub(super) fn complete(&self, taken: &TakenWrites) {
        let mut acceptances = lock(&self.acceptances);
        for (token, acceptance) in &taken.acceptances {
            if acceptances.get(token) == Some(acceptance) {
                acceptances.remove(token);
            }
        }
    }

    /// Returns writes to the queue after a failed transaction.
    pub(super) fn put_back(&self, taken: TakenWrites) {
        lock(&self.used_rows).extend(taken.used_rows);
        lock(&self.corrupt_rows).extend(taken.corrupt_rows);
    }

    /// Drops everything that refers to rows by key, because another file has other keys.
    pub(super) fn clear_rows(&self) {
        lock(&self.used_rows).clear();
        lock(&self.corrupt_rows).clear();
    }
}

impl TakenWrites {
    /// Writes them, inside the caller's transaction.
    pub(super) async fn write(&self, conn: &mut SqliteConnection, hour: i64) -> Result<(), sqlx::Error> {
        for row in &self.corrupt_rows {
            let (sql, row_id, checksum) = match *row {
                CorruptRow::Task { row_id, checksum } => {
                    ("DELETE FROM task WHERE task_id = ?1 AND checksum = ?2", row_id, checksum)
                }
                CorruptRow::Grant { row_id, checksum } => {
                    let sql = "DELETE FROM task_grant
                               WHERE (service, id) = (SELECT service, id FROM task WHERE task_id = ?1)
                               AND task_id = ?1 AND grant_checksum = ?2";
                    (sql, row_id, checksum)
                }
            };
            sqlx::query(sql).bind(row_id).bind(checksum).execute(&mut *conn).await?;
        }
        for (token, acceptance) in &self.acceptances {
            // No row for a token that was never accepted: clients can send any number of random
            // tokens.
            let sql = if acceptance.is_refused {
                "UPDATE reader SET accepted_at = ?2, is_refused = ?3 WHERE digest = ?1"
            } else {
                "INSERT INTO reader (digest, accepted_at, is_refused) VALUES (?1, ?2, ?3)
                 ON CONFLICT (digest) DO UPDATE SET accepted_at = excluded.accepted_at,
                                                    is_refused = excluded.is_refused"
            };
            sqlx::query(sql)
                .bind(token.as_bytes().as_slice())
                .bind(acceptance.accepted_at)
                .bind(acceptance.is_refused)
                .execute(&mut *conn)
                .await?;
        }
        if !self.used_rows.is_empty() {
            sqlx::query(
                "UPDATE task SET used_hour = ?1
                 WHERE used_hour < ?1 AND task_id IN (SELECT value FROM json_each(?2))",
            )
            .bind(hour)
            .bind(json_array::of_integers(&self.used_rows))
            .execute(&mut *conn)
            .await?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
