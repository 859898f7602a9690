//! Token bucket: pure arithmetic on a given monotonic time.

use std::time::{Duration, Instant};

/// Smallest share of the full rate after repeated 429s.
const MIN_SHARE: f64 = 1.0 / 16.0;

/// Share of the full rate that returns per second after a 429: from half to all in 30 s.
const RECOVERY_PER_SECOND: f64 = 1.0 / 60.0;

/// Longest delay of a call that is taken into account. A longer one has another cause.
const MAX_CONNECT_DELAY: Duration = Duration::from_secs(2);

/// Smallest rate in calls per second. Waits computed from it stay far below the range of a clock.
const MIN_RATE: f64 = 1e-6;

/// Tolerance for rounding errors, in calls.
const EPSILON: f64 = 1e-6;

/// Bucket that fills at a rate and holds at most `burst` calls. It starts with one call, and with
/// more if its token was idle before.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Calls per second while the upstream does not respond with 429.
    full_rate: f64,
    burst: f64,
    /// Calls that may be sent now. Negative after requests that were passed through, at least -1.
    level: f64,
    updated: Instant,
    /// Rate set by the last 429, and when.
    slowed: Option<(f64, Instant)>,
    /// End of the pause that the upstream requested.
    not_before: Option<Instant>,
    /// Whether a lookup call waits.
    has_waiting_lookup: bool,
    /// Whether a request was passed through since `has_waiting_lookup` was set.
    has_charged_passthrough: bool,
}

impl TokenBucket {
    /// `idle_since`: start of the time without a request of the token, during which the bucket has
    /// filled.
    pub(super) fn new(calls_per_second: f64, burst: u32, idle_since: Instant) -> Self {
        Self {
            full_rate: calls_per_second.max(MIN_RATE),
            burst: f64::from(burst.max(1)),
            level: 1.0,
            updated: idle_since,
            slowed: None,
            not_before: None,
            has_waiting_lookup: false,
            has_charged_passthrough: false,
        }
    }

    /// Returns the present rate in calls per second: half of the full rate after a 429, then slowly
    /// recovering.
    pub(super) fn rate(&self, now: Instant) -> f64 {
        self.slowed.map_or(self.full_rate, |(rate, at)| {
            let recovered =
                self.full_rate * RECOVERY_PER_SECOND * now.saturating_duration_since(at).as_secs_f64();
            (rate + recovered).min(self.full_rate)
        })
    }

