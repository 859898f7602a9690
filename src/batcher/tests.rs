//! Batcher under paused time, with a simulated world outside: every way out, and the promises about calls and news.

mod ends;
mod folding;
mod gauges;
mod joining;
mod lab;
mod pacing;
mod pending;
mod storm;
mod trouble;
mod view;
mod waiting;
mod world;
