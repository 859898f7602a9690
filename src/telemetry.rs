//! Logging and metrics.
//!
//! - `metrics`: counters and histograms; `labels`: closed sets of label values
//! - `gauges`: values that are read when they are requested; `process`: values of the operating
//!   system
//! - `registration`: doc comments as help texts; `family`, `histogram`: types that count without
//!   locks
//! - `exposition`: the response to `GET /metrics`
//! - `history`: the last hour and day, for charts
//! - `comparison`: the figures of the demo's two crowds
//! - `recent_requests`: the last requests, for the dashboard
//! - `uninterpreted`: services that clients poll, but whose lookups are passed through
//! - `logging`: the log on stderr

mod comparison;
mod exposition;
mod family;
mod gauges;
mod histogram;
mod history;
mod labels;
pub mod logging;
mod metrics;
mod process;
mod recent_requests;
mod registration;
mod uninterpreted;

pub use comparison::{Comparison, CrowdFigures};
pub use exposition::{ExpositionFormat, expose};
pub use family::{CounterVec, FixedFamily};
pub use gauges::{Gauges, QueueTotals, StoreStats};
pub use histogram::{Histogram, HistogramCounts};
pub use history::{CounterSnapshot, History, HistoryPoint, StepCounts};
pub use labels::{
    CallStatus, ClientLabel, EvictionReason, IdOutcome, Label, PassthroughStatus, RateLimitSource,
    RequestAction, RequestKind, RequestOutcome, ServiceLabel, StoreErrorKind, StoreLookupResult,
};
pub use metrics::{CallLabels, CallsSaved, Metrics, RequestLabels};
pub use recent_requests::{RecentRequest, RecentRequestId, RecentRequests, RequestIds};
pub use uninterpreted::UninterpretedServices;
