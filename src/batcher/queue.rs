//! Ids of one queue, their waiters and their cached results.
//!
//! A state machine without clock and I/O: every operation receives the current time in its
//! [`QueueContext`].

mod entries;
mod entry;
mod schedule;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use self::entries::Entries;
pub(super) use self::entries::{PendingTask, QueueCounts, SweepScope};
use self::entry::{NegativeEntry, PendingSnapshot, QueueEntry, Stage, WaiterSlot};
pub(super) use self::schedule::Call;
use self::schedule::Schedule;
use super::outcome::{
    Enqueued, Freshness, LookupFailure, LookupKind, LookupOptions, RecordSource, TaskOutcome,
};
use super::waiter::Waiter;
use crate::task::TaskId;
use crate::upstream::UpstreamResponse;

/// Ids that every queue may hold, however full the others are, so that one busy token does not shut
/// out the others.
const MIN_IDS: usize = 256;

/// Most calls of one queue in flight at a time.
const MAX_CALLS_PER_QUEUE: usize = 16;

/// Bounds of the time between two fetches of an id for its long polls.
const MIN_POLL_INTERVAL: Duration = Duration::from_secs(1);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(30);

/// Time and limits of one operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueContext {
    pub(super) now: Instant,
    pub(super) max_batch: usize,
    /// Most ids in this queue, cached results included.
    pub(super) max_ids: usize,
    /// Ids that all queues together may still add.
    pub(super) free_ids: usize,
    pub(super) pending_max_age: Duration,
    pub(super) pending_max_stale: Duration,
    /// The queue's share of its token's calls per second.
    pub(super) rate: f64,
    /// Remaining time of a pause that the upstream requested.
    pub(super) paused_for: Duration,
    /// Whether there is memory for another snapshot.
    pub(super) caches_snapshots: bool,
    /// Whether `{}` can mean that a task has no result yet.
    pub(super) is_empty_while_pending: bool,
}

/// Ids of one queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: Entries,
    schedule: Schedule,
    /// Cycle when the last call was taken.
    cycle_at_take: Duration,
    calls_in_flight: usize,
    is_worker_running: bool,
}

/// Next step of the queue's worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkerStep {
    /// A call is due.
    TakeCall,
    /// A call is due at that time.
    SleepUntil(Instant),
    /// Nothing is due before a call ends or a lookup arrives.
    AwaitChange,
    /// There is nothing to do.
    Stop,
}

/// Whether a worker has to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WorkerStart {
    Needed,
    AlreadyRunning,
}

/// Result of a fetch for one id.
#[derive(Debug)]
pub(super) enum FetchOutcome {
    Final {
        record: Bytes,
        source: RecordSource,
    },
    Pending {
        record: Bytes,
        task_age: Option<Duration>,
    },
    /// A record that is served but not cached.
    Conflicting(Bytes),
    Unknown(Option<Arc<UpstreamResponse>>),
    /// A response for single lookups as it is. Batches receive the failure.
    Relayed(Arc<UpstreamResponse>, LookupFailure),
    Failed(LookupFailure),
}

/// Bytes of an id's snapshot before and after an operation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SnapshotBytes {
    pub(super) before: usize,
    pub(super) after: usize,
}

/// Reason why a lookup leaves while ids of it are unresolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// It returned a result without them, so they stay queued for a while.
    Returned,
    /// Its client hung up. An id without another waiter is dropped.
    HungUp,
}

/// Lookups.
impl Queue {
    /// Registers a waiter for its unresolved ids. Resolves those with a fresh cached result and
    /// queues the others.
    pub(super) fn enqueue(
        &mut self,
        context: &QueueContext,
        ids: &[TaskId],
        waiter: &Arc<Waiter>,
        options: &LookupOptions,
    ) -> Enqueued {
        let mut enqueued = Enqueued::default();
        let is_long_poll = options.wait.is_some();
        let retry_after = self.estimate(context);
        let max_ids = context.max_ids.min((self.len() + context.free_ids).max(MIN_IDS));
        let mut has_evicted = false;
        for slot in waiter.unresolved() {
            let id = &ids[slot];
            if self.len() >= max_ids && !self.entries.map.contains_key(id) {
                if !has_evicted {
                    has_evicted = true;
                    self.entries.evict_cached();
                }
                if self.len() >= max_ids {
                    waiter.resolve(slot, TaskOutcome::Failed(LookupFailure::QueueFull { retry_after }));
                    continue;
                }
            }
            let Entries { map, active } = &mut self.entries;
            let entry = map.entry(id.clone()).or_insert_with(|| QueueEntry::new(context.now));
            let fresh = entry.fresh_outcome(context, options);
            let is_fresh = fresh.is_some();
            if let Some(outcome) = fresh.filter(|_| !is_long_poll) {
                waiter.resolve(slot, outcome);
                continue;
            }
            if entry.stage == Stage::Idle {
                enqueued.added += 1;
                enqueued.outdated += usize::from(entry.snapshot.is_some() || entry.negative.is_some());
                // A long poll fetches a fresh result again later.
                if !is_fresh {
                    active.set_stage(entry, Stage::Queued { since: context.now });
                }
            } else {
                enqueued.joined += 1;
            }
            let waiter = WaiterSlot { waiter: Arc::clone(waiter), slot, kind: options.kind, is_long_poll };
            entry.waiters.push(waiter);
        }
        enqueued
    }

