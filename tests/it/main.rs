//! Black-box tests: the real program on a real port, the simulator as upstream, upstream calls
//! counted.
//!
//! One file per behaviour. [`support`] has the clients, the app under test and the program under
//! test.

#![expect(unreachable_pub, reason = "a test binary has no other crate to reach")]

mod admin;
mod api;
mod architecture;
mod batching;
mod commands;
mod configuration;

mod crash;
mod dashboard;
mod demo;
mod deployment;
mod docs;
mod fidelity;
mod finality;
mod ids;
mod isolation;
mod limits;
mod log;
mod lookups;
mod metrics;
mod passthrough;
mod preferences;
mod recent_requests;
mod recheck;
mod request_forms;
mod response_headers;
mod secrets;
mod services;
mod shared_mode;
mod shutdown;
mod storage;
mod support;
mod tasks_command;
mod upstream_faults;
