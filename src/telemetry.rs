//! Seeing inside: the log set-up, the metrics that every room counts into, and how they are shown.
//!
//! - `metrics`: what is counted; `labels`: the closed sets of words; `histogram`: distributions
//! - `present`: what is read when somebody looks, filled in by the rooms that know it
//! - `exposition`: the text of `/metrics`, `format`: its two formats, `process`: the figures of the process in it
//! - `history`: the last hour and day, for charts
//!
//! Used by all, knows none.

mod exposition;
mod format;
mod gauges;
mod histogram;
mod history;
mod labels;
pub mod logging;
mod metrics;
mod process;

pub use exposition::expose;
pub use format::Format;
pub use gauges::{Gauges, QueueTotals, StoreStats};
pub use histogram::{Histogram, HistogramCounts};
pub use history::{History, Point, Snapshot};
pub use labels::{
    CallStatus, EvictionReason, IdOutcome, Label, PassthroughStatus, RateLimitSource, RequestAction,
    RequestOutcome, StoreErrorKind, StoreLookupResult,
};
pub use metrics::{CounterVec, Metrics, ServiceLabel};