    /// Ends a lookup's time in the queue. Ids that are not in a call are resolved with a snapshot
    /// that is young enough, else with a failure. They stay queued either way.
    pub(super) fn end_queueing(&mut self, context: &QueueContext, ids: &[TaskId], waiter: &Arc<Waiter>) {
        let (max_age, retry_after) = (self.max_stale(context), self.estimate(context));
        let Entries { map, active } = &mut self.entries;
        for slot in waiter.unresolved() {
            let Some(entry) = map.get_mut(&ids[slot]) else { continue };
            if entry.stage == Stage::InCall {
                continue;
            }
            let outcome = entry
                .cached_outcome(context.now, max_age, waiter)
                .unwrap_or(TaskOutcome::Failed(LookupFailure::QueueTimeout { retry_after }));
            entry.remove_waiter(waiter);
            entry.start_grace(active, context);
            waiter.resolve(slot, outcome);
        }
    }

    /// Ends a long poll. Ids with a cached result that is not older than the interval of long polls
    /// are resolved with it, the others are queued as for any lookup.
    pub(super) fn end_long_poll(&mut self, context: &QueueContext, ids: &[TaskId], waiter: &Arc<Waiter>) {
        let max_age = self.max_stale(context).max(MAX_POLL_INTERVAL + self.cycle(context));
        let Entries { map, active } = &mut self.entries;
        for slot in waiter.unresolved() {
            let Some(entry) = map.get_mut(&ids[slot]) else { continue };
            if let Some(outcome) = entry.cached_outcome(context.now, max_age, waiter) {
                entry.remove_waiter(waiter);
                waiter.resolve(slot, outcome);
                continue;
            }
            for slot in entry.waiters.iter_mut().filter(|slot| Arc::ptr_eq(&slot.waiter, waiter)) {
                slot.is_long_poll = false;
            }
            if entry.stage == Stage::Idle {
                active.set_stage(entry, Stage::Queued { since: context.now });
            }
        }
    }

    /// Resolves a waiter's ids that have a cached result, however old.
    pub(super) fn resolve_cached(&mut self, now: Instant, ids: &[TaskId], waiter: &Arc<Waiter>) {
        for slot in waiter.unresolved() {
            let Some(entry) = self.entries.map.get_mut(&ids[slot]) else { continue };
            if let Some(outcome) = entry.cached_outcome(now, Duration::MAX, waiter) {
                entry.remove_waiter(waiter);
                waiter.resolve(slot, outcome);
            }
        }
    }

    /// Removes a waiter from its unresolved ids.
    pub(super) fn leave(
        &mut self,
        context: &QueueContext,
        ids: &[TaskId],
        waiter: &Arc<Waiter>,
        departure: Departure,
    ) {
        for slot in waiter.unresolved() {
            let Entries { map, active } = &mut self.entries;
            let Some(entry) = map.get_mut(&ids[slot]) else { continue };
            entry.remove_waiter(waiter);
            match departure {
                Departure::Returned => entry.start_grace(active, context),
                Departure::HungUp => {
                    if matches!(entry.stage, Stage::Queued { .. }) && !entry.is_needed(context.now) {
                        active.set_stage(entry, Stage::Idle);
                    }
                }
            }
            self.entries.remove_if_empty(&ids[slot]);
        }
    }
}

/// Calls and their results.
impl Queue {
    /// Marks the worker as running.
    pub(super) fn start_worker(&mut self) -> WorkerStart {
        match std::mem::replace(&mut self.is_worker_running, true) {
            true => WorkerStart::AlreadyRunning,
            false => WorkerStart::Needed,
        }
    }

    /// Marks the worker as stopped after every id that waits for it received the failure.
    pub(super) fn stop_worker(&mut self, failure: &LookupFailure) {
        self.fail_waiting(failure);
        self.is_worker_running = false;
    }

    /// Returns the next step of the worker. [`WorkerStep::Stop`] marks it as stopped in the same
    /// critical section, so that a lookup that arrives afterwards starts a new one.
    pub(super) fn next_step(&mut self, now: Instant) -> WorkerStep {
        match self.schedule.next_due(&mut self.entries, now) {
            Some(at) if at > now => WorkerStep::SleepUntil(at),
            Some(_) if self.calls_in_flight < MAX_CALLS_PER_QUEUE => WorkerStep::TakeCall,
            None if self.calls_in_flight == 0 => {
                self.is_worker_running = false;
                WorkerStep::Stop
            }
            Some(_) | None => WorkerStep::AwaitChange,
        }
    }

