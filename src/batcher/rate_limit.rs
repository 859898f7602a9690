//! Rate limiters: one token bucket per upstream token, shared by the queues of that token.

mod bucket;

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as FairMutex, MutexGuard as FairMutexGuard};
use tokio::time::Instant;

use self::bucket::TokenBucket;
use crate::lru::{evict_least_recently_used, shrink_if_sparse};
use crate::token::Digest;

/// Most tokens at a time. The longest unused ones are evicted.
const MAX_TOKENS: usize = 100_000;

/// Share of the configured rate that is used. Calls that are sent exactly one interval apart
/// sometimes arrive a little closer, and an upstream that counts strictly responds to those with
/// 429, which halves the rate.
pub(super) const USED_SHARE: f64 = 0.98;

/// Rate limiters by token.
#[derive(Debug)]
pub(super) struct TokenLimiters {
    limiters: Mutex<LimiterMap>,
    calls_per_second: f64,
    burst: u32,
}

#[derive(Debug)]
struct LimiterMap {
    by_token: HashMap<Digest, Arc<TokenLimiter>>,
    /// Tokens without a limiter sent no request since: start of the program, or the last eviction of
    /// a limiter whose bucket was not full.
    others_idle_since: Instant,
}

/// Rate limiter of one token.
#[derive(Debug)]
pub(super) struct TokenLimiter {
    bucket: Mutex<TokenBucket>,
    /// Order in which the token's queues receive permits: first come, first served.
    turn: FairMutex<()>,
    /// Number of leases. A limiter without one may be evicted.
    leases: AtomicUsize,
    /// Number of queues with a running worker.
    busy_queues: AtomicUsize,
    used_at: Mutex<Instant>,
}

/// Use of a limiter, which prevents its eviction.
#[derive(Debug)]
pub(super) struct LimiterLease {
    limiter: Arc<TokenLimiter>,
}

impl TokenLimiters {
    /// Creates limiters for the configured rate.
    pub(super) fn new(requests_per_second: f64, burst: u32) -> Self {
        let map = LimiterMap { by_token: HashMap::new(), others_idle_since: Instant::now() };
        Self { limiters: Mutex::new(map), calls_per_second: requests_per_second * USED_SHARE, burst }
    }

    /// Returns the limiter of a token. A new one has the bucket of a token that was idle since the
    /// start.
    pub(super) fn lease(&self, token: &Digest, now: Instant) -> LimiterLease {
        let LimiterMap { by_token, others_idle_since } = &mut *lock(&self.limiters);
        if let Some(limiter) = by_token.get(token) {
            *lock(&limiter.used_at) = now;
            return LimiterLease::new(limiter);
        }
        if by_token.len() >= MAX_TOKENS {
            by_token.retain(|_, limiter| limiter.is_needed(now));
        }
        if by_token.len() >= MAX_TOKENS {
            let idle_since =
                |limiter: &Arc<TokenLimiter>| (!limiter.is_leased()).then(|| *lock(&limiter.used_at));
            evict_least_recently_used(by_token, MAX_TOKENS / 10, idle_since);
            *others_idle_since = now;
        }
        let bucket = TokenBucket::new(self.calls_per_second, self.burst, others_idle_since.into_std());
        let limiter = Arc::new(TokenLimiter {
            bucket: Mutex::new(bucket),
            turn: FairMutex::new(()),
            leases: AtomicUsize::new(0),
            busy_queues: AtomicUsize::new(0),
            used_at: Mutex::new(now),
        });
        let lease = LimiterLease::new(&limiter);
        by_token.insert(*token, limiter);
        lease
    }

    /// Drops limiters that are not in use and whose bucket is full.
    pub(super) fn sweep(&self, now: Instant) {
        let by_token = &mut lock(&self.limiters).by_token;
        by_token.retain(|_, limiter| limiter.is_needed(now));
        shrink_if_sparse(by_token);
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.limiters).by_token.len()
    }
}

impl TokenLimiter {
    /// Waits until a call may be sent. Cancel safe: dropping the future gives up the place among
    /// the token's queues.
    pub(super) async fn acquire(&self) -> Permit<'_> {
        // Created before the wait, so that dropping the future ends the wait in the bucket.
        let permit = Permit { limiter: self, _turn: self.turn.lock().await };
        loop {
            let now = Instant::now();
            let wait = self.bucket().wait(now.into_std());
            if wait.is_zero() {
                return permit;
            }
            // The bucket may become slower during the sleep, so it is checked again.
            tokio::time::sleep_until(now + wait).await;
        }
    }

    /// Records a request that was passed through.
    pub(super) fn charge(&self, now: Instant) {
        self.bucket().charge(now.into_std());
    }

    /// Halves the rate after a 429 to a call that began at `began`.
    pub(super) fn slow_down(&self, now: Instant, began: Instant, retry_after: Option<Duration>) {
        self.bucket().slow_down(now.into_std(), began.into_std(), retry_after);
    }

    /// Records that the last call was sent `delay` later than it was taken, because it had to
    /// connect first.
    pub(super) fn add_connect_delay(&self, now: Instant, delay: Duration) {
        self.bucket().add_connect_delay(now.into_std(), delay);
    }

    /// Pauses all calls as the upstream requested.
    pub(super) fn pause(&self, now: Instant, pause: Duration) {
        self.bucket().pause_until(now.into_std() + pause);
    }

    /// Returns the remaining time of the pause.
    pub(super) fn paused_for(&self, now: Instant) -> Duration {
        self.bucket().paused_for(now.into_std())
    }

    /// Returns the calls per second for one of the busy queues.
    pub(super) fn rate_per_queue(&self, now: Instant) -> f64 {
        let queues = u32::try_from(self.busy_queues.load(Ordering::Relaxed)).unwrap_or(u32::MAX).max(1);
        self.bucket().rate(now.into_std()) / f64::from(queues)
    }

    pub(super) fn add_busy_queue(&self) {
        self.busy_queues.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_busy_queue(&self) {
        self.busy_queues.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_leased(&self) -> bool {
        self.leases.load(Ordering::Acquire) > 0
    }

    fn is_needed(&self, now: Instant) -> bool {
        self.is_leased() || !self.bucket().is_full(now.into_std())
    }

    fn bucket(&self) -> MutexGuard<'_, TokenBucket> {
        lock(&self.bucket)
    }
}

impl LimiterLease {
    /// Leases are created under the lock of the map, so that a limiter without one can be removed
    /// safely.
    fn new(limiter: &Arc<TokenLimiter>) -> Self {
        limiter.leases.fetch_add(1, Ordering::Relaxed);
        Self { limiter: Arc::clone(limiter) }
    }
}

impl Deref for LimiterLease {
    type Target = TokenLimiter;

    fn deref(&self) -> &TokenLimiter {
        &self.limiter
    }
}

impl Drop for LimiterLease {
    fn drop(&mut self) {
        self.limiter.leases.fetch_sub(1, Ordering::Release);
    }
}

/// Permission to send one call. Holding it keeps the token's other queues waiting.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    limiter: &'a TokenLimiter,
    _turn: FairMutexGuard<'a, ()>,
}

impl Permit<'_> {
    /// Takes the call out of the bucket. A permit that is dropped instead costs nothing.
    pub(super) fn spend(self, now: Instant) {
        self.limiter.bucket().take(now.into_std());
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.limiter.bucket().stop_waiting();
    }
}

/// A panic elsewhere leaves the data consistent, so poisoning is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
