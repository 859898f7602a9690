//! Look-ups: parse, one call to the retriever, answer. Whatever turns out not to be a look-up passes through with the
//! bytes that were read already.

mod request;
mod response;

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::Body as _;
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::Instant;

pub(super) use self::request::Candidate;
use self::request::{CacheControl, Preferences};
use super::access_log::{AccessLog, Outcome};
use super::passthrough::{ForwardedResponse, forward_buffered, with_prefix};
use super::{ClientPort, ResponseBody, X_REQUEST_ID, refuse};
use crate::api_error::ApiError;
use crate::auth::Caller;
use crate::lookup::{LookupRequest, LookupResponse, ResponseContent};
use crate::server::{RequestBody, RequestBodyError};
use crate::task::{LookupIds, Service, TaskId, TaskRequest};
use crate::upstream;

/// The longest answer to a delete that is understood, in bytes.
const MAX_DELETE_ANSWER: usize = 64 * 1024;

/// What became of a candidate.
pub(super) enum Decision<'a> {
    /// It was answered here.
    Answered(Response<ResponseBody>),
    /// It is no look-up; the body as it came.
    PassOn(Body),
    /// It is a delete, which passes through with an eye on its answer.
    Delete(Delete<'a>),
}

/// A delete as it came.
pub(super) struct Delete<'a> {
    caller: &'a Caller,
    service: Service,
    id: TaskId,
    body: Bytes,
}

/// Reads the body and answers what is a look-up.
pub(super) async fn answer<'a>(
    port: &ClientPort,
    caller: &'a Caller,
    candidate: Candidate<'_>,
    parts: &Parts,
    body: RequestBody,
    log: &mut AccessLog<'_>,
) -> Decision<'a> {
    let body = match read(body, port.max_request_bytes).await {
        Ok(Read::Whole(body)) => body,
        Ok(Read::PassOn(body)) => return Decision::PassOn(body),
        Err(error) => {
            return Decision::Answered(refuse(ApiError::from(error).into_response(), log));
        }
    };
    let action = TaskRequest::parse(&body, port.tasks.max_ids);
    log.action(&action);
    let asked = match action {
        TaskRequest::Lookup(ids) => ids,
        TaskRequest::TooManyIds(count) => {
            let max = port.tasks.max_ids;
            let message = format!("{count} ids are more than tasks.max_ids, {max}. Ask for fewer at a time.");
            let mut response = refuse(ApiError::bad_request(message).into_response(), log);
            response.headers_mut().insert(X_REQUEST_ID, log.take_request_id());
            return Decision::Answered(response);
        }
        TaskRequest::Delete(id) => {
            return Decision::Delete(Delete { caller, service: candidate.service.into_owned(), id, body });
        }
        TaskRequest::Other => return Decision::PassOn(Body::from(body)),
    };
    Decision::Answered(look_up(port, caller, &candidate, &parts.headers, asked, log).await)
}

async fn look_up(
    port: &ClientPort,
    caller: &Caller,
    candidate: &Candidate<'_>,
    headers: &HeaderMap,
    asked: LookupIds,
    log: &mut AccessLog<'_>,
) -> Response<ResponseBody> {
    let Preferences { wait, lenient } = candidate.preferences;
    let CacheControl { max_age, only_if_cached } = candidate.cache_control;
    let wait = wait.map(|wait| wait.min(port.tasks.max_wait));
    let is_batch = asked.is_batch();
    let question = LookupRequest {
        service: &candidate.service,
        caller,
        headers,
        at: Instant::now(),
        wait,
        lenient: lenient && is_batch,
        only_if_cached,
        max_age,
    };
    let reply = port.lookups.retrieve(asked, &question).await;
    log.summary(&reply.summary);
    let outcome = outcome(&reply);
    let mut response = response::respond(reply, is_batch);
    if response.status().is_success()
        && let Some(applied) = response::preference_applied(wait, lenient && is_batch)
    {
        response.headers_mut().insert("preference-applied", applied);
    }
    log.finish(&response, outcome);
    response.headers_mut().insert(X_REQUEST_ID, log.take_request_id());
    response
}

fn outcome(reply: &LookupResponse) -> Outcome {
    match &reply.body {
        ResponseContent::Failed(_) => Outcome::Failed,
        ResponseContent::NotStored | ResponseContent::TooLarge | ResponseContent::Busy => Outcome::Refused,
        ResponseContent::Task(_) | ResponseContent::Batch(..) | ResponseContent::Upstream(_) => {
            Outcome::LookUp(reply.summary.source())
        }
    }
}

