//! Long work in short transactions: the sweep, and forgets of whole services or ages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sqlx::Connection;

use super::{Writer, drop_connection, read_totals};
use crate::clock;
use crate::store::state::Health;
use crate::store::{DeleteScope, StoreError, sweep, tasks};
use crate::telemetry::EvictionReason;

impl Writer {
    /// A tombstone and a first step in one transaction, then step by step, so that the log stays small.
    pub(super) async fn forget_wide(&mut self, scope: &DeleteScope) -> Result<u64, StoreError> {
        let now = clock::unix_now();
        let (mut removed, mut first, mut more) = (0, true, true);
        while more {
            let mut conn = self.connection().await?;
            let step = async {
                self.look_around(&mut conn).await?;
                self.check_log(&mut conn).await?;
                let start = Instant::now();
                let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
                let step = match first {
                    true => tasks::forget(&mut tx, scope, now).await?,
                    false => tasks::forget_more(&mut tx, scope, now).await?,
                };
                let totals = read_totals(&mut tx).await?;
                tx.commit().await?;
                self.shared.metrics.commit_seconds.observe(start.elapsed());
                Ok((step, totals))
            };
            match step.await {
                Ok(((count, again), totals)) => {
                    removed += count;
                    self.shared.metrics.tasks_deleted.inc_by(count);
                    (first, more) = (false, again);
                    self.set_totals(totals);
                    self.shared.memory.clear();
                    self.bound_log(&mut conn).await;
                    self.conn = Some(conn);
                }
                Err(error) => {
                    drop_connection(conn).await;
                    self.failed(&error);
                    return Err(StoreError::Unavailable);
                }
            }
        }
        Ok(removed)
    }

    /// One step of the sweep; the next one follows after whatever else waits.
    pub(super) async fn sweep(&mut self) {
        self.sweep_due = false;
        if self.shared.health.get() != Health::Good {
            return;
        }
        // Last uses first: what was just used must not leave as unused.
        let written = self.commit(&[], false, true).await;
        let swept = match written {
            Ok(_) => self.sweep_step().await,
            Err(error) => Err(error),
        };
        match swept {
            Ok(more) => self.sweep_due = self.sweep_due && more,
            Err(error) => self.failed(&error),
        }
    }

    pub(super) async fn sweep_step(&mut self) -> Result<bool, StoreError> {
        let mut conn = self.connection().await?;
        let now = clock::unix_now();
        let old = self.ages.note(Instant::now(), self.shared.totals.forget_seq.load(Ordering::Relaxed));
        let prune_readers = self.sweeps.is_multiple_of(60);
        self.sweeps += 1;
        let shared = Arc::clone(&self.shared);
        let swept = async {
            let start = Instant::now();
            let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
            let step = sweep::step(&mut tx, &shared.limits, now).await?;
            if let Some(seq) = old {
                sweep::prune_tombstones(&mut tx, seq).await?;
            }
            if prune_readers {
                sweep::prune_readers(&mut tx, now).await?;
            }
            let totals = read_totals(&mut tx).await?;
            tx.commit().await?;
            shared.metrics.commit_seconds.observe(start.elapsed());
            Ok((step, totals))
        };
        match swept.await {
            Ok((step, totals)) => {
                self.bound_log(&mut conn).await;
                self.conn = Some(conn);
                let evicted = &self.shared.metrics.tasks_evicted;
                evicted.add(EvictionReason::MaxBytes, step.for_bytes);
                evicted.add(EvictionReason::MaxAge, step.for_age);
                for (service, id) in &step.removed {
                    self.shared.memory.remove(service, id);
                }
                self.set_totals(totals);
                self.sweep_due |= step.more;
                Ok(true)
            }
            Err(error) => {
                drop_connection(conn).await;
                Err(StoreError::Sqlx(error))
            }
        }
    }
}
