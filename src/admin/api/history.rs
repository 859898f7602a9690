//! `GET /api/history`: the last hour or day, one array a column.

use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::AdminPort;
use super::parameters::{Parameters, wrong};
use crate::api_error::ApiError;
use crate::telemetry::{History, Point};

pub(super) async fn history(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let parameters = Parameters::read(&uri, &["range"])?;
    let (range, step) = match parameters.text("range") {
        None | Some("1h") => ("1h", History::STEP),
        Some("24h") => ("24h", History::LONG_STEP),
        Some(_) => return Err(wrong("range", "1h or 24h")),
    };
    let points: Vec<Point> = {
        let history = port.history.lock().unwrap_or_else(PoisonError::into_inner);
        if step == History::STEP {
            history.hour().cloned().collect()
        } else {
            history.day().cloned().collect()
        }
    };
    fn column<T: Serialize>(points: &[Point], of: impl Fn(&Point) -> T) -> Vec<T> {
        points.iter().map(of).collect()
    }
    let points = &points;
    Ok(Json(json!({
        "range": range,
        "step_seconds": step.as_secs(),
        "at": column(points, |point| point.at),
        "lookups": column(points, |point| point.lookups),
        "ids": column(points, |point| point.ids),
        "ids_hit": column(points, |point| point.ids_hit),
        "calls": column(points, |point| point.calls),
        "calls_saved": column(points, |point| point.calls_saved),
        "upstream_rate_limited": column(points, |point| point.upstream_rate_limited),
        "rate_limited_absorbed": column(points, |point| point.rate_limited_absorbed),
        "rate_limited_passed_on": column(points, |point| point.rate_limited_passed_on),
        "upstream_p50_seconds": column(points, |point| point.upstream_p50),
        "upstream_p99_seconds": column(points, |point| point.upstream_p99),
        "queued": column(points, |point| point.queued),
        "snapshots": column(points, |point| point.snapshots),
        "store_tasks": column(points, |point| point.store_tasks),
    })))
}
