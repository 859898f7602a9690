//! A caller's side of a lane: it registers its ids, waits as long as it may, and withdraws when it goes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::state::{Arrival, Manner};
use super::ticket::{Progress, Ticket};
use super::{Answer, Failure, Lane, LookUp, Outcome, Outside};
use crate::task::TaskId;

/// Withdraws a caller's question when its future ends or is dropped.
struct Question<'a, O> {
    lane: &'a Lane<O>,
    ids: Vec<TaskId>,
    ticket: Arc<Ticket>,
    holds_out: bool,
    /// The caller gets an answer; without, it hung up.
    answered: bool,
}

impl<O> Drop for Question<'_, O> {
    fn drop(&mut self) {
        self.lane.callers.fetch_sub(1, Ordering::Relaxed);
        if self.holds_out {
            self.lane.shared.holding_out.fetch_sub(1, Ordering::Relaxed);
            self.lane.holding_out.fetch_sub(1, Ordering::Relaxed);
        }
        if self.ticket.progress() != Progress::Done {
            let limits = self.lane.limits();
            self.lane.lock().leave(Instant::now(), &limits, &self.ids, &self.ticket, self.answered);
            self.lane.wake.notify_one();
        }
    }
}

impl<O: Outside> Lane<O> {
    pub(super) async fn look_up(self: &Arc<Self>, look_up: LookUp) -> Answer {
        let start = Instant::now();
        let LookUp { ids, lone, wait, lenient, max_age } = look_up;
        let ticket = Ticket::new(ids.len());
        let holds_out = wait.is_some();
        self.callers.fetch_add(1, Ordering::Relaxed);
        if holds_out {
            self.shared.holding_out.fetch_add(1, Ordering::Relaxed);
            self.holding_out.fetch_add(1, Ordering::Relaxed);
        }
        let mut question = Question { lane: self, ids, ticket, holds_out, answered: false };
        let limits = self.limits();
        let arrival = {
            let manner = Manner { lone, holds_out, max_age };
            let mut state = self.lock();
            let before = state.len();
            let arrival = state.arrive(start, &limits, &question.ids, &question.ticket, manner);
            self.shared.ids.fetch_add(state.len().saturating_sub(before), Ordering::Relaxed);
            if question.ticket.progress() != Progress::Done {
                self.ensure_driver(&mut state);
                self.wake.notify_one();
            }
            arrival
        };
        self.wait_for(&question, start, wait, lenient).await;
        question.answered = true;
        let Arrival { joined, started, outdated } = arrival;
        let cycle = self.lock().cycle(&limits);
        let ticket = Arc::clone(&question.ticket);
        drop(question);
        let outcomes = ticket.take();
        Answer { outcomes, joined, started, outdated, cycle }
    }

    /// Waits until the question is answered as far as it will be.
    async fn wait_for(
        &self,
        question: &Question<'_, O>,
        start: Instant,
        wait: Option<Duration>,
        lenient: bool,
    ) {
        let Question { ids, ticket, .. } = question;
        let queue_end = start + self.shared.settings.queue_timeout;
        let wait_end = wait.map(|wait| start + wait);
        let (mut queueing, mut holding_out, mut remembered) = (true, wait.is_some(), true);
        loop {
            let progress = ticket.progress();
            if progress == Progress::Done || (progress == Progress::Failed && !lenient && !holding_out) {
                return;
            }
            let now = Instant::now();
            if holding_out && (progress == Progress::Failed || wait_end.is_some_and(|end| end <= now)) {
                holding_out = false;
                let limits = self.limits();
                self.lock().stop_holding_out(now, &limits, ids, ticket);
                self.wake.notify_one();
                continue;
            }
            if queueing && !holding_out && queue_end <= now {
                queueing = false;
                let limits = self.limits();
                self.lock().stop_queueing(now, &limits, ids, ticket);
                self.wake.notify_one();
                continue;
            }
            tokio::select! {
                () = ticket.changed() => {}
                () = until(wait_end), if holding_out => {}
                () = tokio::time::sleep_until(queue_end), if queueing && !holding_out => {}
                () = self.shared.draining.cancelled(), if remembered => {
                    remembered = false;
                    holding_out = false;
                    let (now, limits) = (Instant::now(), self.limits());
                    let mut state = self.lock();
                    state.answer_with_last_seen(now, ids, ticket);
                    state.stop_holding_out(now, &limits, ids, ticket);
                    self.wake.notify_one();
                }
                () = self.shared.ending.cancelled() => {
                    let limits = self.limits();
                    self.lock().leave(Instant::now(), &limits, ids, ticket, false);
                    for slot in ticket.open_slots() {
                        ticket.fill(slot, Outcome::Failed(Failure::Draining));
                    }
                }
            }
        }
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}
