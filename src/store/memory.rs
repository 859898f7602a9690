//! The memory cache: final records that were read or written recently, bounded by bytes.
//!
//! It holds only what is committed and verified. An entry lists the readers that are known to have
//! a grant; for any other reader the store asks the database. Entries are immutable except for
//! their hour of use: a further reader means a new entry. A hit therefore takes only the cache's
//! own lock, and the weights stay correct.

use std::hash::Hash;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter};

use super::StoredTask;
use super::cache_entry::{CacheEntry, MAX_READERS};
use super::large_records::{LargeRecords, RecordInUse};
use crate::task::{Service, TaskId};
use crate::token::Digest;

/// Bytes of an entry besides its record, its id and its readers: key, pointers, the cache's tables,
/// and unused space between allocations.
const ENTRY_OVERHEAD: u64 = 512;

/// Smallest capacity of a shard in bytes, so that a large record still fits.
const SHARD_BYTES: u64 = 8 << 20;

#[derive(Clone, PartialEq, Eq, Hash)]
struct CacheKey {
    service: Service,
    id: TaskId,
}

/// A borrowed [`CacheKey`] with the same hash.
#[derive(Hash)]
struct CacheKeyRef<'a> {
    service: &'a Service,
    id: &'a TaskId,
}

impl Equivalent<CacheKey> for CacheKeyRef<'_> {
    fn equivalent(&self, key: &CacheKey) -> bool {
        *self.service == key.service && *self.id == key.id
    }
}

struct CachedTask {
    row_id: i64,
    record: Bytes,
    stored_at: i64,
    used_hour: AtomicI64,
    readers: Box<[Digest]>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<CacheKey, Arc<CachedTask>> for ByBytes {
    fn weight(&self, key: &CacheKey, task: &Arc<CachedTask>) -> u64 {
        let bytes = key.id.as_str().len() + task.record.len() + task.readers.len() * size_of::<Digest>();
        bytes as u64 + ENTRY_OVERHEAD
    }
}

/// Result of [`MemoryCache::get`].
pub(super) struct CacheHit {
    pub(super) task: StoredTask,
    /// The key of the row, if this is its first use in this hour.
    pub(super) first_use: Option<i64>,
}

/// See the module documentation.
pub(super) struct MemoryCache {
    cache: Option<Cache<CacheKey, Arc<CachedTask>, ByBytes>>,
    large: LargeRecords,
    /// Number of removals. An insert compares it under the read lock, a removal increments it under
    /// the write lock: a task that was read before a removal cannot be inserted after it.
    generation: RwLock<u64>,
}

impl MemoryCache {
    /// Creates a cache of at most `bytes`; 0 disables it.
    pub(super) fn new(bytes: u64) -> Self {
        let cache = (bytes > 0).then(|| {
            let parallelism = std::thread::available_parallelism().map_or(1, usize::from) as u64;
            let shards = (bytes / SHARD_BYTES).clamp(1, parallelism * 4);
            // Rounded down to a power of two: the cache would round up and halve the size of the
            // shards.
            let shards = 1usize << shards.ilog2();
            let items = usize::try_from(bytes / 4096).unwrap_or(usize::MAX).clamp(16, 1 << 20);
            let options = OptionsBuilder::new()
                .weight_capacity(bytes)
                .estimated_items_capacity(items)
                .shards(shards)
                .build()
                .expect("capacity and size are set");
            Cache::with_options(
                options,
                ByBytes,
                DefaultHashBuilder::default(),
                quick_cache::sync::DefaultLifecycle::default(),
            )
        });
        Self { cache, large: LargeRecords::default(), generation: RwLock::new(0) }
    }

    /// Whether the cache can hold anything.
    pub(super) fn is_enabled(&self) -> bool {
        self.cache.is_some()
    }

    /// Returns the task if it is in memory and `reader` is known to have a grant.
    pub(super) fn get(&self, reader: &Digest, service: &Service, id: &TaskId, hour: i64) -> Option<CacheHit> {
        self.get_cached(reader, service, id, hour).or_else(|| {
            let RecordInUse { row_id, stored_at, used_hour, record } =
                self.large.get(reader, service, id, hour)?;
            let first_use = (used_hour < hour).then_some(row_id);
            Some(CacheHit { task: StoredTask { record, stored_at }, first_use })
        })
    }

    /// Returns the record if it is a large one in use and `reader` is known to have a grant.
    pub(super) fn get_large(
        &self,
        reader: &Digest,
        service: &Service,
        id: &TaskId,
        hour: i64,
    ) -> Option<RecordInUse> {
        self.large.get(reader, service, id, hour)
    }

    fn get_cached(&self, reader: &Digest, service: &Service, id: &TaskId, hour: i64) -> Option<CacheHit> {
        let task = self.cache.as_ref()?.get(&CacheKeyRef { service, id })?;
        if !task.readers.contains(reader) {
            return None;
        }
        let first_use = (task.used_hour.load(Ordering::Relaxed) < hour
            && task.used_hour.swap(hour, Ordering::Relaxed) < hour)
            .then_some(task.row_id);
        Some(CacheHit {
            task: StoredTask { record: task.record.clone(), stored_at: task.stored_at },
            first_use,
        })
    }

