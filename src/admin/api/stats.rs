//! `GET /api/stats`: counters since the start, and gauges.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde_json::{Map, Value, json};

use super::parameters::Parameters;
use crate::admin::state::{AdminPort, run_blocking};
use crate::api_error::ApiError;
use crate::clock;
use crate::telemetry::{
    CallStatus, CounterVec, Gauges, HistogramCounts, Label, Metrics, RateLimitSource, RequestOutcome,
};

/// Outcomes whose latency depends on refrain or the upstream only.
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
    let readiness = port.readiness();
    let gauges = run_blocking(&port, AdminPort::gauges).await?;
    Ok(Json(json!({
        "started_at": port.started_at,
        "uptime_seconds": port.uptime_seconds(),
        "ready": {"status": readiness.as_str(), "reason": readiness.reason()},
        "connections": gauges.connections,
        "requests": requests(metrics),
        "ids": counts(&metrics.ids),
        "latency": WITH_LATENCY
            .iter()
            .map(|outcome| (outcome.as_str().to_owned(), metrics.request_duration(*outcome)))
            .filter(|(_, counts)| counts.count() > 0)
            .map(|(outcome, counts)| (outcome, latency(&counts)))
            .collect::<Map<_, _>>(),
        "passed_through": counts(&metrics.passed_through),
        "upstream": upstream(&port, &gauges),
        "queues": queues(&gauges),
        "store": store(metrics, &gauges),
        "services": services(&port),
        "comparison": *port.comparison.borrow(),
    })))
}

fn requests(metrics: &Metrics) -> Value {
    let count = |outcome| metrics.requests.sum(|labels| labels.outcome == outcome);
    let by_outcome: Map<_, _> = RequestOutcome::ALL
        .iter()
        .map(|outcome| (outcome.as_str().to_owned(), json!(count(*outcome))))
        .collect();
    json!({"total": metrics.requests.total(), "by_outcome": by_outcome})
}

fn counts<L: Label>(counters: &CounterVec<L>) -> Value {
    let counts = counters.iter().map(|(label, counter)| (label.as_str().to_owned(), json!(counter.get())));
    counts.collect::<Map<_, _>>().into()
}

fn latency(counts: &HistogramCounts) -> Value {
    json!({
        "count": counts.count(),
        "sum_seconds": counts.sum(),
        "p50_seconds": counts.quantile(0.5),
        "p99_seconds": counts.quantile(0.99),
    })
}

fn upstream(port: &AdminPort, gauges: &Gauges) -> Value {
    let metrics = &port.metrics;
    let outage = port.lookups.batcher().outage().map(|outage| {
        json!({
            "error": outage.error.as_str(),
            "cause": outage.error.cause(),
            "began_at": began_at(outage.lasts_for),
        })
    });
    let by_status: Map<_, _> = CallStatus::ALL
        .iter()
        .map(|status| (*status, metrics.upstream_calls.sum(|labels| labels.status == *status)))
        .filter(|(_, count)| *count > 0)
        .map(|(status, count)| (status.as_str().to_owned(), json!(count)))
        .collect();
    json!({
        "host": port.upstream_host,
        "calls": metrics.upstream_calls.total(),
        "by_status": by_status,
        "calls_saved": metrics.upstream_calls_saved.get(),
        "rate_limited": {
            "received": metrics.upstream_rate_limited.get(),
            "absorbed": metrics.rate_limited_absorbed.get(),
            "passed_on": metrics.rate_limited_lookups(),
            "passed_through": metrics.rate_limited_passed_on.get(RateLimitSource::PassedThrough),
        },
        "latency": latency(&metrics.upstream_call_duration()),
        "is_down": gauges.queues.is_upstream_down,
        "outage": outage,
    })
}

/// Returns the Unix seconds of a moment, rounded so that they are the same at each reading.
fn began_at(ago: Duration) -> i64 {
    let seconds = (i128::from(clock::unix_now_micros()) - ago.as_micros() as i128 + 500_000) / 1_000_000;
    i64::try_from(seconds).unwrap_or(0)
}

fn queues(gauges: &Gauges) -> Value {
    let queues = &gauges.queues;
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

fn services(port: &AdminPort) -> Value {
    let interpreted: Vec<Value> = port
        .lookups
        .batcher()
        .services()
        .iter()
        .map(|view| {
            json!({
                "service": view.service.as_str(),
                "class": view.class,
                "max_batch": view.max_batch,
                "has_learnt_limit": view.has_learnt_limit,
            })
        })
        .collect();
    let passed_through: Vec<Value> = port
        .metrics
        .uninterpreted
        .counts()
        .iter()
        .map(|(service, requests)| json!({"service": service, "requests": requests}))
        .collect();
    json!({"interpreted": interpreted, "passed_through": passed_through})
}

fn store(metrics: &Metrics, gauges: &Gauges) -> Value {
    let store = &gauges.store;
    json!({
        "tasks": store.tasks,
        "record_bytes": store.bytes,
        "file_bytes": store.database_bytes + store.wal_bytes,
        "max_bytes": store.max_bytes,
        "errors": counts(&metrics.store_errors),
        "memory": {
            "tasks": store.memory_tasks,
            "used_bytes": store.memory_bytes,
            "max_bytes": store.memory_max_bytes,
        },
    })
}