/// Forwards a delete; if the upstream confirms it, the task is forgotten before the client learns so.
pub(super) async fn forward_delete(
    port: &ClientPort,
    parts: Parts,
    delete: Delete<'_>,
    log: &mut AccessLog<'_>,
) -> Response {
    let Delete { caller, service, id, body } = delete;
    let team_token = port.before_passing_on(Some(caller));
    let request = Request::from_parts(parts, Body::from(body));
    let response = match forward_buffered(&port.passthrough, request, team_token, MAX_DELETE_ANSWER).await {
        ForwardedResponse::Streaming(response) => response,
        ForwardedResponse::Buffered(answer) => {
            if answer.parts.status.is_success() && confirms(&answer.parts.headers, &answer.body, &id) {
                forget(port, caller, service, id).await;
            }
            answer.into_response()
        }
    };
    log.finish(&response, Outcome::Bypass);
    response
}

/// Forgets a deleted task. In a task of its own: the upstream has said its word, whether the client still waits or not.
async fn forget(port: &ClientPort, caller: &Caller, service: Service, id: TaskId) {
    let (lookups, caller) = (Arc::clone(&port.lookups), caller.clone());
    let forgetting = tokio::spawn(async move {
        if let Err(error) = lookups.forget(&caller, &service, &id).await {
            tracing::error!(%error, "a deleted task could not be forgotten on disk; it is hidden until it can");
        }
    });
    if forgetting.await.is_err() {
        tracing::error!("forgetting a deleted task panicked");
    }
}

/// `{"id":…,"deleted":true}` of that very id; other members do not matter, repeated ones leave doubt. An answer to the
/// client in a coding that is not understood here counts as a yes: in doubt a task that may be deleted is not served.
fn confirms(headers: &HeaderMap, body: &[u8], id: &TaskId) -> bool {
    let Ok(body) = upstream::decode_body(headers, body, MAX_DELETE_ANSWER) else { return true };
    if body.trim_ascii_start().first() != Some(&b'{') {
        return false;
    }
    #[derive(Deserialize)]
    struct Deleted {
        id: String,
        deleted: bool,
    }
    serde_json::from_slice::<Deleted>(&body).is_ok_and(|answer| answer.deleted && answer.id == id.as_str())
}

enum Read {
    Whole(Bytes),
    /// No look-up, as far as its length or its first byte tells: the body as it came, with what was read in front.
    PassOn(Body),
}

/// Reads a body of at most `limit` bytes.
async fn read(mut body: RequestBody, limit: usize) -> Result<Read, RequestBodyError> {
    if body.size_hint().lower() > limit as u64 {
        return Ok(Read::PassOn(Body::new(body)));
    }
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Trailers of a look-up say nothing.
        let Ok(data) = frame?.into_data() else { continue };
        if read.is_empty() && body.is_end_stream() && data.len() <= limit {
            return Ok(Read::Whole(data));
        }
        read.extend_from_slice(&data);
        // What is no object is no look-up, so it is not held back.
        let is_something_else = read.trim_ascii_start().first().is_some_and(|first| *first != b'{');
        if read.len() > limit || is_something_else {
            return Ok(Read::PassOn(with_prefix(read.freeze(), Body::new(body))));
        }
    }
    Ok(Read::Whole(read.freeze()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_delete_counts_only_if_it_is_confirmed() {
        let id = TaskId::parse("a").unwrap();
        for (body, expected) in [
            (r#"{"id":"a","deleted":true}"#, true),
            (r#"{"deleted":true,"id":"\u0061","more":1}"#, true),
            (r#"{"id":"a","deleted":false}"#, false),
            (r#"{"id":"b","deleted":true}"#, false),
            (r#"{"id":"a","deleted":"true"}"#, false),
            (r#"{"id":"a","deleted":true,"deleted":true}"#, false),
            (r#"{"deleted":true}"#, false),
            (r#"["a",true]"#, false),
            ("", false),
        ] {
            assert_eq!(confirms(&HeaderMap::new(), body.as_bytes(), &id), expected, "{body}");
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut packed, body.as_bytes()).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("content-encoding", HeaderValue::from_static("gzip"));
            assert_eq!(confirms(&headers, &packed.finish().unwrap(), &id), expected, "packed {body}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("content-encoding", HeaderValue::from_static("br"));
        assert!(confirms(&headers, b"?", &id));
    }
}