    /// Returns the time until the next lookup call may be sent.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        let for_level = (1.0 - EPSILON - self.level).max(0.0) / self.rate(now);
        let wait = Duration::from_secs_f64(for_level).max(self.paused_for(now));
        if !wait.is_zero() && !self.has_waiting_lookup {
            self.has_waiting_lookup = true;
            // A request passed through before this lookup is already the one that may be charged
            // while it waits.
            self.has_charged_passthrough = self.level < 0.0;
        }
        wait
    }

    /// Takes a lookup call, after [`TokenBucket::wait`] returned zero.
    pub(super) fn take(&mut self, now: Instant) {
        self.fill(now);
        self.level -= 1.0;
        self.stop_waiting();
    }

    /// Ends the wait of a lookup call, which was taken or is not needed any more.
    pub(super) fn stop_waiting(&mut self) {
        self.has_waiting_lookup = false;
        self.has_charged_passthrough = false;
    }

    /// Delays the next call because the last one was sent `delay` (at most 2 s) later than it was
    /// taken.
    pub(super) fn add_connect_delay(&mut self, now: Instant, delay: Duration) {
        self.fill(now);
        self.level -= self.rate(now) * delay.min(MAX_CONNECT_DELAY).as_secs_f64();
    }

    /// Takes a request that was passed through. The debt is at most one call, and while a lookup
    /// call waits only one such request counts, so that lookups keep at least half the rate.
    pub(super) fn charge(&mut self, now: Instant) {
        self.fill(now);
        if self.has_waiting_lookup && self.has_charged_passthrough {
            return;
        }
        // The level is below -1 after a long connect delay, which a charge must not shorten.
        self.level = self.level.min((self.level - 1.0).max(-1.0));
        self.has_charged_passthrough = true;
    }

    /// Halves the rate after a 429 to a call that began at `began`, once for all calls that were in
    /// flight together, and pauses for `retry_after`.
    pub(super) fn slow_down(&mut self, now: Instant, began: Instant, retry_after: Option<Duration>) {
        self.fill(now);
        if self.slowed.is_none_or(|(_, at)| began >= at) {
            let rate = (self.rate(now) / 2.0).max(self.full_rate * MIN_SHARE);
            self.slowed = Some((rate, now));
        }
        if let Some(pause) = retry_after {
            self.pause_until(now + pause);
        }
    }

    /// Pauses lookup calls. An earlier pause that ends later still holds.
    pub(super) fn pause_until(&mut self, at: Instant) {
        self.not_before = Some(self.not_before.map_or(at, |before| before.max(at)));
    }

    /// Returns the remaining time of the pause.
    pub(super) fn paused_for(&self, now: Instant) -> Duration {
        self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Whether the bucket is full and not slowed down, so that nothing changes if it is dropped and
    /// created again.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let filled =
            self.level + now.saturating_duration_since(self.updated).as_secs_f64() * self.rate(self.updated);
        filled >= self.burst && self.rate(now) >= self.full_rate && self.not_before.is_none_or(|at| at <= now)
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        // The rate at the start of the interval is the lower one while it recovers.
        self.level = (self.level + elapsed * self.rate(self.updated)).min(self.burst);
        self.updated = self.updated.max(now);
        if self.rate(now) >= self.full_rate {
            self.slowed = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(number: f64) -> Duration {
        Duration::from_secs_f64(number)
    }

    /// Counts the lookup calls of a client that always sends as soon as it may, during `length`,
    /// while a request is passed through every `every`.
    fn lookup_calls(
        bucket: &mut TokenBucket,
        start: Instant,
        length: Duration,
        every: Option<Duration>,
    ) -> u32 {
        let (mut now, mut count, mut next_charge) = (start, 0, start);
        while now < start + length {
            let wait = bucket.wait(now);
            if wait.is_zero() {
                bucket.take(now);
                count += 1;
                continue;
            }
            match every {
                Some(every) if next_charge <= now + wait => {
                    now = next_charge.max(now);
                    bucket.charge(now);
                    next_charge = now + every;
                }
                _ => now += wait,
            }
        }
        count
    }

    #[test]
    fn second_call_waits_for_the_interval() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        assert_eq!(bucket.wait(start), Duration::ZERO);
        bucket.take(start);
        assert!((bucket.wait(start).as_secs_f64() - 1.0).abs() < 0.001);
        assert_eq!(bucket.wait(start + seconds(1.0)), Duration::ZERO);
    }

    #[test]
    fn idle_bucket_saves_up_at_most_its_burst() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 3, start);
        assert_eq!(lookup_calls(&mut bucket, start + seconds(3600.0), seconds(0.001), None), 3);
    }

    #[test]
    fn calls_never_exceed_the_rate() {
        let start = Instant::now();
        for (rate, burst) in [(0.1, 1), (1.0, 1), (2.5, 4), (100.0, 1)] {
            let mut bucket = TokenBucket::new(rate, burst, start);
            let count = f64::from(lookup_calls(&mut bucket, start, seconds(600.0), None));
            assert!(
                count <= rate * 600.0 + f64::from(burst) && count >= rate * 600.0 - 1.0,
                "{rate}: {count}"
            );
        }
    }

    #[test]
    fn lookups_keep_half_the_rate_beside_passed_through_requests() {
        let start = Instant::now();
        for every in [0.01, 0.3, 0.5, 0.9, 1.0, 1.9] {
            let mut bucket = TokenBucket::new(1.0, 1, start);
            let count = lookup_calls(&mut bucket, start, seconds(600.0), Some(seconds(every)));
            assert!((299..=601).contains(&count), "every {every} s: {count}");
        }
    }

    #[test]
    fn debt_of_many_passed_through_requests_is_one_call() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        for _ in 0..1000 {
            bucket.charge(start);
        }
        let wait = bucket.wait(start).as_secs_f64();
        assert!((wait - 2.0).abs() < 0.001, "{wait}");
    }

    #[test]
    fn passed_through_request_does_not_shorten_a_connect_delay() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        bucket.take(start);
        bucket.add_connect_delay(start, seconds(2.0));
        bucket.charge(start);
        let wait = bucket.wait(start).as_secs_f64();
        assert!((wait - 3.0).abs() < 0.001, "{wait}");
    }

    #[test]
    fn status_429_halves_the_rate_once_and_it_recovers_slowly() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        bucket.slow_down(start, start, None);
        assert!((bucket.rate(start) - 0.5).abs() < 0.001);
        // A second 429, to a call that was in flight at the same time.
        let began_before = start.checked_sub(seconds(1.0)).unwrap();
        bucket.slow_down(start + seconds(0.1), began_before, None);
        assert!(bucket.rate(start) > 0.49);
        assert!((bucket.rate(start + seconds(15.0)) - 0.75).abs() < 0.001);
        assert!((bucket.rate(start + seconds(60.0)) - 1.0).abs() < 0.001);
        for step in 0..20 {
            let at = start + seconds(100.0 + 0.01 * f64::from(step));
            bucket.slow_down(at, at, None);
        }
        assert!(bucket.rate(start + seconds(100.2)) >= MIN_SHARE);
    }

    #[test]
    fn connect_delay_postpones_the_next_call() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        bucket.take(start);
        bucket.add_connect_delay(start + seconds(0.4), seconds(0.3));
        assert!((bucket.wait(start + seconds(0.4)).as_secs_f64() - 0.9).abs() < 0.001);
    }

    #[test]
    fn retry_after_pauses_all_calls() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10.0, 1, start);
        bucket.slow_down(start, start, Some(seconds(7.0)));
        assert!(bucket.wait(start + seconds(6.9)) > Duration::ZERO);
        assert_eq!(bucket.wait(start + seconds(7.0)), Duration::ZERO);
    }

    #[test]
    fn bucket_is_full_when_it_holds_its_burst_at_the_full_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        assert!(bucket.is_full(start));
        bucket.take(start);
        assert!(!bucket.is_full(start));
        assert!(bucket.is_full(start + seconds(1.0)));
        bucket.slow_down(start, start, Some(seconds(5.0)));
        assert!(!bucket.is_full(start + seconds(5.0)));
        assert!(bucket.is_full(start + seconds(60.0)));
        let bucket = TokenBucket::new(1.0, 5, start);
        assert!(!bucket.is_full(start + seconds(3.9)));
        assert!(bucket.is_full(start + seconds(4.0)));
    }

    #[test]
    fn earlier_time_changes_nothing() {
        let start = Instant::now() + seconds(100.0);
        let mut bucket = TokenBucket::new(1.0, 1, start);
        bucket.take(start);
        let before = start.checked_sub(seconds(50.0)).unwrap();
        assert!(bucket.wait(before) >= seconds(1.0).mul_f64(0.99));
    }
}
