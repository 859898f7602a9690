//! Gate that holds calls back until a test releases them.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use super::WAIT_TIMEOUT;

/// Test's handle of a rule that holds its calls back. Releases them when dropped.
#[must_use = "dropping a hold releases its calls"]
pub struct Hold {
    gate: Arc<Gate>,
}

impl Hold {
    /// Releases the held calls. Later calls are not held.
    pub fn release(&self) {
        self.gate.is_open.send_replace(true);
    }

    /// Returns the number of calls that have reached the gate.
    pub fn held_calls(&self) -> usize {
        *self.gate.arrived.borrow()
    }

    /// Returns once this many calls have reached the gate.
    ///
    /// # Panics
    /// After 10 seconds.
    pub async fn wait_for_held(&self, at_least: usize) {
        let mut arrived = self.gate.arrived.subscribe();
        let reached = timeout(WAIT_TIMEOUT, arrived.wait_for(|count| *count >= at_least)).await;
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

/// Rule's side of a [`Hold`].
pub(super) struct Gate {
    is_open: watch::Sender<bool>,
    /// Number of calls that have reached the gate.
    arrived: watch::Sender<usize>,
}

impl Gate {
    pub(super) fn new() -> (Arc<Self>, Hold) {
        let gate = Arc::new(Self { is_open: watch::Sender::new(false), arrived: watch::Sender::new(0) });
        (Arc::clone(&gate), Hold { gate })
    }

    /// Returns once the hold is released.
    pub(super) async fn pass(&self) {
        self.arrived.send_modify(|count| *count += 1);
        // `self` owns the sender, so this cannot end early.
        let _ = self.is_open.subscribe().wait_for(|open| *open).await;
    }
}
