//! State of one id: who waits for it, which results are cached, and whether it is queued.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{POLL_INTERVAL, QueueContext};
use crate::batcher::outcome::{Freshness, LookupFailure, LookupKind, LookupOptions, TaskOutcome};
use crate::batcher::waiter::Waiter;
use crate::telemetry::ClientLabel;
use crate::upstream::UpstreamResponse;

/// Longest time for which an unknown id is served from memory.
pub(super) const MAX_NEGATIVE_AGE: Duration = Duration::from_secs(30);

/// The same while the id is new: the upstream may show a task some time after it accepted it.
const MAX_NEW_NEGATIVE_AGE: Duration = Duration::from_secs(5);

/// Time after the first lookup of an id for which the id is new.
const NEW_ID_PERIOD: Duration = Duration::from_secs(600);

/// Share of a task's age by which the news of its end may be late to a lookup that waits, if that
/// is more than the time between two polls.
const ACCEPTED_DELAY: f64 = 1.0 / 20.0;

/// Probability below which a task is unlikely to have finished. Applies to the time since the last
/// fetch, and to the share of earlier tasks whose end would become known late because of it.
const UNLIKELY: f64 = 0.05;

/// Numbers of ids by stage. Every change of an entry's stage goes through it.
#[derive(Debug, Default)]
pub(super) struct StageCounts {
    /// Ids that are queued or in a call.
    pub(super) active: usize,
    /// Queued ids that were never fetched.
    pub(super) new: usize,
    /// Queued ids that were fetched before.
    pub(super) known: usize,
    /// Queued ids, of both kinds, that may not share a call. They count only here.
    pub(super) alone: usize,
}

impl StageCounts {
    pub(super) fn set_stage(&mut self, entry: &mut QueueEntry, stage: Stage) {
        self.add(stage, entry.is_batchable, 1);
        self.add(entry.stage, entry.is_batchable, -1);
        entry.stage = stage;
    }

    /// Returns the number of queued ids.
    pub(super) fn queued(&self) -> usize {
        self.new + self.known + self.alone
    }

    fn add(&mut self, stage: Stage, is_batchable: bool, change: isize) {
        if stage != Stage::Idle {
            self.active = self.active.saturating_add_signed(change);
        }
        let Stage::Queued { is_new, .. } = stage else { return };
        let count = match (is_batchable, is_new) {
            (false, _) => &mut self.alone,
            (true, true) => &mut self.new,
            (true, false) => &mut self.known,
        };
        *count = count.saturating_add_signed(change);
    }
}

/// State of one id.
#[derive(Debug)]
pub(super) struct QueueEntry {
    /// When the id was first looked up.
    first_asked_at: Instant,
    /// Client of the last lookup.
    pub(super) client: ClientLabel,
    /// Whether the id may share a call with other ids.
    pub(super) is_batchable: bool,
    pub(super) stage: Stage,
    pub(super) waiters: Vec<WaiterSlot>,
    /// Until then the id stays queued without a waiter, because a client left without a fresh
    /// result and may come back.
    pub(super) keep_until: Option<Instant>,
    /// End of the `retry-after` of the first 429 for the id.
    pub(super) promised_by: Option<Instant>,
    /// Whether the task was deleted during the call that the id is part of. Its result is for the
    /// waiters that came before the delete only.
    pub(super) is_discarded: bool,
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
        /// Whether the id was never fetched.
        is_new: bool,
    },
    /// Part of a call that is not sent yet: a retry, half of a refused batch, an id that a batch
    /// left out.
    Prepared,
    /// Part of a call that was sent.
    InFlight,
}

/// Place of a waiter that an id resolves.
#[derive(Debug)]
pub(super) struct WaiterSlot {
    pub(super) waiter: Arc<Waiter>,
    pub(super) slot: usize,
    pub(super) kind: LookupKind,
    /// Whether the waiter waits for the final record (`prefer: wait`).
    pub(super) is_long_poll: bool,
    /// Whether the task was deleted after the current call began and before the lookup arrived.
    pub(super) is_after_delete: bool,
}

/// Last pending record of a task.
#[derive(Clone, Debug)]
pub(super) struct PendingSnapshot {
    pub(super) record: Bytes,
    pub(super) fetched_at: Instant,
    pub(super) first_seen: Instant,
    /// Age of the task at the fetch.
    pub(super) task_age: Duration,
    /// Type of the task, by which its duration is estimated.
    pub(super) kind: Option<Box<str>>,
    /// Twice the queue's cycle when the record was fetched. Saved at the fetch, because the cycle
    /// can become shorter later.
    pub(super) two_cycles: Duration,
}

