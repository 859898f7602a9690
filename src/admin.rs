//! The admin port: a listener of its own, on loopback by default. The client port serves nothing
//! of it.
//!
//! - `GET /healthz`: 200 while the process responds; without a token
//! - `GET /readyz`: 503 while draining, and after a failed write until one succeeds; without a
//!   token
//! - `GET /metrics`: OpenMetrics or Prometheus text, selected by `accept`
//! - `/api/…`: JSON, see `docs/api.md`
//! - `GET /` and `/assets/…`: the static files of the dashboard; without a token
//!
//! Where `admin.token` is set, `/metrics` and `/api/…` require it. The module `guard` checks
//! access.

mod api;
mod dashboard;
mod guard;
mod state;

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use http::{HeaderMap, StatusCode, header};
use serde_json::json;

pub use self::state::AdminPort;
use self::state::run_blocking;
use crate::api_error::ApiError;
use crate::telemetry::{self, ExpositionFormat};

/// Returns the router of the admin port.
pub fn router(port: Arc<AdminPort>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .nest("/api", api::router())
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&port), guard::require_token))
        .layer(middleware::from_fn_with_state(Arc::clone(&port), guard::reject_other_origins));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .method_not_allowed_fallback(method_not_allowed)
        .merge(guarded)
        .merge(dashboard::router())
        .fallback(|| async { not_found() })
        .layer(middleware::from_fn_with_state(Arc::clone(&port), guard::check_host))
        .layer(middleware::map_response(guard::add_security_headers))
        .with_state(port)
}

async fn method_not_allowed() -> ApiError {
    let message = "This path does not support this method. The header allow lists those that it does.";
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, message)
}

fn not_found() -> ApiError {
    ApiError::refused(StatusCode::NOT_FOUND, "The admin port has nothing at this path.")
}

async fn healthz() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

async fn readyz(State(port): State<Arc<AdminPort>>) -> Response {
    let readiness = port.readiness();
    match readiness.reason() {
        None => Json(json!({"status": readiness.as_str()})).into_response(),
        Some(reason) => {
            let body = json!({"status": readiness.as_str(), "reason": reason});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn metrics(State(port): State<Arc<AdminPort>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = ExpositionFormat::of(&accept.join(","));
    let page = run_blocking(&port, move |port| telemetry::expose(format, &port.metrics, &port.gauges()));
    let page = page.await?.map_err(|_| ApiError::internal())?;
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    Ok((headers, page).into_response())
}
