//! Black-box tests: the real program on a real port, the simulator as upstream, upstream calls counted.
//!
//! A file a behaviour; [`support`] holds what a client does.

mod crash;
mod look_ups;
mod mix_ups;
mod operations;
mod storage;
mod support;
