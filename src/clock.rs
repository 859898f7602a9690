//! The wall clock. Time limits use the monotonic clock instead, so a change of the system time does
//! not affect them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the seconds since the Unix epoch, or 0 if the system clock is set to a time before 1970.
#[expect(clippy::disallowed_methods, reason = "the only permitted use")]
pub fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
