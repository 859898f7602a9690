//! The set of wanted ids of one lane: who waits for what, what was seen last; `calls`: what goes next. No clock, no
//! I/O: every method is given `now`.

mod schedule;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

pub(super) use self::schedule::{Call, Next};
use super::entry::{Entry, MAX_NEGATIVE_AGE, NegativeEntry, Snapshot, Stage, WaiterSlot, Wanted};
use super::waiter::Waiter;
use super::{
    Enqueued, Freshness, LookupFailure, LookupKind, LookupOptions, QueueLimits, RecordSource, TaskOutcome,
};
use crate::task::TaskId;
use crate::upstream::UpstreamResponse;

/// Ids for which every lane has room, however full the others are: one noisy token does not shut out the quiet ones.
const MIN_WANTED: usize = 256;

/// Bounds of the time between two looks at a task that somebody waits for.
const LOOK_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) entries: HashMap<TaskId, Entry>,
    wanted: Wanted,
    /// Calls that are put together already: halves, single ids left out of a folded call, calls to be repeated.
    pub(super) prepared: VecDeque<Call>,
    prepared_went_last: bool,
    /// How long one round over all that is wanted took, when the last call was taken.
    cycle_at_take: Duration,
    /// Calls under way.
    pub(super) calls: usize,
    /// Whether a driver runs.
    pub(super) worker_running: bool,
}

/// Outcome of a fetch, for one id.
#[derive(Debug)]
pub(super) enum FetchOutcome {
    Finished {
        text: Bytes,
        stored: bool,
    },
    Pending {
        text: Bytes,
        task_age: Option<Duration>,
    },
    /// Shown, not remembered.
    Disputed(Bytes),
    Unknown(Option<Arc<UpstreamResponse>>),
    /// An answer for a single look-up as it is; callers who cannot be given it get the failure.
    Relayed(Arc<UpstreamResponse>, LookupFailure),
    Failed(LookupFailure),
}

impl Queue {
    /// Registers a caller's ids: fills what is remembered and fresh enough, waits for the rest.
    pub(super) fn arrive(
        &mut self,
        now: Instant,
        limits: &QueueLimits,
        ids: &[TaskId],
        waiter: &Arc<Waiter>,
        options: &LookupOptions,
    ) -> Enqueued {
        let mut arrival = Enqueued::default();
        let (single, long_poll) = (options.kind == LookupKind::Single, options.wait.is_some());
        let retry_after = self.estimate(limits);
        let bound = limits.max_wanted.min((self.entries.len() + limits.room).max(MIN_WANTED));
        let mut made_room = false;
        for slot in waiter.open_slots() {
            let id = &ids[slot];
            if self.entries.len() >= bound && !self.entries.contains_key(id) {
                if !made_room {
                    made_room = true;
                    self.make_room();
                }
                if self.entries.len() >= bound {
                    waiter.fill(slot, TaskOutcome::Failed(LookupFailure::QueueFull { retry_after }));
                    continue;
                }
            }
            let entry = self.entries.entry(id.clone()).or_default();
            let fresh = entry.fresh(now, limits, options);
            let is_fresh = fresh.is_some();
            if let Some(outcome) = fresh.filter(|_| !long_poll) {
                waiter.fill(slot, outcome);
                continue;
            }
            if entry.stage == Stage::Idle {
                arrival.added += 1;
                arrival.outdated += usize::from(entry.pending.is_some() || entry.negative.is_some());
                // Whoever holds out looks again later at what was seen this moment.
                if !is_fresh {
                    self.wanted.set(entry, Stage::Wanted { since: now });
                }
            } else {
                arrival.joined += 1;
            }
            let waiter = WaiterSlot { waiter: Arc::clone(waiter), slot, single, long_poll };
            entry.waiters.push(waiter);
        }
        arrival
    }

    /// Whether an id left out of a folded call has to be asked alone: somebody is owed the upstream's own word on it,
    /// and that word is not known from before.
    pub(super) fn is_owed_its_own_answer(&self, id: &TaskId) -> bool {
        self.entries.get(id).is_some_and(|entry| {
            entry.waiters.iter().any(|waiter| waiter.single)
                && entry.negative.as_ref().is_none_or(|negative| negative.answer.is_none())
        })
    }