    /// Takes the next call, which counts as in flight until [`Queue::end_call`].
    pub(super) fn take_call(&mut self, context: &QueueContext) -> Option<Call> {
        self.schedule.drop_unneeded(&mut self.entries, context.now);
        self.cycle_at_take = self.cycle(context);
        let call = self.schedule.take(&mut self.entries, context)?;
        self.calls_in_flight += 1;
        Some(call)
    }

    pub(super) fn end_call(&mut self) {
        self.calls_in_flight -= 1;
    }

    /// Adds a call for ids of an earlier call.
    pub(super) fn prepare_call(&mut self, call: Call) {
        self.schedule.prepare(call);
    }

    /// Whether one of the ids has a waiter.
    pub(super) fn is_awaited(&self, ids: &[TaskId]) -> bool {
        ids.iter().any(|id| self.entries.map.get(id).is_some_and(|entry| !entry.waiters.is_empty()))
    }

    /// Whether an id that a batch left out needs a call of its own: a single lookup waits for the
    /// upstream's response, and that response is not cached.
    pub(super) fn needs_own_call(&self, id: &TaskId) -> bool {
        self.entries.map.get(id).is_some_and(|entry| {
            entry.has_single_waiter()
                && entry.negative.as_ref().is_none_or(|negative| negative.response.is_none())
        })
    }

    /// Records that a batch response did not contain the id, before the id gets a call of its own.
    /// Batch lookups are resolved.
    pub(super) fn mark_missing(&mut self, now: Instant, id: &TaskId) {
        let Some(entry) = self.entries.map.get_mut(id) else { return };
        entry.snapshot = None;
        let ttl = entry.negative.as_ref().map_or(Duration::ZERO, |negative| negative.ttl);
        entry.negative = Some(NegativeEntry { response: None, fetched_at: now, ttl });
        let outcome = TaskOutcome::Unknown { response: None, freshness: Freshness::Fetched };
        entry.resolve_if(&outcome, |waiter| waiter.kind == LookupKind::Batch && !waiter.is_long_poll);
    }

    /// Caches the result of a fetch and resolves the waiters. Long polls go on unless it is final
    /// or a failure.
    pub(super) fn complete(
        &mut self,
        context: &QueueContext,
        id: &TaskId,
        outcome: FetchOutcome,
    ) -> SnapshotBytes {
        let now = context.now;
        let Entries { map, active } = &mut self.entries;
        let Some(entry) = map.get_mut(id) else { return SnapshotBytes::default() };
        let before = entry.snapshot_bytes();
        active.set_stage(entry, Stage::Idle);
        entry.grace_until = None;
        entry.refetch_at = Some(now + MIN_POLL_INTERVAL);
        let refetch_after_call = std::mem::take(&mut entry.refetch_after_call);
        match outcome {
            FetchOutcome::Final { record, source } => {
                (entry.snapshot, entry.negative) = (None, None);
                entry.resolve_all(&TaskOutcome::Final { record, source });
            }
            FetchOutcome::Pending { record, task_age } => {
                let first_seen = entry.snapshot.as_ref().map_or(now, |snapshot| snapshot.first_seen);
                let task_age = task_age.unwrap_or_else(|| now.saturating_duration_since(first_seen));
                entry.negative = None;
                entry.refetch_at = Some(now + (task_age / 10).clamp(MIN_POLL_INTERVAL, MAX_POLL_INTERVAL));
                entry.snapshot = context.caches_snapshots.then(|| PendingSnapshot {
                    record: record.clone(),
                    fetched_at: now,
                    first_seen,
                    two_cycles: 2 * self.cycle_at_take,
                });
                let outcome = TaskOutcome::Pending { record, freshness: Freshness::Fetched };
                entry.resolve_all_but_long_polls(&outcome);
            }
            FetchOutcome::Conflicting(record) => {
                entry.resolve_all(&TaskOutcome::Pending { record, freshness: Freshness::Fetched });
            }
            FetchOutcome::Unknown(response) => {
                entry.snapshot = None;
                let ttl = entry.next_negative_ttl(context);
                let previous = entry.negative.take();
                // If a batch left the id out again, the response to its own call still holds.
                let response = response.or_else(|| previous.and_then(|negative| negative.response));
                entry.refetch_at = Some(now + ttl.max(MIN_POLL_INTERVAL));
                entry.negative = Some(NegativeEntry { response: response.clone(), fetched_at: now, ttl });
                let outcome = TaskOutcome::Unknown { response, freshness: Freshness::Fetched };
                entry.resolve_all_but_long_polls(&outcome);
            }
            FetchOutcome::Relayed(response, failure) => {
                let relayed = TaskOutcome::Relayed(response);
                entry.resolve_if(&relayed, |waiter| waiter.kind == LookupKind::Single);
                entry.resolve_all(&TaskOutcome::Failed(failure));
            }
            FetchOutcome::Failed(failure) => entry.resolve_all(&TaskOutcome::Failed(failure)),
        }
        if refetch_after_call {
            entry.refetch_at = None;
        }
        let after = entry.snapshot_bytes();
        self.entries.remove_if_empty(id);
        SnapshotBytes { before, after }
    }

