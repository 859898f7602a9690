//! Bounds of maps: eviction of the least recently used entries, release of unused memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

/// Removes the `count` entries of `map` with the earliest last use. Entries for which `last_use`
/// returns `None` are in use and stay.
///
/// It takes time proportional to the size of the map. Callers therefore evict a fraction of it at
/// once, such as a tenth, when it is full.
pub fn evict_least_recently_used<K, V, S, T>(
    map: &mut HashMap<K, V, S>,
    count: usize,
    last_use: impl Fn(&V) -> Option<T>,
) where
    K: Clone + Eq + Hash,
    S: BuildHasher,
    T: Ord,
{
    let mut unused: Vec<(T, &K)> =
        map.iter().filter_map(|(key, value)| Some((last_use(value)?, key))).collect();
    if (1..unused.len()).contains(&count) {
        unused.select_nth_unstable_by(count - 1, |(one, _), (other, _)| one.cmp(other));
    }
    let evicted: Vec<K> = unused.into_iter().take(count).map(|(_, key)| key.clone()).collect();
    for key in &evicted {
        map.remove(key);
    }
}

/// Releases memory of a map that has become much smaller.
pub fn shrink_if_sparse<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > 4 * map.len() + 64 {
        map.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(count: usize, uses: &[Option<u32>]) -> Vec<usize> {
        let mut map: HashMap<usize, Option<u32>> = uses.iter().copied().enumerate().collect();
        evict_least_recently_used(&mut map, count, |last_use| *last_use);
        let mut left: Vec<usize> = map.into_keys().collect();
        left.sort_unstable();
        left
    }

    #[test]
    fn earliest_uses_are_evicted_and_entries_in_use_stay() {
        let uses = [Some(5), None, Some(1), Some(4), Some(2), None, Some(3)];
        assert_eq!(left(0, &uses), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(left(1, &uses), [0, 1, 3, 4, 5, 6]);
        assert_eq!(left(3, &uses), [0, 1, 3, 5]);
        assert_eq!(left(5, &uses), [1, 5]);
        assert_eq!(left(9, &uses), [1, 5]);
        assert_eq!(left(2, &[Some(7), Some(7), Some(7)]).len(), 1);
        assert!(left(1, &[]).is_empty());
    }
}
