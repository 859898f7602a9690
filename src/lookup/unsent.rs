//! Limit of the memory for responses that clients have not received yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{LookupError, ResponseContent};
use crate::batcher::LookupFailure;
use crate::upstream::UpstreamResponse;

/// Bytes of all responses together. At least four of the largest allowed responses fit, whatever
/// this value.
const MAX_BYTES: u64 = 512 << 20;

/// Smallest response to a single lookup that counts, in bytes. The others need no more than the
/// connections do.
const MIN_SINGLE_BYTES: usize = 64 << 10;

/// Memory for responses that clients have not received yet, over all connections.
pub(super) struct UnsentResponses {
    /// One permit for each KiB.
    memory: Arc<Semaphore>,
    /// Memory of single responses by the address and length of their bytes, which several responses
    /// can share.
    singles: Mutex<HashMap<(usize, usize), Weak<OwnedSemaphorePermit>>>,
}

/// Bytes with the memory that is reserved for them, which is released first: the address can be that
/// of other bytes afterwards.
struct CountedBytes {
    _memory: Arc<OwnedSemaphorePermit>,
    bytes: Bytes,
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl UnsentResponses {
    pub(super) fn new(max_response_bytes: u64) -> Self {
        Self::with_limit(MAX_BYTES.max(max_response_bytes.saturating_mul(4)))
    }

    fn with_limit(bytes: u64) -> Self {
        let permits = (kib(bytes) as usize).min(Semaphore::MAX_PERMITS);
        Self { memory: Arc::new(Semaphore::new(permits)), singles: Mutex::default() }
    }

    /// Reserves memory for a response.
    ///
    /// # Errors
    /// [`LookupError::Busy`] if there is not enough.
    pub(super) fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, LookupError> {
        Arc::clone(&self.memory).try_acquire_many_owned(kib(bytes)).map_err(|_| LookupError::Busy)
    }

    /// Returns the result of a lookup with memory reserved for a large single response, until its
    /// bytes are dropped.
    ///
    /// # Errors
    /// That of the result, and as [`UnsentResponses::reserve`].
    pub(super) fn count_single(
        &self,
        result: Result<ResponseContent, LookupError>,
    ) -> Result<ResponseContent, LookupError> {
        match result {
            Ok(ResponseContent::Record(record)) => Ok(ResponseContent::Record(self.count(record)?)),
            Ok(ResponseContent::Upstream(response)) if is_large(&response.body) => {
                Ok(ResponseContent::Upstream(self.count_relayed(&response)?))
            }
            Err(LookupError::Failed(LookupFailure::Upstream(response))) if is_large(&response.body) => {
                Err(LookupError::Failed(LookupFailure::Upstream(self.count_relayed(&response)?)))
            }
            other => other,
        }
    }

    fn count_relayed(&self, response: &UpstreamResponse) -> Result<Arc<UpstreamResponse>, LookupError> {
        let body = self.count(response.body.clone())?;
        Ok(Arc::new(UpstreamResponse { body, ..response.clone() }))
    }

    fn count(&self, bytes: Bytes) -> Result<Bytes, LookupError> {
        if !is_large(&bytes) {
            return Ok(bytes);
        }
        let key = (bytes.as_ptr().addr(), bytes.len());
        let mut singles = self.singles.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = match singles.get(&key).and_then(Weak::upgrade) {
            Some(memory) => memory,
            None => {
                let memory = Arc::new(self.reserve(bytes.len() as u64)?);
                singles.retain(|_, memory| memory.strong_count() > 0);
                singles.insert(key, Arc::downgrade(&memory));
                memory
            }
        };
        drop(singles);
        Ok(Bytes::from_owner(CountedBytes { _memory: memory, bytes }))
    }
}

fn is_large(bytes: &Bytes) -> bool {
    bytes.len() >= MIN_SINGLE_BYTES
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;

    fn record(record: &Bytes) -> Result<ResponseContent, LookupError> {
        Ok(ResponseContent::Record(record.clone()))
    }

    fn upstream(body: Bytes) -> Arc<UpstreamResponse> {
        Arc::new(UpstreamResponse {
            status: StatusCode::OK,
            content_type: None,
            retry_after: None,
            body,
            connect_time: Duration::ZERO,
        })
    }

    #[test]
    fn large_single_responses_are_bounded_until_they_are_dropped() {
        let unsent = UnsentResponses::with_limit(2 << 20);
        let large = || Bytes::from(vec![b'x'; 1 << 20]);
        let one = unsent.count_single(record(&large())).unwrap();
        let other = unsent.count_single(Ok(ResponseContent::Upstream(upstream(large())))).unwrap();
        assert!(matches!(unsent.count_single(record(&large())), Err(LookupError::Busy)));
        assert!(matches!(unsent.reserve(1), Err(LookupError::Busy)));
        let error = Err(LookupError::Failed(LookupFailure::Upstream(upstream(large()))));
        assert!(matches!(unsent.count_single(error), Err(LookupError::Busy)));
        assert!(unsent.count_single(record(&Bytes::from_static(b"small"))).is_ok());
        // Part of a record may be on its way while the rest of the response is dropped.
        let ResponseContent::Record(mut bytes) = one else { panic!("a record") };
        let part = bytes.split_to(10);
        drop(bytes);
        assert!(unsent.reserve(1).is_err());
        drop(part);
        assert!(unsent.count_single(record(&large())).is_ok());
        drop(other);
        assert!(unsent.reserve(2 << 20).is_ok());
    }

    #[test]
    fn responses_that_share_their_bytes_count_once() {
        let unsent = UnsentResponses::with_limit(1 << 20);
        let shared = Bytes::from(vec![b'x'; 1 << 20]);
        let held: Vec<_> = (0..100).map(|_| unsent.count_single(record(&shared)).unwrap()).collect();
        assert!(unsent.reserve(1).is_err());
        drop(held);
        assert!(unsent.reserve(1 << 20).is_ok());
    }
}
