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

/// A lane as of one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueView {
    /// The service asked.
    pub service: Service,
    /// The digest of the token that goes upstream.
    pub token: Digest,
    /// Ids that wait for their turn.
    pub wanted: usize,
    /// Ids in a call.
    pub under_way: usize,
    /// Callers that wait for an answer.
    pub callers: usize,
    /// Pending answers in memory.
    pub remembered: usize,
    /// For how long the id that has waited longest has waited for its turn.
    pub oldest_wanted: Option<Duration>,
    /// Calls a second that the lane may make now.
    pub requests_per_second: f64,
    /// What is left of a pause that the upstream asked for.
    pub held: Duration,
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
    pub text: Bytes,
    /// How long ago it came.
    pub seen: Duration,
    /// How long ago the first unfinished answer came.
    pub first_seen: Duration,
    /// Callers that wait for news of it.
    pub callers: usize,
    /// Whether it is wanted, or in a call.
    pub wanted: bool,
}

impl<O: Backend> Batcher<O> {
    /// The busiest lanes that want or remember something, at most `most`, and how many others there are.
    pub fn view(&self, most: usize) -> (Vec<QueueView>, usize) {
        let now = Instant::now();
        let mut views: Vec<QueueView> =
            self.weak().iter().filter_map(|queue| queue.upgrade()?.view(now)).collect();
        let busy = |view: &QueueView| {
            let asked = view.wanted + view.under_way;
            Reverse((asked, view.callers, view.remembered, view.service.clone(), view.token))
        };
        let left_out = keep_first(&mut views, most, |one, other| busy(one).cmp(&busy(other)));
        (views, left_out)
    }

    /// The tasks known to be unfinished for the longest, at most `most`, and how many others there are.
    pub fn pending(&self, most: usize) -> (Vec<PendingView>, usize) {
        let now = Instant::now();
        let (mut views, mut left_out) = (Vec::new(), 0);
        for queue in self.weak() {
            if let Some(queue) = queue.upgrade() {
                left_out += queue.pending(now, most, &mut views);
            }
            if views.len() > 10 * most {
                left_out += keep_oldest(&mut views, most);
            }
        }
        left_out += keep_oldest(&mut views, most);
        (views, left_out)
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
            wanted: counts.wanted,
            under_way: counts.under_way,
            callers: self.callers.load(Ordering::Relaxed),
            remembered: counts.remembered,
            oldest_wanted: counts.oldest_wanted.map(|since| now.saturating_duration_since(since)),
            requests_per_second: self.limiter.share(now),
            held: self.limiter.held(now),
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
            text: snapshot.text.clone(),
            seen: now.saturating_duration_since(snapshot.taken_at),
            first_seen: now.saturating_duration_since(snapshot.first_seen),
            callers: entry.waiters.len(),
            wanted: entry.stage != Stage::Idle,
        }));
        left_out
    }
}

fn keep_oldest(views: &mut Vec<PendingView>, most: usize) -> usize {
    keep_first(views, most, |one, other| {
        (Reverse(one.first_seen), &one.id, one.token).cmp(&(
            Reverse(other.first_seen),
            &other.id,
            other.token,
        ))
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
