//! HTTP response to a lookup: status, headers and body.

use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::error::{self, FailedCall};
use super::response_body::ResponseBody;
use super::response_headers::{CACHE_STATUS, MISS, X_CACHE};
use crate::api_error::ApiError;
use crate::batcher::{LookupFailure, LookupKind, QueueLimit};
use crate::headers::{self, X_REQUEST_ID};
use crate::lookup::{CacheResult, CacheSummary, LookupError, LookupResponse, ResponseContent};
use crate::upstream::UpstreamResponse;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Headers of a single hit. `age` and `x-request-id` are placeholders, so that setting them does
/// not move the others.
static HIT: LazyLock<HeaderMap> = LazyLock::new(|| {
    HeaderMap::from_iter([
        (header::CONTENT_TYPE, JSON),
        (CACHE_STATUS, HeaderValue::from_static("refrain; hit")),
        (X_CACHE, x_cache(CacheResult::Hit)),
        (header::AGE, HeaderValue::from_static("0")),
        (X_REQUEST_ID, HeaderValue::from_static("")),
    ])
});

/// Builds the response to a lookup, without `x-request-id`. `host` is that of the upstream.
/// `error_response` builds the response for an error of refrain.
pub(super) fn build(
    response: LookupResponse,
    kind: LookupKind,
    host: &str,
    error_response: impl FnOnce(ApiError) -> Response,
) -> Response<ResponseBody> {
    let LookupResponse { result, summary } = response;
    let cache_result = if result.is_ok() { summary.result() } else { CacheResult::Miss };
    let is_from_upstream = matches!(
        result,
        Ok(ResponseContent::Upstream(_)) | Err(LookupError::Failed(LookupFailure::Upstream(_)))
    );
    let is_single_hit = cache_result == CacheResult::Hit && matches!(result, Ok(ResponseContent::Record(_)));
    let mut response = match result {
        Ok(ResponseContent::Record(record)) if is_single_hit => {
            let mut response = Response::new(ResponseBody::record(record));
            *response.headers_mut() = HIT.clone();
            response
        }
        Ok(ResponseContent::Record(record)) => json(ResponseBody::record(record)),
        Ok(ResponseContent::Batch(batch)) => json(ResponseBody::batch(batch)),
        Ok(ResponseContent::Upstream(response)) => relay(&response).map(ResponseBody::from),
        Err(error) => failure(error, host).unwrap_or_else(error_response).map(ResponseBody::from),
    };
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(header::AGE, summary.age.into());
    if !is_single_hit {
        let upstream_status = is_from_upstream.then_some(status);
        headers.insert(CACHE_STATUS, cache_status(&summary, cache_result, upstream_status, kind));
        headers.insert(X_CACHE, x_cache(cache_result));
        if let Some(wait) = summary.retry_after.filter(|_| status == StatusCode::OK) {
            headers.insert(header::RETRY_AFTER, headers::retry_after(wait));
        }
    }
    response
}

