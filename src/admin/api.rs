//! The JSON API of the admin port. `docs/api.md` is its reference.
//!
//! An unknown query parameter is an error: a misspelled filter would list, or delete, too much.

mod config;
mod history;
mod parameters;
mod queues;
mod requests;
mod stats;
mod tasks;
mod version;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;

use super::state::AdminPort;

/// Returns the routes below `/api`.
pub(super) fn router() -> Router<Arc<AdminPort>> {
    Router::new()
        .route("/version", get(version::version))
        .route("/stats", get(stats::stats))
        .route("/history", get(history::history))
        .route("/tasks", get(tasks::list).delete(tasks::delete_many))
        .route("/tasks/{service}/{id}", get(tasks::show).delete(tasks::delete_one))
        .route("/queues", get(queues::queues))
        .route("/pending", get(queues::pending))
        .route("/requests", get(requests::requests))
        .route("/config", get(config::config))
}
