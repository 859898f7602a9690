//! The wall clock. Time limits use the monotonic clock instead, so a change of the system time does
//! not affect them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the seconds since the Unix epoch, or 0 if the system clock is set to a time before 1970.
pub fn unix_now() -> i64 {
    i64::try_from(since_epoch().as_secs()).unwrap_or(i64::MAX)
}

/// Returns the microseconds since the Unix epoch, or 0 as [`unix_now`].
pub fn unix_now_micros() -> u64 {
    u64::try_from(since_epoch().as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "the only permitted use")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