/// Returns the upstream's error to relay, or the error of refrain for a lookup without content.
fn failure(error: LookupError, host: &str) -> Result<Response, ApiError> {
    let failure = match error {
        LookupError::Failed(failure) => failure,
        LookupError::NotStored => {
            // A recheck of the token may have been sent, so not "sent nothing".
            return Err(ApiError::timeout(
                "proxy_internal_response",
                format!(
                    "refrain refused this lookup: not all of its tasks of {host} are stored, and \
                     only-if-cached forbids a call for the others. Ask without only-if-cached."
                ),
            ));
        }
        LookupError::Busy => {
            return Err(ApiError::unavailable(format!(
                "refrain has no memory for this response with records from {host}: slow clients have not \
                 received many large responses yet. Try again later."
            )));
        }
        LookupError::TooLarge => {
            return Err(ApiError::bad_request(format!(
                "refrain cannot return these records from {host}: together they are larger than \
                 upstream.max_response_bytes. Request fewer ids at a time."
            )));
        }
    };
    Err(match failure {
        LookupFailure::Upstream(response) => return Ok(relay(&response)),
        LookupFailure::Transport(error) => error::upstream_error(error, host, FailedCall::Lookup),
        LookupFailure::UpstreamDown { error, retry_after } => {
            error::upstream_down(error, host).retry_after(retry_after)
        }
        LookupFailure::Redirect => ApiError::bad_gateway(
            "http_protocol_error",
            format!(
                "refrain does not follow the redirect with which {host} responded to a lookup. \
                 Check upstream.base_url."
            ),
        ),
        LookupFailure::InvalidResponse => ApiError::bad_gateway(
            "http_protocol_error",
            format!(
                "refrain cannot read the response of {host} to a lookup: it has another shape. Try again later."
            ),
        ),
        LookupFailure::QueueTimeout { retry_after } => ApiError::too_many_requests(
            retry_after,
            format!(
                "refrain has more lookups queued for {host} than the rate of this token allows. They stay \
                 queued; try again after the time in retry-after."
            ),
        ),
        LookupFailure::QueueFull { limit, retry_after } => ApiError::too_many_requests(
            retry_after,
            match limit {
                QueueLimit::Token => format!(
                    "refrain did not queue this lookup for {host}: the queue of this token is full. \
                     Try again after the time in retry-after."
                ),
                QueueLimit::Total => format!(
                    "refrain did not queue this lookup for {host}: the queues of all tokens together are \
                     full. Try again after the time in retry-after."
                ),
            },
        ),
        LookupFailure::TooManyQueues { limit, retry_after } => ApiError::too_many_requests(
            retry_after,
            match limit {
                QueueLimit::Token => format!(
                    "refrain did not queue this lookup for {host}: this token has too many combinations of \
                     services and forwarded headers (tasks.forward_headers) in use. Use fewer values of these \
                     headers at a time, or try again after the time in retry-after."
                ),
                QueueLimit::Total => format!(
                    "refrain did not queue this lookup for {host}: the queues of all tokens together are too \
                     many. Try again after the time in retry-after."
                ),
            },
        ),
        LookupFailure::ShuttingDown => ApiError::unavailable(format!(
            "refrain is shutting down and has no response of {host} to this lookup yet. Try again."
        )),
        LookupFailure::Internal => {
            ApiError::internal().append_message(&format!(" It is safe to ask for the tasks of {host} again."))
        }
    })
}

/// Returns `cache-status` (RFC 9211) with the cache name `refrain`. It has `fwd` only after an
/// upstream call, and `fwd-status` only if the response is an error of the upstream.
fn cache_status(
    summary: &CacheSummary,
    result: CacheResult,
    upstream_status: Option<StatusCode>,
    kind: LookupKind,
) -> HeaderValue {
    let CacheSummary { hits, pending, misses, .. } = summary;
    let mut text = String::from("refrain");
    if matches!(result, CacheResult::Hit | CacheResult::Pending) {
        text.push_str("; hit");
    } else if *misses > 0 {
        text.push_str(match result {
            CacheResult::Partial => "; fwd=partial",
            _ if summary.is_outdated => "; fwd=miss",
            _ => "; fwd=uri-miss",
        });
        if let Some(status) = upstream_status.filter(|status| !status.is_success()) {
            text.push_str("; fwd-status=");
            text.push_str(status.as_str());
        }
    }
    if summary.is_stored {
        text.push_str("; stored");
    }
    if summary.is_collapsed {
        text.push_str("; collapsed");
    }
    let detail = match (kind, result) {
        (_, CacheResult::Pending) if *hits == 0 => Some("pending".to_owned()),
        (LookupKind::Batch, _) if *pending > 0 => {
            Some(format!("hits={hits} pending={pending} misses={misses}"))
        }
        (LookupKind::Batch, _) => Some(format!("hits={hits} misses={misses}")),
        (LookupKind::Single, _) => None,
    };
    if let Some(detail) = detail {
        text.push_str(&format!("; detail=\"{detail}\""));
    }
    HeaderValue::from_str(&text).expect("printable ASCII")
}

fn x_cache(result: CacheResult) -> HeaderValue {
    HeaderValue::from_static(match result {
        CacheResult::Hit => "HIT",
        CacheResult::Pending => "PENDING",
        CacheResult::Partial => "PARTIAL",
        CacheResult::Miss => return MISS,
    })
}

