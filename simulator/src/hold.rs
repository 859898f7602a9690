//! A gate that keeps calls waiting until a test lets them go.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Keeps every call of its rule waiting until [`Hold::release`], or until it is dropped.
#[must_use = "dropping a hold lets the calls go on"]
pub struct Hold {
    gate: Arc<Gate>,
}

impl Hold {
    /// Lets the waiting calls go on; later ones pass at once.
    pub fn release(&self) {
        self.gate.open.send_replace(true);
    }

    /// How many calls came to the gate so far.
    pub fn held_calls(&self) -> usize {
        *self.gate.arrived.borrow()
    }

    /// Returns once so many calls came to the gate.
    ///
    /// # Panics
    /// After 10 seconds.
    pub async fn wait_for_held(&self, at_least: usize) {
        let mut arrived = self.gate.arrived.subscribe();
        let reached = timeout(Duration::from_secs(10), arrived.wait_for(|count| *count >= at_least)).await;
        assert!(
            reached.is_ok(),
            "the simulator held {} calls within 10 s, not {at_least}",
            self.held_calls()
        );
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

/// The rule's side of a [`Hold`].
pub(super) struct Gate {
    open: watch::Sender<bool>,
    arrived: watch::Sender<usize>,
}

impl Gate {
    pub(super) fn new() -> (Arc<Self>, Hold) {
        let gate = Arc::new(Self { open: watch::Sender::new(false), arrived: watch::Sender::new(0) });
        (Arc::clone(&gate), Hold { gate })
    }

    /// Returns once the hold is released.
    pub(super) async fn pass(&self) {
        self.arrived.send_modify(|count| *count += 1);
        // The sender lives in `self`, so this cannot end early.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}
