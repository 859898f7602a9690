//! Figures of `refrain demo`: the same clients, directly and through refrain.

use serde::Serialize;

/// State of the demo's comparison. All values are measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Duration of the comparison so far.
    pub elapsed_seconds: f64,
    /// Duration of the whole comparison.
    pub length_seconds: f64,
    /// Clients of each crowd, without its dashboard.
    pub clients: usize,
    /// Tasks that have finished at the upstream. Both crowds look up the same tasks.
    pub finished: usize,
    /// The crowd that calls the upstream directly.
    pub direct: CrowdFigures,
    /// The crowd that calls refrain.
    pub refrain: CrowdFigures,
}

/// Figures of one crowd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CrowdFigures {
    /// Calls that the upstream received with the crowd's token.
    pub upstream_calls: u64,
    /// Responses with status 429 that the crowd's clients received.
    pub rate_limited: u64,
    /// Other failed requests of the crowd's clients.
    pub failed: u64,
    /// Tasks whose final record their client has read.
    pub known: usize,
    /// Median time from the end of a task to the response with its final record, over `known`.
    pub median_delay_seconds: Option<f64>,
}
