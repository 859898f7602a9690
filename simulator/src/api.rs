//! Task API and the calls that start paid work: the response if no rule applies.
//!
//! [`admit`] checks a call when it arrives (path, token, rate), [`perform`] executes it when the
//! response is due.

use std::time::Instant;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::calls::RecordedCall;
use super::response::{BatchItem, Response};
use super::state::SharedState;
use super::tasks::{Filter, NewTask, Task, Tasks};
use super::{locked, task_json};

/// Kinds of paid work, started with `POST /{service}/{kind}`.
const KINDS: [&str; 14] = [
    "audios", "lyrics", "upload", "videos", "wav", "images", "imagine", "edit", "tts", "voices", "style",
    "persona", "midi", "mp4",
];

/// Tasks in a listing without `limit`.
const DEFAULT_LIMIT: usize = 20;
/// Largest number of tasks in a listing.
const MAX_LIMIT: usize = 100;

/// Operation that a call requests.
pub(super) enum Route {
    Preflight,
    Tasks,
    Start,
}

/// Result of a call.
pub(super) enum Outcome {
    Response(Response),
    /// Paid work whose result the client waits for.
    Job {
        service: String,
        id: String,
        stream: Option<StreamFormat>,
    },
}

/// Format in which the client wants to see progress.
#[derive(Clone, Copy)]
pub(super) enum StreamFormat {
    Ndjson,
    Sse,
}

/// Checks path, token and rate, in this order, and counts paid calls. `Err` is the refusal.
pub(super) fn admit(state: &SharedState, call: &RecordedCall) -> Result<Route, Response> {
    if call.method == "OPTIONS" {
        return Ok(Route::Preflight);
    }
    let route = match call.route() {
        Some((_, "tasks")) if call.method == "POST" => Route::Tasks,
        Some((_, kind)) if call.method == "POST" && KINDS.contains(&kind) => Route::Start,
        _ => return Err(state.error(404, "no_api")),
    };
    let Some(token) = &call.token else {
        let wrong_scheme = call.header("authorization").is_some();
        return Err(if wrong_scheme {
            state.error(401, "invalid_token")
        } else {
            state.error(400, "no_token")
        });
    };
    let mut tokens = locked(&state.tokens);
    if let Some((status, code)) = tokens.refusal(token) {
        return Err(state.error(status, &code));
    }
    if let Err(wait) = tokens.spend(token, call.at) {
        let response = state.error(429, "too_many_requests");
        return Err(if state.config.retry_after_on_429 {
            response.header("retry-after", wait.as_secs_f64().ceil().max(1.0).to_string())
        } else {
            response
        });
    }
    drop(tokens);
    if matches!(route, Route::Start) {
        state.count_paid_call();
    }
    Ok(route)
}

/// Executes a call.
pub(super) fn perform(state: &SharedState, call: &RecordedCall, route: &Route) -> Outcome {
    let (service, kind) = call.route().unwrap_or_default();
    let token = call.token.as_deref().unwrap_or_default();
    match route {
        Route::Preflight => Outcome::Response(preflight(call)),
        Route::Tasks => Outcome::Response(tasks(state, call, service, token)),
        Route::Start => start(state, call, service, kind, token),
    }
}

fn preflight(call: &RecordedCall) -> Response {
    let allowed = call.header("access-control-request-headers").unwrap_or("authorization, content-type");
    let headers = vec![
        ("access-control-allow-origin".into(), "*".into()),
        ("access-control-allow-methods".into(), "GET, POST, PUT, PATCH, DELETE, OPTIONS".into()),
        ("access-control-allow-headers".into(), allowed.into()),
    ];
    Response { status: 204, headers, ..Response::json("") }
}

