//! State of one id: who waits for it, which results are cached, and whether it is queued.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::QueueContext;
use crate::batcher::outcome::{Freshness, LookupKind, LookupOptions, TaskOutcome};
use crate::batcher::waiter::Waiter;
use crate::upstream::UpstreamResponse;

/// Longest time for which an unknown id is served from memory.
pub(super) const MAX_NEGATIVE_AGE: Duration = Duration::from_secs(30);

/// The same while the id is new: the upstream may show a task some time after it accepted it.
const MAX_NEW_NEGATIVE_AGE: Duration = Duration::from_secs(5);

/// Time after the first lookup of an id for which the id is new.
const NEW_ID_PERIOD: Duration = Duration::from_secs(600);

/// Number of ids that are queued or in a call. Every change of an entry's stage goes through it.
#[derive(Debug, Default)]
pub(super) struct ActiveCount(usize);

impl ActiveCount {
    pub(super) fn get(&self) -> usize {
        self.0
    }

    pub(super) fn set_stage(&mut self, entry: &mut QueueEntry, stage: Stage) {
        self.0 += usize::from(stage != Stage::Idle);
        self.0 -= usize::from(entry.stage != Stage::Idle);
        entry.stage = stage;
    }
}

/// State of one id.
#[derive(Debug)]
pub(super) struct QueueEntry {
    /// When the id was first looked up.
    first_asked_at: Instant,
    pub(super) stage: Stage,
    pub(super) waiters: Vec<WaiterSlot>,
    /// When long polls fetch the id again; `None` means at once.
    pub(super) refetch_at: Option<Instant>,
    /// Whether another token saw the final record during a call for this id, whose response may be
    /// older.
    pub(super) refetch_after_call: bool,
    /// Until then the id stays queued without a waiter, because a client was served without a fresh
    /// result.
    pub(super) grace_until: Option<Instant>,
    pub(super) snapshot: Option<PendingSnapshot>,
    pub(super) negative: Option<NegativeEntry>,
}

/// Place of an id in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Idle,
    Queued {
        since: Instant,
    },
    /// Part of a call that is prepared or in flight.
    InCall,
}

/// Place of a waiter that an id resolves.
#[derive(Debug)]
pub(super) struct WaiterSlot {
    pub(super) waiter: Arc<Waiter>,
    pub(super) slot: usize,
    pub(super) kind: LookupKind,
    /// Whether the waiter waits for the final record (`prefer: wait`).
    pub(super) is_long_poll: bool,
}

/// Last pending record of a task.
#[derive(Clone, Debug)]
pub(super) struct PendingSnapshot {
    pub(super) record: Bytes,
    pub(super) fetched_at: Instant,
    pub(super) first_seen: Instant,
    /// Twice the queue's cycle when the record was fetched. Saved at the fetch, because the cycle
    /// can become shorter later.
    pub(super) two_cycles: Duration,
}

/// Cached result of an id that the upstream does not know.
#[derive(Clone, Debug)]
pub(super) struct NegativeEntry {
    /// Response to a `retrieve` of the id; `None` if only a batch left the id out.
    pub(super) response: Option<Arc<UpstreamResponse>>,
    pub(super) fetched_at: Instant,
    pub(super) ttl: Duration,
}

