//! Tasks: ids, services, request bodies, finality, durations and summaries of task records. Pure
//! functions and data without I/O.

mod body;
mod catalogue;
mod durations;
mod finality;
mod id;
mod lookup_ids;
mod summary;

pub use body::TaskRequest;
pub use catalogue::{
    CATALOGUE, CatalogueEntry, InterpretedService, InterpretedServices, MIN_BATCH_LIMIT, ServiceClass,
    ServiceRules, find_in_catalogue,
};
pub use durations::{DurationModel, Durations, SavedDurations, ServiceDurations};
pub use finality::{Inspection, TaskState, inspect};
pub use id::{Service, TaskId};
pub use lookup_ids::LookupIds;
pub use summary::{Link, LinkKind, MAX_SUMMARIZED_BYTES, TaskSummary};

use bytes::Bytes;

/// Final task record. It is stored and served as the exact bytes that the upstream sent (invariant
/// Fidelity).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalRecord {
    /// Requested id, equal to the `id` in `json`.
    pub id: TaskId,
    /// JSON object exactly as received, without the white space around an item of a batch.
    pub json: Bytes,
}
