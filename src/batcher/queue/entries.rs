//! Entries of a queue: number of active ids, bounds and views of the cached results.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::entry::{MAX_NEGATIVE_AGE, QueueEntry, Stage, StageCounts};
use crate::lru::shrink_if_sparse;
use crate::task::TaskId;
use crate::telemetry::ClientLabel;

/// Entries by id.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) map: HashMap<TaskId, QueueEntry>,
    pub(super) counts: StageCounts,
}

/// Cached results that a sweep drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::batcher) enum SweepScope {
    /// Results that are too old to be served.
    Expired,
    /// All results of ids without waiters.
    Unawaited,
}

/// Numbers of ids and cached results.
#[derive(Debug, Default)]
pub(in crate::batcher) struct QueueCounts {
    pub(in crate::batcher) queued: usize,
    pub(in crate::batcher) in_flight: usize,
    pub(in crate::batcher) snapshots: usize,
    pub(in crate::batcher) snapshot_bytes: usize,
    /// When the longest waiting id was queued.
    pub(in crate::batcher) oldest_queued: Option<Instant>,
}

/// A task whose last record is pending.
#[derive(Clone, Copy, Debug)]
pub(in crate::batcher) struct PendingTask<'a> {
    pub(in crate::batcher) id: &'a TaskId,
    /// Client of the last lookup.
    pub(in crate::batcher) client: ClientLabel,
    pub(in crate::batcher) record: &'a Bytes,
    pub(in crate::batcher) fetched_at: Instant,
    pub(in crate::batcher) first_seen: Instant,
    pub(in crate::batcher) waiters: usize,
    pub(in crate::batcher) is_queued: bool,
    /// Age of the task in seconds.
    pub(in crate::batcher) task_age: f64,
    pub(in crate::batcher) kind: Option<&'a str>,
}

impl Entries {
    pub(super) fn remove_if_empty(&mut self, id: &TaskId) {
        if self.map.get(id).is_some_and(QueueEntry::is_empty) {
            self.map.remove(id);
        }
    }

    /// Drops the cached results of an id.
    pub(super) fn discard(&mut self, id: &TaskId) {
        if let Some(entry) = self.map.get_mut(id) {
            discard(&mut self.counts, entry);
            self.remove_if_empty(id);
        }
    }

    /// Drops all cached results.
    pub(super) fn discard_all(&mut self) {
        let Self { map, counts } = self;
        map.retain(|_, entry| {
            discard(counts, entry);
            !entry.is_empty()
        });
    }

    /// Drops the older half of the entries that only hold cached results.
    pub(super) fn evict_cached(&mut self) {
        let is_cache_only = |entry: &QueueEntry| entry.stage == Stage::Idle && entry.waiters.is_empty();
        let mut fetched: Vec<Option<Instant>> =
            self.map.values().filter(|entry| is_cache_only(entry)).map(QueueEntry::fetched_at).collect();
        if fetched.is_empty() {
            return;
        }
        let middle = fetched.len() / 2;
        let until = *fetched.select_nth_unstable(middle).1;
        self.map.retain(|_, entry| !is_cache_only(entry) || entry.fetched_at() > until);
    }

    /// Drops cached results and ids that are no longer needed. Snapshots expire after `max_stale`.
    /// Returns the bytes of the remaining snapshots.
    pub(super) fn sweep(&mut self, now: Instant, max_stale: Duration, scope: SweepScope) -> usize {
        let is_expired = |fetched_at: Instant, max_age: Duration| {
            scope == SweepScope::Unawaited || now.saturating_duration_since(fetched_at) >= max_age
        };
        let Self { map, counts } = self;
        map.retain(|_, entry| {
            if entry.waiters.is_empty() {
                entry
                    .snapshot
                    .take_if(|snapshot| is_expired(snapshot.fetched_at, max_stale.max(snapshot.two_cycles)));
                entry
                    .negative
                    .take_if(|negative| is_expired(negative.fetched_at, negative.ttl + MAX_NEGATIVE_AGE));
                match entry.stage {
                    Stage::Queued { .. } if !entry.is_needed(now) => counts.set_stage(entry, Stage::Idle),
                    // Without a record to serve, its lookups wait like those of a new id.
                    Stage::Queued { since, .. } if entry.fetched_at().is_none() => {
                        counts.set_stage(entry, Stage::Queued { since, is_new: true });
                    }
                    _ => {}
                }
            }
            !entry.is_empty()
        });
        shrink_if_sparse(map);
        map.values().map(QueueEntry::snapshot_bytes).sum()
    }

    /// Counts the ids and the cached results.
    pub(super) fn counts(&self, now: Instant) -> QueueCounts {
        let mut counts = QueueCounts::default();
        for entry in self.map.values() {
            match entry.stage {
                Stage::Queued { since, .. } if entry.is_needed(now) => counts.add_queued(1, since),
                Stage::InFlight => counts.in_flight += 1,
                Stage::Queued { .. } | Stage::Prepared | Stage::Idle => {}
            }
            if entry.snapshot.is_some() {
                counts.snapshots += 1;
                counts.snapshot_bytes += entry.snapshot_bytes();
            }
        }
        counts
    }

    /// Returns the clients that last looked up the ids.
    pub(super) fn clients(&self) -> BTreeSet<ClientLabel> {
        self.map.values().map(|entry| entry.client).collect()
    }

    /// Returns the tasks whose last record is pending.
    pub(super) fn pending_tasks(&self, now: Instant) -> impl Iterator<Item = PendingTask<'_>> {
        self.map.iter().filter_map(move |(id, entry)| {
            let snapshot = entry.snapshot.as_ref()?;
            Some(PendingTask {
                id,
                client: entry.client,
                record: &snapshot.record,
                fetched_at: snapshot.fetched_at,
                first_seen: snapshot.first_seen,
                waiters: entry.waiters.len(),
                is_queued: entry.stage != Stage::Idle,
                task_age: snapshot.task_age_at(now),
                kind: snapshot.kind.as_deref(),
            })
        })
    }
}

/// Drops the cached results of an entry. If it is queued, it counts as never fetched from now on.
fn discard(counts: &mut StageCounts, entry: &mut QueueEntry) {
    entry.discard();
    if let Stage::Queued { since, .. } = entry.stage {
        counts.set_stage(entry, Stage::Queued { since, is_new: true });
    }
}

impl QueueCounts {
    /// Adds ids that were queued at `since`.
    pub(super) fn add_queued(&mut self, ids: usize, since: Instant) {
        self.queued += ids;
        self.oldest_queued = Some(self.oldest_queued.map_or(since, |oldest| oldest.min(since)));
    }
}
