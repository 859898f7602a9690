//! What the simulated upstream answers when no rule says otherwise: the task API and the calls that start paid work.
//!
//! [`admit`] runs when a call arrives (path, token, rate), [`perform`] when it is answered. Called by
//! [`super::exchange`].

use std::time::Instant;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::answers::{Answer, BatchItem};
use super::record::RecordedCall;
use super::server::State;
use super::tasks::{Filter, Start, Task, Tasks};
use super::{locked, text};

/// What starts paid work: `POST /{service}/{kind}`.
const KINDS: [&str; 14] = [
    "audios", "lyrics", "upload", "videos", "wav", "images", "imagine", "edit", "tts", "voices", "style",
    "persona", "midi", "mp4",
];

/// Listings give so many tasks unless asked otherwise, and at most [`MAX_LIMIT`].
const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;

/// Where a call goes.
pub(super) enum Route {
    Preflight,
    Tasks,
    Start,
}

/// The answer to a call.
pub(super) enum Outcome {
    Answer(Answer),
    /// Paid work whose result the caller waits for.
    Job {
        service: String,
        id: String,
        stream: Option<StreamFormat>,
    },
}

/// How a caller wants to see the work progress.
#[derive(Clone, Copy)]
pub(super) enum StreamFormat {
    Ndjson,
    Sse,
}

/// Checks path, token and rate, in this order, and counts paid work.
pub(super) fn admit(state: &State, call: &RecordedCall) -> Result<Route, Answer> {
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
        let answer = state.error(429, "too_many_requests");
        return Err(if state.config.retry_after_on_429 {
            answer.header("retry-after", wait.as_secs_f64().ceil().max(1.0).to_string())
        } else {
            answer
        });
    }
    drop(tokens);
    if matches!(route, Route::Start) {
        state.count_paid_start();
    }
    Ok(route)
}

/// Does what the call asks for.
pub(super) fn perform(state: &State, call: &RecordedCall, route: &Route) -> Outcome {
    let (service, kind) = call.route().unwrap_or_default();
    let token = call.token.as_deref().unwrap_or_default();
    match route {
        Route::Preflight => Outcome::Answer(preflight(call)),
        Route::Tasks => Outcome::Answer(tasks(state, call, service, token)),
        Route::Start => start(state, call, service, kind, token),
    }
}

fn preflight(call: &RecordedCall) -> Answer {
    let headers = call.header("access-control-request-headers").unwrap_or("authorization, content-type");
    let mut answer = Answer::json("");
    answer.status = 204;
    answer.headers = vec![
        ("access-control-allow-origin".into(), "*".into()),
        ("access-control-allow-methods".into(), "GET, POST, PUT, PATCH, DELETE, OPTIONS".into()),
        ("access-control-allow-headers".into(), headers.into()),
    ];
    answer
}

fn tasks(state: &State, call: &RecordedCall, service: &str, token: &str) -> Answer {
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
            Answer::json(task.map_or_else(|| "{}".into(), |task| tasks.text_of(task, now)))
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
                Some(BatchItem { id: id.to_owned(), record: tasks.text_of(task, now) })
            });
            Answer::items(found.collect(), None)
        }
        Some("delete") => {
            let Some(id) = body.get("id").and_then(Value::as_str) else { return bad_request() };
            let deleted = tasks.find(service, token, id, now).is_some() && tasks.remove(id);
            drop(tasks);
            state.task_changed();
            Answer::json(serde_json::json!({"id": id, "deleted": deleted}).to_string())
        }
        _ => bad_request(),
    }
}

fn listing(tasks: &mut Tasks, service: &str, token: &str, body: &Map<String, Value>, now: Instant) -> Answer {
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
    Answer::items(found, Some(count))
}

fn start(state: &State, call: &RecordedCall, service: &str, kind: &str, token: &str) -> Outcome {
    // An upload may be no JSON at all; then the task keeps an empty request.
    let request = std::str::from_utf8(&call.body).unwrap_or_default().trim();
    let request = if call.json().is_object() { request } else { "{}" };
    let request = RawValue::from_string(request.to_owned()).ok();
    let asks = |key: &str| call.json().get(key);
    let at_once =
        asks("async").is_some_and(|value| *value == Value::Bool(true)) || asks("callback_url").is_some();
    let accept = call.header("accept").unwrap_or_default().to_ascii_lowercase();
    let stream = if accept.contains("application/x-ndjson") {
        Some(StreamFormat::Ndjson)
    } else {
        accept.contains("text/event-stream").then_some(StreamFormat::Sse)
    };
    let now = Instant::now();
    let mut tasks = locked(&state.tasks);
    let id = tasks.create(service, kind, token, Start::Timed(request), now);
    if !at_once {
        return Outcome::Job { service: service.to_owned(), id, stream };
    }
    let trace_id = tasks.find(service, token, &id, now).map_or("", Task::trace_id);
    Outcome::Answer(Answer::json(text::accepted(&id, trace_id)))
}

fn strings(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}
