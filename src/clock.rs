//! The one place that reads the wall clock. Limits and time-outs run on the monotonic clock instead, so that a
//! clock set back or forward neither stalls nor hurries anything. And how people write a length of time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since the Unix epoch by the wall clock; 0 for a clock set before 1970.
#[expect(clippy::disallowed_methods, reason = "this is the room that the ban points to")]
pub fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// A duration as people write it: `30d`, `12h`, `1h 30m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    // Sums near 2^64 seconds make `humantime` panic.
    let fits = text.len() <= 64 && !text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > 10);
    fits.then(|| humantime::parse_duration(text).ok()).flatten()
}
