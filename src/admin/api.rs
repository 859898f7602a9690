//! The JSON API of the admin port, `docs/api.md`: what runs, what is stored, what goes on.
//!
//! - `GET /api/version`
//! - `GET /api/stats`, `GET /api/history`: `stats`, `history`
//! - `GET /api/tasks`, `GET` and `DELETE /api/tasks/{service}/{id}`, `DELETE /api/tasks`: `tasks`
//! - `GET /api/queues`, `GET /api/pending`: `queues`
//! - `GET /api/config`: `config`
//!
//! A parameter that is not known is refused by its name: a filter that nobody reads would tell of too much, or forget it.

mod config;
mod history;
mod parameters;
mod queues;
mod stats;
mod tasks;

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use http::Uri;
use serde::Serialize;

use self::parameters::Parameters;
use super::AdminPort;
use crate::api_error::ApiError;

/// What is below `/api`.
pub fn router() -> Router<Arc<AdminPort>> {
    Router::new()
        .route("/version", get(version))
        .route("/stats", get(stats::stats))
        .route("/history", get(history::history))
        .route("/tasks", get(tasks::list).delete(tasks::delete_many))
        .route("/tasks/{service}/{id}", get(tasks::show).delete(tasks::delete_one))
        .route("/queues", get(queues::queues))
        .route("/pending", get(queues::pending))
        .route("/config", get(config::config))
}

#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
    sqlite_version: Option<String>,
    started_at: i64,
    uptime_seconds: f64,
}

async fn version(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Version>, ApiError> {
    Parameters::none(&uri)?;
    Ok(Json(Version {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        sqlite_version: port.sqlite_version.clone(),
        started_at: port.started_at,
        uptime_seconds: port.uptime_seconds(),
    }))
}
