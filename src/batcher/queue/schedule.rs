//! Choice of the next upstream call.
//!
//! 1. Ids that were never fetched, oldest first. While known ids wait, they have at most three
//!    quarters of a call, or more where they would otherwise wait for longer than `queue_timeout`.
//! 2. Known ids that would otherwise wait for longer than two even cycles and 30 s, or so long that a
//!    lookup of them could time out.
//! 3. Known ids by the expected time for which their task has been finished unnoticed.
//! 4. Where there is room, ids of long polls, which then learn of their end without a call.
//!
//! Everything takes time linear in the number of ids.

use std::collections::{HashMap, VecDeque};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

use super::QueueContext;
use super::entries::Entries;
use super::entry::{QueueEntry, Stage, StageCounts};
use crate::task::{DurationModel, ServiceDurations, TaskId};

/// No known id waits for longer than this or two even cycles.
const MIN_LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Most calls ahead for which deadlines are checked. Later deadlines are met as the time comes.
const MAX_SLOTS: usize = 4096;

/// Model without samples.
static WITHOUT_DATA: LazyLock<DurationModel> = LazyLock::new(DurationModel::default);

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
    /// Whether the last batch was one id that may not share a call.
    alone_went_last: bool,
    /// Whether the last call of one id was for a new id, where calls have one id each.
    new_went_last: bool,
}

impl Schedule {
    pub(super) fn prepared(&self) -> impl ExactSizeIterator<Item = &Call> {
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
    pub(super) fn calls_per_cycle(&self, counts: &StageCounts, max_batch: usize) -> usize {
        let prepared: usize = self.prepared.iter().map(|call| call.ids.len()).sum();
        let batched = counts.active.saturating_sub(prepared + counts.alone);
        (batched.div_ceil(max_batch) + counts.alone + self.prepared.len()).max(1)
    }

    /// Returns the number of calls up to the one that fetches a new id that is queued now. Only what
    /// goes before it counts.
    pub(super) fn calls_until_new(
        &self,
        counts: &StageCounts,
        max_batch: usize,
        is_batchable: bool,
    ) -> usize {
        let batches = (counts.new + counts.known).div_ceil(max_batch);
        // Batches, ids that may not share a call, and prepared calls take turns.
        let own = match is_batchable {
            // Where calls have one id each, new and known ids take turns.
            true if max_batch == 1 => counts.new + 1 + counts.known.min(counts.new + 1),
            true => counts.new / max_batch + 1,
            false => counts.alone + 1,
        };
        let others = if is_batchable { counts.alone } else { batches };
        let turns = own + others.min(own);
        turns + self.prepared.len().min(turns)
    }

    /// Returns when the next call is due; `None` if nothing is queued. Ids that are no longer needed
    /// leave the queue.
    pub(super) fn next_due(&mut self, entries: &mut Entries, now: Instant) -> Option<Instant> {
        let Entries { map, counts } = entries;
        let prepared = self.prepared.iter().map(|call| call.not_before).min();
        if counts.queued() == 0 || prepared.is_some_and(|at| at <= now) {
            return prepared;
        }
        let mut is_queued = false;
        for entry in map.values_mut() {
            if matches!(entry.stage, Stage::Queued { .. }) {
                if entry.is_needed(now) {
                    is_queued = true;
                    break;
                }
                counts.set_stage(entry, Stage::Idle);
            }
        }
        if is_queued { Some(now) } else { prepared }
    }

    /// Takes the next call. Prepared calls and new batches take turns, so that neither starves the
    /// other.
    pub(super) fn take(&mut self, entries: &Entries, context: &QueueContext<'_>) -> Option<Call> {
        let is_due = |call: &Call| call.not_before <= context.now;
        // A retry goes first: it has been taken before.
        let retry = self.prepared.iter().position(|call| is_due(call) && call.attempts > 0);
        let prepared = retry.or_else(|| self.prepared.iter().position(is_due));
        let batch = match self.prepared_went_last || prepared.is_none() {
            true => self.new_batch(&entries.map, context),
            false => None,
        };
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
                    entries.counts.set_stage(entry, Stage::Idle);
                    entries.remove_if_empty(id);
                }
                is_needed
            });
            !call.ids.is_empty()
        });
    }
}

/// Queued id that was never fetched.
struct NewId<'a> {
    since: Instant,
    /// Latest call for a lookup that waits for it, or that got a 429 with a `retry-after`.
    needed_by: Option<Instant>,
    id: &'a TaskId,
}

