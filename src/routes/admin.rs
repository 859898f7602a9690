//! The admin port: its own listener, loopback by default, nothing of it on the client port.
//!
//! - `GET /healthz`: the process answers; no token
//! - `GET /readyz`: 503 while draining and after a failed write until one succeeds, and says why; no token
//! - `GET /metrics`: Prometheus text; with `admin.token` where one is set
//! - `GET /` and `/assets/…`: the dashboard's shell, without data; no token
//!
//! While no token is set, `Host` must be a loopback name or address, so that a web page cannot reach the port by a name
//! of its own (DNS rebinding).

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{authorization, dashboard};
use crate::api_error::ApiError;
use crate::store::Store;
use crate::task::Token;

/// What the admin port's handlers use.
#[derive(Debug)]
pub struct AdminPort {
    /// `admin.token`
    pub token: Option<Token>,
    /// For readiness.
    pub store: Store,
    /// Cancelled when the first signal came.
    pub draining: CancellationToken,
    /// For `/metrics`.
    pub registry: Registry,
}

/// The router of the admin port.
pub fn router(port: AdminPort) -> Router {
    let port = Arc::new(port);
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(Arc::clone(&port), require_token));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(guarded)
        .merge(dashboard::router())
        .fallback(|| async { ApiError::refused(StatusCode::NOT_FOUND, "There is nothing here.") })
        .layer(middleware::from_fn_with_state(Arc::clone(&port), require_loopback_host))
        .with_state(port)
}

async fn healthz() -> Response {
    status(StatusCode::OK, "ok", None)
}

async fn readyz(State(port): State<Arc<AdminPort>>) -> Response {
    if port.draining.is_cancelled() {
        return status(StatusCode::SERVICE_UNAVAILABLE, "draining", Some("refrain is shutting down"));
    }
    match port.store.readiness() {
        Ok(()) => status(StatusCode::OK, "ready", None),
        Err(reason) => status(StatusCode::SERVICE_UNAVAILABLE, "degraded", Some(reason)),
    }
}

fn status(status: StatusCode, word: &str, reason: Option<&str>) -> Response {
    let body = match reason {
        Some(reason) => json!({"status": word, "reason": reason}),
        None => json!({"status": word}),
    };
    (status, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

async fn metrics(State(port): State<Arc<AdminPort>>) -> Response {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &port.registry).is_err() {
        return ApiError::internal().into_response();
    }
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

async fn require_token(State(port): State<Arc<AdminPort>>, request: Request, next: Next) -> Response {
    let allowed = match &port.token {
        None => true,
        Some(token) => {
            authorization::bearer(request.headers()).is_some_and(|presented| token.matches(&presented))
        }
    };
    if allowed {
        return next.run(request).await;
    }
    ApiError::invalid_token().into_response()
}

async fn require_loopback_host(State(port): State<Arc<AdminPort>>, request: Request, next: Next) -> Response {
    if port.token.is_none() && !has_loopback_host(&request) {
        return ApiError::refused(
            StatusCode::FORBIDDEN,
            "Without admin.token the admin port answers to loopback names and addresses only.",
        )
        .into_response();
    }
    next.run(request).await
}

fn has_loopback_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(http::header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Some(host) = host.to_str().ok().and_then(|host| host.parse::<http::uri::Authority>().ok()) else {
        return false;
    };
    let host = host.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}
