//! Values that are read when they are requested, instead of being updated while requests run.
//!
//! The modules that own a value fill it in. `/metrics`, `/api/stats` and the history read it.

use std::time::Duration;

use super::registration::metrics;

metrics! {
    /// All gauges of one moment.
    #[derive(Clone, Debug, Default)]
    pub struct Gauges {
        /// 1 while `/readyz` returns 200
        #[metric("ready")]
        pub is_ready: bool,
        /// Start of refrain, in seconds since the Unix epoch
        #[metric("start_time", Seconds)]
        pub started_at: i64,
        /// Open connections of clients
        #[metric("connections")]
        pub connections: usize,
        /// Totals of all queues.
        pub queues: QueueTotals,
        /// Numbers of the store.
        pub store: StoreStats,
    }
}

metrics! {
    /// Totals of all queues.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct QueueTotals {
        /// Queues, one for each service, token and set of forwarded headers
        #[metric("queues")]
        pub queues: usize,
        /// Tokens that have a rate limiter
        #[metric("queue_tokens")]
        pub tokens: usize,
        /// Ids that wait for a call.
        pub queued: usize,
        /// Ids in calls that are in flight.
        pub in_flight: usize,
        /// Lookups that wait for a response
        #[metric("queue_waiters")]
        pub waiters: usize,
        /// Pending records in memory
        #[metric("pending_cache_ids")]
        pub snapshots: usize,
        /// Size of the pending records in memory
        #[metric("pending_cache", Bytes)]
        pub snapshot_bytes: usize,
        /// Time that the oldest queued id has waited for a call; 0 if none waits
        #[metric("queue_oldest_wait", Seconds)]
        pub oldest_queued: Duration,
        /// 1 while the upstream is known to be unreachable, from a failed call to the next response
        #[metric("upstream_down")]
        pub is_upstream_down: bool,
    }
}

metrics! {
    /// Numbers of the store that are cheap to read.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct StoreStats {
        /// Task records in the database
        #[metric("store_tasks")]
        pub tasks: u64,
        /// Size of the task records in the database
        #[metric("store_record", Bytes)]
        pub bytes: u64,
        /// Limit `store.max_bytes`; 0 for no limit
        #[metric("store_max", Bytes)]
        pub max_bytes: u64,
        /// Size of the database file.
        pub database_bytes: u64,
        /// Size of the write-ahead log.
        pub wal_bytes: u64,
        /// Jobs that wait for the writer
        #[metric("store_queued_jobs")]
        pub queued_jobs: usize,
        /// Size of the records in the jobs that wait for the writer
        #[metric("store_queued", Bytes)]
        pub queued_bytes: u64,
        /// Tasks in the memory cache
        #[metric("memory_tasks")]
        pub memory_tasks: u64,
        /// Size of the memory cache, with its overhead
        #[metric("memory", Bytes)]
        pub memory_bytes: u64,
        /// Limit `store.memory_bytes`
        #[metric("memory_max", Bytes)]
        pub memory_max_bytes: u64,
    }
}