impl PendingSnapshot {
    /// Returns the age of the task at a time, in seconds.
    pub(super) fn task_age_at(&self, at: Instant) -> f64 {
        (self.task_age + at.saturating_duration_since(self.fetched_at)).as_secs_f64()
    }

    /// Returns how long the record is served without a call: for `pending_max_age`, or while the
    /// task is unlikely to have finished, up to `pending_max_stale`.
    fn fresh_for(&self, context: &QueueContext<'_>) -> Duration {
        let durations = context.durations.service(context.service);
        let age = self.task_age.as_secs_f64();
        let until = durations.model(self.kind.as_deref()).unlikely_until(age, UNLIKELY);
        let until_likely = until.map_or(0.0, |until| until - age);
        let until_likely = Duration::try_from_secs_f64(until_likely).unwrap_or(Duration::ZERO);
        until_likely.min(context.pending_max_stale).max(context.pending_max_age)
    }

    /// Whether a poll of a lookup that waits can do without a newer record: the record is younger
    /// than a twentieth of the task's age, up to `pending_max_stale`.
    pub(super) fn is_recent(&self, context: &QueueContext<'_>) -> bool {
        let delay = self.task_age.mul_f64(ACCEPTED_DELAY).min(context.pending_max_stale);
        // Polls come at a fixed interval. The nearest one counts.
        let age = context.now.saturating_duration_since(self.fetched_at);
        age < delay.saturating_sub(POLL_INTERVAL / 2)
    }
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
    pub(super) fn new(now: Instant, is_batchable: bool) -> Self {
        Self {
            first_asked_at: now,
            client: ClientLabel::OTHER,
            is_batchable,
            stage: Stage::Idle,
            waiters: Vec::new(),
            keep_until: None,
            promised_by: None,
            is_discarded: false,
            snapshot: None,
            negative: None,
        }
    }

    /// Returns the stage of the id if it is queued now.
    pub(super) fn queued(&self, now: Instant) -> Stage {
        Stage::Queued { since: now, is_new: self.fetched_at().is_none() }
    }

    /// Returns how long the id is served from memory as unknown: twice as long as the last time, up
    /// to a limit. Where `{}` can mean that a task is pending, no longer than a pending record.
    pub(super) fn next_negative_ttl(&self, context: &QueueContext<'_>) -> Duration {
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
        context: &QueueContext<'_>,
        options: &LookupOptions,
    ) -> Option<TaskOutcome> {
        let freshness = |fetched_at: Instant, ttl: Duration| {
            let age = context.now.saturating_duration_since(fetched_at);
            (age < ttl.min(options.max_age.unwrap_or(Duration::MAX))).then_some(Freshness::Cached { age })
        };
        if let Some(snapshot) = &self.snapshot {
            let freshness = freshness(snapshot.fetched_at, snapshot.fresh_for(context))?;
            return Some(TaskOutcome::Pending { record: snapshot.record.clone(), freshness });
        }
        let negative = self.negative.as_ref()?;
        // While the id waits for its own call on behalf of a single lookup, batches need not wait
        // for that call.
        let awaits_own_call = matches!(self.stage, Stage::Prepared | Stage::InFlight)
            && negative.response.is_none()
            && self.has_single_waiter();
        let freshness =
            freshness(negative.fetched_at, if awaits_own_call { MAX_NEGATIVE_AGE } else { negative.ttl })?;
        if options.kind == LookupKind::Single && negative.response.is_none() {
            return None;
        }
        Some(TaskOutcome::Unknown { response: negative.response.clone(), freshness })
    }

    /// Returns the time until a lookup of the pending task can return a newer record, `cycle` being
    /// the time in which every queued id is fetched once. `None` without a pending record.
    pub(super) fn next_news(&self, context: &QueueContext<'_>, cycle: Duration) -> Option<Duration> {
        let snapshot = self.snapshot.as_ref()?;
        let age = context.now.saturating_duration_since(snapshot.fetched_at);
        let until_stale = snapshot.fresh_for(context).saturating_sub(age);
        Some(if self.stage == Stage::Idle { until_stale.max(cycle) } else { cycle })
    }

