//! What is so at this moment, as opposed to what was counted: read when somebody looks, never kept up on the way of a
//! request. The rooms that know fill it in; `/metrics`, `/api/stats` and the history read it.

use std::time::Duration;

/// Everything that is read at the moment of looking.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// The word of `/readyz`: `ready`, `degraded` or `draining`.
    pub status: &'static str,
    /// Why it is not `ready`.
    pub reason: Option<&'static str>,
    /// Connections that clients hold open.
    pub connections: usize,
    /// The lanes.
    pub queues: QueueTotals,
    /// The store.
    pub store: StoreStats,
}

/// All lanes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// Batcher that want or remember something, or did a moment ago.
    pub queues: usize,
    /// Tokens with a bucket.
    pub tokens: usize,
    /// Ids that wait for their turn.
    pub queued: usize,
    /// Ids in calls that are under way.
    pub in_flight: usize,
    /// Look-ups that wait for an answer.
    pub waiters: usize,
    /// Pending answers in memory.
    pub snapshots: usize,
    /// Their bytes.
    pub snapshot_bytes: usize,
    /// How long the id that waits longest has waited; zero if none does.
    pub oldest_queued: Duration,
    /// Whether the upstream is known to be down.
    pub is_upstream_down: bool,
}

/// Cheap numbers about the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Distinct texts on disk.
    pub tasks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// `store.max_bytes`; 0 for no limit.
    pub max_bytes: u64,
    /// Bytes of the database file.
    pub database_bytes: u64,
    /// Bytes of its write-ahead log.
    pub wal_bytes: u64,
    /// Jobs that wait for the writer.
    pub queued_jobs: usize,
    /// Bytes of the texts in them, in whole KiB a job.
    pub queued_bytes: u64,
    /// Tasks in memory.
    pub memory_tasks: u64,
    /// Their weight in bytes, with ids and overhead.
    pub memory_bytes: u64,
    /// `store.memory_bytes`
    pub memory_max_bytes: u64,
}
