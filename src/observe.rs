//! Seeing inside: the log set-up and the metrics that every room counts into.
//!
//! Used by all, knows none.

mod metrics;

pub use metrics::{IdLabels, Metrics, RequestLabels, StoreErrorLabels, UpstreamCallLabels};
