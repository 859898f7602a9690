//! Task API and the calls that start paid work: the response if no rule applies.
//!
//! [`admit`] checks a call when it arrives (path, token, rate), [`perform`] executes it when the
//! response is due.

use std::time::Instant;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::calls::RecordedCall;
use super::response::{BatchItem, Response};
use super::services::{self, Form, Service};
use super::state::SharedState;
use super::tasks::{Filter, NewTask, Task, Tasks};
use super::{locked, task_json};

/// Kinds of paid work, started with `POST /{service}/{kind}`.
const KINDS: [&str; 17] = [
    "audios", "lyrics", "upload", "videos", "wav", "images", "imagine", "edit", "tts", "voices", "style",
    "persona", "midi", "mp4", "generate", "render", "token",
];

/// Tasks in a listing without `limit`.
const DEFAULT_LIMIT: usize = 12;
/// Largest number of tasks in a listing.
const MAX_LIMIT: usize = 100;

/// Operation that a call requests.
pub(super) enum Route {
    Preflight,
    Tasks(&'static Service),
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
        Some((service, kind)) if call.method == "POST" => match (services::find(service), kind) {
            (Some(service), "tasks") => Route::Tasks(service),
            (Some(_), kind) if KINDS.contains(&kind) => Route::Start,
            _ => return Err(state.error(404, "no_api")),
        },
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
        Route::Tasks(service) => Outcome::Response(tasks(state, call, service, token)),
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

fn tasks(state: &SharedState, call: &RecordedCall, service: &Service, token: &str) -> Response {
    let bad_request = || state.error(400, "bad_request");
    let Value::Object(body) = call.json() else { return bad_request() };
    let action = match (service.form, body.get("action")) {
        // It has no actions.
        (Form::Charged, _) | (_, None) => Some("retrieve"),
        (_, Some(action)) => action.as_str(),
    };
    match action {
        Some("retrieve") => retrieve(state, service, token, body),
        Some("retrieve_batch") => retrieve_batch(state, service, token, body),
        Some("delete") => {
            let id = body.get("id").or_else(|| body.get("task_id"));
            let Some(id) = id.and_then(Value::as_str) else { return bad_request() };
            let mut tasks = locked(&state.tasks);
            let deleted = tasks.find(service.name, token, id, Instant::now()).is_some() && tasks.remove(id);
            drop(tasks);
            state.task_changed();
            Response::json(serde_json::json!({"id": id, "deleted": deleted}).to_string())
        }
        _ => bad_request(),
    }
}

fn retrieve(state: &SharedState, service: &Service, token: &str, body: &Map<String, Value>) -> Response {
    let by = |key: &str| body.get(key).and_then(Value::as_str);
    let now = Instant::now();
    let mut tasks = locked(&state.tasks);
    let id = if service.form == Form::Charged { by("task_id") } else { by("id").or_else(|| by("task_id")) };
    let task = match (id, by("trace_id")) {
        (Some(id), _) => tasks.find(service.name, token, id, now),
        (None, Some(trace_id)) if service.form == Form::Record => {
            tasks.find_trace(service.name, token, trace_id, now)
        }
        _ if service.form == Form::Charged => return state.error(400, "invalid_request"),
        _ => return state.error(400, "bad_request"),
    };
    let task = task.map(Task::sequence);
    let answer = task.and_then(|task| tasks.answer_to(task, body.contains_key("action"), now));
    match (answer, task, service.not_found) {
        (Some(answer), Some(task), _) => {
            if answer.is_charged {
                tasks.set_charged(task);
                state.count_charged_lookup();
            }
            Response::new(answer.status, "application/json", answer.body)
        }
        (_, _, Some(code)) => state.error(404, code),
        (_, _, None) => Response::json("{}"),
    }
}

fn retrieve_batch(
    state: &SharedState,
    service: &Service,
    token: &str,
    body: &Map<String, Value>,
) -> Response {
    let now = Instant::now();
    let mut tasks = locked(&state.tasks);
    let page = Page::of(body);
    let count_key = if service.form == Form::Envelope { "total" } else { "count" };
    let ids_key = if service.form == Form::Flat { "task_id" } else { "ids" };
    let (ids, by_trace) = match (body.get(ids_key), body.get("trace_ids")) {
        (Some(ids), _) => (ids, false),
        (None, Some(trace_ids)) => (trace_ids, true),
        (None, None) => {
            let (items, count) = listing(&mut tasks, service.name, token, body, &page, now);
            return Response::items(items, Some(count), count_key);
        }
    };
    let too_many = |ids: &Vec<&str>| state.config.max_batch.is_some_and(|most| ids.len() > most);
    let Some(ids) = strings(ids).filter(|ids| !too_many(ids)) else {
        return state.error(400, "bad_request");
    };
    let found = ids.into_iter().filter_map(|id| {
        let task = if by_trace {
            tasks.find_trace(service.name, token, id, now)
        } else {
            tasks.find(service.name, token, id, now)
        };
        let task = task?.sequence();
        Some(BatchItem { id: id.to_owned(), record: tasks.record_of(task, now)? })
    });
    let limit = page.limit.or(state.default_batch_limit()).unwrap_or(usize::MAX);
    Response::items(found.skip(page.offset).take(limit).collect(), None, count_key)
}

/// Part of the matching tasks that a batch or listing requests.
struct Page {
    offset: usize,
    limit: Option<usize>,
}

impl Page {
    fn of(body: &Map<String, Value>) -> Self {
        // Some clients send `12.0`.
        let number = |key: &str| body.get(key).and_then(Value::as_f64).map(|number| number as usize);
        Self { offset: number("offset").unwrap_or(0), limit: number("limit") }
    }
}

fn listing(
    tasks: &mut Tasks,
    service: &str,
    token: &str,
    body: &Map<String, Value>,
    page: &Page,
    now: Instant,
) -> (Vec<BatchItem>, usize) {
    let text = |key: &str| body.get(key).and_then(Value::as_str);
    let number = |key: &str| body.get(key).and_then(Value::as_f64);
    let filter = Filter {
        kind: text("type"),
        user_id: text("user_id"),
        application_id: text("application_id"),
        created_at_min: number("created_at_min"),
        created_at_max: number("created_at_max"),
        offset: page.offset,
        limit: page.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT),
    };
    tasks.list(service, token, &filter, now)
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
    let id = tasks.create(service, Some(kind), token, NewTask::Timed(request), now);
    if !is_async {
        return Outcome::Job { service: service.to_owned(), id, stream };
    }
    let trace_id = tasks.find(service, token, &id, now).map_or("", Task::trace_id);
    Outcome::Response(Response::json(task_json::accepted(&id, trace_id)))
}

fn strings(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}
