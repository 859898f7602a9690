//! Tokens of the simulated upstream: which are refused, and how often each may call.
//!
//! Every method computes on a given `now`.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Largest number of buckets. Beyond it the full ones are dropped, with their counts; a token without
/// a bucket has a full one.
const MAX_BUCKETS: usize = 10_000;

/// Accepted and refused tokens with their buckets.
pub(super) struct Tokens {
    /// The only accepted tokens. `None` accepts every token that is not refused.
    accepted: Option<HashSet<String>>,
    /// Status and error code by token.
    refused: HashMap<String, (u16, String)>,
    /// Calls per second. `None` for no limit.
    rate: Option<f64>,
    burst: u32,
    /// A bucket holds this much more than `burst`.
    tolerance: Duration,
    buckets: HashMap<String, Bucket>,
}

struct Bucket {
    /// Calls in the bucket at `at`.
    level: f64,
    at: Instant,
    /// Calls so far, refused ones included.
    calls: u64,
}

impl Tokens {
    pub(super) fn new(
        accepted: Option<Vec<String>>,
        rate: Option<f64>,
        burst: u32,
        tolerance: Duration,
    ) -> Self {
        Self {
            accepted: accepted.map(|accepted| accepted.into_iter().collect()),
            refused: HashMap::new(),
            rate,
            burst,
            tolerance,
            buckets: HashMap::new(),
        }
    }

    /// Sets the rate. All buckets start full.
    pub(super) fn set_rate(&mut self, rate: Option<f64>) {
        self.rate = rate;
        self.buckets.clear();
    }

    pub(super) fn refuse(&mut self, token: &str, status: u16, code: &str) {
        self.refused.insert(token.to_owned(), (status, code.to_owned()));
    }

    pub(super) fn accept(&mut self, token: &str) {
        self.refused.remove(token);
        if let Some(accepted) = &mut self.accepted {
            accepted.insert(token.to_owned());
        }
    }

    /// Returns the status and error code with which a token is refused.
    pub(super) fn refusal(&self, token: &str) -> Option<(u16, String)> {
        if let Some(refusal) = self.refused.get(token) {
            return Some(refusal.clone());
        }
        let unknown = self.accepted.as_ref().is_some_and(|accepted| !accepted.contains(token));
        unknown.then(|| (401, "invalid_token".to_owned()))
    }

    /// Returns how often [`Tokens::spend`] was called for this token while there was a rate.
    pub(super) fn call_count(&self, token: &str) -> u64 {
        self.buckets.get(token).map_or(0, |bucket| bucket.calls)
    }

    /// Takes one call from the token's bucket. `Err` is the time until the bucket has one.
    pub(super) fn spend(&mut self, token: &str, now: Instant) -> Result<(), Duration> {
        let Some(rate) = self.rate else { return Ok(()) };
        let capacity = f64::from(self.burst.max(1)) + rate * self.tolerance.as_secs_f64();
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(token) {
            self.buckets.retain(|_, bucket| bucket.level_at(rate, capacity, now) < capacity);
            if self.buckets.len() >= MAX_BUCKETS {
                self.buckets.clear();
            }
        }
        let full = Bucket { level: capacity, at: now, calls: 0 };
        let bucket = self.buckets.entry(token.to_owned()).or_insert(full);
        bucket.calls += 1;
        bucket.level = bucket.level_at(rate, capacity, now);
        bucket.at = bucket.at.max(now);
        if bucket.level >= 1.0 {
            bucket.level -= 1.0;
            return Ok(());
        }
        let wait = Duration::try_from_secs_f64((1.0 - bucket.level) / rate);
        Err(wait.unwrap_or(Duration::from_secs(3600)))
    }
}

impl Bucket {
    fn level_at(&self, rate: f64, capacity: f64, now: Instant) -> f64 {
        (self.level + rate * now.saturating_duration_since(self.at).as_secs_f64()).min(capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_allows_its_burst_and_then_its_rate() {
        let mut tokens = Tokens::new(None, Some(2.0), 3, Duration::ZERO);
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(tokens.spend("a", now), Ok(()));
        }
        assert_eq!(tokens.spend("a", now), Err(Duration::from_millis(500)));
        assert_eq!(tokens.spend("b", now), Ok(()), "each token has a bucket of its own");
        assert_eq!(tokens.spend("a", now + Duration::from_millis(500)), Ok(()));
        assert!(tokens.spend("a", now + Duration::from_millis(500)).is_err());
        assert_eq!((tokens.call_count("a"), tokens.call_count("b"), tokens.call_count("c")), (6, 1, 0));
        tokens.set_rate(None);
        assert_eq!(tokens.spend("a", now), Ok(()));
    }

    #[test]
    fn tolerance_allows_late_calls_but_no_higher_rate() {
        let start = Instant::now();
        let passed = |times_ms: Vec<u64>| {
            let mut tokens = Tokens::new(None, Some(1.0), 1, Duration::from_millis(100));
            let times = times_ms.into_iter().map(|ms| start + Duration::from_millis(ms));
            times.filter(|now| tokens.spend("a", *now).is_ok()).count()
        };
        let each_second_every_other_late = (0..100).map(|i| 1000 * i + i % 2 * 50).collect();
        assert_eq!(passed(each_second_every_other_late), 100);
        let too_often: Vec<u64> = (0..100).map(|i| 950 * i).collect();
        assert!(passed(too_often) <= 95);
    }

    #[test]
    fn tokens_outside_the_accepted_list_are_refused() {
        let mut tokens = Tokens::new(Some(vec!["a".into()]), None, 1, Duration::ZERO);
        assert_eq!(tokens.refusal("a"), None);
        assert_eq!(tokens.refusal("b"), Some((401, "invalid_token".into())));
        tokens.accept("b");
        assert_eq!(tokens.refusal("b"), None);
        tokens.refuse("a", 403, "used_up");
        assert_eq!(tokens.refusal("a"), Some((403, "used_up".into())));
    }
}
