//! The admin port: its own listener, loopback by default, nothing of it on the client port.
//!
//! - `GET /healthz`: the process answers; no token
//! - `GET /readyz`: 503 while draining and after a failed write until one succeeds, and says why; no token
//! - `GET /metrics`: OpenMetrics or Prometheus text, as `accept` asks for; with `admin.token` where one is set
//! - `GET /api/…`: JSON, as `docs/api.md` has it; likewise
//!
//! While no token is set, `Host` must be a loopback name or address, so that a web page cannot reach the port by a name
//! of its own (DNS rebinding).

mod api;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, StatusCode, header};
use prometheus_client::metrics::gauge::Gauge;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::authorization;
use crate::api_error::ApiError;
use crate::observe::{self, Format, History, Metrics, Present, Snapshot};
use crate::retrieve::Retriever;
use crate::store::Store;
use crate::task::{Token, clock};

/// What the admin port's handlers use.
pub struct AdminPort {
    /// `admin.token`
    pub token: Option<Token>,
    /// For readiness.
    pub store: Store,
    /// Cancelled when the first signal came.
    pub draining: CancellationToken,
    /// For the lanes at present.
    pub retriever: Arc<Retriever>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Connections open on the client port.
    pub connections: Gauge,
    /// When refrain started, in seconds since the Unix epoch.
    pub started_at: i64,
    /// The same by the monotonic clock.
    pub started: Instant,
    /// The last hour and day.
    pub history: Mutex<History>,
}

impl AdminPort {
    /// What is so at this moment.
    fn present(&self) -> Present {
        let (status, reason) = self.readiness();
        Present {
            status,
            reason,
            connections: usize::try_from(self.connections.get()).unwrap_or(0),
            lanes: self.retriever.lanes().totals(),
            store: self.store.stats(),
        }
    }

    /// The word for readiness, and why it is not `ready`.
    fn readiness(&self) -> (&'static str, Option<&'static str>) {
        if self.draining.is_cancelled() {
            return ("draining", Some("refrain is shutting down"));
        }
        match self.store.readiness() {
            Ok(()) => ("ready", None),
            Err(reason) => ("degraded", Some(reason)),
        }
    }

    /// A step of the history ends now.
    fn end_step(&self) {
        let now = Snapshot::of(&self.metrics, &self.present());
        self.history.lock().unwrap_or_else(PoisonError::into_inner).end_step(clock::unix_now(), now);
    }

    /// Keeps the history up, until `end`.
    pub async fn record_history(&self, end: &CancellationToken) {
        let mut steps = tokio::time::interval(History::STEP);
        steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick is at once, and ends no step.
        steps.tick().await;
        while end.run_until_cancelled(steps.tick()).await.is_some() {
            self.end_step();
        }
    }
}

/// The router of the admin port.
pub fn router(port: Arc<AdminPort>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .merge(api::router())
        .layer(middleware::from_fn_with_state(Arc::clone(&port), require_token));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .merge(guarded)
        .fallback(|| async { ApiError::refused(StatusCode::NOT_FOUND, "There is nothing here.") })
        .layer(middleware::from_fn_with_state(Arc::clone(&port), require_loopback_host))
        .with_state(port)
}

async fn healthz() -> Response {
    status(StatusCode::OK, "ok", None)
}

async fn readyz(State(port): State<Arc<AdminPort>>) -> Response {
    let (word, reason) = port.readiness();
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    status(code, word, reason)
}

fn status(status: StatusCode, word: &str, reason: Option<&str>) -> Response {
    let body = match reason {
        Some(reason) => json!({"status": word, "reason": reason}),
        None => json!({"status": word}),
    };
    (status, [(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

async fn metrics(State(port): State<Arc<AdminPort>>, headers: HeaderMap) -> Response {
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::of(&accept.join(","));
    match observe::expose(format, &port.metrics, port.present(), port.started_at) {
        Ok(text) => {
            let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
            (headers, text).into_response()
        }
        Err(_) => ApiError::internal().into_response(),
    }
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
