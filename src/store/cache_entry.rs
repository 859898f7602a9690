//! A task to be held in memory.

use bytes::Bytes;

use crate::task::{Service, TaskId};
use crate::token::Digest;

/// Largest number of readers in one entry. The one added first is dropped first.
pub(super) const MAX_READERS: usize = 64;

/// A committed, verified task that `reader` may read.
pub(super) struct CacheEntry<'a> {
    pub(super) reader: &'a Digest,
    pub(super) service: &'a Service,
    pub(super) id: &'a TaskId,
    pub(super) row_id: i64,
    /// Must own its bytes: a slice of a larger buffer would keep all of that buffer alive.
    pub(super) record: Bytes,
    pub(super) stored_at: i64,
    pub(super) used_hour: i64,
}
