//! Summary of a lookup for headers, log and metrics.

use std::time::Duration;

use crate::batcher::{RecordSource, TaskOutcome};
use crate::clock;

/// Numbers and times of a lookup. An id that is requested at several positions counts at each of
/// them.
#[derive(Clone, Debug, Default)]
pub struct CacheSummary {
    /// Requested ids.
    pub requested: usize,
    /// Ids served from the store.
    pub hits: usize,
    /// Ids served from a cached pending record or a cached unknown id.
    pub pending: usize,
    /// Ids fetched from the upstream.
    pub misses: usize,
    /// Those of `misses` that failed.
    pub failed: usize,
    /// Whether a fetched record was stored.
    pub is_stored: bool,
    /// Whether all fetched ids were already queued or in flight for other lookups.
    pub is_collapsed: bool,
    /// Whether a cached record was too old to be used.
    pub is_outdated: bool,
    /// Age of the oldest record, in seconds.
    pub age: u64,
    /// Time until a newer record is expected, if the response has a pending one.
    pub retry_after: Option<Duration>,
}

/// Label of a lookup in logs, metrics and `x-cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheResult {
    /// All ids were served from the store.
    Hit,
    /// No id was fetched, and at least one was served from a cached pending record.
    Pending,
    /// Some ids were fetched.
    Partial,
    /// All ids were fetched.
    Miss,
}

impl CacheSummary {
    /// Label of the lookup.
    pub fn result(&self) -> CacheResult {
        match (self.hits, self.pending, self.misses) {
            (_, 0, 0) => CacheResult::Hit,
            (_, _, 0) => CacheResult::Pending,
            (0, 0, _) => CacheResult::Miss,
            _ => CacheResult::Partial,
        }
    }

    /// Counts the outcome at each of the request's positions, as far as there is one.
    pub(super) fn count(&mut self, positions: &[u32], outcomes: &[Option<TaskOutcome>]) {
        let mut oldest = None;
        for outcome in positions.iter().filter_map(|index| outcomes[*index as usize].as_ref()) {
            match outcome {
                TaskOutcome::Final { source: RecordSource::Store { stored_at }, .. } => {
                    self.hits += 1;
                    oldest = Some(oldest.map_or(*stored_at, |oldest: i64| oldest.min(*stored_at)));
                }
                TaskOutcome::Final { source: RecordSource::Upstream { is_stored }, .. } => {
                    self.misses += 1;
                    self.is_stored |= is_stored;
                }
                TaskOutcome::Pending { freshness, .. } | TaskOutcome::Unknown { freshness, .. } => {
                    self.age = self.age.max(freshness.age().as_secs());
                    if freshness.is_cached() {
                        self.pending += 1;
                    } else {
                        self.misses += 1;
                    }
                }
                TaskOutcome::Relayed(_) => self.misses += 1,
                TaskOutcome::Failed(_) => {
                    self.misses += 1;
                    self.failed += 1;
                }
            }
        }
        let seconds = oldest.map_or(0, |stored_at| clock::unix_now().saturating_sub(stored_at));
        // Negative after the wall clock was set back.
        self.age = self.age.max(u64::try_from(seconds).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::batcher::{Freshness, LookupFailure};

    #[test]
    fn each_position_counts_with_the_outcome_of_its_id() {
        let record = Bytes::new();
        let cached = Freshness::Cached { age: Duration::from_secs(7) };
        let stored_at = clock::unix_now() - 5;
        let outcomes = [
            Some(TaskOutcome::Final { record: record.clone(), source: RecordSource::Store { stored_at } }),
            Some(TaskOutcome::Final {
                record: record.clone(),
                source: RecordSource::Upstream { is_stored: true },
            }),
            Some(TaskOutcome::Pending { record, freshness: cached }),
            Some(TaskOutcome::Unknown { response: None, freshness: Freshness::Fetched }),
            Some(TaskOutcome::Failed(LookupFailure::Internal)),
            None,
        ];
        let count = |positions: &[u32]| {
            let mut summary = CacheSummary::default();
            summary.count(positions, &outcomes);
            summary
        };
        let all = count(&[0, 1, 2, 3, 4, 5, 0, 2, 4]);
        assert_eq!((all.hits, all.pending, all.misses, all.failed), (2, 2, 4, 2));
        assert_eq!((all.is_stored, all.age, all.result()), (true, 7, CacheResult::Partial));
        let stored = count(&[0, 0]);
        assert!((5..7).contains(&stored.age) && !stored.is_stored);
        let results = [stored, count(&[0, 2]), count(&[1, 3])].map(|summary| summary.result());
        assert_eq!(results, [CacheResult::Hit, CacheResult::Pending, CacheResult::Miss]);
    }
}
