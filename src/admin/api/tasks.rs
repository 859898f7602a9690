//! `/api/tasks`: listing, one task, forget.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use http::{StatusCode, Uri};
use serde::Serialize;

use super::parameters::wrong;
use super::{AdminPort, Parameters};
use crate::api_error::ApiError;
use crate::config;
use crate::store::{DeleteScope, ListCursor, ListedTask, RecordDetails, TaskFilter};
use crate::task::{Link, Service, TaskId, TaskSummary};

/// Tasks of a page, at the most and where nobody says.
const MOST: usize = 200;
const USUAL: usize = 50;

/// What services and ids must be.
const SERVICE: &str = "1 to 64 letters, digits, - or _";
const ID: &str = "1 to 1024 bytes of UTF-8";

#[derive(Serialize)]
pub(super) struct List {
    tasks: Vec<Listed>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    service: String,
    id: String,
    stored_at: i64,
    record_bytes: u64,
    readers: u64,
    #[serde(flatten)]
    summary: SummaryBody,
}

/// What a task's text tells.
#[derive(Serialize)]
struct SummaryBody {
    r#type: Option<String>,
    title: Option<String>,
    succeeded: Option<bool>,
    error: Option<String>,
    created_at: Option<f64>,
    finished_at: Option<f64>,
    links: Vec<LinkBody>,
}

#[derive(Serialize)]
struct LinkBody {
    kind: &'static str,
    url: String,
}

#[derive(Serialize)]
pub(super) struct Task {
    service: String,
    id: String,
    records: Vec<StoredRecord>,
}

#[derive(Serialize)]
struct StoredRecord {
    stored_at: i64,
    record_bytes: u64,
    readers: Vec<String>,
    is_corrupt: bool,
    #[serde(flatten)]
    summary: SummaryBody,
    record: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Deleted {
    deleted: u64,
}

impl From<ListedTask> for Listed {
    fn from(seen: ListedTask) -> Self {
        Self {
            service: seen.service.to_string(),
            id: seen.id.as_str().to_owned(),
            stored_at: seen.stored_at,
            record_bytes: seen.size,
            readers: seen.readers,
            summary: SummaryBody::of(seen.record.as_deref()),
        }
    }
}

impl From<RecordDetails> for StoredRecord {
    fn from(stored: RecordDetails) -> Self {
        Self {
            stored_at: stored.stored_at,
            record_bytes: stored.size,
            readers: stored.readers.iter().map(ToString::to_string).collect(),
            is_corrupt: stored.is_damaged,
            summary: SummaryBody::of(stored.record.as_deref()),
            // Only UTF-8 is ever stored.
            record: stored.record.and_then(|text| String::from_utf8(text.into()).ok()),
        }
    }
}

impl SummaryBody {
    fn of(text: Option<&[u8]>) -> Self {
        let summary = text.map(TaskSummary::parse).unwrap_or_default();
        let link = |Link { kind, url }| LinkBody { kind: kind.as_str(), url };
        Self {
            r#type: summary.kind,
            title: summary.title,
            succeeded: summary.succeeded,
            error: summary.error,
            created_at: summary.created_at,
            finished_at: summary.finished_at,
            links: summary.links.into_iter().map(link).collect(),
        }
    }
}

pub(super) async fn list(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<List>, ApiError> {
    let known = ["service", "id", "title", "stored_after", "stored_before", "limit", "cursor"];
    let parameters = Parameters::read(&uri, &known)?;
    let time = |name| parameters.parsed(name, |text| text.parse().ok(), "whole Unix seconds");
    let given = |name| parameters.text(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let filter = TaskFilter {
        service: parameters.parsed("service", Service::parse, SERVICE)?,
        id_prefix: given("id"),
        title: given("title"),
        stored_after: time("stored_after")?,
        stored_before: time("stored_before")?,
    };
    let limit = |text: &str| text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
    let limit = parameters.parsed("limit", limit, "1 to 200")?.unwrap_or(USUAL);
    let cursor = |text: &str| ListCursor::parse(text).filter(|cursor| filter.accepts(cursor));
    let cursor = parameters.parsed("cursor", cursor, "next of the page before, with the same filters")?;
    let page = port.store.list(&filter, cursor, limit).await.map_err(|_| unreadable())?;
    Ok(Json(List {
        tasks: page.tasks.into_iter().map(Listed::from).collect(),
        next: page.next.map(|next| next.to_string()),
    }))
}

pub(super) async fn show(
    State(port): State<Arc<AdminPort>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Json<Task>, ApiError> {
    Parameters::none(&uri)?;
    let (service, id) = named(path)?;
    let texts = port.store.records(&service, &id).await.map_err(|_| unreadable())?;
    if texts.is_empty() {
        return Err(ApiError::refused(StatusCode::NOT_FOUND, "This task is not stored."));
    }
    Ok(Json(Task {
        service: service.to_string(),
        id: id.as_str().to_owned(),
        records: texts.into_iter().map(StoredRecord::from).collect(),
    }))
}

pub(super) async fn delete_one(
    State(port): State<Arc<AdminPort>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<Json<Deleted>, ApiError> {
    Parameters::none(&uri)?;
    let (service, id) = named(path)?;
    delete(port, DeleteScope::Task { service, id }).await
}

pub(super) async fn delete_many(
    State(port): State<Arc<AdminPort>>,
    uri: Uri,
) -> Result<Json<Deleted>, ApiError> {
    let parameters = Parameters::read(&uri, &["service", "older_than"])?;
    let service = parameters.parsed("service", Service::parse, SERVICE)?;
    let age =
        parameters.parsed("older_than", config::parse_duration, "a duration such as 45s, 12h or 30d")?;
    let scope = match (service, age) {
        (Some(service), None) => DeleteScope::Service(service),
        (None, Some(age)) => DeleteScope::OlderThan(age),
        _ => return Err(ApiError::bad_request("It takes exactly one of service and older_than.")),
    };
    delete(port, scope).await
}

/// In a task of its own: what an operator asked to be forgotten is, whether somebody still waits for the answer or not.
async fn delete(port: Arc<AdminPort>, scope: DeleteScope) -> Result<Json<Deleted>, ApiError> {
    let deletion = tokio::spawn(async move { port.lookups.forget_by_operator(scope).await });
    match deletion.await.map_err(|_| ApiError::internal())? {
        Ok(deleted) => Ok(Json(Deleted { deleted })),
        Err(error) => {
            tracing::warn!(%error, "forget tasks");
            Err(ApiError::unavailable(
                "The task store could not be written. What was to be forgotten is shown to nobody meanwhile, and is \
                 forgotten once it can be written.",
            ))
        }
    }
}

/// The task of the path.
fn named(path: Result<Path<(String, String)>, PathRejection>) -> Result<(Service, TaskId), ApiError> {
    let Ok(Path((service, id))) = path else { return Err(wrong("id", ID)) };
    let service = Service::parse(&service).ok_or_else(|| wrong("service", SERVICE))?;
    let id = TaskId::parse(&id).ok_or_else(|| wrong("id", ID))?;
    Ok((service, id))
}

/// The store counts and logs why.
fn unreadable() -> ApiError {
    ApiError::unavailable("The task store cannot be read at the moment.")
}