    /// A folded call left the id out and it is asked for alone, for its single look-ups. Batches have their answer.
    pub(super) fn leave_out(&mut self, now: Instant, id: &TaskId) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.pending = None;
        let shown_for = entry.negative.as_ref().map_or(Duration::ZERO, |negative| negative.shown_for);
        entry.negative = Some(NegativeEntry { answer: None, taken_at: now, shown_for });
        entry.waiters.retain(|waiter| {
            let is_answered = !waiter.single && !waiter.long_poll;
            if is_answered {
                let outcome = TaskOutcome::Unknown { response: None, freshness: Freshness::Fetched };
                waiter.waiter.fill(waiter.slot, outcome);
            }
            !is_answered
        });
    }

    /// Spreads the news of an id. Whoever holds out goes on waiting unless it is a finish or a failure. Gives the bytes
    /// of the remembered answer before and after.
    pub(super) fn complete(
        &mut self,
        now: Instant,
        limits: &QueueLimits,
        id: &TaskId,
        news: FetchOutcome,
    ) -> (usize, usize) {
        let Some(entry) = self.entries.get_mut(id) else { return (0, 0) };
        let before = entry.remembered_bytes();
        self.wanted.set(entry, Stage::Idle);
        entry.grace_until = None;
        entry.look_at = Some(now + LOOK_INTERVAL.0);
        let look_again = std::mem::take(&mut entry.look_again);
        match news {
            FetchOutcome::Finished { text, stored } => {
                (entry.pending, entry.negative) = (None, None);
                entry.answer_all(&TaskOutcome::Final {
                    record: text,
                    source: RecordSource::Upstream { is_stored: stored },
                });
            }
            FetchOutcome::Pending { text, task_age } => {
                let first_seen = entry.pending.as_ref().map_or(now, |snapshot| snapshot.first_seen);
                let task_age = task_age.unwrap_or_else(|| now.saturating_duration_since(first_seen));
                entry.negative = None;
                entry.look_at = Some(now + (task_age / 10).clamp(LOOK_INTERVAL.0, LOOK_INTERVAL.1));
                let two_cycles = 2 * self.cycle_at_take;
                let snapshot = Snapshot { text: text.clone(), taken_at: now, first_seen, two_cycles };
                entry.pending = limits.remembers.then_some(snapshot);
                entry.answer_patient_ones(&TaskOutcome::Pending {
                    record: text,
                    freshness: Freshness::Fetched,
                });
            }
            FetchOutcome::Disputed(text) => {
                entry.answer_all(&TaskOutcome::Pending { record: text, freshness: Freshness::Fetched });
            }
            FetchOutcome::Unknown(answer) => {
                entry.pending = None;
                let before = entry.negative.take();
                let shown_for = before.as_ref().map_or(limits.pending_max_age, |negative| {
                    (negative.shown_for * 2).max(limits.pending_max_age).min(MAX_NEGATIVE_AGE)
                });
                // Left out again: the word it got when asked alone still holds.
                let answer = answer.or_else(|| before.and_then(|negative| negative.answer));
                entry.look_at = Some(now + shown_for.max(LOOK_INTERVAL.0));
                entry.negative = Some(NegativeEntry { answer: answer.clone(), taken_at: now, shown_for });
                entry.answer_patient_ones(&TaskOutcome::Unknown {
                    response: answer,
                    freshness: Freshness::Fetched,
                });
            }
            FetchOutcome::Relayed(answer, failure) => {
                for waiter in std::mem::take(&mut entry.waiters) {
                    let outcome = match waiter.single {
                        true => TaskOutcome::Relayed(answer.clone()),
                        false => TaskOutcome::Failed(failure.clone()),
                    };
                    waiter.waiter.fill(waiter.slot, outcome);
                }
            }
            FetchOutcome::Failed(failure) => entry.answer_all(&TaskOutcome::Failed(failure)),
        }
        if look_again {
            entry.look_at = None;
        }
        let after = entry.remembered_bytes();
        self.forget_if_blank(id);
        (before, after)
    }

    /// Fails every id that is wanted or put together but not in a call under way: the reason concerns them all.
    pub(super) fn fail_waiting(&mut self, failure: &LookupFailure) {
        for call in std::mem::take(&mut self.prepared) {
            for id in call.ids {
                if let Some(entry) = self.entries.get_mut(&id) {
                    self.wanted.set(entry, Stage::Idle);
                    entry.answer_all(&TaskOutcome::Failed(failure.clone()));
                }
            }
        }
        for entry in self.entries.values_mut() {
            if entry.stage != Stage::Taken {
                self.wanted.set(entry, Stage::Idle);
                entry.grace_until = None;
                entry.answer_all(&TaskOutcome::Failed(failure.clone()));
            }
        }
        self.entries.retain(|_, entry| !entry.is_blank());
    }

    /// A caller's time in the queue is over: ids that no call has taken yet are answered with what is remembered, if
    /// young enough, else with a 429. They stay wanted either way.
    pub(super) fn stop_queueing(
        &mut self,
        now: Instant,
        limits: &QueueLimits,
        ids: &[TaskId],
        waiter: &Arc<Waiter>,
    ) {
        let (longest_age, retry_after) = (self.max_stale(limits), self.estimate(limits));
        for slot in waiter.open_slots() {
            let Some(entry) = self.entries.get_mut(&ids[slot]) else { continue };
            if entry.stage == Stage::Taken {
                continue;
            }
            let outcome = entry
                .last_seen(now, longest_age, waiter)
                .unwrap_or(TaskOutcome::Failed(LookupFailure::QueueTimeout { retry_after }));
            entry.leave(waiter);
            entry.extend_grace(&mut self.wanted, now, limits);
            waiter.fill(slot, outcome);
        }
    }

    /// A caller holds out no longer: ids of which something is remembered that is not older than the looks of one who
    /// holds out are answered with it, the others are wanted like any.
    pub(super) fn stop_holding_out(
        &mut self,
        now: Instant,
        limits: &QueueLimits,
        ids: &[TaskId],
        waiter: &Arc<Waiter>,
    ) {
        let longest_age = self.max_stale(limits).max(LOOK_INTERVAL.1 + self.cycle(limits));
        for slot in waiter.open_slots() {
            let Some(entry) = self.entries.get_mut(&ids[slot]) else { continue };
            if let Some(outcome) = entry.last_seen(now, longest_age, waiter) {
                entry.leave(waiter);
                waiter.fill(slot, outcome);
                continue;
            }
            entry.waiters.iter_mut().filter(|slot| Arc::ptr_eq(&slot.waiter, waiter)).for_each(|waiter| {
                waiter.long_poll = false;
            });
            if entry.stage == Stage::Idle {
                self.wanted.set(entry, Stage::Wanted { since: now });
            }
        }
    }

    /// Answers a caller's open ids with what is remembered, however old; the others go on waiting.
    pub(super) fn answer_with_last_seen(&mut self, now: Instant, ids: &[TaskId], waiter: &Arc<Waiter>) {
        for slot in waiter.open_slots() {
            let Some(entry) = self.entries.get_mut(&ids[slot]) else { continue };
            if let Some(outcome) = entry.last_seen(now, Duration::MAX, waiter) {
                entry.leave(waiter);
                waiter.fill(slot, outcome);
            }
        }
    }

    /// A caller goes. With `answered` it got an answer that lacks its open ids, and they stay wanted; without, it hung
    /// up, and what only it asked for is dropped.
    pub(super) fn leave(
        &mut self,
        now: Instant,
        limits: &QueueLimits,
        ids: &[TaskId],
        waiter: &Arc<Waiter>,
        answered: bool,
    ) {
        for slot in waiter.open_slots() {
            let Some(entry) = self.entries.get_mut(&ids[slot]) else { continue };
            entry.leave(waiter);
            if answered {
                entry.extend_grace(&mut self.wanted, now, limits);
            } else if matches!(entry.stage, Stage::Wanted { .. }) && !entry.is_wanted(now) {
                self.wanted.set(entry, Stage::Idle);
            }
            self.forget_if_blank(&ids[slot]);
        }
    }

    /// A task's finish was found elsewhere. With its text the waiters are answered; without, whoever holds out for it
    /// has it looked at now.
    pub(super) fn finished_elsewhere(&mut self, id: &TaskId, text: Option<&Bytes>, stored: bool) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let Some(text) = text else {
            entry.look_at = None;
            entry.look_again = entry.stage == Stage::Taken;
            return;
        };
        entry.answer_all(&TaskOutcome::Final {
            record: text.clone(),
            source: RecordSource::Upstream { is_stored: stored },
        });
        (entry.pending, entry.negative, entry.grace_until) = (None, None, None);
        if entry.stage != Stage::Taken {
            self.wanted.set(entry, Stage::Idle);
        }
        self.forget_if_blank(id);
    }

    /// Forgets what is remembered of an id.
    pub(super) fn forget(&mut self, id: &TaskId) {
        if let Some(entry) = self.entries.get_mut(id) {
            (entry.pending, entry.negative, entry.look_at) = (None, None, None);
            self.forget_if_blank(id);
        }
    }

    /// Forgets everything that is remembered.
    pub(super) fn forget_all(&mut self) {
        self.entries.retain(|_, entry| {
            (entry.pending, entry.negative, entry.look_at) = (None, None, None);
            !entry.is_blank()
        });
    }

    /// Drops the longer unseen half of what is only remembered.
    fn make_room(&mut self) {
        let is_spare = |entry: &Entry| entry.stage == Stage::Idle && entry.waiters.is_empty();
        let mut seen: Vec<Option<Instant>> =
            self.entries.values().filter(|entry| is_spare(entry)).map(Entry::seen_at).collect();
        if seen.is_empty() {
            return;
        }
        let middle = seen.len() / 2;
        let until = *seen.select_nth_unstable(middle).1;
        self.entries.retain(|_, entry| !is_spare(entry) || entry.seen_at() > until);
    }

    /// Drops what nobody will be shown any more; with `all`, everything that is only remembered. Gives the bytes of
    /// pending answers still held.
    pub(super) fn sweep(&mut self, now: Instant, limits: &QueueLimits, all: bool) -> usize {
        let longest_age = self.max_stale(limits);
        self.entries.retain(|_, entry| {
            if entry.waiters.is_empty() {
                let outlived = |at: Instant, age: Duration| now.saturating_duration_since(at) >= age;
                entry.pending.take_if(|snapshot| {
                    all || outlived(snapshot.taken_at, longest_age.max(snapshot.two_cycles))
                });
                entry.negative.take_if(|negative| {
                    all || outlived(negative.taken_at, negative.shown_for + MAX_NEGATIVE_AGE)
                });
                if matches!(entry.stage, Stage::Wanted { .. }) && !entry.is_wanted(now) {
                    self.wanted.set(entry, Stage::Idle);
                }
            }
            !entry.is_blank()
        });
        if self.entries.capacity() > 4 * self.entries.len() + 64 {
            self.entries.shrink_to_fit();
        }
        self.entries.values().map(Entry::remembered_bytes).sum()
    }

    /// Whether nothing is wanted or remembered here.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.calls == 0 && !self.worker_running
    }

    /// How many ids are wanted or remembered.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How long the lane needs to ask for everything that is wanted now.
    pub(super) fn cycle(&self, limits: &QueueLimits) -> Duration {
        let prepared: usize = self.prepared.iter().map(|call| call.ids.len()).sum();
        let folded = self.wanted.0.saturating_sub(prepared).div_ceil(limits.max_batch);
        let calls = (self.prepared.len() + folded).max(1);
        Duration::from_secs_f64(f64::from(u32::try_from(calls).unwrap_or(u32::MAX)) / limits.rate)
    }

    /// When somebody who asks now can expect an answer: after a cycle, and after the pause that the upstream asked for.
    fn estimate(&self, limits: &QueueLimits) -> Duration {
        self.cycle(limits) + limits.held
    }

    fn max_stale(&self, limits: &QueueLimits) -> Duration {
        limits.pending_max_stale.max(2 * self.cycle(limits))
    }

    fn forget_if_blank(&mut self, id: &TaskId) {
        if self.entries.get(id).is_some_and(Entry::is_blank) {
            self.entries.remove(id);
        }
    }
}
