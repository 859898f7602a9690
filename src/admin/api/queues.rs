//! `GET /api/queues` and `GET /api/pending`: the queues, and the tasks that are not final.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde::Serialize;

use super::parameters::Parameters;
use crate::admin::state::{AdminPort, run_blocking};
use crate::api_error::ApiError;
use crate::batcher::{PendingView, QueueView};
use crate::task::TaskSummary;

/// Maximum number of queues, and of tasks, in a response.
const MAX_LISTED: usize = 200;

#[derive(Serialize)]
pub(super) struct QueuesBody {
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
    fn from(queue: QueueView) -> Self {
        Self {
            service: queue.service.to_string(),
            token: queue.token.to_string(),
            queued: queue.queued,
            in_flight: queue.in_flight,
            waiters: queue.waiters,
            snapshots: queue.snapshots,
            oldest_wait_seconds: queue.longest_queued.map(|age| age.as_secs_f64()),
            requests_per_second: queue.requests_per_second,
            paused_seconds: queue.paused_for.as_secs_f64(),
            idle_seconds: queue.idle.as_secs_f64(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct PendingListBody {
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
        let summary = TaskSummary::parse(&task.record);
        Self {
            service: task.service.to_string(),
            id: task.id.as_str().to_owned(),
            token: task.token.to_string(),
            r#type: summary.kind,
            title: summary.title,
            state: summary.state,
            progress: summary.progress,
            created_at: summary.created_at,
            snapshot_age_seconds: task.age.as_secs_f64(),
            waiters: task.waiters,
            is_queued: task.is_queued,
        }
    }
}

pub(super) async fn queues(
    State(port): State<Arc<AdminPort>>,
    uri: Uri,
) -> Result<Json<QueuesBody>, ApiError> {
    Parameters::none(&uri)?;
    let queues = run_blocking(&port, |port| {
        let queues = port.lookups.batcher().queues(MAX_LISTED);
        QueuesBody {
            queues: queues.items.into_iter().map(QueueBody::from).collect(),
            queues_omitted: queues.omitted,
        }
    });
    Ok(Json(queues.await?))
}

pub(super) async fn pending(
    State(port): State<Arc<AdminPort>>,
    uri: Uri,
) -> Result<Json<PendingListBody>, ApiError> {
    Parameters::none(&uri)?;
    let pending = run_blocking(&port, |port| {
        let pending = port.lookups.batcher().pending_tasks(MAX_LISTED);
        PendingListBody {
            pending: pending.items.into_iter().map(PendingBody::from).collect(),
            pending_omitted: pending.omitted,
        }
    });
    Ok(Json(pending.await?))
}
