//! The admin port: its own listener, loopback by default, nothing of it on the client port.
//!
//! - `GET /healthz`: the process answers; no token
//! - `GET /readyz`: 503 while draining and after a failed write until one succeeds, and says why; no token
//! - `GET /metrics`: OpenMetrics or Prometheus text, as `accept` asks for; with `admin.token` where one is set
//! - `/api/…`: JSON, see [`api`]; with `admin.token` where one is set
//! - `GET /` and `/assets/…`: the dashboard's shell, without data; no token
//!
//! Who may ask what stands in `guard`.

pub mod api;
mod dashboard;
mod guard;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use http::{HeaderMap, StatusCode, header};
use prometheus_client::metrics::gauge::Gauge;
use serde_json::json;

use crate::api_error::ApiError;
use crate::clock;
use crate::config::EffectiveValue;
use crate::lifecycle::Shutdown;
use crate::lookup::LookupService;
use crate::store::Store;
use crate::telemetry::{self, Format, Gauges, History, Metrics, Snapshot};
use crate::token::Token;

/// What the admin port's handlers use.
pub struct AdminPort {
    /// `admin.token`
    pub token: Option<Token>,
    /// What is stored, and readiness.
    pub store: Store,
    /// The lanes, and what forgets in lanes and store alike.
    pub lookups: Arc<LookupService>,
    /// The configuration in force, secrets hidden.
    pub values: Vec<EffectiveValue>,
    /// When refrain was started, in seconds since the Unix epoch.
    pub started_at: i64,
    /// The same by the monotonic clock.
    pub started: Instant,
    /// Version of the SQLite library.
    pub sqlite_version: Option<String>,
    /// Shutdown of the client port.
    pub shutdown: Shutdown,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Connections open on the client port.
    pub connections: Gauge,
    /// The last hour and day.
    pub history: Mutex<History>,
}

impl AdminPort {
    /// What is so at this moment. Many lanes take a while: see [`beside`].
    fn present(&self) -> Gauges {
        let (status, reason) = self.readiness();
        Gauges {
            status,
            reason,
            connections: usize::try_from(self.connections.get()).unwrap_or(0),
            queues: self.lookups.batcher().totals(),
            store: self.store.stats(),
        }
    }

    /// A step of the history ends now.
    fn end_step(&self) {
        let now = Snapshot::of(&self.metrics, &self.present());
        self.history.lock().unwrap_or_else(PoisonError::into_inner).end_step(clock::unix_now(), now);
    }

    /// Records a history point every [`History::STEP`]. Does not return unless recording panics.
    pub async fn record_history(self: Arc<Self>) {
        let mut steps = tokio::time::interval(History::STEP);
        steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick is at once, and ends no step.
        steps.tick().await;
        loop {
            steps.tick().await;
            beside(&self, Self::end_step).await.expect("recording a history point does not panic");
        }
    }

    /// A word for whether refrain is ready, and why not where it is not.
    pub fn readiness(&self) -> (&'static str, Option<&'static str>) {
        if self.shutdown.is_draining() {
            return ("draining", Some("refrain is shutting down"));
        }
        match self.store.readiness() {
            Ok(()) => ("ready", None),
            Err(reason) => ("degraded", Some(reason)),
        }
    }

    /// Seconds since the start.
    pub fn uptime_seconds(&self) -> f64 {
        (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
    }
}

/// On a thread that no client waits for.
async fn beside<T: Send + 'static>(
    port: &Arc<AdminPort>,
    look: impl FnOnce(&AdminPort) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let port = Arc::clone(port);
    tokio::task::spawn_blocking(move || look(&port)).await.map_err(|_| ApiError::internal())
}

/// The router of the admin port.
pub fn router(port: Arc<AdminPort>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .nest("/api", api::router())
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&port), guard::require_token))
        .layer(middleware::from_fn_with_state(Arc::clone(&port), guard::refuse_other_sites));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .method_not_allowed_fallback(method_not_allowed)
        .merge(guarded)
        .merge(dashboard::router())
        .fallback(|| async { ApiError::refused(StatusCode::NOT_FOUND, "There is nothing here.") })
        .layer(middleware::from_fn_with_state(Arc::clone(&port), guard::require_loopback_host))
        .layer(middleware::map_response(guard::harden))
        .with_state(port)
}

async fn method_not_allowed() -> ApiError {
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "This method is not for this path; see allow.")
}

async fn healthz() -> Response {
    status(StatusCode::OK, "ok", None)
}

async fn readyz(State(port): State<Arc<AdminPort>>) -> Response {
    match port.readiness() {
        (word, None) => status(StatusCode::OK, word, None),
        (word, reason) => status(StatusCode::SERVICE_UNAVAILABLE, word, reason),
    }
}

fn status(status: StatusCode, word: &str, reason: Option<&str>) -> Response {
    let body = match reason {
        Some(reason) => json!({"status": word, "reason": reason}),
        None => json!({"status": word}),
    };
    (status, Json(body)).into_response()
}

async fn metrics(State(port): State<Arc<AdminPort>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::of(&accept.join(","));
    let text =
        beside(&port, move |port| telemetry::expose(format, &port.metrics, port.present(), port.started_at));
    let text = text.await?.map_err(|_| ApiError::internal())?;
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    Ok((headers, text).into_response())
}