/// Queued id that was fetched before.
struct KnownId<'a> {
    since: Instant,
    /// Latest call after which no lookup has to time out because the last result is too old for it.
    needed_by: Instant,
    /// Expected time for which the task has been finished unnoticed, in seconds.
    undetected: f64,
    id: &'a TaskId,
}

impl KnownId<'_> {
    /// Returns when the id has to be fetched at the latest.
    fn due_at(&self, longest_wait: Duration) -> Instant {
        (self.since + longest_wait).min(self.needed_by)
    }
}

impl Schedule {
    /// Returns a call for at most `max_batch` queued ids.
    fn new_batch(&mut self, map: &HashMap<TaskId, QueueEntry>, context: &QueueContext<'_>) -> Option<Call> {
        let ids = self.choose(map, context);
        (!ids.is_empty()).then(|| Call::new(ids, context.now, context.now))
    }

    fn choose(&mut self, map: &HashMap<TaskId, QueueEntry>, context: &QueueContext<'_>) -> Vec<TaskId> {
        let (mut new, mut known) = (Vec::new(), Vec::new());
        let mut alone: Option<(Instant, &TaskId)> = None;
        let mut riders = Vec::new();
        let durations = context.durations.service(context.service);
        for (id, entry) in map {
            match entry.stage {
                Stage::Queued { .. } if !entry.is_needed(context.now) => {}
                Stage::Queued { since, .. } if !entry.is_batchable => {
                    alone = Some(alone.map_or((since, id), |oldest| oldest.min((since, id))));
                }
                Stage::Queued { since, is_new: true } => {
                    let awaited_by = (!entry.waiters.is_empty()).then(|| since + context.latest_call());
                    let needed_by = awaited_by.into_iter().chain(entry.promised_by).min();
                    new.push(NewId { since, needed_by, id });
                }
                Stage::Queued { since, is_new: false } => {
                    let undetected = undetected(entry, &durations, context.now);
                    known.push(KnownId { since, needed_by: needed_by(entry, context), undetected, id });
                }
                Stage::Idle if entry.is_batchable && entry.has_long_poll() => {
                    riders.push((entry.fetched_at(), id));
                }
                _ => {}
            }
        }
        // Ids that may not share a call and batches take turns.
        let has_batch = !new.is_empty() || !known.is_empty();
        if let Some((_, id)) = alone.filter(|_| !self.alone_went_last || !has_batch) {
            self.alone_went_last = true;
            return vec![id.clone()];
        }
        self.alone_went_last = false;
        if context.max_batch == 1 && !new.is_empty() && !known.is_empty() {
            // So do new and known ids, where a call has one id.
            self.new_went_last = !self.new_went_last;
            if self.new_went_last { known.clear() } else { new.clear() }
        }
        // Alone in its call, an unknown id is answered by it. In a batch it would need a second call.
        let takes_riders = new.len() + known.len() > 1 || new.is_empty();
        let mut chosen: Vec<TaskId> = Vec::with_capacity(context.max_batch);
        let most_new = most_new(&new, &known, context);
        select_first(&mut new, most_new, |queued| (queued.since, queued.id));
        chosen.extend(new.into_iter().map(|queued| queued.id.clone()));
        let room = context.max_batch - chosen.len();
        chosen.extend(choose_known(known, room, context).into_iter().cloned());
        if !chosen.is_empty() && takes_riders {
            let room = context.max_batch - chosen.len();
            select_first(&mut riders, room, |rider| *rider);
            chosen.extend(riders.into_iter().map(|(_, id)| id.clone()));
        }
        chosen
    }
}

/// Returns the number of new ids in a call: as many as the known ids leave room for, at least three
/// quarters, and more where one would be late otherwise. Known ids that would be late keep the last
/// quarter.
fn most_new(new: &[NewId<'_>], known: &[KnownId<'_>], context: &QueueContext<'_>) -> usize {
    let three_quarters = (context.max_batch * 3 / 4).max(1);
    let most = context.max_batch.saturating_sub(known.len()).max(three_quarters);
    let remaining = |at: Instant| at.saturating_duration_since(context.now);
    let needed = new.iter().filter_map(|queued| queued.needed_by).map(remaining);
    let needed = ids_due(needed, context.max_batch, context.interval());
    let reserved = known_due(known, context.max_batch, context).min(context.max_batch - three_quarters);
    most.max(needed).min(context.max_batch - reserved)
}

