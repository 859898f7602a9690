//! Views of the queues for metrics and the admin API.
//!
//! Each queue is locked on its own, only while its ids are counted, and only what is shown is
//! copied.

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Batcher;
use super::backend::Backend;
use super::registry::{QueueHandle, Registry};
use super::services::ServiceState;
use crate::task::{Service, ServiceClass, TaskId};
use crate::telemetry::{ClientLabel, QueueTotals};
use crate::token::Digest;
use crate::upstream::UpstreamError;

/// First part of a longer list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing<T> {
    /// Items that are shown.
    pub items: Vec<T>,
    /// Number of items that are not shown.
    pub omitted: usize,
}

/// State of one queue.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueView {
    /// Service of the queue.
    pub service: Service,
    /// Digest of the token that is sent to the upstream.
    pub token: Digest,
    /// Clients that last looked up the queue's ids, each once.
    pub clients: Vec<ClientLabel>,
    /// Ids that wait for a call.
    pub queued: usize,
    /// Ids in a call.
    pub in_flight: usize,
    /// Lookups that wait.
    pub waiters: usize,
    /// Pending records in memory.
    pub snapshots: usize,
    /// Time until a task that was never fetched would be fetched if it were looked up now.
    pub estimate: Duration,
    /// Time for which the longest waiting id has been queued.
    pub longest_queued: Option<Duration>,
    /// Calls per second that the queue may send at present.
    pub requests_per_second: f64,
    /// Remaining time of a pause that the upstream requested.
    pub paused_for: Duration,
    /// Time since the last lookup arrived.
    pub idle: Duration,
}

/// A task whose last record is pending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingView {
    /// Service of the task.
    pub service: Service,
    /// Id of the task.
    pub id: TaskId,
    /// Digest of the token for which the record was fetched.
    pub token: Digest,
    /// Client that last looked it up.
    pub client: ClientLabel,
    /// The record.
    pub record: Bytes,
    /// Time since it was fetched.
    pub age: Duration,
    /// Time since the task's first pending record was fetched.
    pub known_for: Duration,
    /// Lookups that wait for the task.
    pub waiters: usize,
    /// Whether the id is queued or in a call.
    pub is_queued: bool,
    /// Median of the remaining time of tasks of this type and age. `None` without data.
    pub expected_remaining: Option<Duration>,
}

/// A service whose lookups are interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    /// Name of the service.
    pub service: Service,
    /// Treatment of its lookups.
    pub class: ServiceClass,
    /// Most ids in one upstream call.
    pub max_batch: usize,
    /// Whether `max_batch` follows from a response that the upstream cut.
    pub has_learnt_limit: bool,
}

/// Outage of the upstream, from the first failed call to the next response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutageView {
    /// Error of the last call.
    pub error: UpstreamError,
    /// Time since the first failed call.
    pub lasts_for: Duration,
}

impl<B: Backend> Batcher<B> {
    /// Returns the current outage of the upstream, if there is one.
    pub fn outage(&self) -> Option<OutageView> {
        let (error, since) = self.registry.breaker.outage()?;
        Some(OutageView { error, lasts_for: Instant::now().saturating_duration_since(since) })
    }

    /// Returns the services whose lookups are interpreted, sorted by name.
    pub fn services(&self) -> Vec<ServiceView> {
        let view = |(service, state): (&Service, &ServiceState)| ServiceView {
            service: service.clone(),
            class: state.rules.class,
            max_batch: state.max_batch(),
            has_learnt_limit: state.has_learnt_limit(),
        };
        let mut services: Vec<_> = self.registry.services.iter().map(view).collect();
        services.sort_by(|one, other| one.service.cmp(&other.service));
        services
    }

    /// Returns the busiest queues that are not empty, at most `limit`.
    pub fn queues(&self, limit: usize) -> Listing<QueueView> {
        let now = Instant::now();
        let mut items: Vec<QueueView> =
            self.registry.queues().iter().filter_map(|handle| handle.view(now)).collect();
        let busy = |view: &QueueView| {
            let active = view.queued + view.in_flight;
            Reverse((active, view.waiters, view.snapshots, view.service.clone(), view.token))
        };
        let omitted = truncate_sorted(&mut items, limit, |one, other| busy(one).cmp(&busy(other)));
        Listing { items, omitted }
    }

