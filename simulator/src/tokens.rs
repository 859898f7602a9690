//! Tokens at the simulated upstream: which are refused and how, and how often each may call.
//!
//! Plain arithmetic on a given `now`; called by [`super::api`].

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How many tokens' buckets are kept; beyond it the full ones leave, which changes nothing for them.
const MAX_BUCKETS: usize = 10_000;

/// What is known of tokens.
pub(super) struct Tokens {
    /// `None`: every token is good unless refused.
    known: Option<HashSet<String>>,
    refused: HashMap<String, (u16, String)>,
    rate: Option<f64>,
    burst: u32,
    leeway: Duration,
    buckets: HashMap<String, Bucket>,
}

struct Bucket {
    level: f64,
    at: Instant,
}

impl Tokens {
    /// `known` are the only good tokens, if given. A bucket holds `burst` calls, plus what fills in `leeway`.
    pub(super) fn new(known: Option<Vec<String>>, rate: Option<f64>, burst: u32, leeway: Duration) -> Self {
        Self {
            known: known.map(|known| known.into_iter().collect()),
            refused: HashMap::new(),
            rate,
            burst,
            leeway,
            buckets: HashMap::new(),
        }
    }

    /// Every bucket starts anew with the rate given.
    pub(super) fn set_rate(&mut self, rate: Option<f64>) {
        self.rate = rate;
        self.buckets.clear();
    }

    pub(super) fn refuse(&mut self, token: &str, status: u16, code: &str) {
        self.refused.insert(token.to_owned(), (status, code.to_owned()));
    }

    pub(super) fn accept(&mut self, token: &str) {
        self.refused.remove(token);
        if let Some(known) = &mut self.known {
            known.insert(token.to_owned());
        }
    }

    /// The status and code a token is refused with; `None` for a good one.
    pub(super) fn refusal(&self, token: &str) -> Option<(u16, String)> {
        if let Some(refusal) = self.refused.get(token) {
            return Some(refusal.clone());
        }
        let unknown = self.known.as_ref().is_some_and(|known| !known.contains(token));
        unknown.then(|| (401, "invalid_token".to_owned()))
    }

    /// Takes one call from the token's bucket, or says how long until there is one.
    pub(super) fn spend(&mut self, token: &str, now: Instant) -> Result<(), Duration> {
        let Some(rate) = self.rate else { return Ok(()) };
        let most = f64::from(self.burst.max(1)) + rate * self.leeway.as_secs_f64();
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(token) {
            self.buckets.retain(|_, bucket| bucket.filled(rate, most, now) < most);
            if self.buckets.len() >= MAX_BUCKETS {
                self.buckets.clear();
            }
        }
        let bucket = self.buckets.entry(token.to_owned()).or_insert_with(|| Bucket { level: most, at: now });
        bucket.level = bucket.filled(rate, most, now);
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
    fn filled(&self, rate: f64, most: f64, now: Instant) -> f64 {
        (self.level + rate * now.saturating_duration_since(self.at).as_secs_f64()).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut tokens = Tokens::new(None, Some(2.0), 3, Duration::ZERO);
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(tokens.spend("a", now), Ok(()));
        }
        assert_eq!(tokens.spend("a", now), Err(Duration::from_millis(500)));
        assert_eq!(tokens.spend("b", now), Ok(()), "each token has a bucket of its own");
        assert_eq!(tokens.spend("a", now + Duration::from_millis(500)), Ok(()));
        assert!(tokens.spend("a", now + Duration::from_millis(500)).is_err());
        tokens.set_rate(None);
        assert_eq!(tokens.spend("a", now), Ok(()));
    }

    #[test]
    fn leeway_forgives_a_late_call_but_not_a_higher_rate() {
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
    fn only_known_tokens_pass_where_some_are_named() {
        let mut tokens = Tokens::new(Some(vec!["a".into()]), None, 1, Duration::ZERO);
        assert_eq!(tokens.refusal("a"), None);
        assert_eq!(tokens.refusal("b"), Some((401, "invalid_token".into())));
        tokens.accept("b");
        assert_eq!(tokens.refusal("b"), None);
        tokens.refuse("a", 403, "used_up");
        assert_eq!(tokens.refusal("a"), Some((403, "used_up".into())));
    }
}
