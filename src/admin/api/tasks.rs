//! `/api/tasks`: list, show and delete stored tasks.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use http::{StatusCode, Uri};
use serde_json::{Value, json};

use super::parameters::{Parameters, SERVICE, invalid};
use crate::admin::state::AdminPort;
use crate::api_error::ApiError;
use crate::config;
use crate::store::{DeleteScope, ListCursor, ListedTask, RecordDetails, TaskFilter};
use crate::task::{Service, TaskId, TaskSummary};

/// Maximum number of tasks on a page.
const MAX_LIMIT: usize = 200;

/// Number of tasks on a page without `limit`.
const DEFAULT_LIMIT: usize = 50;

/// Syntax of ids, for error messages.
const ID: &str = "1 to 1024 bytes of UTF-8";

/// Returns a task of the list.
fn listed_task(task: &ListedTask) -> Value {
    with_summary(
        task.record.as_deref(),
        json!({
            "service": task.service.to_string(),
            "id": task.id.as_str(),
            "stored_at": task.stored_at,
            "record_bytes": task.size,
            "readers": task.readers,
        }),
    )
}

/// Returns one of the records of a task.
fn record(stored: RecordDetails) -> Value {
    let readers: Vec<String> = stored.readers.iter().map(ToString::to_string).collect();
    let mut body = with_summary(
        stored.record.as_deref(),
        json!({
            "stored_at": stored.stored_at,
            "record_bytes": stored.size,
            "readers": readers,
            "is_corrupt": stored.is_damaged,
        }),
    );
    // Only UTF-8 is ever stored.
    body["record"] = stored.record.and_then(|record| String::from_utf8(record.into()).ok()).into();
    body
}

/// Adds the summary of a record to a body.
fn with_summary(record: Option<&[u8]>, mut body: Value) -> Value {
    let summary = record.map(TaskSummary::parse).unwrap_or_default();
    let links = summary.links.iter().map(|link| json!({"kind": link.kind.as_str(), "url": link.url}));
    body["type"] = summary.kind.into();
    body["title"] = summary.title.into();
    body["succeeded"] = summary.succeeded.into();
    body["error"] = summary.error.into();
    body["created_at"] = summary.created_at.into();
    body["finished_at"] = summary.finished_at.into();
    body["links"] = links.collect();
    body
}

pub(super) async fn list(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let known = ["service", "id", "title", "stored_after", "stored_before", "limit", "cursor"];
    let parameters = Parameters::read(&uri, &known)?;
    let time = |name| parameters.parsed(name, |text| text.parse().ok(), "whole Unix seconds");
    let non_empty = |name| parameters.get(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let filter = TaskFilter {
        service: parameters.parsed("service", Service::parse, SERVICE)?,
        id_prefix: non_empty("id"),
        title: non_empty("title"),
        stored_after: time("stored_after")?,
        stored_before: time("stored_before")?,
    };
    let limit = |text: &str| text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    let limit = parameters.parsed("limit", limit, "1 to 200")?.unwrap_or(DEFAULT_LIMIT);
    let cursor = |text: &str| ListCursor::parse(text).filter(|cursor| filter.accepts(cursor));
    let cursor = parameters.parsed("cursor", cursor, "next of the previous page, with the same filters")?;
    let page = port.store.list(&filter, cursor, limit).await.map_err(|_| unreadable())?;
    let tasks: Vec<Value> = page.tasks.iter().map(listed_task).collect();
    Ok(Json(json!({"tasks": tasks, "next": page.next.map(|next| next.to_string())})))
}

pub(super) async fn show(
    State(port): State<Arc<AdminPort>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    Parameters::none(&uri)?;
    let (service, id) = task_in(path)?;
    let records = port.store.records(&service, &id).await.map_err(|_| unreadable())?;
    if records.is_empty() {
        return Err(ApiError::refused(StatusCode::NOT_FOUND, "This task is not stored."));
    }
    let records: Vec<Value> = records.into_iter().map(record).collect();
    Ok(Json(json!({"service": service.to_string(), "id": id.as_str(), "records": records})))
}

pub(super) async fn delete_one(
    State(port): State<Arc<AdminPort>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    Parameters::none(&uri)?;
    let (service, id) = task_in(path)?;
    delete(port, DeleteScope::Task { service, id }).await
}

pub(super) async fn delete_many(
    State(port): State<Arc<AdminPort>>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let parameters = Parameters::read(&uri, &["service", "older_than"])?;
    let service = parameters.parsed("service", Service::parse, SERVICE)?;
    let age =
        parameters.parsed("older_than", config::parse_duration, "a duration such as 45s, 12h or 30d")?;
    let scope = match (service, age) {
        (Some(service), None) => DeleteScope::Service(service),
        (None, Some(age)) => DeleteScope::OlderThan(age),
        _ => return Err(ApiError::bad_request("Exactly one of service and older_than is required.")),
    };
    delete(port, scope).await
}

/// Deletes in a task of its own, so that a client that disconnects does not stop it.
async fn delete(port: Arc<AdminPort>, scope: DeleteScope) -> Result<Json<Value>, ApiError> {
    let deletion = tokio::spawn(async move { port.lookups.delete_by_operator(scope).await });
    match deletion.await.map_err(|_| ApiError::internal())? {
        Ok(deleted) => Ok(Json(json!({"deleted": deleted}))),
        Err(error) => {
            tracing::warn!(%error, "deleting tasks failed");
            Err(ApiError::unavailable(
                "The task store cannot be written. The tasks are hidden from all clients now, and are deleted as soon \
                 as the store can be written.",
            ))
        }
    }
}

/// Returns the service and id in the path.
fn task_in(path: Result<Path<(String, String)>, PathRejection>) -> Result<(Service, TaskId), ApiError> {
    let Ok(Path((service, id))) = path else { return Err(invalid("id", ID)) };
    let service = Service::parse(&service).ok_or_else(|| invalid("service", SERVICE))?;
    let id = TaskId::parse(&id).ok_or_else(|| invalid("id", ID))?;
    Ok((service, id))
}

/// The store has counted and logged the cause.
fn unreadable() -> ApiError {
    ApiError::unavailable("The task store cannot be read.")
}
