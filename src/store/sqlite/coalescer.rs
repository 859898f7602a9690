//! Coalescing of reads: lookups that arrive while statements run wait, and the next statement reads
//! for as many of them as fit. The cost of a statement besides its rows, mainly the switches to
//! SQLite's thread and back, is then paid once. A lookup that arrives while a statement slot is
//! free never waits.
//!
//! A statement begins after all its lookups arrived, so that each sees what was committed before.
//! It runs in a task of the store: a lookup that is dropped does not disturb the others.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::readers::STATEMENTS;
use super::select::{JoinedResult, select_joined};
use super::state::{READ_TIMEOUT, SqliteState};
use crate::task::{Service, TaskId};
use crate::token::Digest;

/// Largest number of ids in one statement.
pub(super) const IDS_PER_STATEMENT: usize = 64;

/// Time limit of a statement. Its lookups have given up by then, and have counted the failure.
const STATEMENT_TIMEOUT: Duration = READ_TIMEOUT.saturating_add(Duration::from_millis(500));

/// Number of waiting reads from which on each new one removes those that were cancelled, so that
/// they do not pile up while the disk hangs.
const CLEANUP_THRESHOLD: usize = 4096;

/// Largest record in a joined statement, in bytes. It bounds what one statement returns.
const MAX_RECORD_BYTES: i64 = 64 << 10;

/// The same for a statement that several lookups share, each of which waits for the records of the
/// others.
const MAX_SHARED_RECORD_BYTES: i64 = 16 << 10;

/// See the module documentation.
pub(super) struct ReadCoalescer {
    state: Arc<SqliteState>,
    queue: Mutex<ReadQueue>,
}

/// Bounded by the number of lookups: each waits for one read at a time, for at most
/// [`READ_TIMEOUT`].
#[derive(Default)]
struct ReadQueue {
    waiting: VecDeque<WaitingRead>,
    /// Number of running [`StatementSlot`]s, at most [`STATEMENTS`].
    slots_in_use: usize,
}

struct WaitingRead {
    reader: Digest,
    service: Service,
    ids: Vec<TaskId>,
    /// Dropped without a result if the read failed.
    result: oneshot::Sender<Vec<JoinedResult>>,
}

impl ReadCoalescer {
    pub(super) fn new(state: Arc<SqliteState>) -> Self {
        Self { state, queue: Mutex::default() }
    }

    /// Reads what `reader` may read of `ids`, at most [`IDS_PER_STATEMENT`]. Returns `None` if that
    /// failed, which is counted and logged here.
    pub(super) async fn read(
        self: &Arc<Self>,
        reader: &Digest,
        service: &Service,
        ids: &[&TaskId],
    ) -> Option<Vec<JoinedResult>> {
        let (result, received) = oneshot::channel();
        let ids = ids.iter().copied().cloned().collect();
        let read = WaitingRead { reader: *reader, service: service.clone(), ids, result };
        if let Some(slot) = self.enqueue(read) {
            self.state.background.spawn(slot.run());
        }
        received.await.ok()
    }

    /// Queues a read. Returns a slot if one is free; it must be run.
    fn enqueue(self: &Arc<Self>, read: WaitingRead) -> Option<StatementSlot> {
        let mut queue = self.lock();
        if queue.waiting.len() >= CLEANUP_THRESHOLD {
            queue.waiting.retain(|read| !read.result.is_closed());
        }
        queue.waiting.push_back(read);
        (queue.slots_in_use < STATEMENTS).then(|| {
            queue.slots_in_use += 1;
            StatementSlot { coalescer: Arc::clone(self), is_released: false }
        })
    }

    fn lock(&self) -> MutexGuard<'_, ReadQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Permission to run one statement after the other while reads are waiting.
struct StatementSlot {
    coalescer: Arc<ReadCoalescer>,
    /// Whether the slot was released by [`StatementSlot::next_group`], under the lock under which
    /// the queue was empty.
    is_released: bool,
}

impl StatementSlot {
    async fn run(mut self) {
        while let Some(group) = self.next_group() {
            // A panic must not affect the reads of the next statement.
            if AssertUnwindSafe(self.read(group)).catch_unwind().await.is_err() {
                self.coalescer.state.local.metrics.panics.inc();
                tracing::error!("a read of the task store panicked");
            }
        }
    }

    /// Takes the reads of the next statement: of one service, with up to [`IDS_PER_STATEMENT`] ids,
    /// at least one read. Releases the slot if nothing is waiting.
    fn next_group(&mut self) -> Option<Vec<WaitingRead>> {
        let mut queue = self.coalescer.lock();
        let (mut group, mut ids) = (Vec::<WaitingRead>::new(), 0);
        while let Some(read) = queue.waiting.pop_front_if(|read| {
            read.result.is_closed()
                || (ids + read.ids.len() <= IDS_PER_STATEMENT
                    && group.first().is_none_or(|first| first.service == read.service))
        }) {
            // A read with a closed channel was cancelled.
            if !read.result.is_closed() {
                ids += read.ids.len();
                group.push(read);
            }
        }
        if group.is_empty() {
            queue.slots_in_use -= 1;
            self.is_released = true;
            return None;
        }
        Some(group)
    }

