//! The plain words of the trade: tasks, their ids, services, tokens, and what counts as finished.
//!
//! Used by every room; knows none of them. No I/O here, no HTTP server, no SQL.

mod body;
mod finality;
mod id;
mod lookup_ids;
mod summary;

pub use body::TaskRequest;
pub use finality::{Inspection, TaskState, inspect};
pub use id::{Service, TaskId};
pub use lookup_ids::LookupIds;
pub use summary::{Link, LinkKind, MAX_SUMMARIZED_BYTES, TaskSummary};

use bytes::Bytes;

/// A finished task as the upstream sent it: the text is kept and served byte for byte (law 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalRecord {
    /// The id that was asked for, equal to the `id` inside `text`.
    pub id: TaskId,
    /// The task's JSON text exactly as it came, in a batch without the white space around the item.
    pub json: Bytes,
}
