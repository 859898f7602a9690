//! Outcomes of one lookup while calls resolve its ids.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::outcome::TaskOutcome;

/// Slots for the outcomes of one lookup, each resolved once.
#[derive(Debug)]
pub(super) struct Waiter {
    slots: Mutex<Slots>,
    /// Notified when every slot is resolved, or one with a failure, and when the wait is limited.
    changed: Notify,
}

#[derive(Debug)]
struct Slots {
    outcomes: Vec<Option<TaskOutcome>>,
    unresolved: usize,
    has_failed: bool,
    /// End of the wait for calls that were prepared after the first one.
    limit: Option<Instant>,
}

/// Progress of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Some slots are unresolved.
    Waiting,
    /// Some slots are unresolved, and at least one holds a failure.
    PartlyFailed,
    /// Every slot is resolved.
    Done,
}

impl Waiter {
    /// Creates a waiter for the outcomes that are `None`.
    pub(super) fn new(outcomes: Vec<Option<TaskOutcome>>) -> Arc<Self> {
        let unresolved = outcomes.iter().filter(|outcome| outcome.is_none()).count();
        let slots = Slots { outcomes, unresolved, has_failed: false, limit: None };
        Arc::new(Self { slots: Mutex::new(slots), changed: Notify::new() })
    }

    /// Resolves a slot. Does nothing if it is resolved already, or after [`Waiter::take`].
    pub(super) fn resolve(&self, slot: usize, outcome: TaskOutcome) {
        let mut slots = self.lock();
        let Some(unresolved @ None) = slots.outcomes.get_mut(slot) else { return };
        let is_failure = matches!(outcome, TaskOutcome::Failed(_));
        *unresolved = Some(outcome);
        slots.has_failed |= is_failure;
        slots.unresolved -= 1;
        if slots.unresolved == 0 || slots.has_failed {
            self.changed.notify_one();
        }
    }

    pub(super) fn progress(&self) -> Progress {
        let slots = self.lock();
        match (slots.unresolved, slots.has_failed) {
            (0, _) => Progress::Done,
            (_, true) => Progress::PartlyFailed,
            (_, false) => Progress::Waiting,
        }
    }

    /// Limits the wait for further calls, unless it is limited already.
    pub(super) fn limit_wait(&self, until: Instant) {
        self.lock().limit.get_or_insert(until);
        self.changed.notify_one();
    }

    /// Removes the limit, for a wait that begins now.
    pub(super) fn clear_limit(&self) {
        self.lock().limit = None;
    }

    /// Returns the end of the wait for further calls.
    pub(super) fn limit(&self) -> Option<Instant> {
        self.lock().limit
    }

    /// Returns the slots that are not resolved.
    pub(super) fn unresolved(&self) -> Vec<usize> {
        let slots = self.lock();
        (0..slots.outcomes.len()).filter(|slot| slots.outcomes[*slot].is_none()).collect()
    }

    /// Resolves at the next change, or at once if there was one since the last call. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes all outcomes; `None` for slots that are not resolved.
    pub(super) fn take(&self) -> Vec<Option<TaskOutcome>> {
        std::mem::take(&mut self.lock().outcomes)
    }

    /// A panic elsewhere leaves the slots consistent, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
