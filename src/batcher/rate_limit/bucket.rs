//! How often a token may ask: one bucket a token, pure arithmetic on a given `now`.
//!
//! The lanes ask it before each call and sleep themselves; nothing here sleeps, locks or reads a clock. `now` is
//! monotonic, so that neither a clock set anew nor a stopped process makes a stall or a burst.

use std::time::{Duration, Instant};

/// The smallest share of the configured rate that repeated 429s leave.
const MIN_SHARE: f64 = 1.0 / 16.0;

/// The share of the configured rate that comes back each second after a 429: from half to all in 30 s.
const RECOVERY_PER_SECOND: f64 = 1.0 / 60.0;

/// The most that a call can be late by: beyond it something else is wrong.
const MAX_LATENESS: Duration = Duration::from_secs(2);

/// The smallest rate, in calls a second: waits computed from it stay far below what a clock can hold.
const MIN_RATE: f64 = 1e-6;

/// Room for rounding, in calls.
const EPSILON: f64 = 1e-6;

/// A token bucket: it fills at a rate, holds at most `burst` calls and starts with one.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Calls a second while the upstream does not complain.
    full_rate: f64,
    burst: f64,
    /// Calls that may be made now; below zero after passed-through requests, never below minus one.
    level: f64,
    updated: Instant,
    /// The rate set by the last 429 and when.
    slowed: Option<(f64, Instant)>,
    /// The upstream's `retry-after`.
    not_before: Option<Instant>,
    /// A look-up was told to wait and has not gone yet.
    waited_for: bool,
    /// A passed-through request has spent since `waited_for` was set.
    overdrawn: bool,
}

impl TokenBucket {
    /// A bucket with one call in it.
    pub(super) fn new(requests_per_second: f64, burst: u32, now: Instant) -> Self {
        Self {
            full_rate: requests_per_second.max(MIN_RATE),
            burst: f64::from(burst.max(1)),
            level: 1.0,
            updated: now,
            slowed: None,
            not_before: None,
            waited_for: false,
            overdrawn: false,
        }
    }

    /// Calls a second at present: half after a 429, recovering slowly.
    pub(super) fn rate(&self, now: Instant) -> f64 {
        self.slowed.map_or(self.full_rate, |(rate, at)| {
            let back = self.full_rate * RECOVERY_PER_SECOND * now.saturating_duration_since(at).as_secs_f64();
            (rate + back).min(self.full_rate)
        })
    }

