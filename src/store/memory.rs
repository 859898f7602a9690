//! The memory tier: finished tasks that were read or written of late, bounded by bytes.
//!
//! Holds only what is committed and verified. An entry knows which readers were found to have the right; any
//! other reader goes to SQLite. Entries never change: one more reader means a new entry, so that a hit takes
//! no lock but the cache's own and weights stay true.

use std::hash::Hash;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter};

use super::StoredTask;
use crate::task::{Service, TaskId};
use crate::token::Digest;

/// Readers that one entry knows at most; the one known longest leaves first.
const MAX_READERS: usize = 64;

/// What an entry costs besides its text, its id and its readers: key, pointers, the cache's own tables, and what the
/// allocator leaves unused between blocks.
const ENTRY_OVERHEAD: u64 = 512;

/// Each shard of the cache holds at least this much, so that a large task still fits.
const SHARD_BYTES: u64 = 8 << 20;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    service: Service,
    id: TaskId,
}

/// A borrowed [`Key`]; its fields hash alike.
#[derive(Hash)]
struct KeyRef<'a> {
    service: &'a Service,
    id: &'a TaskId,
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.service == key.service && *self.id == key.id
    }
}

struct Entry {
    row: i64,
    text: Bytes,
    stored_at: i64,
    used_hour: AtomicI64,
    readers: Box<[Digest]>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<Entry>> for ByBytes {
    fn weight(&self, key: &Key, entry: &Arc<Entry>) -> u64 {
        let bytes = key.id.as_str().len() + entry.text.len() + entry.readers.len() * size_of::<Digest>();
        bytes as u64 + ENTRY_OVERHEAD
    }
}

/// A task on its way into the tier.
pub(super) struct Fill<'a> {
    pub(super) reader: &'a Digest,
    pub(super) service: &'a Service,
    pub(super) id: &'a TaskId,
    pub(super) row: i64,
    /// Must own its bytes: a slice of a larger buffer would keep all of that alive.
    pub(super) text: Bytes,
    pub(super) stored_at: i64,
    pub(super) used_hour: i64,
}

/// What a hit found.
pub(super) struct MemoryHit {
    pub(super) task: StoredTask,
    /// The row, where this is its first use in this hour.
    pub(super) first_use: Option<i64>,
}

/// See the head of this file.
pub(super) struct Memory {
    cache: Option<Cache<Key, Arc<Entry>, ByBytes>>,
    /// Counts removals. A fill holds the lock for reading and compares, a removal raises it: what was read before
    /// a removal cannot come in after it.
    generation: RwLock<u64>,
}

impl Memory {
    /// A tier of at most `bytes`; none for 0.
    pub(super) fn new(bytes: u64) -> Self {
        let cache = (bytes > 0).then(|| {
            let parallelism = std::thread::available_parallelism().map_or(1, usize::from) as u64;
            let shards = (bytes / SHARD_BYTES).clamp(1, parallelism * 4);
            // Rounded down to a power of two, as the cache would round up and halve the shards' size.
            let shards = 1usize << shards.ilog2();
            let items = usize::try_from(bytes / 4096).unwrap_or(usize::MAX).clamp(16, 1 << 20);
            let options = OptionsBuilder::new()
                .weight_capacity(bytes)
                .estimated_items_capacity(items)
                .shards(shards)
                .build()
                .expect("capacity and size are given");
            Cache::with_options(
                options,
                ByBytes,
                DefaultHashBuilder::default(),
                quick_cache::sync::DefaultLifecycle::default(),
            )
        });
        Self { cache, generation: RwLock::new(0) }
    }

    /// Whether anything is kept in memory at all.
    pub(super) fn is_on(&self) -> bool {
        self.cache.is_some()
    }

    /// The task, if it is here and `reader` is known to have the right.
    pub(super) fn find(
        &self,
        reader: &Digest,
        service: &Service,
        id: &TaskId,
        hour: i64,
    ) -> Option<MemoryHit> {
        let entry = self.cache.as_ref()?.get(&KeyRef { service, id })?;
        if !entry.readers.contains(reader) {
            return None;
        }
        let first_use = (entry.used_hour.load(Ordering::Relaxed) < hour
            && entry.used_hour.swap(hour, Ordering::Relaxed) < hour)
            .then_some(entry.row);
        Some(MemoryHit {
            task: StoredTask { record: entry.text.clone(), stored_at: entry.stored_at },
            first_use,
        })
    }

