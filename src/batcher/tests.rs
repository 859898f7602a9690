//! Tests of the batcher under paused time with a simulated backend.
//!
//! `harness` has the batcher under test and its assertions, `backend` the simulated upstream and
//! store.

mod backend;
mod batching;
mod bounded_waits;
mod bounds;
mod circuit_breaker;
mod coalescing;
mod deletes;
mod halving;
mod harness;
mod load;
mod long_poll;
mod never_more_calls;
mod panics;
mod partial_failure;
mod queue_timeout;
mod rate_limit;
mod responses;
mod retries;
mod short_responses;
mod shutdown;
mod snapshots;
mod unknown_ids;
mod view;
