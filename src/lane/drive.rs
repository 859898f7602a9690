//! The tasks behind a lane: a driver that takes the token's turns while anything is wanted, and one task for each
//! call. Both belong to the program, so that no caller's leaving ends them; both clean up on every way out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use super::answer::{self, Found, Reading};
use super::reach::{Permit, ProbeGuard};
use super::state::{Call, News, Next, State};
use super::{Failure, Lane, MAX_CALLS, Outside};
use crate::observe::CallStatus;
use crate::task::{FinishedTask, TaskId};
use crate::upstream::{UpstreamAnswer, UpstreamError};

/// How long after an id was first taken another try may still begin: the documented backoff of 1, 2, 4 and 8 s with
/// its jitter fits, an upstream that takes long to fail ends it sooner.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest pause of the documented backoff (1, 2, 4, 8, 16 s and up to 1 s of jitter).
const MAX_BACKOFF: Duration = Duration::from_secs(16);

impl<O: Outside> Lane<O> {
    /// Starts a driver unless one runs. It ends by itself when nothing is wanted.
    pub(super) fn ensure_driver(self: &Arc<Self>, state: &mut State) {
        if state.driven {
            return;
        }
        state.driven = true;
        self.turn.set_busy(true);
        let guard = DriverGuard { lane: Arc::clone(self) };
        let span = tracing::debug_span!("lane", service = %self.key.service, token = %self.key.token);
        self.shared.tasks.spawn(drive(guard).instrument(span));
    }
}

/// However the driver ends, the lane can have a new one and nobody waits for nothing.
struct DriverGuard<O: Outside> {
    lane: Arc<Lane<O>>,
}

impl<O: Outside> Drop for DriverGuard<O> {
    fn drop(&mut self) {
        self.lane.turn.set_busy(false);
        if std::thread::panicking() {
            tracing::error!("a lane's driver panicked; its callers get an error");
            self.lane.shared.metrics.panics.inc();
            let mut state = self.lane.lock();
            state.fail_waiting(&Failure::Internal);
            state.driven = false;
        }
    }
}

async fn drive<O: Outside>(guard: DriverGuard<O>) {
    let lane = &guard.lane;
    if lane.shared.ending.run_until_cancelled(take_turns(lane)).await.is_none() {
        let mut state = lane.lock();
        state.fail_waiting(&Failure::Draining);
        state.driven = false;
    }
}

/// Takes the token's turns until nothing is wanted and no call is under way that may come back to be repeated.
async fn take_turns<O: Outside>(lane: &Arc<Lane<O>>) {
    loop {
        let now = Instant::now();
        if let Some((error, retry_after)) = lane.shared.reach.is_down(now) {
            lane.lock().fail_waiting(&Failure::Down { error, retry_after });
        }
        let (next, calls) = {
            let mut state = lane.lock();
            let next = state.next(now);
            // Under the same lock as the look, so that no caller comes in between and finds a driver that ends.
            state.driven = next != Next::Nothing || state.calls > 0;
            (next, state.calls)
        };
        match next {
            Next::Nothing if calls == 0 => return,
            Next::Nothing => lane.wake.notified().await,
            Next::Take if calls >= MAX_CALLS => lane.wake.notified().await,
            Next::Take => take_a_turn(lane).await,
            Next::At(at) => {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = lane.wake.notified() => {}
                }
            }
        }
    }
}

async fn take_a_turn<O: Outside>(lane: &Arc<Lane<O>>) {
    let allowed = lane.turn.wait().await;
    let Ok(place) = Arc::clone(&lane.shared.calls).acquire_owned().await else { return };
    let now = Instant::now();
    let probe = match lane.shared.reach.permit(now) {
        Permit::Go(probe) => probe,
        Permit::Down(error, retry_after) => {
            lane.lock().fail_waiting(&Failure::Down { error, retry_after });
            return;
        }
    };
    let limits = lane.limits();
    let Some(call) = lane.lock().take(now, &limits) else { return };
    allowed.spend(now);
    let guard = CallGuard::new(lane, call, probe);
    let task = async move {
        guard.run().await;
        drop(place);
    };
    lane.shared.tasks.spawn(task.in_current_span());
}

/// One call under way. However it ends, each of its ids is answered, put back or given up.
struct CallGuard<O: Outside> {
    lane: Arc<Lane<O>>,
    call: Call,
    /// Ids that nothing was said of yet.
    open: Vec<TaskId>,
    probe: ProbeGuard,
}