    /// Runs one statement. After a failure the channels are dropped, and the callers see them
    /// closed.
    async fn read(&self, group: Vec<WaitingRead>) {
        let Some(service) = group.first().map(|first| first.service.clone()) else { return };
        let wanted: Vec<(&Digest, &TaskId)> =
            group.iter().flat_map(|read| read.ids.iter().map(|id| (&read.reader, id))).collect();
        let max_record_bytes = if group.len() == 1 { MAX_RECORD_BYTES } else { MAX_SHARED_RECORD_BYTES };
        let state = &self.coalescer.state;
        let statement = async {
            let mut connection = state.readers.acquire().await?;
            let results = select_joined(&mut connection.conn, &service, &wanted, max_record_bytes).await?;
            state.readers.keep(connection);
            Ok(results)
        };
        match tokio::time::timeout(STATEMENT_TIMEOUT, statement).await {
            Ok(Ok(results)) => distribute(results, group),
            // The store was closed, or its file is being replaced.
            Ok(Err(sqlx::Error::PoolClosed)) | Err(_) => {}
            Ok(Err(error)) => state.record_read_failure(&error),
        }
    }
}

/// Sends each read its results.
fn distribute(results: Vec<JoinedResult>, group: Vec<WaitingRead>) {
    let mut shares: Vec<Vec<JoinedResult>> = group.iter().map(|_| Vec::new()).collect();
    let positions: Vec<(usize, usize)> = group
        .iter()
        .enumerate()
        .flat_map(|(share, read)| (0..read.ids.len()).map(move |index| (share, index)))
        .collect();
    for result in results {
        let (share, index) = positions[result.index()];
        shares[share].push(result.with_index(index));
    }
    for (read, share) in group.into_iter().zip(shares) {
        // Fails if the read was cancelled meanwhile.
        let _ = read.result.send(share);
    }
}

impl Drop for StatementSlot {
    fn drop(&mut self) {
        if !self.is_released {
            self.coalescer.lock().slots_in_use -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StoreConfig;
    use crate::store::{LocalState, StoreLimits};

    fn coalescer() -> Arc<ReadCoalescer> {
        let limits = StoreLimits::from(&StoreConfig::default());
        let local = Arc::new(LocalState::new(limits, Arc::default()));
        Arc::new(ReadCoalescer::new(Arc::new(SqliteState::new("unused".into(), [0; 32], local))))
    }

    fn enqueue(
        coalescer: &Arc<ReadCoalescer>,
        service: &str,
        ids: usize,
    ) -> (Option<StatementSlot>, oneshot::Receiver<Vec<JoinedResult>>) {
        let (result, received) = oneshot::channel();
        let ids = (0..ids).map(|n| TaskId::parse(&n.to_string()).unwrap()).collect();
        let service = Service::parse(service).unwrap();
        let read = WaitingRead { reader: Digest::from([1; 32]), service, ids, result };
        (coalescer.enqueue(read), received)
    }

    fn sizes(slot: &mut StatementSlot) -> Option<Vec<usize>> {
        slot.next_group().map(|group| group.iter().map(|read| read.ids.len()).collect())
    }

    #[test]
    fn group_has_one_service_a_maximum_of_ids_and_no_cancelled_reads() {
        let coalescer = coalescer();
        let (slot, _first) = enqueue(&coalescer, "one", 1);
        let mut slot = slot.expect("the first read gets a slot");
        let mut waiting: Vec<_> = (0..10).map(|_| enqueue(&coalescer, "one", 8).1).collect();
        let _other = enqueue(&coalescer, "other", 3);
        let _last = enqueue(&coalescer, "one", 2);
        waiting.truncate(9);
        assert_eq!(sizes(&mut slot), Some(vec![1, 8, 8, 8, 8, 8, 8, 8]));
        assert_eq!(sizes(&mut slot), Some(vec![8, 8]));
        assert_eq!(sizes(&mut slot), Some(vec![3]));
        assert_eq!(sizes(&mut slot), Some(vec![2]));
        assert_eq!(sizes(&mut slot), None);
    }

    #[test]
    fn slots_are_released_on_every_exit_path() {
        let coalescer = coalescer();
        let (slots, _results): (Vec<_>, Vec<_>) = (0..5).map(|_| enqueue(&coalescer, "one", 1)).unzip();
        let mut slots: Vec<StatementSlot> = slots.into_iter().flatten().collect();
        assert_eq!(slots.len(), STATEMENTS);
        // Cancelled.
        drop(slots.pop());
        let (again, _result) = enqueue(&coalescer, "one", 1);
        slots.extend(again);
        assert_eq!(slots.len(), STATEMENTS);
        // Nothing left to read.
        for slot in &mut slots {
            while slot.next_group().is_some() {}
        }
        drop(slots);
        assert_eq!(coalescer.lock().slots_in_use, 0);
    }
}