fn tasks(state: &SharedState, call: &RecordedCall, service: &str, token: &str) -> Response {
    let bad_request = || state.error(400, "bad_request");
    let Value::Object(body) = call.json() else { return bad_request() };
    let now = Instant::now();
    let mut tasks = locked(&state.tasks);
    match call.action() {
        Some("retrieve") => {
            let by = |key: &str| body.get(key).and_then(Value::as_str);
            let task = if let Some(id) = by("id").or_else(|| by("task_id")) {
                tasks.find(service, token, id, now).map(Task::sequence)
            } else if let Some(trace_id) = by("trace_id") {
                tasks.find_trace(service, token, trace_id, now).map(Task::sequence)
            } else {
                return bad_request();
            };
            Response::json(task.map_or_else(|| "{}".into(), |task| tasks.record_of(task, now)))
        }
        Some("retrieve_batch") => {
            let (ids, by_trace) = match (body.get("ids"), body.get("trace_ids")) {
                (Some(ids), _) => (ids, false),
                (None, Some(trace_ids)) => (trace_ids, true),
                (None, None) => return listing(&mut tasks, service, token, body, now),
            };
            let Some(ids) = strings(ids) else { return bad_request() };
            if state.config.max_batch.is_some_and(|most| ids.len() > most) {
                return bad_request();
            }
            let found = ids.into_iter().filter_map(|id| {
                let task = if by_trace {
                    tasks.find_trace(service, token, id, now)
                } else {
                    tasks.find(service, token, id, now)
                };
                let task = task?.sequence();
                Some(BatchItem { id: id.to_owned(), record: tasks.record_of(task, now) })
            });
            Response::items(found.collect(), None)
        }
        Some("delete") => {
            let Some(id) = body.get("id").and_then(Value::as_str) else { return bad_request() };
            let deleted = tasks.find(service, token, id, now).is_some() && tasks.remove(id);
            drop(tasks);
            state.task_changed();
            Response::json(serde_json::json!({"id": id, "deleted": deleted}).to_string())
        }
        _ => bad_request(),
    }
}

fn listing(
    tasks: &mut Tasks,
    service: &str,
    token: &str,
    body: &Map<String, Value>,
    now: Instant,
) -> Response {
    let text = |key: &str| body.get(key).and_then(Value::as_str);
    let number = |key: &str| body.get(key).and_then(Value::as_f64);
    let count = |key: &str| body.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let filter = Filter {
        kind: text("type"),
        user_id: text("user_id"),
        application_id: text("application_id"),
        created_at_min: number("created_at_min"),
        created_at_max: number("created_at_max"),
        offset: count("offset").unwrap_or(0),
        limit: count("limit").unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT),
    };
    let (found, count) = tasks.list(service, token, &filter, now);
    Response::items(found, Some(count))
}

fn start(state: &SharedState, call: &RecordedCall, service: &str, kind: &str, token: &str) -> Outcome {
    // An upload need not be JSON. Its task has an empty request.
    let request = std::str::from_utf8(&call.body).unwrap_or_default().trim();
    let request = if call.json().is_object() { request } else { "{}" };
    let request = RawValue::from_string(request.to_owned()).ok();
    let field = |key: &str| call.json().get(key);
    let is_async =
        field("async").is_some_and(|value| *value == Value::Bool(true)) || field("callback_url").is_some();
    let accept = call.header("accept").unwrap_or_default().to_ascii_lowercase();
    let stream = if accept.contains("application/x-ndjson") {
        Some(StreamFormat::Ndjson)
    } else {
        accept.contains("text/event-stream").then_some(StreamFormat::Sse)
    };
    let now = Instant::now();
    let mut tasks = locked(&state.tasks);
    let id = tasks.create(service, kind, token, NewTask::Timed(request), now);
    if !is_async {
        return Outcome::Job { service: service.to_owned(), id, stream };
    }
    let trace_id = tasks.find(service, token, &id, now).map_or("", Task::trace_id);
    Outcome::Response(Response::json(task_json::accepted(&id, trace_id)))
}

fn strings(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}