    /// Returns the number of removals, to be read before a read whose result will be inserted.
    pub(super) fn generation(&self) -> u64 {
        *self.generation.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Inserts a committed, verified task, unless something was removed since `generation`. Returns
    /// the record as it is to be used: a large one that is in use already is not held twice.
    pub(super) fn insert(&self, generation: u64, entry: CacheEntry<'_>) -> Bytes {
        let current = self.generation.read().unwrap_or_else(PoisonError::into_inner);
        if *current != generation {
            return entry.record;
        }
        let record = self.large.share(&entry);
        self.insert_into_cache(CacheEntry { record: record.clone(), ..entry });
        record
    }

    fn insert_into_cache(&self, entry: CacheEntry<'_>) {
        let Some(cache) = &self.cache else { return };
        let readers: Box<[Digest]> = match cache.peek(&CacheKeyRef { service: entry.service, id: entry.id }) {
            // Another record of the same id, which belongs to other readers. The first one stays.
            Some(cached) if cached.row_id != entry.row_id => return,
            Some(cached) if cached.readers.contains(entry.reader) => return,
            Some(cached) => {
                let dropped = cached.readers.len().saturating_sub(MAX_READERS - 1);
                cached.readers[dropped..].iter().chain([entry.reader]).copied().collect()
            }
            None => Box::new([*entry.reader]),
        };
        let task = CachedTask {
            row_id: entry.row_id,
            record: entry.record,
            stored_at: entry.stored_at,
            used_hour: AtomicI64::new(entry.used_hour),
            readers,
        };
        cache.insert(CacheKey { service: entry.service.clone(), id: entry.id.clone() }, Arc::new(task));
    }

    /// Removes one task. Reads that began earlier cannot insert it again.
    pub(super) fn remove(&self, service: &Service, id: &TaskId) {
        *self.generation.write().unwrap_or_else(PoisonError::into_inner) += 1;
        if let Some(cache) = &self.cache {
            cache.remove(&CacheKeyRef { service, id });
        }
        self.large.remove(service, id);
    }

    /// Removes everything. Reads that began earlier cannot insert anything again.
    pub(super) fn clear(&self) {
        *self.generation.write().unwrap_or_else(PoisonError::into_inner) += 1;
        if let Some(cache) = &self.cache {
            cache.clear();
        }
        self.large.clear();
    }

    /// Returns the number of tasks and their weight in bytes.
    pub(super) fn size(&self) -> (u64, u64) {
        self.cache.as_ref().map_or((0, 0), |cache| (cache.len() as u64, cache.weight()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(memory: &MemoryCache, generation: u64, reader: u8, id: &str, row_id: i64, size: usize) {
        memory.insert(
            generation,
            CacheEntry {
                reader: &Digest::from([reader; 32]),
                service: &Service::parse("producer").unwrap(),
                id: &TaskId::parse(id).unwrap(),
                row_id,
                record: Bytes::from(vec![b'x'; size]),
                stored_at: 7,
                used_hour: 1,
            },
        );
    }

    fn get(memory: &MemoryCache, reader: u8, id: &str) -> Option<CacheHit> {
        let service = Service::parse("producer").unwrap();
        memory.get(&Digest::from([reader; 32]), &service, &TaskId::parse(id).unwrap(), 1)
    }

    #[test]
    fn only_known_readers_hit() {
        let memory = MemoryCache::new(1 << 20);
        insert(&memory, 0, 1, "a", 1, 10);
        assert!(get(&memory, 1, "a").is_some());
        assert!(get(&memory, 2, "a").is_none());
        insert(&memory, 0, 2, "a", 1, 10);
        assert!(get(&memory, 1, "a").is_some() && get(&memory, 2, "a").is_some());
        insert(&memory, 0, 3, "a", 2, 10);
        assert!(get(&memory, 3, "a").is_none(), "another record of the id is not mixed in");
    }

    #[test]
    fn task_read_before_a_removal_is_not_inserted_after_it() {
        let memory = MemoryCache::new(1 << 20);
        let before = memory.generation();
        memory.remove(&Service::parse("producer").unwrap(), &TaskId::parse("a").unwrap());
        insert(&memory, before, 1, "a", 1, 10);
        assert!(get(&memory, 1, "a").is_none());
    }

    #[test]
    fn bytes_and_readers_are_bounded() {
        let memory = MemoryCache::new(100_000);
        for n in 0..1000 {
            insert(&memory, 0, 1, &n.to_string(), n, 1000);
        }
        let (tasks, bytes) = memory.size();
        assert!((10..100).contains(&tasks) && bytes <= 100_000, "{tasks} {bytes}");
        let memory = MemoryCache::new(1 << 20);
        for reader in 0..200 {
            insert(&memory, 0, reader, "a", 1, 10);
        }
        assert!(get(&memory, 0, "a").is_none() && get(&memory, 199, "a").is_some());
        assert!(memory.size().1 < 10 + ENTRY_OVERHEAD + 65 * 32);
    }

    #[test]
    fn zero_bytes_disable_the_cache() {
        let memory = MemoryCache::new(0);
        insert(&memory, 0, 1, "a", 1, 10);
        assert!(get(&memory, 1, "a").is_none());
        assert_eq!(memory.size(), (0, 0));
    }

    #[test]
    fn first_use_in_an_hour_is_reported_once() {
        let memory = MemoryCache::new(1 << 20);
        insert(&memory, 0, 1, "a", 5, 10);
        let service = Service::parse("producer").unwrap();
        let at = |hour| {
            let id = TaskId::parse("a").unwrap();
            memory.get(&Digest::from([1; 32]), &service, &id, hour).unwrap().first_use
        };
        assert_eq!((at(1), at(2), at(2), at(1)), (None, Some(5), None, None));
    }
}
