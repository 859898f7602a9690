//! The JSON API of the admin port, under `/api/`; `docs/api.md` says what each request answers.
//!
//! - `GET /api/stats`: counters since the start, and the present
//! - `GET /api/history`: the last hour or day, for charts

mod history;
mod stats;

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::header::CACHE_CONTROL;

use super::AdminPort;

/// What stands under `/api/`.
pub(super) fn router() -> Router<Arc<AdminPort>> {
    Router::new().route("/api/stats", get(stats::stats)).route("/api/history", get(history::history))
}

fn answer(body: serde_json::Value) -> Response {
    ([(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}
