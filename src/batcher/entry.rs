//! What a lane knows of one id, and who wants it. Used by [`state`](super::state) alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::waiter::Waiter;
use super::{Freshness, LookupKind, LookupOptions, QueueLimits, TaskOutcome};
use crate::upstream::UpstreamResponse;

/// The longest time for which an unknown id's answer is shown again.
pub(super) const MAX_NEGATIVE_AGE: Duration = Duration::from_secs(30);

/// How many ids are wanted, put together or under way: every change of an entry's stage goes through here.
#[derive(Debug, Default)]
pub(super) struct Wanted(pub(super) usize);

impl Wanted {
    pub(super) fn set(&mut self, entry: &mut Entry, stage: Stage) {
        self.0 += usize::from(stage != Stage::Idle);
        self.0 -= usize::from(entry.stage != Stage::Idle);
        entry.stage = stage;
    }
}

/// What is known of an id, and who wants it.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) stage: Stage,
    pub(super) waiters: Vec<WaiterSlot>,
    /// When somebody who holds out has the id looked at again; `None`: at once.
    pub(super) look_at: Option<Instant>,
    /// The finish was found by another token during a call for this id, whose answer may be older.
    pub(super) look_again: bool,
    /// The id stays wanted without a caller until then: one was answered without fresh news of it.
    pub(super) grace_until: Option<Instant>,
    pub(super) pending: Option<Snapshot>,
    pub(super) negative: Option<NegativeEntry>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Idle,
    Wanted {
        since: Instant,
    },
    /// In a call that is under way, or put together and to be sent.
    Taken,
}

#[derive(Debug)]
pub(super) struct WaiterSlot {
    pub(super) waiter: Arc<Waiter>,
    pub(super) slot: usize,
    /// From a single look-up, which is owed the upstream's verbatim word on an unknown id.
    pub(super) single: bool,
    /// Holds out for the finish (`prefer: wait`).
    pub(super) long_poll: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) text: Bytes,
    pub(super) taken_at: Instant,
    pub(super) first_seen: Instant,
    /// Two cycles as of when it was taken: many finishes at once shorten the lane's estimate, but not the time that has
    /// passed since.
    pub(super) two_cycles: Duration,
}

/// The upstream does not know the id.
#[derive(Clone, Debug)]
pub(super) struct NegativeEntry {
    /// Its word on the single id; `None` after a folded call that left the id out.
    pub(super) answer: Option<Arc<UpstreamResponse>>,
    pub(super) taken_at: Instant,
    pub(super) shown_for: Duration,
}

impl Entry {
    /// What can be shown at once: the last answer, while it is fresh.
    pub(super) fn fresh(
        &self,
        now: Instant,
        limits: &QueueLimits,
        options: &LookupOptions,
    ) -> Option<TaskOutcome> {
        let fresh = |taken_at: Instant, shown_for: Duration| {
            let age = now.saturating_duration_since(taken_at);
            (age < shown_for.min(options.max_age.unwrap_or(Duration::MAX))).then_some(age)
        };
        if let Some(snapshot) = &self.pending {
            let age = fresh(snapshot.taken_at, limits.pending_max_age)?;
            return Some(TaskOutcome::Pending {
                record: snapshot.text.clone(),
                freshness: Freshness::Cached { age },
            });
        }
        let negative = self.negative.as_ref()?;
        // While the id waits for its own call, which single look-ups are owed, batches need not wait along.
        let awaits_its_own = self.stage == Stage::Taken
            && negative.answer.is_none()
            && self.waiters.iter().any(|waiter| waiter.single);
        let shown_for = if awaits_its_own { MAX_NEGATIVE_AGE } else { negative.shown_for };
        let age = fresh(negative.taken_at, shown_for)?;
        if options.kind == LookupKind::Single && negative.answer.is_none() {
            return None;
        }
        Some(TaskOutcome::Unknown { response: negative.answer.clone(), freshness: Freshness::Cached { age } })
    }

    /// The last answer for one of the waiters, if it is not older than `longest_age`.
    pub(super) fn last_seen(
        &self,
        now: Instant,
        longest_age: Duration,
        waiter: &Arc<Waiter>,
    ) -> Option<TaskOutcome> {
        if let Some(snapshot) = &self.pending {
            let age = now.saturating_duration_since(snapshot.taken_at);
            return (age <= longest_age.max(snapshot.two_cycles)).then(|| TaskOutcome::Pending {
                record: snapshot.text.clone(),
                freshness: Freshness::Cached { age },
            });
        }
        let negative = self.negative.as_ref()?;
        let is_single = |slot: &WaiterSlot| slot.single && Arc::ptr_eq(&slot.waiter, waiter);
        let owed = negative.answer.is_none() && self.waiters.iter().any(is_single);
        let age = now.saturating_duration_since(negative.taken_at);
        (age <= longest_age && !owed).then(|| TaskOutcome::Unknown {
            response: negative.answer.clone(),
            freshness: Freshness::Cached { age },
        })
    }

    pub(super) fn remembered_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, |snapshot| snapshot.text.len())
    }

    pub(super) fn seen_at(&self) -> Option<Instant> {
        let negative = self.negative.as_ref().map(|negative| negative.taken_at);
        self.pending.as_ref().map(|snapshot| snapshot.taken_at).or(negative)
    }

    /// When somebody who holds out has the id looked at again: after a tenth of the task's age.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        self.waiters.iter().any(|waiter| waiter.long_poll).then(|| self.look_at.unwrap_or(now))
    }

    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        !self.waiters.is_empty() || self.grace_until.is_some_and(|until| until > now)
    }

    /// The id stays wanted although its caller was answered.
    pub(super) fn extend_grace(&mut self, wanted: &mut Wanted, now: Instant, limits: &QueueLimits) {
        self.grace_until = Some(now + limits.pending_max_stale);
        if self.stage == Stage::Idle {
            wanted.set(self, Stage::Wanted { since: now });
        }
    }

    pub(super) fn leave(&mut self, waiter: &Arc<Waiter>) {
        self.waiters.retain(|slot| !Arc::ptr_eq(&slot.waiter, waiter));
    }

    pub(super) fn answer_all(&mut self, outcome: &TaskOutcome) {
        for waiter in self.waiters.drain(..) {
            waiter.waiter.fill(waiter.slot, outcome.clone());
        }
    }

    /// Answers whoever does not hold out for the finish.
    pub(super) fn answer_patient_ones(&mut self, outcome: &TaskOutcome) {
        self.waiters.retain(|waiter| {
            if !waiter.long_poll {
                waiter.waiter.fill(waiter.slot, outcome.clone());
            }
            waiter.long_poll
        });
    }

    pub(super) fn is_blank(&self) -> bool {
        self.stage == Stage::Idle
            && self.waiters.is_empty()
            && self.pending.is_none()
            && self.negative.is_none()
    }
}
