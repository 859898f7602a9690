//! `GET /api/queues` and `GET /api/pending`: the queues, and the tasks that are not final.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde_json::{Value, json};

use super::parameters::Parameters;
use crate::admin::state::{AdminPort, run_blocking};
use crate::api_error::ApiError;
use crate::batcher::{PendingView, QueueView};
use crate::task::TaskSummary;

/// Maximum number of queues, and of tasks, in a response.
const MAX_LISTED: usize = 200;

/// Returns one queue.
fn queue(port: &AdminPort, queue: &QueueView) -> Value {
    let clients: Vec<&str> =
        queue.clients.iter().filter_map(|client| port.metrics.client_name(*client)).collect();
    json!({
        "service": queue.service.to_string(),
        "token": queue.token.to_string(),
        "clients": clients,
        "queued": queue.queued,
        "in_flight": queue.in_flight,
        "waiters": queue.waiters,
        "snapshots": queue.snapshots,
        "estimate_seconds": queue.estimate.as_secs_f64(),
        "oldest_wait_seconds": queue.longest_queued.map(|age| age.as_secs_f64()),
        "requests_per_second": queue.requests_per_second,
        "paused_seconds": queue.paused_for.as_secs_f64(),
        "idle_seconds": queue.idle.as_secs_f64(),
    })
}

/// Returns one pending task.
fn pending_task(port: &AdminPort, task: &PendingView) -> Value {
    let summary = TaskSummary::parse(&task.record);
    json!({
        "service": task.service.to_string(),
        "id": task.id.as_str(),
        "token": task.token.to_string(),
        "client": port.metrics.client_name(task.client),
        "type": summary.kind,
        "title": summary.title,
        "state": summary.state,
        "progress": summary.progress,
        "created_at": summary.created_at,
        "snapshot_age_seconds": task.age.as_secs_f64(),
        "expected_remaining_seconds": task.expected_remaining.map(|remaining| remaining.as_secs_f64()),
        "waiters": task.waiters,
        "is_queued": task.is_queued,
    })
}

pub(super) async fn queues(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    Parameters::none(&uri)?;
    let body = run_blocking(&port, |port| {
        let queues = port.lookups.batcher().queues(MAX_LISTED);
        let items: Vec<Value> = queues.items.iter().map(|view| queue(port, view)).collect();
        json!({"queues": items, "queues_omitted": queues.omitted})
    });
    Ok(Json(body.await?))
}

pub(super) async fn pending(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    Parameters::none(&uri)?;
    let body = run_blocking(&port, |port| {
        let tasks = port.lookups.batcher().pending_tasks(MAX_LISTED);
        let items: Vec<Value> = tasks.items.iter().map(|view| pending_task(port, view)).collect();
        json!({"pending": items, "pending_omitted": tasks.omitted})
    });
    Ok(Json(body.await?))
}
