//! Whether a connection is idle, and since when.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Activity of a connection.
#[derive(Debug)]
pub(super) struct Activity {
    opened_at: Instant,
    /// Time of the last [`Activity::record_end`], in nanoseconds since `opened_at`.
    last_end: AtomicU64,
    /// Number of requests whose response was not yet passed to hyper completely.
    active_requests: AtomicUsize,
    /// Whether the socket does not accept the bytes to send.
    is_write_blocked: AtomicBool,
    /// Whether a handler reads a request body. It may do so after the response.
    is_uploading: AtomicBool,
    eviction: Notify,
}

impl Activity {
    /// Creates the activity of a new connection.
    pub(super) fn new() -> Self {
        Self {
            opened_at: Instant::now(),
            last_end: AtomicU64::new(0),
            active_requests: AtomicUsize::new(0),
            is_write_blocked: AtomicBool::new(false),
            is_uploading: AtomicBool::new(false),
            eviction: Notify::new(),
        }
    }

    /// Records that a response, a request body or a blocked write has just ended.
    pub(super) fn record_end(&self) {
        let now = u64::try_from(self.opened_at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last_end.store(now, Ordering::Relaxed);
    }

    /// Returns the time since which the connection waits for a request, if it has none.
    pub(super) fn idle_since(&self) -> Instant {
        self.opened_at + Duration::from_nanos(self.last_end.load(Ordering::Relaxed))
    }

    /// Returns whether the connection has no request, and no bytes are on their way in either
    /// direction. A part of a head is not a request.
    pub(super) fn is_idle(&self) -> bool {
        self.active_requests.load(Ordering::Relaxed) == 0
            && !self.is_write_blocked.load(Ordering::Relaxed)
            && !self.is_uploading.load(Ordering::Relaxed)
    }

    pub(super) fn start_request(&self) {
        self.active_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_request(&self) {
        self.record_end();
        self.active_requests.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn set_write_blocked(&self, is_write_blocked: bool) {
        self.is_write_blocked.store(is_write_blocked, Ordering::Relaxed);
    }

    pub(super) fn set_uploading(&self, is_uploading: bool) {
        self.is_uploading.store(is_uploading, Ordering::Relaxed);
    }

    /// Asks the connection to close if it is still idle.
    pub(super) fn evict(&self) {
        self.eviction.notify_one();
    }

    /// Completes when the connection is idle and has to make room for another. Cancel safe.
    pub(super) async fn evicted(&self) {
        loop {
            self.eviction.notified().await;
            if self.is_idle() {
                return;
            }
        }
    }
}
