//! Black-box tests: the real program on a real port, the simulator as upstream, upstream calls counted.
//!
//! A file a behaviour; [`support`] holds what a client does.

#![expect(unreachable_pub, reason = "a test binary has no other crate to reach")]

mod access;
mod admin;
mod api;
mod bytes;
mod crash;
mod dashboard;
mod docs;
mod lookups;
mod metrics;
mod mix_ups;
mod operations;
mod passthrough;
mod program;
mod secrets;
mod storage;
mod support;
mod tasks_command;
mod upstream_faults;