impl QueueEntry {
    /// Creates the entry of an id that is looked up for the first time.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            first_asked_at: now,
            stage: Stage::Idle,
            waiters: Vec::new(),
            refetch_at: None,
            refetch_after_call: false,
            grace_until: None,
            snapshot: None,
            negative: None,
        }
    }

    /// Returns how long the id is served from memory as unknown: twice as long as the last time, up
    /// to a limit. Where `{}` can mean that a task is pending, no longer than a pending record.
    pub(super) fn next_negative_ttl(&self, context: &QueueContext) -> Duration {
        let is_new = context.now.saturating_duration_since(self.first_asked_at) < NEW_ID_PERIOD;
        let longest = match () {
            () if context.is_empty_while_pending => context.pending_max_age,
            () if is_new => MAX_NEW_NEGATIVE_AGE,
            () => MAX_NEGATIVE_AGE,
        };
        let last = self.negative.as_ref().map_or(Duration::ZERO, |negative| negative.ttl);
        (last * 2).max(context.pending_max_age).min(longest)
    }

    /// Returns the cached result if it is fresh enough to be served without a call.
    pub(super) fn fresh_outcome(
        &self,
        context: &QueueContext,
        options: &LookupOptions,
    ) -> Option<TaskOutcome> {
        let freshness = |fetched_at: Instant, ttl: Duration| {
            let age = context.now.saturating_duration_since(fetched_at);
            (age < ttl.min(options.max_age.unwrap_or(Duration::MAX))).then_some(Freshness::Cached { age })
        };
        if let Some(snapshot) = &self.snapshot {
            let freshness = freshness(snapshot.fetched_at, context.pending_max_age)?;
            return Some(TaskOutcome::Pending { record: snapshot.record.clone(), freshness });
        }
        let negative = self.negative.as_ref()?;
        // While the id waits for its own call on behalf of a single lookup, batches need not wait
        // for that call.
        let awaits_own_call =
            self.stage == Stage::InCall && negative.response.is_none() && self.has_single_waiter();
        let freshness =
            freshness(negative.fetched_at, if awaits_own_call { MAX_NEGATIVE_AGE } else { negative.ttl })?;
        if options.kind == LookupKind::Single && negative.response.is_none() {
            return None;
        }
        Some(TaskOutcome::Unknown { response: negative.response.clone(), freshness })
    }

    /// Returns the cached result for one of the waiters if it is at most `max_age` old.
    pub(super) fn cached_outcome(
        &self,
        now: Instant,
        max_age: Duration,
        waiter: &Arc<Waiter>,
    ) -> Option<TaskOutcome> {
        if let Some(snapshot) = &self.snapshot {
            let age = now.saturating_duration_since(snapshot.fetched_at);
            return (age <= max_age.max(snapshot.two_cycles)).then(|| TaskOutcome::Pending {
                record: snapshot.record.clone(),
                freshness: Freshness::Cached { age },
            });
        }
        let negative = self.negative.as_ref()?;
        let is_single =
            |slot: &WaiterSlot| slot.kind == LookupKind::Single && Arc::ptr_eq(&slot.waiter, waiter);
        let needs_own_response = negative.response.is_none() && self.waiters.iter().any(is_single);
        let age = now.saturating_duration_since(negative.fetched_at);
        (age <= max_age && !needs_own_response).then(|| TaskOutcome::Unknown {
            response: negative.response.clone(),
            freshness: Freshness::Cached { age },
        })
    }

    /// Returns when the cached result was fetched.
    pub(super) fn fetched_at(&self) -> Option<Instant> {
        let negative = self.negative.as_ref().map(|negative| negative.fetched_at);
        self.snapshot.as_ref().map(|snapshot| snapshot.fetched_at).or(negative)
    }

    pub(super) fn snapshot_bytes(&self) -> usize {
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.record.len())
    }

    /// Drops the cached results.
    pub(super) fn clear_cache(&mut self) {
        (self.snapshot, self.negative, self.refetch_at) = (None, None, None);
    }

    /// Returns when the id is due for its long polls; `None` without one.
    pub(super) fn next_poll(&self, now: Instant) -> Option<Instant> {
        self.waiters.iter().any(|waiter| waiter.is_long_poll).then(|| self.refetch_at.unwrap_or(now))
    }

    pub(super) fn has_single_waiter(&self) -> bool {
        self.waiters.iter().any(|waiter| waiter.kind == LookupKind::Single)
    }

    /// Whether a result is still of use: a waiter is left, or the grace period has not passed.
    pub(super) fn is_needed(&self, now: Instant) -> bool {
        !self.waiters.is_empty() || self.grace_until.is_some_and(|until| until > now)
    }

    /// Keeps the id queued for `pending_max_stale` although its client was served.
    pub(super) fn start_grace(&mut self, active: &mut ActiveCount, context: &QueueContext) {
        self.grace_until = Some(context.now + context.pending_max_stale);
        if self.stage == Stage::Idle {
            active.set_stage(self, Stage::Queued { since: context.now });
        }
    }

    pub(super) fn remove_waiter(&mut self, waiter: &Arc<Waiter>) {
        self.waiters.retain(|slot| !Arc::ptr_eq(&slot.waiter, waiter));
    }

    pub(super) fn resolve_all(&mut self, outcome: &TaskOutcome) {
        for registered in self.waiters.drain(..) {
            registered.waiter.resolve(registered.slot, outcome.clone());
        }
    }

    /// Resolves the waiters that do not wait for the final record.
    pub(super) fn resolve_all_but_long_polls(&mut self, outcome: &TaskOutcome) {
        self.resolve_if(outcome, |waiter| !waiter.is_long_poll);
    }

    pub(super) fn resolve_if(&mut self, outcome: &TaskOutcome, is_resolved: impl Fn(&WaiterSlot) -> bool) {
        for waiter in self.waiters.extract_if(.., |waiter| is_resolved(waiter)) {
            waiter.waiter.resolve(waiter.slot, outcome.clone());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stage == Stage::Idle
            && self.waiters.is_empty()
            && self.snapshot.is_none()
            && self.negative.is_none()
    }
}