fn json(body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// Relays the upstream's status, body, `content-type` and, on errors, `retry-after`, which a 429
/// always has.
fn relay(upstream: &UpstreamResponse) -> Response {
    let status = upstream.status;
    let mut response = Response::new(Body::from(upstream.body.clone()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(value) = &upstream.content_type {
        headers.insert(header::CONTENT_TYPE, value.clone());
    }
    if status.is_client_error() || status.is_server_error() {
        let default = (status == StatusCode::TOO_MANY_REQUESTS).then(|| HeaderValue::from_static("1"));
        if let Some(value) = upstream.retry_after.clone().or(default) {
            headers.insert(header::RETRY_AFTER, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::upstream::{Unreachable, UpstreamError};

    fn status_line(summary: &CacheSummary, kind: LookupKind) -> String {
        cache_status(summary, summary.result(), None, kind).to_str().unwrap().to_owned()
    }

    #[test]
    fn cache_status_describes_the_lookup() {
        let summary = |hits, pending, misses| CacheSummary {
            requested: hits + pending + misses,
            hits,
            pending,
            misses,
            ..CacheSummary::default()
        };
        assert_eq!(status_line(&summary(1, 0, 0), LookupKind::Single), "refrain; hit");
        assert_eq!(status_line(&summary(0, 1, 0), LookupKind::Single), "refrain; hit; detail=\"pending\"");
        assert_eq!(status_line(&summary(0, 0, 1), LookupKind::Single), "refrain; fwd=uri-miss");
        assert_eq!(
            status_line(&CacheSummary { is_outdated: true, ..summary(0, 0, 1) }, LookupKind::Single),
            "refrain; fwd=miss"
        );
        assert_eq!(
            status_line(
                &CacheSummary { is_stored: true, is_collapsed: true, ..summary(0, 0, 1) },
                LookupKind::Single
            ),
            "refrain; fwd=uri-miss; stored; collapsed"
        );
        assert_eq!(
            status_line(&summary(2, 0, 0), LookupKind::Batch),
            "refrain; hit; detail=\"hits=2 misses=0\""
        );
        assert_eq!(
            status_line(&CacheSummary { is_stored: true, ..summary(3, 0, 2) }, LookupKind::Batch),
            "refrain; fwd=partial; stored; detail=\"hits=3 misses=2\""
        );
        assert_eq!(
            status_line(&summary(1, 2, 1), LookupKind::Batch),
            "refrain; fwd=partial; detail=\"hits=1 pending=2 misses=1\""
        );
        assert_eq!(
            cache_status(
                &summary(0, 0, 1),
                CacheResult::Miss,
                Some(StatusCode::UNAUTHORIZED),
                LookupKind::Single
            ),
            "refrain; fwd=uri-miss; fwd-status=401"
        );
        // only-if-cached, and nothing is stored: there was no upstream call.
        assert_eq!(cache_status(&summary(0, 0, 0), CacheResult::Miss, None, LookupKind::Single), "refrain");
    }

    #[test]
    fn relayed_429_always_has_retry_after() {
        let retry_after = |status, retry_after: Option<&'static str>| {
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
        assert_eq!(retry_after(StatusCode::TOO_MANY_REQUESTS, None).as_deref(), Some("1"));
        assert_eq!(retry_after(StatusCode::TOO_MANY_REQUESTS, Some("9")).as_deref(), Some("9"));
        assert_eq!(retry_after(StatusCode::SERVICE_UNAVAILABLE, None), None);
        assert_eq!(retry_after(StatusCode::OK, Some("9")), None);
    }

    #[test]
    fn every_error_of_refrain_names_the_upstream_and_says_what_to_do() {
        let retry_after = Duration::from_secs(1);
        let calls = [
            UpstreamError::Unreachable(Unreachable::Dns),
            UpstreamError::Unreachable(Unreachable::Other),
            UpstreamError::Timeout,
            UpstreamError::Interrupted,
            UpstreamError::TooLarge,
            UpstreamError::BadMessage,
        ];
        let failures = [
            LookupFailure::Redirect,
            LookupFailure::InvalidResponse,
            LookupFailure::QueueTimeout { retry_after },
            LookupFailure::QueueFull { limit: QueueLimit::Token, retry_after },
            LookupFailure::QueueFull { limit: QueueLimit::Total, retry_after },
            LookupFailure::TooManyQueues { limit: QueueLimit::Token, retry_after },
            LookupFailure::TooManyQueues { limit: QueueLimit::Total, retry_after },
            LookupFailure::ShuttingDown,
            LookupFailure::Internal,
        ];
        let failures = failures
            .into_iter()
            .chain(calls.map(LookupFailure::Transport))
            .chain(calls.map(|error| LookupFailure::UpstreamDown { error, retry_after }))
            .map(LookupError::Failed)
            .chain([LookupError::NotStored, LookupError::TooLarge, LookupError::Busy]);
        let lookups = failures.map(|error| failure(error, "api.example:8443").unwrap_err());
        let forwarded =
            calls.map(|error| error::upstream_error(error, "api.example:8443", FailedCall::Forwarded));
        for error in lookups.chain(forwarded) {
            let message = error.message();
            assert!(message.starts_with("refrain ") && message.contains(" api.example:8443"), "{message}");
            assert!(message.contains(". ") && message.ends_with('.'), "{message}");
        }
    }
}