    /// To be taken before a read whose result is to be filled in.
    pub(super) fn generation(&self) -> u64 {
        *self.generation.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a committed, verified task, unless something was removed since `generation`.
    pub(super) fn fill(&self, generation: u64, fill: Fill<'_>) {
        let Some(cache) = &self.cache else { return };
        let now = self.generation.read().unwrap_or_else(PoisonError::into_inner);
        if *now != generation {
            return;
        }
        let readers: Box<[Digest]> = match cache.peek(&KeyRef { service: fill.service, id: fill.id }) {
            // Another text of the same id, which belongs to others; they keep the place.
            Some(entry) if entry.row != fill.row => return,
            Some(entry) if entry.readers.contains(fill.reader) => return,
            Some(entry) => {
                let known = entry.readers.len().saturating_sub(MAX_READERS - 1);
                entry.readers[known..].iter().chain([fill.reader]).copied().collect()
            }
            None => Box::new([*fill.reader]),
        };
        let entry = Entry {
            row: fill.row,
            text: fill.text,
            stored_at: fill.stored_at,
            used_hour: AtomicI64::new(fill.used_hour),
            readers,
        };
        cache.insert(Key { service: fill.service.clone(), id: fill.id.clone() }, Arc::new(entry));
    }

    /// Removes one task; reads that began before cannot bring it back.
    pub(super) fn remove(&self, service: &Service, id: &TaskId) {
        *self.generation.write().unwrap_or_else(PoisonError::into_inner) += 1;
        if let Some(cache) = &self.cache {
            cache.remove(&KeyRef { service, id });
        }
    }

    /// Removes everything; reads that began before cannot bring anything back.
    pub(super) fn clear(&self) {
        *self.generation.write().unwrap_or_else(PoisonError::into_inner) += 1;
        if let Some(cache) = &self.cache {
            cache.clear();
        }
    }

    /// Number of tasks and their weight in bytes.
    pub(super) fn size(&self) -> (u64, u64) {
        self.cache.as_ref().map_or((0, 0), |cache| (cache.len() as u64, cache.weight()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(memory: &Memory, generation: u64, reader: u8, id: &str, row: i64, size: usize) {
        memory.fill(
            generation,
            Fill {
                reader: &Digest::from([reader; 32]),
                service: &Service::parse("producer").unwrap(),
                id: &TaskId::parse(id).unwrap(),
                row,
                text: Bytes::from(vec![b'x'; size]),
                stored_at: 7,
                used_hour: 1,
            },
        );
    }

    fn find(memory: &Memory, reader: u8, id: &str) -> Option<MemoryHit> {
        let service = Service::parse("producer").unwrap();
        memory.find(&Digest::from([reader; 32]), &service, &TaskId::parse(id).unwrap(), 1)
    }

    #[test]
    fn only_known_readers_hit() {
        let memory = Memory::new(1 << 20);
        fill(&memory, 0, 1, "a", 1, 10);
        assert!(find(&memory, 1, "a").is_some());
        assert!(find(&memory, 2, "a").is_none());
        fill(&memory, 0, 2, "a", 1, 10);
        assert!(find(&memory, 1, "a").is_some() && find(&memory, 2, "a").is_some());
        fill(&memory, 0, 3, "a", 2, 10);
        assert!(find(&memory, 3, "a").is_none(), "another text of the id is not mixed in");
    }

    #[test]
    fn what_was_read_before_a_removal_does_not_come_back() {
        let memory = Memory::new(1 << 20);
        let before = memory.generation();
        memory.remove(&Service::parse("producer").unwrap(), &TaskId::parse("a").unwrap());
        fill(&memory, before, 1, "a", 1, 10);
        assert!(find(&memory, 1, "a").is_none());
    }

    #[test]
    fn bytes_and_readers_are_bounded() {
        let memory = Memory::new(100_000);
        for n in 0..1000 {
            fill(&memory, 0, 1, &n.to_string(), n, 1000);
        }
        let (tasks, bytes) = memory.size();
        assert!((10..100).contains(&tasks) && bytes <= 100_000, "{tasks} {bytes}");
        let memory = Memory::new(1 << 20);
        for reader in 0..200 {
            fill(&memory, 0, reader, "a", 1, 10);
        }
        assert!(find(&memory, 0, "a").is_none() && find(&memory, 199, "a").is_some());
        assert!(memory.size().1 < 10 + ENTRY_OVERHEAD + 65 * 32);
    }

    #[test]
    fn none_for_zero_bytes() {
        let memory = Memory::new(0);
        fill(&memory, 0, 1, "a", 1, 10);
        assert!(find(&memory, 1, "a").is_none());
        assert_eq!(memory.size(), (0, 0));
    }

    #[test]
    fn the_first_use_in_an_hour_is_told_once() {
        let memory = Memory::new(1 << 20);
        fill(&memory, 0, 1, "a", 5, 10);
        let service = Service::parse("producer").unwrap();
        let at = |hour| {
            let id = TaskId::parse("a").unwrap();
            memory.find(&Digest::from([1; 32]), &service, &id, hour).unwrap().first_use
        };
        assert_eq!((at(1), at(2), at(2), at(1)), (None, Some(5), None, None));
    }
}
