//! refrain: a caching reverse proxy for Ace Data Cloud's task API.
//!
//! Applications poll `POST /{service}/tasks`. Finished tasks are served from a local store. Lookups
//! of unfinished tasks are coalesced into as few upstream calls as the token's rate limit allows.
//! Every other request is forwarded untouched.
//!
//! `docs/architecture.md` has the module map; `tests/it/architecture.rs` compares it with the
//! imports.

pub mod admin;
pub mod api_error;
pub mod app;
pub mod auth;
pub mod batcher;
pub mod cli;
pub mod clock;
pub mod config;
pub mod escape;
pub mod headers;
pub mod lifecycle;
pub mod lookup;
pub mod lru;
pub mod proxy;
pub mod server;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod token;
pub mod upstream;
