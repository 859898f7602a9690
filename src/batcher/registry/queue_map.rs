//! Map of all queues, with bounds for each token and for all of them.

use std::collections::HashMap;
use std::sync::Arc;

use super::QueueHandle;
use crate::batcher::backend::QueueKey;
use crate::batcher::outcome::QueueLimit;
use crate::lru::{evict_least_recently_used, shrink_if_sparse};
use crate::token::Digest;

/// Most queues at a time. The longest unused ones are evicted.
const MAX_QUEUES: usize = 10_000;

/// Most queues of one token, so that a client with ever new values of a forwarded header does not
/// shut out the other tokens. It permits a header with a value for each user of a small team. The
/// token's own longest unused queues are evicted.
const MAX_QUEUES_PER_TOKEN: usize = 256;

/// Queues by key.
#[derive(Debug)]
pub(super) struct QueueMap<B> {
    by_key: HashMap<QueueKey, Arc<QueueHandle<B>>>,
    /// Number of queues of each token that has one.
    per_token: HashMap<Digest, usize>,
}

impl<B> Default for QueueMap<B> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), per_token: HashMap::new() }
    }
}

impl<B> QueueMap<B> {
    pub(super) fn get(&self, key: &QueueKey) -> Option<&Arc<QueueHandle<B>>> {
        self.by_key.get(key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<QueueHandle<B>>> {
        self.by_key.values()
    }

    /// Makes room for another queue of `token` by evicting a tenth of those within the exceeded
    /// bound.
    ///
    /// # Errors
    /// The exceeded bound, if all queues within it are busy.
    pub(super) fn make_room(&mut self, token: &Digest) -> Result<(), QueueLimit> {
        let count_of_token = |map: &Self| map.per_token.get(token).copied().unwrap_or(0);
        if count_of_token(self) >= MAX_QUEUES_PER_TOKEN {
            self.evict(MAX_QUEUES_PER_TOKEN / 10, |handle| handle.key.token == *token);
        }
        if count_of_token(self) >= MAX_QUEUES_PER_TOKEN {
            return Err(QueueLimit::Token);
        }
        if self.by_key.len() >= MAX_QUEUES {
            self.evict(MAX_QUEUES / 10, |_| true);
        }
        if self.by_key.len() >= MAX_QUEUES { Err(QueueLimit::Total) } else { Ok(()) }
    }

    pub(super) fn insert(&mut self, key: QueueKey, handle: Arc<QueueHandle<B>>) {
        *self.per_token.entry(key.token).or_default() += 1;
        self.by_key.insert(key, handle);
    }

    /// Removes the queues for which `is_needed` returns false.
    pub(super) fn retain(&mut self, is_needed: impl Fn(&QueueHandle<B>) -> bool) {
        self.by_key.retain(|_, handle| is_needed(handle));
        shrink_if_sparse(&mut self.by_key);
        self.count_per_token();
    }

    fn evict(&mut self, count: usize, is_within: impl Fn(&QueueHandle<B>) -> bool) {
        let idle_since =
            |handle: &Arc<QueueHandle<B>>| if is_within(handle) { handle.idle_since() } else { None };
        evict_least_recently_used(&mut self.by_key, count, idle_since);
        self.count_per_token();
    }

    fn count_per_token(&mut self) {
        self.per_token.clear();
        for key in self.by_key.keys() {
            *self.per_token.entry(key.token).or_default() += 1;
        }
        shrink_if_sparse(&mut self.per_token);
    }
}
