//! refrain: a caching proxy in front of Ace Data Cloud's task API.
//!
//! Apps poll `POST /{service}/tasks`; finished tasks come from SQLite, what is not known yet goes upstream
//! folded into as few calls as the token's rate allows, and everything else passes through untouched.
//!
//! Arrows run one way:
//! `routes -> retrieve -> { access, store, lane -> { pace, upstream } } -> task`.
//! `store`, `pace` and `upstream` do not know each other; `config` and `observe` are used by all and use none;
//! `edge` accepts connections and knows no routes; only `app` knows everyone.

pub mod access;
pub mod api_error;
pub mod app;
pub mod cli;
pub mod config;
pub mod edge;
pub mod lane;
pub mod observe;
pub mod pace;
pub mod retrieve;
pub mod routes;
pub mod simulator;
pub mod store;
pub mod task;
pub mod upstream;
