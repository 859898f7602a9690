//! The bounded queue of changes before the writer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::health::Health;
use super::state::SqliteState;
use crate::store::{DeleteScope, StoreError};
use crate::task::{FinalRecord, SavedDurations, Service};
use crate::token::Digest;

/// Largest number of queued jobs.
const MAX_JOBS: usize = 1024;

/// Largest size of the queued records, in KiB.
const MAX_KIB: u32 = 128 << 10;

/// Longest time that an insert takes, or a save of durations: the busy timeout and 5 s.
pub(super) const INSERT_TIMEOUT: Duration = Duration::from_secs(7);

/// Longest time that a delete takes. A wide one removes many rows.
const DELETE_TIMEOUT: Duration = Duration::from_secs(60);

/// Work for the writer.
pub(super) enum Job {
    Insert {
        reader: Digest,
        service: Service,
        delete_seq: i64,
        tasks: Vec<FinalRecord>,
        result: oneshot::Sender<Vec<bool>>,
        /// The job's share of [`MAX_KIB`], released with the job.
        _size: OwnedSemaphorePermit,
    },
    Delete {
        scope: DeleteScope,
        result: oneshot::Sender<Result<u64, StoreError>>,
    },
    SaveDurations {
        durations: Vec<SavedDurations>,
        result: oneshot::Sender<Result<(), StoreError>>,
    },
}

impl Job {
    /// Bytes of the records to be stored.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Insert { tasks, .. } => record_bytes(tasks),
            Self::Delete { .. } | Self::SaveDurations { .. } => 0,
        }
    }

    /// Whether it needs more than one transaction.
    pub(super) fn is_wide(&self) -> bool {
        matches!(self, Self::Delete { scope, .. } if scope.is_wide())
    }
}

/// The sending end of the queue.
#[derive(Clone)]
pub(super) struct WriteQueue {
    state: Arc<SqliteState>,
    jobs: mpsc::Sender<Job>,
    free_kib: Arc<Semaphore>,
}

impl WriteQueue {
    /// Creates a queue. The writer receives the jobs.
    pub(super) fn new(state: Arc<SqliteState>) -> (Self, mpsc::Receiver<Job>) {
        let (jobs, receiver) = mpsc::channel(MAX_JOBS);
        (Self { state, jobs, free_kib: Arc::new(Semaphore::new(MAX_KIB as usize)) }, receiver)
    }

    /// See [`Store::insert`](crate::store::Store::insert).
    pub(super) async fn insert(
        &self,
        reader: &Digest,
        service: &Service,
        delete_seq: i64,
        tasks: Vec<FinalRecord>,
    ) -> Vec<bool> {
        let refused = vec![false; tasks.len()];
        if !self.state.health.is_good() {
            return refused;
        }
        let kib = u32::try_from(record_bytes(&tasks).div_ceil(1024)).unwrap_or(u32::MAX).min(MAX_KIB);
        let inserted = tokio::time::timeout(INSERT_TIMEOUT, async {
            let size = Arc::clone(&self.free_kib).acquire_many_owned(kib).await.ok()?;
            let (result, received) = oneshot::channel();
            let job = Job::Insert {
                reader: *reader,
                service: service.clone(),
                delete_seq,
                tasks,
                result,
                _size: size,
            };
            self.jobs.send(job).await.ok()?;
            received.await.ok()
        });
        match inserted.await {
            Ok(inserted) => inserted.unwrap_or(refused),
            Err(_) => {
                // Spares the next callers the wait. The next successful write sets the state to
                // good again.
                self.state.record_write_failure("the write timed out");
                self.state.health.set(Health::WriteFailed);
                refused
            }
        }
    }

    /// See [`Store::delete`](crate::store::Store::delete).
    pub(super) async fn delete(&self, scope: DeleteScope) -> Result<u64, StoreError> {
        let (result, received) = oneshot::channel();
        let job = Job::Delete { scope: scope.clone(), result };
        let deleted = tokio::time::timeout(DELETE_TIMEOUT, async {
            self.jobs.send(job).await.ok()?;
            received.await.ok()
        });
        deleted.await.ok().flatten().unwrap_or_else(|| {
            // The writer adds the scope only if it got the job.
            self.state.local.pending_deletes.add(scope);
            Err(StoreError::Unavailable)
        })
    }

    /// See [`Store::save_durations`](crate::store::Store::save_durations).
    pub(super) async fn save_durations(&self, durations: Vec<SavedDurations>) -> Result<(), StoreError> {
        let (result, received) = oneshot::channel();
        let saved = tokio::time::timeout(INSERT_TIMEOUT, async {
            self.jobs.send(Job::SaveDurations { durations, result }).await.ok()?;
            received.await.ok()
        });
        match saved.await {
            Ok(saved) => saved.unwrap_or(Err(StoreError::Unavailable)),
            Err(_) => {
                self.state.record_write_failure("saving task durations timed out");
                Err(StoreError::Unavailable)
            }
        }
    }

    /// Number of queued jobs.
    pub(super) fn jobs(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity()
    }

    /// Bytes of the queued records, rounded up to whole KiB per job.
    pub(super) fn bytes(&self) -> u64 {
        (MAX_KIB as usize).saturating_sub(self.free_kib.available_permits()) as u64 * 1024
    }
}

fn record_bytes(tasks: &[FinalRecord]) -> usize {
    tasks.iter().map(|task| task.json.len()).sum()
}
