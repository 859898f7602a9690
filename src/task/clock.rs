//! The one place that reads the wall clock. Limits and time-outs run on the monotonic clock instead, so that a
//! clock set back or forward neither stalls nor hurries anything.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since the Unix epoch by the wall clock; 0 for a clock set before 1970.
#[expect(clippy::disallowed_methods, reason = "this is the room that the ban points to")]
pub fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
