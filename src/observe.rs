//! Seeing inside: the log set-up and the metrics that every room counts into.
//!
//! Used by all, knows none.

pub mod logging;
mod metrics;

pub use metrics::{IdLabels, Metrics, RequestLabels, StoreErrorLabels, UpstreamCallLabels};
