//! Ids of one queue, their waiters and their cached results.
//!
//! A state machine without clock and I/O: every operation receives the current time in its
//! [`QueueContext`].

mod entries;
mod entry;
mod schedule;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use self::entries::Entries;
pub(super) use self::entries::{PendingTask, QueueCounts, SweepScope};
use self::entry::{Cached, NegativeEntry, PendingSnapshot, QueueEntry, Stage, WaiterSlot};
pub(super) use self::schedule::Call;
use self::schedule::Schedule;
use super::outcome::{
    Enqueued, Freshness, LookupFailure, LookupKind, LookupOptions, QueueLimit, RecordSource, TaskOutcome,
};
use super::waiter::Waiter;
use crate::task::{Durations, Service, TaskId};
use crate::telemetry::ClientLabel;
use crate::upstream::UpstreamResponse;

/// Ids that every queue may hold, however full the others are, so that one busy token does not shut
/// out the others.
const MIN_IDS: usize = 256;

/// Most calls of one queue in flight at a time.
const MAX_CALLS_PER_QUEUE: usize = 16;

/// Time between two polls of a lookup that waits (`prefer: wait`). The vendor's SDK polls like this.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(3);

/// Time and limits of one operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueContext<'a> {
    pub(super) now: Instant,
    pub(super) service: &'a Service,
    /// Learnt durations of tasks.
    pub(super) durations: &'a Durations,
    pub(super) max_batch: usize,
    /// Most ids in this queue, cached results included.
    pub(super) max_ids: usize,
    /// Ids that all queues together may still add.
    pub(super) free_ids: usize,
    pub(super) pending_max_age: Duration,
    pub(super) pending_max_stale: Duration,
    pub(super) queue_timeout: Duration,
    /// The queue's share of its token's calls per second.
    pub(super) rate: f64,
    /// Remaining time of a pause that the upstream requested.
    pub(super) paused_for: Duration,
    /// Whether there is memory for another snapshot.
    pub(super) caches_snapshots: bool,
    /// Whether `{}` can mean that a task has no result yet.
    pub(super) is_empty_while_pending: bool,
}

impl QueueContext<'_> {
    /// Returns the time between two calls.
    pub(super) fn interval(&self) -> Duration {
        self.duration_of(1)
    }

    /// Returns the wait of a lookup after which its call has to be sent. The call takes time, so that
    /// is one call earlier than the lookup times out.
    pub(super) fn latest_call(&self) -> Duration {
        self.queue_timeout.saturating_sub(self.interval())
    }

    /// Returns the time that a number of calls takes.
    fn duration_of(&self, calls: usize) -> Duration {
        Duration::from_secs_f64(f64::from(u32::try_from(calls).unwrap_or(u32::MAX)) / self.rate)
    }
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
        kind: Option<Box<str>>,
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

/// A lookup that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct WaitingLookup<'a> {
    pub(super) ids: &'a [TaskId],
    pub(super) waiter: &'a Arc<Waiter>,
    pub(super) options: &'a LookupOptions,
    pub(super) arrived_at: Instant,
}

impl WaitingLookup<'_> {
    /// Whether the lookup may receive a cached result, which is not fresh, instead of waiting longer.
    /// `max_stale` limits its age when the lookup arrived.
    fn accepts(&self, cached: Cached, now: Instant, max_stale: Duration) -> bool {
        let age_at_arrival = self.arrived_at.saturating_duration_since(cached.fetched_at);
        let max_age = cached.ttl.unwrap_or(max_stale.max(cached.two_cycles));
        age_at_arrival < max_age && self.accepts_age(cached, now)
    }

    fn accepts_age(&self, cached: Cached, now: Instant) -> bool {
        let age = now.saturating_duration_since(cached.fetched_at);
        self.options.max_age.is_none_or(|max_age| age < max_age)
    }
}

