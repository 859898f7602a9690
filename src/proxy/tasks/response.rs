//! A reply as an HTTP answer: body, header fields, and our own errors.

use std::sync::LazyLock;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::api_error::ApiError;
use crate::batcher::LookupFailure;
use crate::lookup::{CacheResult, CacheSummary, LookupResponse, ResponseContent, whole_seconds};
use crate::proxy::{ResponseBody, X_REQUEST_ID};
use crate::upstream::UpstreamResponse;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The header of a hit on one task. `age` and `x-request-id` have their places, so that setting them moves nothing.
static HIT: LazyLock<HeaderMap> = LazyLock::new(|| {
    HeaderMap::from_iter([
        (header::CONTENT_TYPE, JSON),
        (CACHE_STATUS, HeaderValue::from_static("refrain; hit")),
        (X_CACHE, x_cache(CacheResult::Hit)),
        (header::AGE, HeaderValue::from_static("0")),
        (X_REQUEST_ID, HeaderValue::from_static("")),
    ])
});

/// The answer to a look-up, all but its `x-request-id`.
pub(super) fn respond(reply: LookupResponse, is_batch: bool) -> Response<ResponseBody> {
    let LookupResponse { body, summary } = reply;
    let is_from_upstream =
        matches!(body, ResponseContent::Upstream(_) | ResponseContent::Failed(LookupFailure::Upstream(_)));
    let source = if body.is_answer() { summary.source() } else { CacheResult::Miss };
    let is_hit = !is_batch && source == CacheResult::Hit && matches!(body, ResponseContent::Task(_));
    let mut response = match body {
        ResponseContent::Task(text) if is_hit => {
            let mut response = Response::new(ResponseBody::whole(text));
            *response.headers_mut() = HIT.clone();
            response
        }
        ResponseContent::Task(text) => json(ResponseBody::whole(text)),
        ResponseContent::Batch(envelope, room) => json(ResponseBody::batch(envelope, room)),
        other => without_task(other).map(ResponseBody::from),
    };
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(header::AGE, summary.age.into());
    if is_hit {
        return response;
    }
    headers
        .insert(CACHE_STATUS, cache_status(&summary, source, is_from_upstream.then_some(status), is_batch));
    headers.insert(X_CACHE, x_cache(source));
    if let Some(seconds) = summary.retry_after.filter(|_| status == StatusCode::OK) {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// The answer where refrain has no task to show.
fn without_task(body: ResponseContent) -> Response {
    match body {
        ResponseContent::Task(_) | ResponseContent::Batch(..) => ApiError::internal().into_response(),
        ResponseContent::Upstream(answer) => relay(&answer),
        ResponseContent::Failed(failure) => fail(failure),
        ResponseContent::NotStored => ApiError::timeout(
            "proxy_internal_response",
            "Not everything asked for is stored here, and only-if-cached forbids to ask the upstream.",
        )
        .into_response(),
        ResponseContent::Busy => {
            ApiError::unavailable("Too many large answers are on their way to slow readers. Ask again.")
                .into_response()
        }
        ResponseContent::TooLarge => ApiError::bad_request(
            "The answer would be longer than upstream.max_response_bytes. Ask for fewer ids at a time.",
        )
        .into_response(),
    }
}

/// RFC 9211, cache name `refrain`. `fwd` only where the upstream was asked, `fwd-status` only where the answer is its
/// own and no success.
fn cache_status(
    summary: &CacheSummary,
    source: CacheResult,
    status: Option<StatusCode>,
    is_batch: bool,
) -> HeaderValue {
    let CacheSummary { hits, pending, misses, outdated, stored, collapsed, .. } = summary;
    let mut text = String::from("refrain");
    if matches!(source, CacheResult::Hit | CacheResult::Pending) {
        text.push_str("; hit");
    } else if *misses > 0 {
        text.push_str(match source {
            CacheResult::Partial => "; fwd=partial",
            _ if *outdated => "; fwd=miss",
            _ => "; fwd=uri-miss",
        });
        if let Some(status) = status.filter(|status| !status.is_success()) {
            text.push_str("; fwd-status=");
            text.push_str(status.as_str());
        }
    }
    if *stored {
        text.push_str("; stored");
    }
    if *collapsed {
        text.push_str("; collapsed");
    }
    let detail = match (is_batch, source) {
        (_, CacheResult::Pending) if *hits == 0 => "pending".to_owned(),
        (true, _) if *pending > 0 => format!("hits={hits} pending={pending} misses={misses}"),
        (true, _) => format!("hits={hits} misses={misses}"),
        (false, _) => String::new(),
    };
    if !detail.is_empty() {
        text.push_str(&format!("; detail=\"{detail}\""));
    }
    HeaderValue::from_str(&text).expect("visible ASCII")
}

fn x_cache(source: CacheResult) -> HeaderValue {
    HeaderValue::from_static(match source {
        CacheResult::Hit => "HIT",
        CacheResult::Pending => "PENDING",
        CacheResult::Partial => "PARTIAL",
        CacheResult::Miss => "MISS",
    })
}

fn json(body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// The upstream's answer: status, body, `content-type` and, on errors, `retry-after`; nothing else of its header.
fn relay(answer: &UpstreamResponse) -> Response {
    let UpstreamResponse { status, content_type, retry_after, body, .. } = answer.clone();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(value) = content_type {
        headers.insert(header::CONTENT_TYPE, value);
    }
    if status.is_client_error() || status.is_server_error() {
        // A 429 always says when to come back.
        let ours = (status == StatusCode::TOO_MANY_REQUESTS).then(|| HeaderValue::from_static("1"));
        if let Some(value) = retry_after.or(ours) {
            headers.insert(header::RETRY_AFTER, value);
        }
    }
    response
}

fn fail(failure: LookupFailure) -> Response {
    match failure {
        LookupFailure::Upstream(answer) => return relay(&answer),
        LookupFailure::Transport(error) => ApiError::from(error),
        LookupFailure::UpstreamDown { error, retry_after } => {
            ApiError::from(error).retry_after(whole_seconds(retry_after))
        }
        LookupFailure::Redirect => ApiError::bad_gateway(
            "http_protocol_error",
            "The upstream answered a look-up with a redirect, which is not followed.",
        ),
        LookupFailure::InvalidResponse => ApiError::bad_gateway(
            "http_protocol_error",
            "The upstream's answer to a look-up was not a task answer.",
        ),
        LookupFailure::QueueTimeout { retry_after } => ApiError::too_many_requests(
            whole_seconds(retry_after),
            "This token has more look-ups waiting than its rate lets through. They stay queued; ask again.",
        ),
        LookupFailure::QueueFull { retry_after } => ApiError::too_many_requests(
            whole_seconds(retry_after),
            "This token waits for as many tasks as refrain can queue. Ask again later.",
        ),
        LookupFailure::ShuttingDown => ApiError::unavailable("refrain is shutting down."),
        LookupFailure::Internal => ApiError::internal(),
    }
    .into_response()
}

/// `preference-applied` (RFC 7240 3) for what was honoured.
pub(super) fn preference_applied(wait: Option<Duration>, lenient: bool) -> Option<HeaderValue> {
    let wait = wait.map(|wait| format!("wait={}", wait.as_secs()));
    let lenient = lenient.then(|| "handling=lenient".to_owned());
    let applied: Vec<String> = wait.into_iter().chain(lenient).collect();
    (!applied.is_empty()).then(|| HeaderValue::from_str(&applied.join(", ")).expect("visible ASCII"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn status_line(summary: &CacheSummary, is_batch: bool) -> String {
        cache_status(summary, summary.source(), None, is_batch).to_str().unwrap().to_owned()
    }

    #[test]
    fn cache_status_says_how_it_came_about() {
        let summary = |hits, pending, misses| CacheSummary {
            asked: hits + pending + misses,
            hits,
            pending,
            misses,
            ..CacheSummary::default()
        };
        assert_eq!(status_line(&summary(1, 0, 0), false), "refrain; hit");
        assert_eq!(status_line(&summary(0, 1, 0), false), "refrain; hit; detail=\"pending\"");
        assert_eq!(status_line(&summary(0, 0, 1), false), "refrain; fwd=uri-miss");
        assert_eq!(
            status_line(&CacheSummary { outdated: true, ..summary(0, 0, 1) }, false),
            "refrain; fwd=miss"
        );
        assert_eq!(
            status_line(&CacheSummary { stored: true, collapsed: true, ..summary(0, 0, 1) }, false),
            "refrain; fwd=uri-miss; stored; collapsed"
        );
        assert_eq!(status_line(&summary(2, 0, 0), true), "refrain; hit; detail=\"hits=2 misses=0\"");
        assert_eq!(
            status_line(&CacheSummary { stored: true, ..summary(3, 0, 2) }, true),
            "refrain; fwd=partial; stored; detail=\"hits=3 misses=2\""
        );
        assert_eq!(
            status_line(&summary(1, 2, 1), true),
            "refrain; fwd=partial; detail=\"hits=1 pending=2 misses=1\""
        );
        assert_eq!(
            cache_status(&summary(0, 0, 1), CacheResult::Miss, Some(StatusCode::UNAUTHORIZED), false),
            "refrain; fwd=uri-miss; fwd-status=401"
        );
        // only-if-cached, and nothing stored: nobody was asked.
        assert_eq!(cache_status(&summary(0, 0, 0), CacheResult::Miss, None, false), "refrain");
    }

    #[test]
    fn a_429_always_says_when_to_come_back() {
        let answer = |status, retry_after: Option<&'static str>| {
            let retry_after = retry_after.map(HeaderValue::from_static);
            relay(&UpstreamResponse {
                status,
                content_type: None,
                retry_after,
                body: Bytes::new(),
                connect_time: Duration::ZERO,
            })
            .headers()
            .get(header::RETRY_AFTER)
            .map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(answer(StatusCode::TOO_MANY_REQUESTS, None).as_deref(), Some("1"));
        assert_eq!(answer(StatusCode::TOO_MANY_REQUESTS, Some("9")).as_deref(), Some("9"));
        assert_eq!(answer(StatusCode::SERVICE_UNAVAILABLE, None), None);
        assert_eq!(answer(StatusCode::OK, Some("9")), None);
    }
}
