//! Large records in use: those that were read and are held somewhere, mostly by responses that slow
//! clients have not received yet.
//!
//! The memory cache does not keep the largest records. Without this map, every response would read
//! and hold a copy of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use super::cache_entry::{CacheEntry, MAX_READERS};
use crate::lru::shrink_if_sparse;
use crate::task::{Service, TaskId};
use crate::token::Digest;

/// Smallest record that is shared, in bytes.
const MIN_BYTES: usize = 1 << 20;

/// See the module documentation.
#[derive(Default)]
pub(super) struct LargeRecords {
    by_task: Mutex<HashMap<(Service, TaskId), Weak<LargeRecord>>>,
}

/// A record that is dropped with the last [`Bytes`] of it.
struct LargeRecord {
    row_id: i64,
    stored_at: i64,
    used_hour: AtomicI64,
    record: Bytes,
    /// Readers that are known to have a grant.
    readers: Mutex<Vec<Digest>>,
}

/// Result of [`LargeRecords::get`].
pub(super) struct RecordInUse {
    pub(super) row_id: i64,
    pub(super) stored_at: i64,
    /// Hour of the use before this one.
    pub(super) used_hour: i64,
    pub(super) record: Bytes,
}

/// Owner of the bytes that are given out.
struct Owner(Arc<LargeRecord>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.record
    }
}

impl LargeRecords {
    /// Returns the record if it is in use and `reader` is known to have a grant, and records its use.
    pub(super) fn get(
        &self,
        reader: &Digest,
        service: &Service,
        id: &TaskId,
        hour: i64,
    ) -> Option<RecordInUse> {
        let record = lock(&self.by_task).get(&(service.clone(), id.clone()))?.upgrade()?;
        if !lock(&record.readers).contains(reader) {
            return None;
        }
        Some(RecordInUse {
            row_id: record.row_id,
            stored_at: record.stored_at,
            used_hour: record.used_hour.fetch_max(hour, Ordering::Relaxed),
            record: Bytes::from_owner(Owner(record)),
        })
    }

    /// Adds a verified record that `entry.reader` may read. Returns it as it is to be used: the bytes
    /// of the same record that are in use already, if there are any.
    pub(super) fn share(&self, entry: &CacheEntry<'_>) -> Bytes {
        if entry.record.len() < MIN_BYTES {
            return entry.record.clone();
        }
        let key = (entry.service.clone(), entry.id.clone());
        let mut by_task = lock(&self.by_task);
        if let Some(record) = by_task.get(&key).and_then(Weak::upgrade) {
            drop(by_task);
            return record.share(entry).unwrap_or_else(|| entry.record.clone());
        }
        let record = Arc::new(LargeRecord {
            row_id: entry.row_id,
            stored_at: entry.stored_at,
            used_hour: AtomicI64::new(entry.used_hour),
            record: entry.record.clone(),
            readers: Mutex::new(vec![*entry.reader]),
        });
        by_task.retain(|_, record| record.strong_count() > 0);
        shrink_if_sparse(&mut by_task);
        by_task.insert(key, Arc::downgrade(&record));
        Bytes::from_owner(Owner(record))
    }

    pub(super) fn remove(&self, service: &Service, id: &TaskId) {
        lock(&self.by_task).remove(&(service.clone(), id.clone()));
    }

    pub(super) fn clear(&self) {
        lock(&self.by_task).clear();
    }
}

impl LargeRecord {
    /// Returns the bytes to be used instead of those of `entry`, from now on also by its reader.
    /// `None` if it is another record, since different readers can have different records of an id.
    fn share(self: Arc<Self>, entry: &CacheEntry<'_>) -> Option<Bytes> {
        let is_same = self.record.as_ptr() == entry.record.as_ptr() || self.record == entry.record;
        if self.row_id != entry.row_id || !is_same {
            return None;
        }
        let mut readers = lock(&self.readers);
        if !readers.contains(entry.reader) {
            let dropped = readers.len().saturating_sub(MAX_READERS - 1);
            readers.drain(..dropped);
            readers.push(*entry.reader);
        }
        drop(readers);
        Some(Bytes::from_owner(Owner(self)))
    }
}

/// A panic elsewhere leaves the data consistent, so poisoning is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
