//! Headers of every response of the client port: `x-request-id`, `x-cache` and `cache-status`
//! (RFC 9211).

use axum::response::Response;
use http::{HeaderName, HeaderValue};

use super::access_log::{AccessLog, Outcome};
use super::response_body::ResponseBody;
use crate::api_error::ApiError;
use crate::headers::X_REQUEST_ID;

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub(super) const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// Value of `x-cache` on failed and refused lookups, as on those that the upstream answered.
pub(super) const MISS: HeaderValue = HeaderValue::from_static("MISS");
const BYPASS: HeaderValue = HeaderValue::from_static("BYPASS");

/// Response and how it came about.
pub(super) struct Reply {
    /// Response without `x-request-id`. Of the responses to lookups, all but refusals have
    /// `x-cache` and `cache-status`.
    pub(super) response: Response<ResponseBody>,
    pub(super) outcome: Outcome,
}

impl Reply {
    /// Returns an error of refrain.
    pub(super) fn error(error: ApiError, outcome: Outcome, log: &AccessLog<'_>) -> Self {
        Self { response: error.into_response_to(log.request_id()).map(ResponseBody::from), outcome }
    }

    /// Sets the headers that every response has and writes the log line.
    pub(super) fn complete(self, log: &mut AccessLog<'_>) -> Response<ResponseBody> {
        let Self { mut response, outcome } = self;
        log.finish(&response, outcome);
        let headers = response.headers_mut();
        // Of a response that was neither served from the store nor received from the upstream.
        let detail = match outcome {
            // A hit has prebuilt headers, which are not set again.
            Outcome::Lookup(_) | Outcome::Failed | Outcome::Aborted => None,
            Outcome::Bypass => {
                headers.insert(X_CACHE, BYPASS);
                // The upstream's own members come before that of refrain (RFC 9211 2).
                headers.append(CACHE_STATUS, HeaderValue::from_static("refrain; fwd=bypass"));
                None
            }
            Outcome::Refused => Some("refrain; detail=\"refused\""),
            Outcome::Answered => Some("refrain; detail=\"answered\""),
            Outcome::Panicked => Some("refrain; detail=\"failed\""),
        };
        if let Some(detail) = detail {
            headers.insert(X_CACHE, if log.is_addressed_to_lookup() { MISS } else { BYPASS });
            headers.insert(CACHE_STATUS, HeaderValue::from_static(detail));
        }
        headers.insert(X_REQUEST_ID, log.take_request_id());
        response
    }
}

#[cfg(test)]
mod tests {
    use http::request::Parts;
    use http_body_util::BodyExt;

    use super::*;
    use crate::proxy::error;
    use crate::telemetry::Metrics;

    fn parts(method: &str, target: &str) -> Parts {
        http::Request::builder().method(method).uri(target).body(()).unwrap().into_parts().0
    }

    #[tokio::test]
    async fn panic_is_a_500_with_the_id_of_the_request() {
        let metrics = Metrics::new(["producer"]);
        let id = HeaderValue::from_static("id-1");
        let mut log = AccessLog::start(&metrics, false, &parts("POST", "/x"), id);
        let error = error::panicked("api.example:8443");
        let response = Reply::error(error, Outcome::Panicked, &log).complete(&mut log);
        assert_eq!(response.status(), 500);
        for (name, expected) in [
            ("x-request-id", "id-1"),
            ("x-cache", "BYPASS"),
            ("cache-status", "refrain; detail=\"failed\""),
            ("connection", "close"),
        ] {
            assert_eq!(response.headers().get_all(name).iter().collect::<Vec<_>>(), [expected], "{name}");
        }
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["trace_id"], "id-1");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("refrain ") && message.contains("api.example:8443"), "{message}");
    }

    #[test]
    fn refused_request_is_a_miss_only_if_addressed_to_a_lookup() {
        let metrics = Metrics::new(["producer"]);
        for (method, target, expected) in [
            ("POST", "/producer/tasks", MISS),
            ("POST", "http://localhost/producer/tasks", MISS),
            ("GET", "/producer/tasks", BYPASS),
            ("POST", "/producer/tasks?", BYPASS),
            ("POST", "/producer/tasks/", BYPASS),
            ("POST", "/producer/%74asks", BYPASS),
            ("POST", "//producer/tasks", BYPASS),
            ("POST", "/other/tasks", BYPASS),
            ("POST", "/captcha/tasks", BYPASS),
            ("POST", "/producer/audios", BYPASS),
        ] {
            let id = HeaderValue::from_static("id");
            let mut log = AccessLog::start(&metrics, false, &parts(method, target), id);
            let error = error::refused(ApiError::bad_request("x"), "host");
            let response = Reply::error(error, Outcome::Refused, &log).complete(&mut log);
            assert_eq!(response.headers()[X_CACHE], expected, "{method} {target}");
        }
    }
}
