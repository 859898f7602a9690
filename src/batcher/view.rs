//! What goes on in the lanes, for people: each lane's numbers, and the tasks that are not finished yet.
//!
//! Callers wait while a lane is locked. So each is locked on its own, no longer than its entries take to be counted,
//! and nothing of a task is copied or read then that is not shown.

use std::cmp::Reverse;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::entry::{Entry, Snapshot, Stage};
use super::gauges::Counts;
use super::{Backend, Batcher, QueueHandle};
use crate::task::{Service, TaskId};
use crate::token::Digest;

/// The first part of a longer list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing<T> {
    /// The items that are shown.
    pub items: Vec<T>,
    /// Number of items that are not shown.
    pub omitted: usize,
}

/// A lane as of one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueView {
    /// The service asked.
    pub service: Service,
    /// The digest of the token that goes upstream.
    pub token: Digest,
    /// Ids that wait for their turn.
    pub queued: usize,
    /// Ids in a call.
    pub in_flight: usize,
    /// Callers that wait for an answer.
    pub waiters: usize,
    /// Pending answers in memory.
    pub snapshots: usize,
    /// For how long the id that has waited longest has waited for its turn.
    pub longest_queued: Option<Duration>,
    /// Calls a second that the lane may make now.
    pub requests_per_second: f64,
    /// What is left of a pause that the upstream asked for.
    pub paused_for: Duration,
    /// Since the last look-up came.
    pub idle: Duration,
}

/// A task of which an unfinished answer is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingView {
    /// Its service.
    pub service: Service,
    /// Its id.
    pub id: TaskId,
    /// The digest of the token that was given the answer.
    pub token: Digest,
    /// The answer.
    pub record: Bytes,
    /// Time since it was fetched.
    pub age: Duration,
    /// How long ago the first unfinished answer came.
    pub known_for: Duration,
    /// Callers that wait for news of it.
    pub waiters: usize,
    /// Whether the id is queued or in a call.
    pub is_queued: bool,
}

impl<O: Backend> Batcher<O> {
    /// Returns the busiest queues, at most `limit`.
    pub fn queues(&self, limit: usize) -> Listing<QueueView> {
        let now = Instant::now();
        let mut views: Vec<QueueView> =
            self.weak().iter().filter_map(|queue| queue.upgrade()?.view(now)).collect();
        let busy = |view: &QueueView| {
            let asked = view.queued + view.in_flight;
            Reverse((asked, view.waiters, view.snapshots, view.service.clone(), view.token))
        };
        let omitted = keep_first(&mut views, limit, |one, other| busy(one).cmp(&busy(other)));
        Listing { items: views, omitted }
    }

    /// Returns the tasks that have been pending for the longest time, at most `limit`.
    pub fn pending_tasks(&self, limit: usize) -> Listing<PendingView> {
        let now = Instant::now();
        let (mut views, mut omitted) = (Vec::new(), 0);
        for queue in self.weak() {
            if let Some(queue) = queue.upgrade() {
                omitted += queue.pending(now, limit, &mut views);
            }
            if views.len() > 10 * limit {
                omitted += keep_oldest(&mut views, limit);
            }
        }
        omitted += keep_oldest(&mut views, limit);
        Listing { items: views, omitted }
    }

    /// All lanes, none of them held: one that is held counts as busy.
    pub(super) fn weak(&self) -> Vec<Weak<QueueHandle<O>>> {
        let queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.values().map(std::sync::Arc::downgrade).collect()
    }
}

impl<O> QueueHandle<O> {
    fn view(&self, now: Instant) -> Option<QueueView> {
        let counts = {
            let state = self.lock();
            if state.is_empty() {
                return None;
            }
            Counts::of(&state, now)
        };
        Some(QueueView {
            service: self.key.service.clone(),
            token: self.key.token,
            queued: counts.wanted,
            in_flight: counts.under_way,
            waiters: self.callers.load(Ordering::Relaxed),
            snapshots: counts.remembered,
            longest_queued: counts.oldest_wanted.map(|since| now.saturating_duration_since(since)),
            requests_per_second: self.limiter.share(now),
            paused_for: self.limiter.held(now),
            idle: now.saturating_duration_since(self.used_at()),
        })
    }

    /// Adds at most `most` of the lane's unfinished tasks, and tells how many others there are.
    fn pending(&self, now: Instant, most: usize, views: &mut Vec<PendingView>) -> usize {
        let state = self.lock();
        let unfinished = |(id, entry)| -> Option<(&TaskId, &Entry, &Snapshot)> {
            let entry: &Entry = entry;
            Some((id, entry, entry.pending.as_ref()?))
        };
        let mut tasks: Vec<_> = state.entries.iter().filter_map(unfinished).collect();
        let left_out = keep_first(&mut tasks, most, |one, other| {
            (one.2.first_seen, one.0).cmp(&(other.2.first_seen, other.0))
        });
        views.extend(tasks.into_iter().map(|(id, entry, snapshot)| PendingView {
            service: self.key.service.clone(),
            id: id.clone(),
            token: self.key.token,
            record: snapshot.text.clone(),
            age: now.saturating_duration_since(snapshot.taken_at),
            known_for: now.saturating_duration_since(snapshot.first_seen),
            waiters: entry.waiters.len(),
            is_queued: entry.stage != Stage::Idle,
        }));
        left_out
    }
}

fn keep_oldest(views: &mut Vec<PendingView>, most: usize) -> usize {
    keep_first(views, most, |one, other| {
        (Reverse(one.known_for), &one.id, one.token).cmp(&(Reverse(other.known_for), &other.id, other.token))
    })
}

/// Keeps the first `most` in that order, and tells how many there were besides. Only those are sorted.
fn keep_first<T>(
    list: &mut Vec<T>,
    most: usize,
    compare: impl Fn(&T, &T) -> std::cmp::Ordering + Copy,
) -> usize {
    let left_out = list.len().saturating_sub(most);
    if left_out > 0 && most > 0 {
        list.select_nth_unstable_by(most - 1, compare);
    }
    list.truncate(most);
    list.sort_unstable_by(compare);
    left_out
}
