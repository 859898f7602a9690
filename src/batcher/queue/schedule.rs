//! What goes next: the calls of a lane, put together from what is wanted.

use std::collections::HashMap;

use tokio::time::Instant;

use super::Queue;
use crate::batcher::QueueLimits;
use crate::batcher::entry::{Entry, Stage, Wanted};
use crate::task::TaskId;

/// One upstream call.
#[derive(Clone, Debug)]
pub(in crate::batcher) struct Call {
    pub(in crate::batcher) ids: Vec<TaskId>,
    /// How many times it was sent already.
    pub(in crate::batcher) attempts: u32,
    /// When it was first taken.
    pub(in crate::batcher) taken_at: Instant,
    pub(in crate::batcher) not_before: Instant,
}

/// What the driver does next.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::batcher) enum Next {
    /// Something is due.
    Take,
    /// Something will be.
    At(Instant),
    /// Nothing is wanted.
    Nothing,
}

impl Queue {
    /// What is due, as of now.
    pub(in crate::batcher) fn next(&mut self, now: Instant) -> Next {
        self.prepared.retain_mut(|call| keep_wanted(&mut self.entries, &mut self.wanted, now, call));
        let mut next: Option<Instant> = self.prepared.iter().map(|call| call.not_before).min();
        for entry in self.entries.values_mut() {
            let due = match entry.stage {
                Stage::Wanted { .. } if entry.is_wanted(now) => Some(now),
                Stage::Wanted { .. } => {
                    self.wanted.set(entry, Stage::Idle);
                    None
                }
                Stage::Idle => entry.next_look(now),
                Stage::Taken => None,
            };
            next = match (next, due) {
                (Some(next), Some(due)) => Some(next.min(due)),
                (next, due) => next.or(due),
            };
        }
        match next {
            None => Next::Nothing,
            Some(at) if at <= now => Next::Take,
            Some(at) => Next::At(at),
        }
    }

    /// The next call: at most `max_batch` ids, never seen first, then the oldest snapshot. Calls that are put together
    /// already take turns with new ones, so that neither starves the other.
    pub(in crate::batcher) fn take(&mut self, now: Instant, limits: &QueueLimits) -> Option<Call> {
        self.prepared.retain_mut(|call| keep_wanted(&mut self.entries, &mut self.wanted, now, call));
        self.cycle_at_take = self.cycle(limits);
        let prepared = self.prepared.iter().position(|call| call.not_before <= now);
        let call = if self.prepared_went_last || prepared.is_none() { self.fold(now, limits) } else { None };
        self.prepared_went_last = call.is_none();
        call.or_else(|| self.prepared.remove(prepared?))
    }

    fn fold(&mut self, now: Instant, limits: &QueueLimits) -> Option<Call> {
        let mut due: Vec<(bool, Instant, &TaskId)> = Vec::new();
        for (id, entry) in &mut self.entries {
            if entry.stage == Stage::Idle && entry.next_look(now).is_some_and(|at| at <= now) {
                self.wanted.set(entry, Stage::Wanted { since: now });
            }
            if let Stage::Wanted { since } = entry.stage
                && entry.is_wanted(now)
            {
                due.push(match entry.seen_at() {
                    None => (false, since, id),
                    Some(at) => (true, at, id),
                });
            }
        }
        let first = due.iter().min()?.2.clone();
        let ids = if first.is_batchable() {
            due.retain(|(.., id)| id.is_batchable());
            if due.len() > limits.max_batch {
                due.select_nth_unstable(limits.max_batch - 1);
                due.truncate(limits.max_batch);
            }
            due.sort_unstable();
            due.into_iter().map(|(.., id)| id.clone()).collect()
        } else {
            vec![first]
        };
        for id in &ids {
            if let Some(entry) = self.entries.get_mut(id) {
                self.wanted.set(entry, Stage::Taken);
                entry.grace_until = None;
            }
        }
        Some(Call { ids, attempts: 0, taken_at: now, not_before: now })
    }

    /// Puts calls back to be sent (again), each at its time.
    pub(in crate::batcher) fn prepare(&mut self, call: Call) {
        self.prepared.push_back(call);
    }
}

/// Takes the ids that nobody wants any more out of a call; whether any is left.
fn keep_wanted(
    entries: &mut HashMap<TaskId, Entry>,
    stages: &mut Wanted,
    now: Instant,
    call: &mut Call,
) -> bool {
    call.ids.retain(|id| {
        let Some(entry) = entries.get_mut(id) else { return false };
        let wanted = entry.is_wanted(now);
        if !wanted {
            stages.set(entry, Stage::Idle);
            if entry.is_blank() {
                entries.remove(id);
            }
        }
        wanted
    });
    !call.ids.is_empty()
}
