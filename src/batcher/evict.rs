//! Bounds of maps: eviction of the longest idle entries, release of unused memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

use tokio::time::Instant;

/// Removes the `count` entries that have been idle for the longest time. `idle_since` is `None` for an entry in use.
pub(super) fn evict_longest_idle<K: Clone + Eq + Hash, V>(
    map: &mut HashMap<K, V>,
    count: usize,
    idle_since: impl Fn(&V) -> Option<Instant>,
) {
    let mut idle: Vec<(Instant, K)> =
        map.iter().filter_map(|(key, value)| Some((idle_since(value)?, key.clone()))).collect();
    idle.sort_unstable_by_key(|(since, _)| *since);
    for (_, key) in idle.into_iter().take(count) {
        map.remove(&key);
    }
}

/// Releases memory of a map that has become much smaller.
pub(super) fn shrink_if_sparse<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > 4 * map.len() + 64 {
        map.shrink_to_fit();
    }
}