impl<O: Outside> Drop for CallGuard<O> {
    fn drop(&mut self) {
        if !self.open.is_empty() {
            if std::thread::panicking() {
                tracing::error!("an upstream call panicked; its callers get an error");
                self.lane.shared.metrics.panics.inc();
            }
            let open = self.say_all();
            self.fail(open, &Failure::Internal);
        }
        self.lane.lock().calls -= 1;
        self.lane.wake.notify_one();
    }
}

impl<O: Outside> CallGuard<O> {
    fn new(lane: &Arc<Lane<O>>, call: Call, probe: ProbeGuard) -> Self {
        lane.lock().calls += 1;
        Self { lane: Arc::clone(lane), open: call.ids.clone(), call, probe }
    }

    async fn run(mut self) {
        let shared = &self.lane.shared;
        let began = Instant::now();
        let epoch = shared.outside.epoch();
        let look_up = shared.outside.look_up(&self.lane.key.service, &self.lane.credentials, &self.call.ids);
        // Nobody is there for the answer after `ending`, and a look-up given up costs nothing.
        let Some(result) = shared.ending.run_until_cancelled(look_up).await else {
            let ids = self.say_all();
            return self.fail(ids, &Failure::Draining);
        };
        let now = Instant::now();
        let status = match &result {
            Ok(answer) => answer.status.as_str().to_owned(),
            Err(error) => error.as_str().to_owned(),
        };
        tracing::debug!(ids = self.call.ids.len(), attempt = self.call.attempts, status, took = ?(now - began), "asked");
        let service = shared.metrics.service(self.lane.key.service.as_str());
        shared.metrics.count_call(service, CallStatus::of(&status), self.call.ids.len(), now - began);
        match result {
            Ok(answer) => {
                shared.reach.heard(now);
                if !answer.connecting.is_zero() {
                    self.lane.turn.went_later(now, answer.connecting);
                }
                shared.outside.answered(&self.lane.key, &answer);
                self.use_answer(began, epoch, answer).await;
            }
            Err(error) => {
                shared.reach.failed(now, began, &self.probe, &error);
                self.use_error(error);
            }
        }
    }

    async fn use_answer(&mut self, began: Instant, epoch: O::Epoch, answer: UpstreamAnswer) {
        let folded = self.call.ids.len() > 1;
        match answer::read(&answer, &self.call.ids) {
            Reading::Tasks { found, left_out } => self.spread(epoch, found, left_out).await,
            Reading::Empty => {
                let ids = self.say_all();
                self.settle(ids, || News::Unknown(Some(answer.clone())));
            }
            Reading::Strange if folded => {
                self.retry_or_fail(Duration::ZERO, &Failure::NotATask);
            }
            Reading::Strange => {
                let ids = self.say_all();
                self.settle(ids, || News::Relayed(answer.clone(), Failure::NotATask));
            }
            Reading::Refused if folded => self.halve(),
            Reading::Refused | Reading::Error => {
                let ids = self.say_all();
                self.fail(ids, &Failure::Upstream(answer));
            }
            Reading::InvalidToken => {
                let ids = self.say_all();
                let failure = Failure::Upstream(answer);
                self.fail(ids, &failure);
                self.lane.lock().fail_waiting(&failure);
            }
            Reading::Redirect => {
                let ids = self.say_all();
                self.fail(ids, &Failure::Redirected);
            }
            Reading::TooManyRequests => {
                let wait = answer::retry_after(answer.retry_after.as_ref());
                self.lane.turn.slow_down(Instant::now(), began, wait);
                let is_awaited = self.lane.lock().is_awaited(&self.call.ids);
                if self.retry_or_fail(wait.unwrap_or_default(), &Failure::Upstream(answer)) || !is_awaited {
                    self.lane.shared.metrics.count_absorbed();
                }
            }
            Reading::Trouble => {
                let wait = answer::retry_after(answer.retry_after.as_ref());
                if let Some(pause) = wait {
                    self.lane.turn.hold(Instant::now(), pause);
                }
                self.retry_or_fail(wait.unwrap_or_default(), &Failure::Upstream(answer));
            }
        }
    }

    fn use_error(&mut self, error: UpstreamError) {
        if error == UpstreamError::TooLarge && self.call.ids.len() > 1 {
            return self.halve();
        }
        // An upstream that cannot be reached is probed by later calls. A time-out is worth another try only where
        // `request_timeout` is shorter than its callers' patience.
        let again = error.was_reached() && error != UpstreamError::TooLarge;
        let failure = Failure::Transport(error);
        if again {
            self.retry_or_fail(Duration::ZERO, &failure);
        } else {
            let ids = self.say_all();
            self.fail(ids, &failure);
        }
    }

