//! The admin port: a listener of its own, on loopback by default. The client port serves nothing
//! of it.
//!
//! - `GET /healthz`: 200 while the process responds; without a token
//! - `GET /readyz`: 503 while draining, and after a failed write until one succeeds; without a
//!   token
//! - `GET /metrics`: OpenMetrics or Prometheus text, selected by `accept`
//! - `/api/…`: JSON, see [`api`]
//! - `GET /` and `/assets/…`: the static files of the dashboard; without a token
//!
//! Where `admin.token` is set, `/metrics` and `/api/…` require it. [`guard`] checks access.

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
use crate::telemetry::{self, CounterSnapshot, ExpositionFormat, Gauges, History, Metrics};
use crate::token::Token;

/// State shared by the handlers of the admin port.
pub struct AdminPort {
    /// `admin.token`
    pub token: Option<Token>,
    /// The stored tasks.
    pub store: Store,
    /// The queues, and deletes in queues and store.
    pub lookups: Arc<LookupService>,
    /// The configuration in force, without secrets.
    pub values: Vec<EffectiveValue>,
    /// Start of refrain, in seconds since the Unix epoch.
    pub started_at: i64,
    /// Start of refrain on the monotonic clock.
    pub started: Instant,
    /// Version of the SQLite library.
    pub sqlite_version: Option<String>,
    /// Shutdown of the client port.
    pub shutdown: Shutdown,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// Open connections of the client port.
    pub connections: Gauge,
    /// The last hour and day.
    pub history: Mutex<History>,
}

/// Readiness of refrain for traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Everything works.
    Ready,
    /// The store fails, for this reason. Clients are still served.
    Degraded(&'static str),
    /// refrain is shutting down.
    Draining,
}

impl Readiness {
    /// Returns the name that `/readyz` shows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded(_) => "degraded",
            Self::Draining => "draining",
        }
    }

    /// Returns why refrain is not ready.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Ready => None,
            Self::Degraded(reason) => Some(reason),
            Self::Draining => Some("refrain is shutting down"),
        }
    }
}

impl AdminPort {
    /// Records a history point every [`History::STEP`]. Does not return unless recording panics.
    pub async fn record_history(self: Arc<Self>) {
        let mut steps = tokio::time::interval(History::STEP);
        steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick is immediate, and ends no step.
        steps.tick().await;
        loop {
            steps.tick().await;
            run_blocking(&self, Self::end_history_step)
                .await
                .expect("recording a history point does not panic");
        }
    }

    fn end_history_step(&self) {
        let now = CounterSnapshot::of(&self.metrics, &self.gauges());
        self.history.lock().unwrap_or_else(PoisonError::into_inner).end_step(clock::unix_now(), now);
    }

    /// Reads all gauges. Takes long with many queues: see [`run_blocking`].
    fn gauges(&self) -> Gauges {
        Gauges {
            is_ready: self.readiness() == Readiness::Ready,
            started_at: self.started_at,
            connections: usize::try_from(self.connections.get()).unwrap_or(0),
            queues: self.lookups.batcher().totals(),
            store: self.store.stats(),
        }
    }

    fn readiness(&self) -> Readiness {
        if self.shutdown.is_draining() {
            return Readiness::Draining;
        }
        self.store.readiness().map_or_else(Readiness::Degraded, |()| Readiness::Ready)
    }

    /// Returns the time since the start in seconds, rounded to milliseconds.
    fn uptime_seconds(&self) -> f64 {
        (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
    }
}

/// Runs `read` on a thread of the blocking pool, since it locks and walks every queue.
async fn run_blocking<T: Send + 'static>(
    port: &Arc<AdminPort>,
    read: impl FnOnce(&AdminPort) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let port = Arc::clone(port);
    tokio::task::spawn_blocking(move || read(&port)).await.map_err(|_| ApiError::internal())
}

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
        .layer(middleware::from_fn_with_state(Arc::clone(&port), guard::require_loopback_host))
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
