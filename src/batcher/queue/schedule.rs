//! Choice of the next upstream call.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::QueueContext;
use super::entries::Entries;
use super::entry::Stage;
use crate::task::TaskId;

/// One upstream call.
#[derive(Clone, Debug)]
pub(in crate::batcher) struct Call {
    /// `retrieve` is sent for one id, `retrieve_batch` for more.
    pub(in crate::batcher) ids: Vec<TaskId>,
    /// How many times the call was sent already.
    pub(in crate::batcher) attempts: u32,
    /// When its ids were taken from the queue for the first time.
    pub(in crate::batcher) taken_at: Instant,
    pub(in crate::batcher) not_before: Instant,
    /// Number of records of the response that left these ids out, if it may have been cut.
    pub(in crate::batcher) short_response: Option<usize>,
}

impl Call {
    /// Creates a call that is sent for the first time, as soon as possible.
    pub(in crate::batcher) fn new(ids: Vec<TaskId>, taken_at: Instant, now: Instant) -> Self {
        Self { ids, attempts: 0, taken_at, not_before: now, short_response: None }
    }
}

/// Order in which ids become calls.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Calls whose ids are chosen already: halves of a refused batch, ids that a batch left out,
    /// retries.
    prepared: VecDeque<Call>,
    prepared_went_last: bool,
}

impl Schedule {
    pub(super) fn prepared(&self) -> impl Iterator<Item = &Call> {
        self.prepared.iter()
    }

    /// Adds a call that is due at its `not_before`.
    pub(super) fn prepare(&mut self, call: Call) {
        self.prepared.push_back(call);
    }

    /// Removes all prepared calls.
    pub(super) fn take_prepared(&mut self) -> VecDeque<Call> {
        std::mem::take(&mut self.prepared)
    }

    /// Returns the number of calls that fetch every active id once, at least one.
    pub(super) fn calls_per_cycle(&self, active: usize, max_batch: usize) -> usize {
        let prepared: usize = self.prepared.iter().map(|call| call.ids.len()).sum();
        (self.prepared.len() + active.saturating_sub(prepared).div_ceil(max_batch)).max(1)
    }

    /// Returns when the next call is due; `None` if no id is queued.
    pub(super) fn next_due(&mut self, entries: &mut Entries, now: Instant) -> Option<Instant> {
        self.drop_unneeded(entries, now);
        let Entries { map, active } = entries;
        let queued = map.values_mut().filter_map(|entry| match entry.stage {
            Stage::Queued { .. } if entry.is_needed(now) => Some(now),
            Stage::Queued { .. } => {
                active.set_stage(entry, Stage::Idle);
                None
            }
            Stage::Idle => entry.next_poll(now),
            Stage::InCall => None,
        });
        queued.chain(self.prepared.iter().map(|call| call.not_before)).min()
    }

    /// Takes the next call. Prepared calls and new batches take turns, so that neither starves the
    /// other.
    pub(super) fn take(&mut self, entries: &mut Entries, context: &QueueContext) -> Option<Call> {
        let prepared = self.prepared.iter().position(|call| call.not_before <= context.now);
        let batch =
            if self.prepared_went_last || prepared.is_none() { take_batch(entries, context) } else { None };
        self.prepared_went_last = batch.is_none();
        batch.or_else(|| self.prepared.remove(prepared?))
    }

    /// Removes ids that are no longer needed from the prepared calls.
    pub(super) fn drop_unneeded(&mut self, entries: &mut Entries, now: Instant) {
        self.prepared.retain_mut(|call| {
            call.ids.retain(|id| {
                let Some(entry) = entries.map.get_mut(id) else { return false };
                let is_needed = entry.is_needed(now);
                if !is_needed {
                    entries.active.set_stage(entry, Stage::Idle);
                    entries.remove_if_empty(id);
                }
                is_needed
            });
            !call.ids.is_empty()
        });
    }
}

/// Takes at most `max_batch` queued ids: first those without a cached result in the order in which
/// they were queued, then those with the oldest result.
fn take_batch(entries: &mut Entries, context: &QueueContext) -> Option<Call> {
    let now = context.now;
    let Entries { map, active } = entries;
    let mut due: Vec<(bool, Instant, &TaskId)> = Vec::new();
    for (id, entry) in map.iter_mut() {
        if entry.stage == Stage::Idle && entry.next_poll(now).is_some_and(|at| at <= now) {
            active.set_stage(entry, Stage::Queued { since: now });
        }
        if let Stage::Queued { since } = entry.stage
            && entry.is_needed(now)
        {
            due.push(match entry.fetched_at() {
                None => (false, since, id),
                Some(at) => (true, at, id),
            });
        }
    }
    let first = due.iter().min()?.2.clone();
    let ids = if first.is_batchable() {
        due.retain(|(.., id)| id.is_batchable());
        if due.len() > context.max_batch {
            due.select_nth_unstable(context.max_batch - 1);
            due.truncate(context.max_batch);
        }
        due.sort_unstable();
        due.into_iter().map(|(.., id)| id.clone()).collect()
    } else {
        vec![first]
    };
    for id in &ids {
        if let Some(entry) = map.get_mut(id) {
            active.set_stage(entry, Stage::InCall);
            entry.grace_until = None;
        }
    }
    Some(Call::new(ids, now, now))
}
