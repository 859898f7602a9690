//! Open connections of a server. When all slots are taken, the connection that has been idle for
//! the longest time makes room for a new one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::activity::Activity;

/// Shortest idle time of a connection that is closed. A client sends its request directly after it
/// has connected, so in a burst of clients no new connection is closed before its request arrives.
const MIN_IDLE: Duration = Duration::from_millis(250);

/// Time after which an idle connection is searched for again.
const EVICTION_RETRY: Duration = Duration::from_millis(25);

/// Open connections of a server, and the slots that bound their number.
#[derive(Debug)]
pub(super) struct OpenConnections {
    slots: Arc<Semaphore>,
    by_number: Mutex<ByNumber>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct ByNumber {
    open: HashMap<u64, Arc<Activity>>,
    /// Number of the next connection.
    next: u64,
}

impl OpenConnections {
    /// Creates a register for `max` connections. `gauge` counts them.
    pub(super) fn new(max: usize, gauge: Gauge) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(max));
        Arc::new(Self { slots, by_number: Mutex::default(), gauge })
    }

    /// Returns a slot, if one is free.
    pub(super) fn try_slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Waits for a slot. If all are taken, closes the connection that has been idle for the longest
    /// time. Cancel safe.
    pub(super) async fn slot(&self) -> OwnedSemaphorePermit {
        loop {
            if let Some(slot) = self.try_slot() {
                return slot;
            }
            self.evict_longest_idle();
            // Tries again if no connection has been idle for long enough, or if the evicted one has
            // just received a request.
            let freed = Arc::clone(&self.slots).acquire_owned();
            if let Ok(slot) = tokio::time::timeout(EVICTION_RETRY, freed).await {
                return slot.expect("the semaphore is never closed");
            }
        }
    }

    /// Closes the connection that has been idle for the longest time, if this is at least
    /// [`MIN_IDLE`].
    pub(super) fn evict_longest_idle(&self) {
        let connections = self.lock();
        let idle = connections.open.values().filter(|activity| activity.is_idle());
        if let Some(longest) = idle.min_by_key(|activity| activity.idle_since())
            && longest.idle_since().elapsed() >= MIN_IDLE
        {
            longest.evict();
        }
    }

    /// Registers a connection until the returned value is dropped, which also frees its slot.
    pub(super) fn open(
        self: &Arc<Self>,
        activity: Arc<Activity>,
        slot: OwnedSemaphorePermit,
    ) -> OpenConnection {
        let mut connections = self.lock();
        let number = connections.next;
        connections.next += 1;
        connections.open.insert(number, activity);
        self.gauge.inc();
        OpenConnection { connections: Arc::clone(self), number, _slot: slot }
    }

    fn lock(&self) -> MutexGuard<'_, ByNumber> {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Open connection, registered while this value exists.
#[derive(Debug)]
pub(super) struct OpenConnection {
    connections: Arc<OpenConnections>,
    number: u64,
    _slot: OwnedSemaphorePermit,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.connections.lock().open.remove(&self.number);
        self.connections.gauge.dec();
    }
}
