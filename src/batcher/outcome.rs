//! What a look-up brings.

use std::time::Duration;

use bytes::Bytes;

use crate::upstream::{UpstreamError, UpstreamResponse};

/// What became of one id.
#[derive(Clone, Debug)]
pub enum TaskOutcome {
    /// Finished; `stored` tells whether it is on disk.
    Finished {
        /// The upstream's text.
        text: Bytes,
        /// Whether it was committed before it got here.
        stored: bool,
    },
    /// Not finished yet.
    Pending {
        /// The upstream's text.
        text: Bytes,
        /// How old this answer is.
        age: Duration,
        /// Whether it was remembered rather than fetched for this caller.
        remembered: bool,
    },
    /// The upstream does not know the id.
    Unknown {
        /// Its answer to the single id, where it was asked alone.
        answer: Option<UpstreamResponse>,
        /// How old this answer is.
        age: Duration,
        /// Whether it was remembered.
        remembered: bool,
    },
    /// A success that is no task answer, for a single look-up as it is.
    Relayed(UpstreamResponse),
    /// No answer.
    Failed(LookupFailure),
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub enum LookupFailure {
    /// The upstream's own error, with its status and body.
    Upstream(UpstreamResponse),
    /// No sound answer came.
    Transport(UpstreamError),
    /// The upstream is known to be down.
    Down {
        /// How its last call failed.
        error: UpstreamError,
        /// When it is tried again.
        retry_after: Duration,
    },
    /// A redirect, which is not followed.
    Redirected,
    /// A success that is no task answer, to a folded call.
    NotATask,
    /// `queue_timeout` passed and nothing young enough is remembered.
    QueueTimeout {
        /// The lane's estimate.
        retry_after: Duration,
    },
    /// The lane wants as many ids as it can hold.
    QueueFull {
        /// The lane's estimate.
        retry_after: Duration,
    },
    /// refrain is going down.
    Draining,
    /// A fault of ours.
    Internal,
}

/// What a look-up brought.
#[derive(Debug)]
pub struct LookupResult {
    /// For each id its outcome; `None` where another id's failure ended the look-up first.
    pub outcomes: Vec<Option<TaskOutcome>>,
    /// How many ids were wanted or under way already.
    pub joined: usize,
    /// How many ids are wanted because of this look-up.
    pub started: usize,
    /// Of those, how many had a remembered answer that was too old.
    pub outdated: usize,
    /// How long the lane needs for one round over all that is wanted.
    pub cycle: Duration,
}

impl LookupResult {
    /// There is no room for another lane.
    pub(super) fn full(ids: usize) -> Self {
        let cycle = Duration::from_secs(1);
        let outcome = TaskOutcome::Failed(LookupFailure::QueueFull { retry_after: cycle });
        Self { outcomes: vec![Some(outcome); ids], joined: 0, started: 0, outdated: 0, cycle }
    }
}