/// Lookups.
impl Queue {
    /// Registers a waiter for its unresolved ids. Resolves those with a fresh cached result and
    /// queues the others. Ids that could not be fetched within `queue_timeout` fail at once, and
    /// stay queued until after the estimated time.
    pub(super) fn enqueue(&mut self, context: &QueueContext<'_>, lookup: &WaitingLookup<'_>) -> Enqueued {
        let WaitingLookup { ids, waiter, options, .. } = *lookup;
        let mut enqueued = Enqueued::default();
        let is_long_poll = options.wait.is_some();
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
                    let limit =
                        if self.len() >= context.max_ids { QueueLimit::Token } else { QueueLimit::Total };
                    let retry_after = self.cycle(context) + context.paused_for;
                    let failure = LookupFailure::QueueFull { limit, retry_after };
                    waiter.resolve(slot, TaskOutcome::Failed(failure));
                    continue;
                }
            }
            let Entries { map, counts } = &mut self.entries;
            let new = || QueueEntry::new(context.now, id.is_batchable());
            let entry = map.entry(id.clone()).or_insert_with(new);
            entry.client = options.client;
            let fresh = entry.fresh_outcome(context, options);
            let is_fresh = fresh.is_some();
            if let Some(outcome) = fresh.filter(|_| !is_long_poll) {
                waiter.resolve(slot, outcome);
                continue;
            }
            if entry.stage == Stage::Idle {
                enqueued.added += 1;
                enqueued.outdated += usize::from(entry.fetched_at().is_some());
                let stage = entry.queued(context.now);
                let calls = self.schedule.calls_until_new(counts, context.max_batch, entry.is_batchable);
                // A long poll fetches a fresh result again later.
                if !is_fresh {
                    counts.set_stage(entry, stage);
                }
                let estimate = context.duration_of(calls) + context.paused_for;
                let is_new = matches!(stage, Stage::Queued { is_new: true, .. });
                if is_new && !is_long_poll && estimate > context.queue_timeout {
                    enqueued.retry_after = enqueued.retry_after.max(Some(estimate));
                    entry.time_out(context, waiter, slot, estimate);
                    continue;
                }
            } else if entry.is_discarded {
                enqueued.added += 1;
            } else {
                enqueued.joined += 1;
            }
            let waiter = WaiterSlot {
                waiter: Arc::clone(waiter),
                slot,
                kind: options.kind,
                is_long_poll,
                is_after_delete: entry.is_discarded,
            };
            entry.waiters.push(waiter);
        }
        enqueued
    }

    /// Resolves ids that have a cached result that the lookup accepts, so that it need not wait any
    /// longer. They stay queued.
    pub(super) fn serve_cached(&mut self, context: &QueueContext<'_>, lookup: &WaitingLookup<'_>) {
        let max_stale = self.max_stale(context);
        self.resolve_cached(context, lookup, |cached| lookup.accepts(cached, context.now, max_stale));
    }

    /// Resolves ids that have a cached result, however old.
    pub(super) fn serve_any_cached(&mut self, context: &QueueContext<'_>, lookup: &WaitingLookup<'_>) {
        self.resolve_cached(context, lookup, |_| true);
    }

    fn resolve_cached(
        &mut self,
        context: &QueueContext<'_>,
        lookup: &WaitingLookup<'_>,
        is_usable: impl Fn(Cached) -> bool,
    ) {
        for slot in lookup.waiter.unresolved() {
            let Some(entry) = self.entries.map.get_mut(&lookup.ids[slot]) else { continue };
            if let Some(outcome) = entry.cached_outcome(context.now, &is_usable, lookup.waiter) {
                entry.remove_waiter(lookup.waiter);
                if entry.stage != Stage::Idle {
                    entry.keep_queued_until(context.now + context.pending_max_stale);
                }
                lookup.waiter.resolve(slot, outcome);
            }
        }
    }

    /// Ends a lookup's time in the queue: ids that are not in flight fail. They stay queued until
    /// after the estimated time. Ids of prepared calls are spared unless `with_prepared` is set.
    pub(super) fn end_queueing(
        &mut self,
        context: &QueueContext<'_>,
        lookup: &WaitingLookup<'_>,
        with_prepared: bool,
    ) {
        self.serve_cached(context, lookup);
        let retry_after = self.cycle(context) + context.paused_for;
        for slot in lookup.waiter.unresolved() {
            let Some(entry) = self.entries.map.get_mut(&lookup.ids[slot]) else { continue };
            match entry.stage {
                Stage::InFlight => continue,
                Stage::Prepared if !with_prepared => continue,
                _ => {}
            }
            entry.time_out(context, lookup.waiter, slot, retry_after);
        }
    }

    /// Queues the ids of a long poll as if its client had polled now.
    pub(super) fn poll(&mut self, context: &QueueContext<'_>, lookup: &WaitingLookup<'_>) {
        let Entries { map, counts } = &mut self.entries;
        for slot in lookup.waiter.unresolved() {
            let Some(entry) = map.get_mut(&lookup.ids[slot]) else { continue };
            let is_recent = entry.snapshot.as_ref().is_some_and(|snapshot| snapshot.is_recent(context));
            let is_due = !is_recent && entry.fresh_outcome(context, lookup.options).is_none();
            if entry.stage == Stage::Idle && is_due {
                let stage = entry.queued(context.now);
                counts.set_stage(entry, stage);
            }
        }
    }

    /// Ends a long poll. Ids with a result that was fetched for it, or that any lookup would
    /// accept, are resolved. The others are queued as for a lookup that arrives now.
    pub(super) fn end_long_poll(&mut self, context: &QueueContext<'_>, lookup: &WaitingLookup<'_>) {
        let max_stale = self.max_stale(context);
        self.resolve_cached(context, lookup, |cached| {
            let age = context.now.saturating_duration_since(cached.fetched_at);
            let is_own = cached.fetched_at >= lookup.arrived_at && age <= POLL_INTERVAL;
            is_own
                || WaitingLookup { arrived_at: context.now, ..*lookup }.accepts(
                    cached,
                    context.now,
                    max_stale,
                )
        });
        let estimate = self.estimate(context);
        for slot in lookup.waiter.unresolved() {
            let Some(entry) = self.entries.map.get_mut(&lookup.ids[slot]) else { continue };
            let is_new = matches!(entry.stage, Stage::Queued { is_new: true, .. });
            if is_new && estimate > context.queue_timeout {
                entry.time_out(context, lookup.waiter, slot, estimate);
                continue;
            }
            for slot in entry.waiters.iter_mut().filter(|slot| Arc::ptr_eq(&slot.waiter, lookup.waiter)) {
                slot.is_long_poll = false;
            }
            if entry.stage == Stage::Idle {
                let stage = entry.queued(context.now);
                self.entries.counts.set_stage(entry, stage);
            }
        }
    }

    /// Removes a waiter from its unresolved ids. If `keep_for` is set, queued ids stay queued for
    /// that time, as the client may come back. Otherwise an id without another waiter is dropped.
    pub(super) fn leave(
        &mut self,
        context: &QueueContext<'_>,
        lookup: &WaitingLookup<'_>,
        keep_for: Option<Duration>,
    ) {
        for slot in lookup.waiter.unresolved() {
            let id = &lookup.ids[slot];
            let Entries { map, counts } = &mut self.entries;
            let Some(entry) = map.get_mut(id) else { continue };
            entry.remove_waiter(lookup.waiter);
            if let Some(keep_for) = keep_for.filter(|_| entry.stage != Stage::Idle) {
                entry.keep_queued_until(context.now + keep_for);
            }
            if matches!(entry.stage, Stage::Queued { .. }) && !entry.is_needed(context.now) {
                counts.set_stage(entry, Stage::Idle);
            }
            self.entries.remove_if_empty(id);
        }
    }

    /// Returns the time until a lookup of one of the ids can return a newer record than the pending
    /// one. `None` if none of them is known to be pending.
    pub(super) fn next_news(&self, context: &QueueContext<'_>, ids: &[TaskId]) -> Option<Duration> {
        let cycle = self.cycle(context);
        let entries = ids.iter().filter_map(|id| self.entries.map.get(id));
        let next = entries.filter_map(|entry| entry.next_news(context, cycle)).min();
        next.map(|next| next.max(context.paused_for))
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
    pub(super) fn take_call(&mut self, context: &QueueContext<'_>) -> Option<Call> {
        self.schedule.drop_unneeded(&mut self.entries, context.now);
        self.cycle_at_take = self.cycle(context);
        let call = self.schedule.take(&self.entries, context)?;
        for id in &call.ids {
            if let Some(entry) = self.entries.map.get_mut(id) {
                self.entries.counts.set_stage(entry, Stage::InFlight);
            }
        }
        self.calls_in_flight += 1;
        Some(call)
    }

    pub(super) fn end_call(&mut self) {
        self.calls_in_flight -= 1;
    }

    /// Adds a call for ids of an earlier call. Lookups wait for it at most another `queue_timeout`.
    pub(super) fn prepare_call(&mut self, context: &QueueContext<'_>, call: Call) {
        for id in &call.ids {
            if let Some(entry) = self.entries.map.get_mut(id) {
                self.entries.counts.set_stage(entry, Stage::Prepared);
                // The new call begins after the delete.
                entry.is_discarded = false;
                for slot in &mut entry.waiters {
                    slot.is_after_delete = false;
                    slot.waiter.limit_wait(context.now + context.queue_timeout);
                }
            }
        }
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
    /// or a failure. The result of a call that began before a delete is not cached.
    pub(super) fn complete(
        &mut self,
        context: &QueueContext<'_>,
        id: &TaskId,
        outcome: FetchOutcome,
    ) -> SnapshotBytes {
        let now = context.now;
        let Entries { map, counts } = &mut self.entries;
        let Some(entry) = map.get_mut(id) else { return SnapshotBytes::default() };
        let before = entry.snapshot_bytes();
        counts.set_stage(entry, Stage::Idle);
        (entry.keep_until, entry.promised_by) = (None, None);
        match outcome {
            FetchOutcome::Final { record, source } => {
                (entry.snapshot, entry.negative) = (None, None);
                entry.resolve_all(&TaskOutcome::Final { record, source });
            }
            FetchOutcome::Pending { record, task_age, kind } => {
                let first_seen = entry.snapshot.as_ref().map_or(now, |snapshot| snapshot.first_seen);
                let task_age = task_age.unwrap_or_else(|| now.saturating_duration_since(first_seen));
                entry.negative = None;
                entry.snapshot = context.caches_snapshots.then(|| PendingSnapshot {
                    record: record.clone(),
                    fetched_at: now,
                    first_seen,
                    task_age,
                    kind,
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
        if std::mem::take(&mut entry.is_discarded) {
            (entry.snapshot, entry.negative) = (None, None);
            for slot in &mut entry.waiters {
                slot.is_after_delete = false;
                slot.waiter.limit_wait(now + context.queue_timeout);
            }
            if !entry.waiters.is_empty() {
                let stage = entry.queued(now);
                counts.set_stage(entry, stage);
            }
        }
        let after = entry.snapshot_bytes();
        self.entries.remove_if_empty(id);
        SnapshotBytes { before, after }
    }

    /// Whether the task was deleted after the call that the id is part of began.
    pub(super) fn is_discarded(&self, id: &TaskId) -> bool {
        self.entries.map.get(id).is_some_and(|entry| entry.is_discarded)
    }

    /// Fails every id that is queued or in a prepared call, but not those in flight.
    pub(super) fn fail_waiting(&mut self, failure: &LookupFailure) {
        let outcome = TaskOutcome::Failed(failure.clone());
        let Entries { map, counts } = &mut self.entries;
        for call in self.schedule.take_prepared() {
            for id in call.ids {
                if let Some(entry) = map.get_mut(&id) {
                    counts.set_stage(entry, Stage::Idle);
                    entry.resolve_all(&outcome);
                }
            }
        }
        for entry in map.values_mut() {
            if entry.stage != Stage::InFlight {
                counts.set_stage(entry, Stage::Idle);
                entry.keep_until = None;
                entry.resolve_all(&outcome);
            }
        }
        map.retain(|_, entry| !entry.is_empty());
    }

    /// Resolves an id with a final record that another queue of the same token fetched.
    pub(super) fn resolve_final(&mut self, id: &TaskId, record: &Bytes, source: RecordSource) {
        let Entries { map, counts } = &mut self.entries;
        let Some(entry) = map.get_mut(id) else { return };
        entry.resolve_all(&TaskOutcome::Final { record: record.clone(), source });
        (entry.snapshot, entry.negative, entry.keep_until) = (None, None, None);
        if matches!(entry.stage, Stage::Queued { .. }) {
            counts.set_stage(entry, Stage::Idle);
        }
        self.entries.remove_if_empty(id);
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
    pub(super) fn sweep(&mut self, context: &QueueContext<'_>, scope: SweepScope) -> usize {
        self.entries.sweep(context.now, self.max_stale(context), scope)
    }

    /// Returns the clients that last looked up the ids.
    pub(super) fn clients(&self) -> BTreeSet<ClientLabel> {
        self.entries.clients()
    }

    /// Returns the tasks whose last record is pending.
    pub(super) fn pending_tasks(&self, now: Instant) -> impl Iterator<Item = PendingTask<'_>> {
        self.entries.pending_tasks(now)
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
    pub(super) fn cycle(&self, context: &QueueContext<'_>) -> Duration {
        context.duration_of(self.schedule.calls_per_cycle(&self.entries.counts, context.max_batch))
    }

    /// Returns the time until a new id that is queued now is fetched.
    pub(super) fn estimate(&self, context: &QueueContext<'_>) -> Duration {
        let calls = self.schedule.calls_until_new(&self.entries.counts, context.max_batch, true);
        context.duration_of(calls) + context.paused_for
    }

    /// Returns the age up to which a snapshot is served to a lookup that would have to wait.
    fn max_stale(&self, context: &QueueContext<'_>) -> Duration {
        context.pending_max_stale.max(2 * self.cycle(context))
    }

    /// Counts the ids. Those of a prepared call count as queued.
    pub(super) fn counts(&self, now: Instant) -> QueueCounts {
        let mut counts = self.entries.counts(now);
        for call in self.schedule.prepared() {
            counts.add_queued(call.ids.len(), call.taken_at);
        }
        counts
    }
}
