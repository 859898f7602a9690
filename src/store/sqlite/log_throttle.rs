//! A limit on repeated log lines.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shortest time between two lines of the same kind.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lets one log line through per 10 s and counts the others.
#[derive(Default)]
pub(super) struct LogThrottle(Mutex<Throttled>);

#[derive(Default)]
struct Throttled {
    last_line: Option<Instant>,
    suppressed: u64,
}

impl LogThrottle {
    /// Returns the number of lines suppressed since the last one, if this line may be written.
    pub(super) fn admit(&self) -> Option<u64> {
        let mut throttled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if throttled.last_line.is_some_and(|last| last.elapsed() < INTERVAL) {
            throttled.suppressed += 1;
            return None;
        }
        throttled.last_line = Some(Instant::now());
        Some(std::mem::take(&mut throttled.suppressed))
    }
}