    /// How long the next look-up has to wait; zero: it may go now.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        let for_level = (1.0 - EPSILON - self.level).max(0.0) / self.rate(now);
        let wait = Duration::from_secs_f64(for_level).max(self.held(now));
        if !wait.is_zero() && !self.waited_for {
            self.waited_for = true;
            // What was spent before the look-up came counts as this turn's share.
            self.overdrawn = self.level < 0.0;
        }
        wait
    }

    /// A look-up goes now. Call it only when [`TokenBucket::wait`] said zero.
    pub(super) fn take(&mut self, now: Instant) {
        self.fill(now);
        self.level -= 1.0;
        self.waited_for = false;
        self.overdrawn = false;
    }

    /// The last look-up went `by` later than it was taken, since its connection came up no sooner: the next one waits as
    /// much longer, up to 2 s.
    pub(super) fn add_connect_delay(&mut self, now: Instant, by: Duration) {
        self.fill(now);
        self.level -= self.rate(now) * by.min(MAX_LATENESS).as_secs_f64();
    }

    /// A passed-through request of the same token went. It never waits; the debt is at most one call, and while a
    /// look-up waits only one such request a turn counts, so that look-ups keep at least half the rate.
    pub(super) fn spend(&mut self, now: Instant) {
        self.fill(now);
        if self.waited_for && self.overdrawn {
            return;
        }
        self.level = (self.level - 1.0).max(-1.0);
        self.overdrawn = true;
    }

    /// The upstream answered 429 to a call that began at `began`: the rate halves, once for all calls that were
    /// under way together, and nothing goes before `retry_after`.
    pub(super) fn slow_down(&mut self, now: Instant, began: Instant, retry_after: Option<Duration>) {
        self.fill(now);
        if self.slowed.is_none_or(|(_, at)| began >= at) {
            let rate = (self.rate(now) / 2.0).max(self.full_rate * MIN_SHARE);
            self.slowed = Some((rate, now));
        }
        if let Some(wait) = retry_after {
            self.hold(now, wait);
        }
    }

    /// The upstream asked for a pause: no look-up goes before it is over.
    pub(super) fn hold(&mut self, now: Instant, pause: Duration) {
        let at = now + pause;
        self.not_before = Some(self.not_before.map_or(at, |before| before.max(at)));
    }

    /// What is left of the pause that the upstream asked for.
    pub(super) fn held(&self, now: Instant) -> Duration {
        self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Whether forgetting the bucket would change nothing: it is as a new one, or fuller.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let filled =
            self.level + now.saturating_duration_since(self.updated).as_secs_f64() * self.rate(self.updated);
        filled >= 1.0 && self.rate(now) >= self.full_rate && self.not_before.is_none_or(|at| at <= now)
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        // The rate at the start of the time that passed: while it recovers, that is the lower one.
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

    /// Look-ups made in `length` by somebody who always goes as soon as the bucket lets him, while a passed-through
    /// request comes every `every`.
    fn look_ups(bucket: &mut TokenBucket, start: Instant, length: Duration, every: Option<Duration>) -> u32 {
        let (mut now, mut count, mut next_spend) = (start, 0, start);
        while now < start + length {
            let wait = bucket.wait(now);
            if wait.is_zero() {
                bucket.take(now);
                count += 1;
                continue;
            }
            match every {
                Some(every) if next_spend <= now + wait => {
                    now = next_spend.max(now);
                    bucket.spend(now);
                    next_spend = now + every;
                }
                _ => now += wait,
            }
        }
        count
    }

    #[test]
    fn the_first_call_goes_at_once_and_the_next_a_second_later() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        assert_eq!(bucket.wait(start), Duration::ZERO);
        bucket.take(start);
        assert!((bucket.wait(start).as_secs_f64() - 1.0).abs() < 0.001);
        assert_eq!(bucket.wait(start + seconds(1.0)), Duration::ZERO);
    }

    #[test]
    fn an_hour_of_silence_saves_up_no_more_than_burst() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 3, start);
        assert_eq!(look_ups(&mut bucket, start + seconds(3600.0), seconds(0.001), None), 3);
    }

    #[test]
    fn never_more_than_the_rate_over_any_time() {
        let start = Instant::now();
        for (rate, burst) in [(0.1, 1), (1.0, 1), (2.5, 4), (100.0, 1)] {
            let mut bucket = TokenBucket::new(rate, burst, start);
            let count = f64::from(look_ups(&mut bucket, start, seconds(600.0), None));
            assert!(
                count <= rate * 600.0 + f64::from(burst) && count >= rate * 600.0 - 1.0,
                "{rate}: {count}"
            );
        }
    }

    #[test]
    fn passed_through_requests_leave_look_ups_half_the_rate() {
        let start = Instant::now();
        for every in [0.01, 0.3, 0.5, 0.9, 1.0, 1.9] {
            let mut bucket = TokenBucket::new(1.0, 1, start);
            let count = look_ups(&mut bucket, start, seconds(600.0), Some(seconds(every)));
            assert!((299..=601).contains(&count), "every {every} s: {count}");
        }
    }

    #[test]
    fn a_flood_of_passed_through_requests_is_a_debt_of_one_call() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        for _ in 0..1000 {
            bucket.spend(start);
        }
        let wait = bucket.wait(start).as_secs_f64();
        assert!((wait - 2.0).abs() < 0.001, "{wait}");
    }

    #[test]
    fn a_429_halves_the_rate_once_and_it_recovers_slowly() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        bucket.slow_down(start, start, None);
        assert!((bucket.rate(start) - 0.5).abs() < 0.001);
        // A second answer to a call that was under way at the same time.
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
    fn a_call_that_went_later_keeps_its_distance_to_the_next() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        bucket.take(start);
        bucket.add_connect_delay(start + seconds(0.4), seconds(0.3));
        assert!((bucket.wait(start + seconds(0.4)).as_secs_f64() - 0.9).abs() < 0.001);
    }

    #[test]
    fn retry_after_holds_everything() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10.0, 1, start);
        bucket.slow_down(start, start, Some(seconds(7.0)));
        assert!(bucket.wait(start + seconds(6.9)) > Duration::ZERO);
        assert_eq!(bucket.wait(start + seconds(7.0)), Duration::ZERO);
    }

    #[test]
    fn an_idle_bucket_may_be_forgotten() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 1, start);
        assert!(bucket.is_idle(start));
        bucket.take(start);
        assert!(!bucket.is_idle(start));
        assert!(bucket.is_idle(start + seconds(1.0)));
        bucket.slow_down(start, start, Some(seconds(5.0)));
        assert!(!bucket.is_idle(start + seconds(5.0)));
        assert!(bucket.is_idle(start + seconds(60.0)));
    }

    #[test]
    fn time_that_runs_backwards_changes_nothing() {
        let start = Instant::now() + seconds(100.0);
        let mut bucket = TokenBucket::new(1.0, 1, start);
        bucket.take(start);
        let before = start.checked_sub(seconds(50.0)).unwrap();
        assert!(bucket.wait(before) >= seconds(1.0).mul_f64(0.99));
    }
}
