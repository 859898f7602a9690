//! `GET /api/queues` and `GET /api/pending`: who waits for what.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde::Serialize;

use super::super::beside;
use super::{AdminPort, Parameters};
use crate::api_error::ApiError;
use crate::batcher::{PendingView, QueueView};
use crate::task::Summary;

/// Queues, and tasks, that an answer tells of.
const MOST: usize = 200;

#[derive(Serialize)]
pub(super) struct Queues {
    queues: Vec<QueueBody>,
    queues_omitted: usize,
}

#[derive(Serialize)]
struct QueueBody {
    service: String,
    token: String,
    queued: usize,
    in_flight: usize,
    waiters: usize,
    snapshots: usize,
    oldest_wait_seconds: Option<f64>,
    requests_per_second: f64,
    paused_seconds: f64,
    idle_seconds: f64,
}

impl From<QueueView> for QueueBody {
    fn from(lane: QueueView) -> Self {
        Self {
            service: lane.service.to_string(),
            token: lane.token.to_string(),
            queued: lane.wanted,
            in_flight: lane.under_way,
            waiters: lane.callers,
            snapshots: lane.remembered,
            oldest_wait_seconds: lane.oldest_wanted.map(|age| age.as_secs_f64()),
            requests_per_second: lane.requests_per_second,
            paused_seconds: lane.held.as_secs_f64(),
            idle_seconds: lane.idle.as_secs_f64(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Pending {
    pending: Vec<PendingBody>,
    pending_omitted: usize,
}

#[derive(Serialize)]
struct PendingBody {
    service: String,
    id: String,
    token: String,
    r#type: Option<String>,
    title: Option<String>,
    state: Option<String>,
    progress: Option<f64>,
    created_at: Option<f64>,
    snapshot_age_seconds: f64,
    waiters: usize,
    is_queued: bool,
}

impl From<PendingView> for PendingBody {
    fn from(task: PendingView) -> Self {
        let summary = Summary::of(&task.text);
        Self {
            service: task.service.to_string(),
            id: task.id.as_str().to_owned(),
            token: task.token.to_string(),
            r#type: summary.kind,
            title: summary.title,
            state: summary.state,
            progress: summary.progress,
            created_at: summary.created_at,
            snapshot_age_seconds: task.seen.as_secs_f64(),
            waiters: task.callers,
            is_queued: task.wanted,
        }
    }
}

pub(super) async fn queues(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Queues>, ApiError> {
    Parameters::none(&uri)?;
    let queues = beside(&port, |port| {
        let (queues, queues_omitted) = port.lookups.batcher().view(MOST);
        Queues { queues: queues.into_iter().map(QueueBody::from).collect(), queues_omitted }
    });
    Ok(Json(queues.await?))
}

pub(super) async fn pending(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Pending>, ApiError> {
    Parameters::none(&uri)?;
    let pending = beside(&port, |port| {
        let (pending, pending_omitted) = port.lookups.batcher().pending(MOST);
        Pending { pending: pending.into_iter().map(PendingBody::from).collect(), pending_omitted }
    });
    Ok(Json(pending.await?))
}
