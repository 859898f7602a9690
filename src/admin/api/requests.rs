//! `GET /api/requests`: the last requests of the client port.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde_json::{Value, json};

use super::parameters::{Parameters, SERVICE};
use crate::admin::state::AdminPort;
use crate::api_error::ApiError;
use crate::task::Service;
use crate::telemetry::{Label, Metrics, RecentRequest, RecentRequests, RequestKind, RequestOutcome};

/// Most requests in a response: all that are kept.
const MAX_LIMIT: usize = RequestKind::ALL.len() * RecentRequests::KEPT_PER_KIND;

/// Number of requests without `limit`.
const DEFAULT_LIMIT: usize = 100;

/// Returns one request.
fn request(metrics: &Metrics, request: &RecentRequest) -> Value {
    let ids = request.ids.map(
        |ids| json!({"asked": ids.asked, "hits": ids.hits, "pending": ids.pending, "fetched": ids.fetched}),
    );
    let service = metrics.service_name(request.service);
    json!({
        "request_id": request.request_id.as_str(),
        "ended_at": request.ended_at_micros as f64 / 1e6,
        "duration_seconds": request.took.as_secs_f64(),
        "kind": request.kind().as_str(),
        "method": request.method,
        "service": service,
        "path": request.path.clone().unwrap_or_else(|| format!("/{service}/tasks")),
        "action": request.action.as_str(),
        "outcome": request.outcome.as_str(),
        "status": request.status,
        "error": request.error,
        "cause": request.cause,
        "ids": ids,
        "token": request.token.map(|token| token.to_string()),
        "client": metrics.client_name(request.client),
    })
}

pub(super) async fn requests(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let parameters = Parameters::read(&uri, &["kind", "outcome", "service", "request_id", "limit"])?;
    let kind = parameters.parsed("kind", label::<RequestKind>, &one_of::<RequestKind>())?;
    let outcome = parameters.parsed("outcome", label::<RequestOutcome>, &one_of::<RequestOutcome>())?;
    let service = parameters.parsed("service", Service::parse, SERVICE)?;
    let id = parameters.get("request_id").unwrap_or_default();
    let limit = |text: &str| text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    let must_be = format!("1 to {MAX_LIMIT}");
    let limit = parameters.parsed("limit", limit, &must_be)?.unwrap_or(DEFAULT_LIMIT);

    let metrics = &port.metrics;
    let found: Vec<RecentRequest> = metrics
        .recent_requests
        .latest()
        .into_iter()
        .filter(|request| kind.is_none_or(|kind| request.kind() == kind))
        .filter(|request| outcome.is_none_or(|outcome| request.outcome == outcome))
        .filter(|request| {
            let name = metrics.service_name(request.service);
            service.as_ref().is_none_or(|service| service.as_str() == name)
        })
        .filter(|request| request.request_id.as_str().starts_with(id))
        .collect();
    let shown: Vec<Value> = found.iter().take(limit).map(|found| request(metrics, found)).collect();
    Ok(Json(json!({
        "requests": shown,
        "requests_omitted": found.len().saturating_sub(limit),
        "kept_per_kind": RecentRequests::KEPT_PER_KIND,
    })))
}

fn label<L: Label>(text: &str) -> Option<L> {
    L::ALL.iter().copied().find(|label| label.as_str() == text)
}

fn one_of<L: Label>() -> String {
    let values: Vec<&str> = L::ALL.iter().map(|label| label.as_str()).collect();
    format!("one of {}", values.join(", "))
}