    /// Fails every id that is queued or in a prepared call, but not those in flight.
    pub(super) fn fail_waiting(&mut self, failure: &LookupFailure) {
        let outcome = TaskOutcome::Failed(failure.clone());
        let Entries { map, active } = &mut self.entries;
        for call in self.schedule.take_prepared() {
            for id in call.ids {
                if let Some(entry) = map.get_mut(&id) {
                    active.set_stage(entry, Stage::Idle);
                    entry.resolve_all(&outcome);
                }
            }
        }
        for entry in map.values_mut() {
            if entry.stage != Stage::InCall {
                active.set_stage(entry, Stage::Idle);
                entry.grace_until = None;
                entry.resolve_all(&outcome);
            }
        }
        map.retain(|_, entry| !entry.is_empty());
    }

    /// Resolves an id with a final record that another queue of the same token fetched.
    pub(super) fn resolve_final(&mut self, id: &TaskId, record: &Bytes, source: RecordSource) {
        let Entries { map, active } = &mut self.entries;
        let Some(entry) = map.get_mut(id) else { return };
        entry.resolve_all(&TaskOutcome::Final { record: record.clone(), source });
        (entry.snapshot, entry.negative, entry.grace_until) = (None, None, None);
        if entry.stage != Stage::InCall {
            active.set_stage(entry, Stage::Idle);
        }
        self.entries.remove_if_empty(id);
    }

    /// Makes an id due for its long polls because another token saw its final record.
    pub(super) fn refetch_now(&mut self, id: &TaskId) {
        if let Some(entry) = self.entries.map.get_mut(id) {
            entry.refetch_at = None;
            entry.refetch_after_call = entry.stage == Stage::InCall;
        }
    }
}

/// Cached results.
impl Queue {
    /// Drops the cached results of an id.
    pub(super) fn discard(&mut self, id: &TaskId) {
        self.entries.discard(id);
    }

    /// Drops all cached results.
    pub(super) fn discard_all(&mut self) {
        self.entries.discard_all();
    }

    /// Drops cached results and ids that are no longer needed. Returns the bytes of the remaining
    /// snapshots.
    pub(super) fn sweep(&mut self, context: &QueueContext, scope: SweepScope) -> usize {
        self.entries.sweep(context.now, self.max_stale(context), scope)
    }

    /// Returns the tasks whose last record is pending.
    pub(super) fn pending_tasks(&self) -> impl Iterator<Item = PendingTask<'_>> {
        self.entries.pending_tasks()
    }
}

/// Sizes and estimates.
impl Queue {
    /// Whether there are no ids, no calls and no worker.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0 && !self.is_working()
    }

    /// Whether a worker or a call uses the queue.
    pub(super) fn is_working(&self) -> bool {
        self.calls_in_flight > 0 || self.is_worker_running
    }

    /// Returns the number of ids, those with cached results included.
    pub(super) fn len(&self) -> usize {
        self.entries.map.len()
    }

    /// Returns the time that the queue needs to fetch every queued id once.
    pub(super) fn cycle(&self, context: &QueueContext) -> Duration {
        let calls = self.schedule.calls_per_cycle(self.entries.active.get(), context.max_batch);
        Duration::from_secs_f64(f64::from(u32::try_from(calls).unwrap_or(u32::MAX)) / context.rate)
    }

    /// Returns the time until an id that is queued now is fetched.
    fn estimate(&self, context: &QueueContext) -> Duration {
        self.cycle(context) + context.paused_for
    }

    /// Returns the age up to which a snapshot is served to a lookup that waited in the queue.
    fn max_stale(&self, context: &QueueContext) -> Duration {
        context.pending_max_stale.max(2 * self.cycle(context))
    }

    /// Counts the ids. Those of a prepared call count as queued.
    pub(super) fn counts(&self, now: Instant) -> QueueCounts {
        let mut counts = self.entries.counts(now);
        for call in self.schedule.prepared() {
            counts.in_flight = counts.in_flight.saturating_sub(call.ids.len());
            counts.add_queued(call.ids.len(), call.taken_at);
        }
        counts
    }
}
