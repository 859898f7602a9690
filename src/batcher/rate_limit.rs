//! The bucket of each token, shared by its lanes, which take turns in the order they came.

mod bucket;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as FairMutex, MutexGuard};
use tokio::time::Instant;

use self::bucket::TokenBucket;
use crate::token::Digest;

/// Most tokens at a time; the longest idle leave first.
const MAX_TOKENS: usize = 100_000;

#[derive(Debug)]
pub(super) struct TokenLimiters {
    buckets: Mutex<HashMap<Digest, Arc<TokenLimiter>>>,
    requests_per_second: f64,
    burst: u32,
}

/// One token's bucket and the queue for it.
#[derive(Debug)]
pub(super) struct TokenLimiter {
    bucket: Mutex<TokenBucket>,
    /// First come, first served among the token's lanes.
    queue: FairMutex<()>,
    /// Batcher with something to ask.
    busy_lanes: AtomicUsize,
    used_at: Mutex<Instant>,
}

impl TokenLimiters {
    pub(super) fn new(requests_per_second: f64, burst: u32) -> Self {
        Self { buckets: Mutex::default(), requests_per_second, burst }
    }

    /// The bucket of a token; a new one holds one call.
    pub(super) fn of(&self, token: &Digest, now: Instant) -> Arc<TokenLimiter> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limiter) = buckets.get(token) {
            limiter.touch(now);
            return Arc::clone(limiter);
        }
        if buckets.len() >= MAX_TOKENS {
            make_room(&mut buckets, now);
        }
        let limiter = Arc::new(TokenLimiter {
            bucket: Mutex::new(TokenBucket::new(self.requests_per_second, self.burst, now.into_std())),
            queue: FairMutex::new(()),
            busy_lanes: AtomicUsize::new(0),
            used_at: Mutex::new(now),
        });
        buckets.insert(*token, Arc::clone(&limiter));
        limiter
    }

    /// Forgets buckets that are as good as new.
    pub(super) fn sweep(&self, now: Instant) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets
            .retain(|_, limiter| Arc::strong_count(limiter) > 1 || !limiter.lock().is_idle(now.into_std()));
        if buckets.capacity() > 4 * buckets.len() + 64 {
            buckets.shrink_to_fit();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Idle buckets go first, then a tenth of those that no lane holds, the longest unused.
fn make_room(buckets: &mut HashMap<Digest, Arc<TokenLimiter>>, now: Instant) {
    buckets.retain(|_, limiter| Arc::strong_count(limiter) > 1 || !limiter.lock().is_idle(now.into_std()));
    if buckets.len() < MAX_TOKENS {
        return;
    }
    let mut unused: Vec<(Instant, Digest)> = buckets
        .iter()
        .filter(|(_, limiter)| Arc::strong_count(limiter) == 1)
        .map(|(token, limiter)| (limiter.used_at(), *token))
        .collect();
    unused.sort_unstable();
    for (_, token) in unused.into_iter().take(MAX_TOKENS / 10) {
        buckets.remove(&token);
    }
}

impl TokenLimiter {
    /// Waits in the token's queue until its bucket allows a call. Dropping the future leaves the queue; nothing is
    /// spent until [`Permit::spend`].
    pub(super) async fn wait(&self) -> Permit<'_> {
        let queue = self.queue.lock().await;
        loop {
            let now = Instant::now();
            let wait = self.lock().wait(now.into_std());
            if wait.is_zero() {
                return Permit { limiter: self, _queue: queue };
            }
            // The bucket may be slowed meanwhile, so it is asked again.
            tokio::time::sleep_until(now + wait).await;
        }
    }

    /// A passed-through request went.
    pub(super) fn spend(&self, now: Instant) {
        self.touch(now);
        self.lock().spend(now.into_std());
    }

    pub(super) fn slow_down(&self, now: Instant, began: Instant, retry_after: Option<Duration>) {
        self.lock().slow_down(now.into_std(), began.into_std(), retry_after);
    }

    /// The last call went later than it was taken.
    pub(super) fn add_connect_delay(&self, now: Instant, by: Duration) {
        self.lock().add_connect_delay(now.into_std(), by);
    }

    /// The upstream asked for a pause.
    pub(super) fn hold(&self, now: Instant, pause: Duration) {
        self.lock().hold(now.into_std(), pause);
    }

    /// What is left of that pause.
    pub(super) fn held(&self, now: Instant) -> Duration {
        self.lock().held(now.into_std())
    }

    /// One lane's share of the token's calls a second.
    pub(super) fn share(&self, now: Instant) -> f64 {
        let queues = u32::try_from(self.busy_lanes.load(Ordering::Relaxed)).unwrap_or(u32::MAX).max(1);
        self.lock().rate(now.into_std()) / f64::from(queues)
    }

    pub(super) fn set_busy(&self, busy: bool) {
        if busy {
            self.busy_lanes.fetch_add(1, Ordering::Relaxed);
        } else {
            self.busy_lanes.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn touch(&self, now: Instant) {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn used_at(&self) -> Instant {
        *self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Short sections only, never held over an await; a panic elsewhere leaves the bucket sound.
    fn lock(&self) -> std::sync::MutexGuard<'_, TokenBucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token's turn, held while the call is put together.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    limiter: &'a TokenLimiter,
    _queue: MutexGuard<'a, ()>,
}

impl Permit<'_> {
    /// A call goes now.
    pub(super) fn spend(self, now: Instant) {
        self.limiter.lock().take(now.into_std());
    }
}