/// Returns how many known ids have to be in this call if this one and each later one has room for
/// `room` of them.
fn known_due(known: &[KnownId<'_>], room: usize, context: &QueueContext<'_>) -> usize {
    let longest_wait = longest_wait(known.len(), room, context);
    let remaining =
        known.iter().map(|queued| queued.due_at(longest_wait).saturating_duration_since(context.now));
    ids_due(remaining, room, context.interval())
}

/// Returns the longest wait of a known id if `known` of them are fetched in calls with `room` for
/// them.
fn longest_wait(known: usize, room: usize, context: &QueueContext<'_>) -> Duration {
    let cycle = context.interval().mul_f64(known.div_ceil(room) as f64);
    (2 * cycle).max(MIN_LONGEST_WAIT)
}

fn choose_known<'a>(mut known: Vec<KnownId<'a>>, room: usize, context: &QueueContext<'_>) -> Vec<&'a TaskId> {
    if known.len() > room && room > 0 {
        let due = known_due(&known, room, context);
        let longest_wait = longest_wait(known.len(), room, context);
        if due > 0 {
            let by_time = |one: &KnownId<'_>, other: &KnownId<'_>| {
                one.due_at(longest_wait).cmp(&other.due_at(longest_wait)).then_with(|| one.id.cmp(other.id))
            };
            known.select_nth_unstable_by(due - 1, by_time);
        }
        let by_undetected = |one: &KnownId<'_>, other: &KnownId<'_>| {
            other.undetected.total_cmp(&one.undetected).then_with(|| one.id.cmp(other.id))
        };
        if room > due {
            known[due..].select_nth_unstable_by(room - due - 1, by_undetected);
        }
    }
    known.truncate(room);
    known.sort_unstable_by_key(|queued| (queued.since, queued.id));
    known.into_iter().map(|queued| queued.id).collect()
}

/// Returns how many of the ids have to be in this call so that each is fetched within its remaining
/// time, if this call and each later one takes at most `per_call` of them.
fn ids_due(remaining: impl Iterator<Item = Duration>, per_call: usize, interval: Duration) -> usize {
    // Number of ids by the last call that is in time for them.
    let mut slots: Vec<usize> = Vec::new();
    for remaining in remaining {
        let slot = (remaining.as_secs_f64() / interval.as_secs_f64()) as usize;
        if slot < MAX_SLOTS {
            if slots.len() <= slot {
                slots.resize(slot + 1, 0);
            }
            slots[slot] += 1;
        }
    }
    let mut in_time = 0_usize;
    let mut due = 0;
    for (later_calls, ids) in slots.into_iter().enumerate() {
        in_time += ids;
        due = due.max(in_time.saturating_sub(later_calls * per_call));
    }
    due.min(per_call)
}

/// Truncates a list to its `count` smallest items, in order.
fn select_first<T, K: Ord>(list: &mut Vec<T>, count: usize, key: impl Fn(&T) -> K + Copy) {
    if list.len() > count && count > 0 {
        list.select_nth_unstable_by_key(count - 1, key);
    }
    list.truncate(count);
    list.sort_unstable_by_key(key);
}

/// Returns when a known id has to be fetched. Lookups receive its last result until that is too old,
/// and wait for `queue_timeout` from then on.
fn needed_by(entry: &QueueEntry, context: &QueueContext<'_>) -> Instant {
    let two_cycles = entry.snapshot.as_ref().map_or(Duration::ZERO, |snapshot| snapshot.two_cycles);
    let usable_for = context.pending_max_stale.max(two_cycles);
    entry.fetched_at().unwrap_or(context.now) + usable_for + context.latest_call()
}

/// Returns the expected time for which the task of a known id has been finished unnoticed, in
/// seconds. An unknown id counts as a task without data that began at its last fetch.
fn undetected(entry: &QueueEntry, durations: &ServiceDurations, now: Instant) -> f64 {
    match &entry.snapshot {
        Some(snapshot) => {
            let model = durations.model(snapshot.kind.as_deref());
            model.expected_undetected(snapshot.task_age.as_secs_f64(), snapshot.task_age_at(now))
        }
        None => {
            let since = entry.fetched_at().unwrap_or(now);
            WITHOUT_DATA.expected_undetected(0.0, now.saturating_duration_since(since).as_secs_f64())
        }
    }
}

#[cfg(test)]
mod tests;
