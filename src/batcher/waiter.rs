//! What a caller holds while its ids are looked up: one slot an id, filled once each, from whichever call.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::TaskOutcome;

/// One caller's open questions.
#[derive(Debug)]
pub(super) struct Waiter {
    slots: Mutex<Slots>,
    /// Told when all slots are filled, or the first is filled with a failure.
    changed: Notify,
}

#[derive(Debug)]
struct Slots {
    outcomes: Vec<Option<TaskOutcome>>,
    open: usize,
    failed: bool,
}

/// Where a ticket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Open,
    /// Open, and at least one id has failed.
    Failed,
    Done,
}

impl Waiter {
    /// Creates a waiter for the outcomes that are `None`.
    pub(super) fn new(outcomes: Vec<Option<TaskOutcome>>) -> Arc<Self> {
        let open = outcomes.iter().filter(|outcome| outcome.is_none()).count();
        let slots = Slots { outcomes, open, failed: false };
        Arc::new(Self { slots: Mutex::new(slots), changed: Notify::new() })
    }

    /// Fills a slot; the first word counts, and what comes after the caller took its answer goes nowhere.
    pub(super) fn fill(&self, slot: usize, outcome: TaskOutcome) {
        let mut slots = self.lock();
        let Some(open @ None) = slots.outcomes.get_mut(slot) else { return };
        let failed = matches!(outcome, TaskOutcome::Failed(_));
        *open = Some(outcome);
        slots.failed |= failed;
        slots.open -= 1;
        if slots.open == 0 || slots.failed {
            self.changed.notify_one();
        }
    }

    pub(super) fn progress(&self) -> Progress {
        let slots = self.lock();
        match (slots.open, slots.failed) {
            (0, _) => Progress::Done,
            (_, true) => Progress::Failed,
            _ => Progress::Open,
        }
    }

    /// The slots that are not filled yet.
    pub(super) fn open_slots(&self) -> Vec<usize> {
        let slots = self.lock();
        (0..slots.outcomes.len()).filter(|slot| slots.outcomes[*slot].is_none()).collect()
    }

    /// Resolves at the next change; a change between two waits is not missed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// All outcomes, `None` where the caller went on without one.
    pub(super) fn take(&self) -> Vec<Option<TaskOutcome>> {
        std::mem::take(&mut self.lock().outcomes)
    }

    /// Short sections only, never held over an await; a panic elsewhere leaves the slots sound.
    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