    /// Finished tasks are on disk before anyone is answered.
    async fn spread(&mut self, epoch: O::Epoch, found: Vec<(TaskId, Found)>, left_out: Vec<TaskId>) {
        let finished: Vec<FinishedTask> = found
            .iter()
            .filter_map(|(id, found)| match found {
                Found::Finished(text) => Some(FinishedTask { id: id.clone(), text: text.clone() }),
                _ => None,
            })
            .collect();
        let stored = match finished.is_empty() {
            true => Vec::new(),
            false => self.lane.shared.outside.keep(&self.lane.key, epoch, finished).await,
        };
        let mut stored = stored.into_iter();
        let mut announced = Vec::new();
        for (id, found) in found {
            self.say(&id);
            let news = match found {
                Found::Finished(text) => {
                    let stored = stored.next().unwrap_or(false);
                    announced.push((id.clone(), text.clone(), stored));
                    News::Finished { text, stored }
                }
                Found::Pending(text, task_age) => News::Pending { text, task_age },
                Found::Disputed(text) => News::Disputed(text),
            };
            self.settle_one(&id, news);
        }
        for id in left_out {
            self.say(&id);
            let mut state = self.lane.lock();
            if state.is_owed_its_own_answer(&id) {
                let now = Instant::now();
                state.leave_out(now, &id);
                state.prepare(Call {
                    ids: vec![id],
                    attempts: 0,
                    taken_at: self.call.taken_at,
                    not_before: now,
                });
            } else {
                drop(state);
                self.settle_one(&id, News::Unknown(None));
            }
        }
        self.lane.shared.announce(&self.lane.key, &announced);
    }

    /// A refused folded call goes again in halves, until the culprit stands alone.
    fn halve(&mut self) {
        let ids = self.say_all();
        let (first, second) = ids.split_at(ids.len() / 2);
        let mut state = self.lane.lock();
        for half in [first, second] {
            state.prepare(Call { ids: half.to_vec(), ..self.call.clone() });
        }
    }

    /// Puts the call back for another try after the documented backoff, or gives its callers the failure; whether there
    /// will be another try.
    fn retry_or_fail(&mut self, at_least: Duration, failure: &Failure) -> bool {
        let now = Instant::now();
        let pause = backoff(self.call.attempts).max(at_least);
        let ids = self.say_all();
        if self.call.attempts >= self.lane.shared.settings.max_retries
            || now + pause > self.call.taken_at + PATIENCE
        {
            self.fail(ids, failure);
            return false;
        }
        let call = Call { ids, attempts: self.call.attempts + 1, not_before: now + pause, ..self.call };
        self.lane.lock().prepare(call);
        true
    }

    fn fail(&self, ids: Vec<TaskId>, failure: &Failure) {
        self.settle(ids, || News::Failed(failure.clone()));
    }

    fn settle(&self, ids: Vec<TaskId>, news: impl Fn() -> News) {
        for id in ids {
            self.settle_one(&id, news());
        }
    }

    fn settle_one(&self, id: &TaskId, news: News) {
        let limits = self.lane.limits();
        let (before, after) = self.lane.lock().settle(Instant::now(), &limits, id, news);
        let remembered = &self.lane.shared.remembered_bytes;
        remembered.fetch_add(after, Ordering::Relaxed);
        // The sweep sets the sum anew meanwhile, so a difference may pass zero.
        let _ = remembered
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| Some(sum.saturating_sub(before)));
    }

    fn say(&mut self, id: &TaskId) {
        self.open.retain(|open| open != id);
    }

    fn say_all(&mut self) -> Vec<TaskId> {
        std::mem::take(&mut self.open)
    }
}

/// The documented pause before try number `attempts + 2`: 1, 2, 4, 8, 16 s plus up to a second.
fn backoff(attempts: u32) -> Duration {
    let seconds = 1_u64.checked_shl(attempts).unwrap_or(u64::MAX);
    Duration::from_secs(seconds).min(MAX_BACKOFF) + Duration::from_millis(fastrand::u64(0..1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_the_documented_one() {
        for (attempts, seconds) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 16), (80, 16)] {
            let pause = backoff(attempts);
            assert!((seconds..seconds + 1).contains(&pause.as_secs()), "{attempts}: {pause:?}");
        }
    }
}