    /// Returns the tasks that have been pending for the longest time, at most `limit`.
    pub fn pending_tasks(&self, limit: usize) -> Listing<PendingView> {
        let now = Instant::now();
        let (mut items, mut omitted) = (Vec::new(), 0);
        for handle in self.registry.queues() {
            omitted += handle.add_pending_tasks(now, limit, &mut items);
            if items.len() > 10 * limit {
                omitted += truncate_to_longest_pending(&mut items, limit);
            }
        }
        omitted += truncate_to_longest_pending(&mut items, limit);
        Listing { items, omitted }
    }

    /// Returns the totals of all queues.
    pub fn totals(&self) -> QueueTotals {
        let now = Instant::now();
        let Registry { limiters, breaker, .. } = &*self.registry;
        let handles = self.registry.queues();
        let mut totals = QueueTotals {
            queues: handles.len(),
            tokens: limiters.len(),
            is_upstream_down: breaker.is_open(),
            ..QueueTotals::default()
        };
        for handle in handles {
            let counts = handle.lock().counts(now);
            totals.waiters += handle.waiters();
            totals.queued += counts.queued;
            totals.in_flight += counts.in_flight;
            totals.snapshots += counts.snapshots;
            totals.snapshot_bytes += counts.snapshot_bytes;
            let wait = counts.oldest_queued.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            totals.oldest_queued = totals.oldest_queued.max(wait);
        }
        totals
    }
}

impl<B> QueueHandle<B> {
    fn view(&self, now: Instant) -> Option<QueueView> {
        let context = self.context();
        let (counts, estimate, clients) = {
            let queue = self.lock();
            (!queue.is_empty()).then(|| (queue.counts(now), queue.estimate(&context), queue.clients()))?
        };
        Some(QueueView {
            service: self.key.service.clone(),
            token: self.key.token,
            clients: clients.into_iter().collect(),
            queued: counts.queued,
            in_flight: counts.in_flight,
            waiters: self.waiters(),
            snapshots: counts.snapshots,
            estimate,
            longest_queued: counts.oldest_queued.map(|since| now.saturating_duration_since(since)),
            requests_per_second: self.limiter.rate_per_queue(now),
            paused_for: self.limiter.paused_for(now),
            idle: now.saturating_duration_since(self.used_at()),
        })
    }

    /// Adds the queue's longest pending tasks, at most `limit`, and returns the number of the
    /// others.
    fn add_pending_tasks(&self, now: Instant, limit: usize, views: &mut Vec<PendingView>) -> usize {
        let durations = self.registry.durations.service(&self.key.service);
        let queue = self.lock();
        let mut tasks: Vec<_> = queue.pending_tasks(now).collect();
        let omitted = truncate_sorted(&mut tasks, limit, |one, other| {
            (one.first_seen, one.id).cmp(&(other.first_seen, other.id))
        });
        views.extend(tasks.into_iter().map(|task| {
            PendingView {
                service: self.key.service.clone(),
                id: task.id.clone(),
                token: self.key.token,
                client: task.client,
                record: task.record.clone(),
                age: now.saturating_duration_since(task.fetched_at),
                known_for: now.saturating_duration_since(task.first_seen),
                waiters: task.waiters,
                is_queued: task.is_queued,
                expected_remaining: durations
                    .model(task.kind)
                    .remaining(task.task_age)
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            }
        }));
        omitted
    }
}

fn truncate_to_longest_pending(views: &mut Vec<PendingView>, limit: usize) -> usize {
    truncate_sorted(views, limit, |one, other| {
        let (one_known, other_known) = (Reverse(one.known_for), Reverse(other.known_for));
        (one_known, &one.id, one.token).cmp(&(other_known, &other.id, other.token))
    })
}

/// Truncates a list to its first `limit` items in sorted order. Returns the number of the others,
/// which are not sorted.
fn truncate_sorted<T>(list: &mut Vec<T>, limit: usize, compare: impl Fn(&T, &T) -> Ordering + Copy) -> usize {
    let omitted = list.len().saturating_sub(limit);
    if omitted > 0 && limit > 0 {
        list.select_nth_unstable_by(limit - 1, compare);
    }
    list.truncate(limit);
    list.sort_unstable_by(compare);
    omitted
}
