//! Handling of lookups: reads the body, performs the lookup and builds the response.
//!
//! A request that turns out not to be a lookup is forwarded, with the bytes already read in front
//! of the body.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::ClientPort;
use super::access_log::{AccessLog, Outcome};
use super::candidate::Candidate;
use super::delete::DeleteRequest;
use super::lookup_response;
use super::passthrough::with_prefix;
use super::response_headers::Reply;
use crate::api_error::ApiError;
use crate::auth::Caller;
use crate::batcher::LookupOptions;
use crate::lookup::{LookupError, LookupRequest, LookupResponse};
use crate::server::{RequestBody, RequestBodyError};
use crate::task::{LookupIds, TaskRequest};

/// Next step for a candidate whose body was read.
pub(super) enum Decision<'a> {
    /// Send this response.
    Respond(Reply),
    /// Forward the request with this body, which is the client's.
    Forward(Body),
    /// Forward the delete and observe its response.
    Delete(DeleteRequest<'a>),
}

/// Reads the body and handles the request if it is a lookup.
pub(super) async fn handle<'a>(
    port: &ClientPort,
    caller: &'a Caller,
    candidate: Candidate<'_>,
    parts: &Parts,
    body: RequestBody,
    log: &mut AccessLog<'_>,
) -> Decision<'a> {
    let body = match read(body, port.max_request_bytes).await {
        Ok(ReadBody::Complete(body)) => body,
        Ok(ReadBody::NotLookup(body)) => return Decision::Forward(body),
        Err(error) => return Decision::Respond(port.refuse(error.into(), log)),
    };
    let request = TaskRequest::parse(&body, port.tasks.max_ids, &candidate.service.rules);
    log.action(&request);
    match request {
        TaskRequest::Lookup(ids) => {
            Decision::Respond(look_up(port, caller, &candidate, parts, ids, log).await)
        }
        TaskRequest::TooManyIds(count) => {
            let max = port.tasks.max_ids;
            let message =
                format!("the request has {count} ids, and tasks.max_ids allows {max}. Send fewer at a time.");
            Decision::Respond(port.refuse(ApiError::bad_request(message), log))
        }
        TaskRequest::Delete(id) => {
            Decision::Delete(DeleteRequest { caller, service: candidate.service.name.clone(), id, body })
        }
        TaskRequest::Other => Decision::Forward(Body::from(body)),
    }
}

async fn look_up(
    port: &ClientPort,
    caller: &Caller,
    candidate: &Candidate<'_>,
    parts: &Parts,
    ids: LookupIds,
    log: &mut AccessLog<'_>,
) -> Reply {
    let options = LookupOptions { client: caller.client, ..candidate.options(&ids, &port.tasks) };
    let request = LookupRequest {
        service: candidate.service,
        caller,
        ids,
        options,
        headers: &parts.headers,
        received_at: Instant::now(),
    };
    let response = port.lookups.look_up(request).await;
    log.summary(&response.summary);
    let outcome = outcome(&response);
    let error_response = |error: ApiError| error.into_response_to(log.request_id());
    let host = port.passthrough.host();
    let mut response = lookup_response::build(response, options.kind, host, error_response);
    if response.status().is_success()
        && let Some(applied) = candidate.preference_applied(&options)
    {
        response.headers_mut().insert("preference-applied", applied);
    }
    Reply { response, outcome }
}

fn outcome(response: &LookupResponse) -> Outcome {
    match &response.result {
        Ok(_) => Outcome::Lookup(response.summary.result()),
        Err(LookupError::Failed(_)) => Outcome::Failed,
        Err(LookupError::NotStored | LookupError::TooLarge | LookupError::Busy) => Outcome::Refused,
    }
}

enum ReadBody {
    Complete(Bytes),
    /// Not a lookup, since it is too long or not a JSON object. The body of the client, including
    /// what was read.
    NotLookup(Body),
}

/// Reads a body of at most `limit` bytes.
async fn read(mut body: RequestBody, limit: usize) -> Result<ReadBody, RequestBodyError> {
    if body.size_hint().lower() > limit as u64 {
        return Ok(ReadBody::NotLookup(Body::new(body)));
    }
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Trailers have no meaning for a lookup.
        let Ok(data) = frame?.into_data() else { continue };
        if read.is_empty() && body.is_end_stream() && data.len() <= limit {
            return Ok(ReadBody::Complete(data));
        }
        read.extend_from_slice(&data);
        // A body that is not an object is forwarded without waiting for the rest of it.
        let is_other = read.trim_ascii_start().first().is_some_and(|first| *first != b'{');
        if read.len() > limit || is_other {
            return Ok(ReadBody::NotLookup(with_prefix(read.freeze(), Body::new(body))));
        }
    }
    Ok(ReadBody::Complete(read.freeze()))
}
