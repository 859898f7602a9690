//! Options and outcomes of a lookup.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::telemetry::ClientLabel;
use crate::upstream::{UpstreamError, UpstreamResponse};

/// How a lookup is to be done: its kind and the preferences of its request headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupOptions {
    /// `retrieve` or `retrieve_batch`.
    pub kind: LookupKind,
    /// Time to wait for every record to become final (`prefer: wait=N`); `None` returns pending
    /// records at once.
    pub wait: Option<Duration>,
    /// Treatment of a partial failure.
    pub handling: Handling,
    /// Longest age of cached pending records and unknown ids (`cache-control: max-age`); zero
    /// accepts none (`no-cache`). Final records are always accepted.
    pub max_age: Option<Duration>,
    /// Whether the upstream must not be called (`cache-control: only-if-cached`).
    pub only_if_cached: bool,
    /// Client of the lookup, for the admin API.
    pub client: ClientLabel,
}

impl LookupOptions {
    /// Options of a request without preferences.
    pub fn new(kind: LookupKind) -> Self {
        Self {
            kind,
            wait: None,
            handling: Handling::Strict,
            max_age: None,
            only_if_cached: false,
            client: ClientLabel::OTHER,
        }
    }
}

/// Kind of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupKind {
    /// One id; an unknown id is answered with the upstream's own response.
    Single,
    /// Any number of ids; unknown ids are left out of the response.
    Batch,
}

/// Treatment of a partial failure, named as in `prefer: handling` (RFC 7240 section 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// The first failure of an id ends the lookup.
    Strict,
    /// The lookup goes on without the failed ids.
    Lenient,
}

/// Outcome of a lookup for one id.
#[derive(Clone, Debug)]
pub enum TaskOutcome {
    /// The record cannot change any more.
    Final {
        /// The record as the upstream sent it.
        record: Bytes,
        /// Where it came from.
        source: RecordSource,
    },
    /// The record can still change.
    Pending {
        /// The record as the upstream sent it.
        record: Bytes,
        /// Whether it was fetched for this lookup.
        freshness: Freshness,
    },
    /// The upstream does not know the id.
    Unknown {
        /// The upstream's response to a `retrieve` of the id; `None` if only a `retrieve_batch`
        /// left it out.
        response: Option<Arc<UpstreamResponse>>,
        /// Whether it was fetched for this lookup.
        freshness: Freshness,
    },
    /// A successful response without a task record, relayed to a single lookup.
    Relayed(Arc<UpstreamResponse>),
    /// There is no response for this id.
    Failed(LookupFailure),
}

impl TaskOutcome {
    /// Returns the record, if there is one.
    pub fn record(&self) -> Option<&Bytes> {
        match self {
            Self::Final { record, .. } | Self::Pending { record, .. } => Some(record),
            Self::Unknown { .. } | Self::Relayed(_) | Self::Failed(_) => None,
        }
    }
}

/// Source of a final record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordSource {
    /// The store.
    Store {
        /// When the record was stored, in seconds since the Unix epoch.
        stored_at: i64,
    },
    /// An upstream call.
    Upstream {
        /// Whether the record was committed to the store before it got here.
        is_stored: bool,
    },
}

/// Freshness of a pending record or of an unknown id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Fetched while the lookup waited.
    Fetched,
    /// Taken from memory.
    Cached {
        /// Time since it was fetched.
        age: Duration,
    },
}

impl Freshness {
    /// Returns the time since the fetch; zero if it was fetched for this lookup.
    pub fn age(self) -> Duration {
        match self {
            Self::Fetched => Duration::ZERO,
            Self::Cached { age } => age,
        }
    }

    /// Whether it comes from memory.
    pub fn is_cached(self) -> bool {
        matches!(self, Self::Cached { .. })
    }
}

/// Reason why there is no response for an id.
#[derive(Clone, Debug)]
pub enum LookupFailure {
    /// The upstream responded with an error.
    Upstream(Arc<UpstreamResponse>),
    /// The upstream call failed without a valid response.
    Transport(UpstreamError),
    /// The circuit breaker is open.
    UpstreamDown {
        /// Error of the last call.
        error: UpstreamError,
        /// Time until the next probe.
        retry_after: Duration,
    },
    /// The upstream responded with a redirect, which is not followed.
    Redirect,
    /// The upstream's successful response does not have the shape of a lookup response.
    InvalidResponse,
    /// `tasks.queue_timeout` passed, or would pass, and there is no usable snapshot.
    QueueTimeout {
        /// Time after which a lookup is estimated to succeed.
        retry_after: Duration,
    },
    /// The queue has no place for another id.
    QueueFull {
        /// Whether the queue itself or all queues together have no place.
        limit: QueueLimit,
        /// Time that the queue is estimated to need.
        retry_after: Duration,
    },
    /// The lookup needs another queue, and all those within the limit are busy.
    TooManyQueues {
        /// The limit.
        limit: QueueLimit,
        /// Time after which a queue may have become idle.
        retry_after: Duration,
    },
    /// The shutdown deadline has passed.
    ShuttingDown,
    /// A defect of this program.
    Internal,
}

/// Owner of a limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueLimit {
    /// That of one token.
    Token,
    /// That of all tokens together.
    Total,
}

/// Result of a lookup.
#[derive(Debug)]
pub struct LookupResult {
    /// Outcomes by the index of the id; `None` where the failure of another id ended the lookup
    /// first.
    pub outcomes: Vec<Option<TaskOutcome>>,
    /// Counts of the ids that waited for the upstream.
    pub enqueued: Enqueued,
    /// Time until a lookup can return a newer record for one of the pending ids. `None` if no id is
    /// known to be pending.
    pub next_news: Option<Duration>,
}

/// Numbers of ids of a lookup that had to wait for the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enqueued {
    /// Ids that were queued or in flight already.
    pub joined: usize,
    /// Ids that were added to the queue.
    pub added: usize,
    /// Added ids of which the cached result was too old.
    pub outdated: usize,
    /// Longest estimate of the ids that failed at once because of it.
    pub(super) retry_after: Option<Duration>,
}

impl LookupResult {
    /// Completes `outcomes` with a failure because there are too many queues.
    pub(super) fn too_many_queues(limit: QueueLimit, mut outcomes: Vec<Option<TaskOutcome>>) -> Self {
        let retry_after = Duration::from_secs(1);
        for outcome in &mut outcomes {
            let failure = LookupFailure::TooManyQueues { limit, retry_after };
            outcome.get_or_insert(TaskOutcome::Failed(failure));
        }
        Self { outcomes, enqueued: Enqueued::default(), next_news: None }
    }
}