    /// Returns the cached result for one of the waiters if it is usable.
    pub(super) fn cached_outcome(
        &self,
        now: Instant,
        is_usable: impl Fn(Cached) -> bool,
        waiter: &Arc<Waiter>,
    ) -> Option<TaskOutcome> {
        let age = |at: Instant| now.saturating_duration_since(at);
        if let Some(snapshot) = &self.snapshot {
            let (fetched_at, two_cycles) = (snapshot.fetched_at, snapshot.two_cycles);
            let cached = Cached { fetched_at, two_cycles, ttl: None };
            return is_usable(cached).then(|| TaskOutcome::Pending {
                record: snapshot.record.clone(),
                freshness: Freshness::Cached { age: age(snapshot.fetched_at) },
            });
        }
        let negative = self.negative.as_ref()?;
        let is_single =
            |slot: &WaiterSlot| slot.kind == LookupKind::Single && Arc::ptr_eq(&slot.waiter, waiter);
        let needs_own_response = negative.response.is_none() && self.waiters.iter().any(is_single);
        let (fetched_at, ttl) = (negative.fetched_at, Some(negative.ttl));
        let cached = Cached { fetched_at, two_cycles: Duration::ZERO, ttl };
        (is_usable(cached) && !needs_own_response).then(|| TaskOutcome::Unknown {
            response: negative.response.clone(),
            freshness: Freshness::Cached { age: age(negative.fetched_at) },
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

    /// Drops the cached results after a delete. A call in flight resolves only the waiters that are
    /// registered now.
    pub(super) fn discard(&mut self) {
        (self.snapshot, self.negative) = (None, None);
        self.is_discarded = self.stage == Stage::InFlight;
    }

    pub(super) fn has_single_waiter(&self) -> bool {
        self.waiters.iter().any(|waiter| waiter.kind == LookupKind::Single)
    }

    pub(super) fn has_long_poll(&self) -> bool {
        self.waiters.iter().any(|waiter| waiter.is_long_poll)
    }

    /// Whether a result is still of use: a waiter is left, or a client may come back for it.
    pub(super) fn is_needed(&self, now: Instant) -> bool {
        !self.waiters.is_empty() || self.keep_until.is_some_and(|until| until > now)
    }

    /// Fails a waiter's slot with a `retry-after`. The id stays queued for the client that obeys it.
    pub(super) fn time_out(
        &mut self,
        context: &QueueContext<'_>,
        waiter: &Arc<Waiter>,
        slot: usize,
        retry_after: Duration,
    ) {
        self.remove_waiter(waiter);
        self.promised_by.get_or_insert(context.now + retry_after);
        self.keep_queued_until(context.now + retry_after + context.pending_max_stale);
        waiter.resolve(slot, TaskOutcome::Failed(LookupFailure::QueueTimeout { retry_after }));
    }

    /// Keeps the id queued until at least that time, also without a waiter.
    pub(super) fn keep_queued_until(&mut self, until: Instant) {
        self.keep_until = Some(self.keep_until.map_or(until, |before| before.max(until)));
    }

    pub(super) fn remove_waiter(&mut self, waiter: &Arc<Waiter>) {
        self.waiters.retain(|slot| !Arc::ptr_eq(&slot.waiter, waiter));
    }

    pub(super) fn resolve_all(&mut self, outcome: &TaskOutcome) {
        self.resolve_if(outcome, |_| true);
    }

    /// Resolves the waiters that do not wait for the final record.
    pub(super) fn resolve_all_but_long_polls(&mut self, outcome: &TaskOutcome) {
        self.resolve_if(outcome, |waiter| !waiter.is_long_poll);
    }

    /// Resolves waiters. Those that came after a delete wait for the next call.
    pub(super) fn resolve_if(&mut self, outcome: &TaskOutcome, is_resolved: impl Fn(&WaiterSlot) -> bool) {
        let is_resolved = |waiter: &mut WaiterSlot| !waiter.is_after_delete && is_resolved(waiter);
        for waiter in self.waiters.extract_if(.., is_resolved) {
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

/// Cached result that may be served to a lookup that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cached {
    pub(super) fetched_at: Instant,
    /// Twice the queue's cycle at the fetch.
    pub(super) two_cycles: Duration,
    /// Time for which an unknown id is remembered. `None` for a pending record.
    pub(super) ttl: Option<Duration>,
}
