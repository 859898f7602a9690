//! `GET /api/history`: the last hour or day, one array for each value.

use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde::Serialize;
use serde_json::{Value, json};

use super::parameters::{Parameters, invalid};
use crate::admin::state::AdminPort;
use crate::api_error::ApiError;
use crate::telemetry::{History, HistoryPoint};

pub(super) async fn history(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let parameters = Parameters::read(&uri, &["range"])?;
    let is_day = match parameters.get("range") {
        None | Some("1h") => false,
        Some("24h") => true,
        Some(_) => return Err(invalid("range", "1h or 24h")),
    };
    let points: Vec<HistoryPoint> = {
        let history = port.history.lock().unwrap_or_else(PoisonError::into_inner);
        if is_day { history.day().cloned().collect() } else { history.hour().cloned().collect() }
    };
    let (range, step) = if is_day { ("24h", History::LONG_STEP) } else { ("1h", History::STEP) };
    fn column<T: Serialize>(points: &[HistoryPoint], value: impl Fn(&HistoryPoint) -> T) -> Vec<T> {
        points.iter().map(value).collect()
    }
    let points = &points;
    Ok(Json(json!({
        "range": range,
        "step_seconds": step.as_secs(),
        "at": column(points, |point| point.at),
        "lookups": column(points, |point| point.counts.lookups),
        "ids": column(points, |point| point.counts.ids),
        "ids_hit": column(points, |point| point.counts.ids_hit),
        "calls": column(points, |point| point.counts.calls),
        "calls_saved": column(points, |point| point.counts.calls_saved),
        "upstream_rate_limited": column(points, |point| point.counts.upstream_rate_limited),
        "rate_limited_absorbed": column(points, |point| point.counts.rate_limited_absorbed),
        "rate_limited_passed_on": column(points, |point| point.counts.rate_limited_passed_on),
        "upstream_p50_seconds": column(points, |point| point.upstream_p50),
        "upstream_p99_seconds": column(points, |point| point.upstream_p99),
        "queued": column(points, |point| point.queued),
        "snapshots": column(points, |point| point.snapshots),
        "store_tasks": column(points, |point| point.store_tasks),
    })))
}
