//! What all lanes come to at this moment: read for `/metrics` and the admin port's API when somebody looks, never kept up
//! on the way of a look-up.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::Stage;
use super::queue::Queue;
use super::{Backend, Batcher};
use crate::task::TaskId;
use crate::telemetry::QueueTotals;

/// What one lane comes to.
#[derive(Default)]
pub(super) struct Counts {
    /// Ids that wait for their turn.
    pub(super) wanted: usize,
    /// Ids in a call.
    pub(super) under_way: usize,
    /// Pending answers in memory.
    pub(super) remembered: usize,
    /// Their bytes.
    pub(super) remembered_bytes: usize,
    /// Since when the id that has waited longest has waited for its turn.
    pub(super) oldest_wanted: Option<Instant>,
}

impl Counts {
    /// Ids that are put together into a call to be sent again, or in halves, wait for their turn like any other.
    pub(super) fn of(state: &Queue, now: Instant) -> Self {
        let mut counts = Self::default();
        let older = |oldest: Option<Instant>, since| Some(oldest.map_or(since, |oldest| oldest.min(since)));
        for entry in state.entries.values() {
            match entry.stage {
                Stage::Wanted { since } if entry.is_wanted(now) => {
                    counts.wanted += 1;
                    counts.oldest_wanted = older(counts.oldest_wanted, since);
                }
                Stage::Taken => counts.under_way += 1,
                Stage::Wanted { .. } | Stage::Idle => {}
            }
            if entry.pending.is_some() {
                counts.remembered += 1;
                counts.remembered_bytes += entry.remembered_bytes();
            }
        }
        for call in &state.prepared {
            counts.wanted += call.ids.len();
            counts.under_way = counts.under_way.saturating_sub(call.ids.len());
            counts.oldest_wanted = older(counts.oldest_wanted, call.taken_at);
        }
        counts
    }
}

impl<O: Backend> Batcher<O> {
    /// All lanes together. Each is locked for as long as it takes to walk its ids.
    pub fn totals(&self) -> QueueTotals {
        let now = Instant::now();
        let queues = self.weak();
        let mut totals = QueueTotals {
            queues: queues.len(),
            tokens: self.shared.limiters.len(),
            is_upstream_down: self.shared.breaker.is_known_down(),
            ..QueueTotals::default()
        };
        for queue in queues.iter().filter_map(Weak::upgrade) {
            let counts = Counts::of(&queue.lock(), now);
            totals.waiters += queue.callers.load(Ordering::Relaxed);
            totals.queued += counts.wanted;
            totals.in_flight += counts.under_way;
            totals.snapshots += counts.remembered;
            totals.snapshot_bytes += counts.remembered_bytes;
            let waited = counts.oldest_wanted.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            totals.oldest_queued = totals.oldest_queued.max(waited);
        }
        totals
    }
}

impl Queue {
    /// Whether anybody waits for one of these ids.
    pub(super) fn is_awaited(&self, ids: &[TaskId]) -> bool {
        ids.iter().any(|id| self.entries.get(id).is_some_and(|entry| !entry.waiters.is_empty()))
    }
}
