//! `GET /api/stats`: counters since the start, and the present.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde_json::{Map, Value, json};

use super::super::{AdminPort, beside};
use super::parameters::Parameters;
use crate::api_error::ApiError;
use crate::telemetry::{CallStatus, CounterVec, Gauges, HistogramCounts, Label, Metrics, RequestOutcome};

/// Outcomes whose latency says something about refrain or the upstream.
const WITH_LATENCY: [RequestOutcome; 5] = [
    RequestOutcome::Hit,
    RequestOutcome::Pending,
    RequestOutcome::Partial,
    RequestOutcome::Miss,
    RequestOutcome::Bypass,
];

pub(super) async fn stats(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    Parameters::none(&uri)?;
    let metrics = &port.metrics;
    let present = beside(&port, AdminPort::present).await?;
    Ok(Json(json!({
        "started_at": port.started_at,
        "uptime_seconds": port.uptime_seconds(),
        "ready": {"status": present.status, "reason": present.reason},
        "connections": present.connections,
        "requests": requests(metrics),
        "ids": tally(&metrics.ids),
        "latency": WITH_LATENCY
            .iter()
            .map(|outcome| (outcome.as_str().to_owned(), metrics.request_seconds(*outcome)))
            .filter(|(_, counts)| counts.count() > 0)
            .map(|(outcome, counts)| (outcome, latency(&counts)))
            .collect::<Map<_, _>>(),
        "upstream": upstream(metrics, &present),
        "queues": queues(&present),
        "store": store(metrics, &present),
    })))
}

fn requests(metrics: &Metrics) -> Value {
    let counts = RequestOutcome::ALL.iter().map(|outcome| (*outcome, metrics.requests_by_outcome(*outcome)));
    let by_outcome: Map<_, _> =
        counts.map(|(outcome, count)| (outcome.as_str().to_owned(), json!(count))).collect();
    let total: u64 = by_outcome.values().filter_map(Value::as_u64).sum();
    json!({"total": total, "by_outcome": by_outcome})
}

fn tally<L: Label>(tally: &CounterVec<L>) -> Value {
    tally.all().map(|(label, count)| (label.as_str().to_owned(), json!(count))).collect::<Map<_, _>>().into()
}

fn latency(counts: &HistogramCounts) -> Value {
    json!({
        "count": counts.count(),
        "sum_seconds": counts.sum(),
        "p50_seconds": counts.quantile(0.5),
        "p99_seconds": counts.quantile(0.99),
    })
}

fn upstream(metrics: &Metrics, present: &Gauges) -> Value {
    let counts = CallStatus::ALL.iter().map(|status| (*status, metrics.calls_by_status(*status)));
    let by_status: Map<_, _> = counts
        .filter(|(_, count)| *count > 0)
        .map(|(status, count)| (status.as_str().to_owned(), json!(count)))
        .collect();
    json!({
        "calls": metrics.calls_made(),
        "by_status": by_status,
        "calls_saved": metrics.calls_saved(),
        "rate_limited": {
            "received": metrics.upstream_rate_limited(),
            "absorbed": metrics.rate_limited_absorbed(),
            "passed_on": metrics.lookups_rate_limited(),
        },
        "latency": latency(&metrics.all_call_seconds()),
        "is_down": present.queues.is_upstream_down,
    })
}

fn queues(present: &Gauges) -> Value {
    let queues = &present.queues;
    json!({
        "queues": queues.queues,
        "tokens": queues.tokens,
        "queued": queues.queued,
        "in_flight": queues.in_flight,
        "waiters": queues.waiters,
        "snapshots": queues.snapshots,
        "snapshot_bytes": queues.snapshot_bytes,
        "oldest_wait_seconds": queues.oldest_queued.as_secs_f64(),
    })
}

fn store(metrics: &Metrics, present: &Gauges) -> Value {
    let store = &present.store;
    json!({
        "tasks": store.tasks,
        "record_bytes": store.bytes,
        "file_bytes": store.database_bytes + store.wal_bytes,
        "max_bytes": store.max_bytes,
        "errors": tally(&metrics.store_errors),
        "memory": {
            "tasks": store.memory_tasks,
            "used_bytes": store.memory_bytes,
            "max_bytes": store.memory_max_bytes,
        },
    })
}
