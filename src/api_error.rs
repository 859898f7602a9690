//! The proxy's own errors: one type, one status and code each, in the upstream's error shape, so that clients map
//! them as they map the upstream's. No library's error text, path or cause ever stands in one.
//!
//! Used by `edge` and `routes`; knows no room.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// An answer that refrain itself refuses or fails with.
///
/// `proxy-status` (RFC 9209) tells it from an error that the upstream sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// An error type of RFC 9209 2.3.
    proxy_error: &'static str,
    /// Seconds.
    retry_after: Option<u64>,
    /// Whether the connection cannot be used for another request.
    close: bool,
}

impl ApiError {
    fn new(
        status: StatusCode,
        code: &'static str,
        proxy_error: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { status, code, message: message.into(), proxy_error, retry_after: None, close: false }
    }

    /// 400 `bad_request`: the client can mend it; `message` says how.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", "http_request_error", message)
    }

    /// A refusal of the client edge with another 4xx or 501 status, for example 405 for TRACE.
    pub fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "bad_request", "http_request_denied", message)
    }

    /// 401 `invalid_token`: not a client's key, not the admin's token; `message` says which is asked for.
    pub fn invalid_token(message: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_token", "http_request_denied", message)
    }

    /// 429 `too_many_requests`, with the seconds after which another try makes sense.
    pub fn too_many_requests(retry_after: u64, message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "connection_limit_reached", message)
            .retry_after(retry_after)
    }

    /// 502 `api_error`: the upstream could not be reached or sent no sound answer. `proxy_error` is an error type
    /// of RFC 9209 2.3.
    pub fn bad_gateway(proxy_error: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "api_error", proxy_error, message)
    }

    /// 503 `api_error`: refrain is going down or full.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "api_error", "proxy_internal_response", message)
            .retry_after(1)
    }

    /// 504 `timeout`.
    pub fn timeout(proxy_error: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", proxy_error, message)
    }

    /// 500 `api_error`: a fault of ours.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "api_error",
            "proxy_internal_error",
            "refrain failed on this request.",
        )
    }

    /// The same with `retry-after`, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The same with `connection: close`, where what follows on the connection cannot be trusted.
    #[must_use]
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Its stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    success: bool,
    error: ErrorDetail<'a>,
    trace_id: String,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    code: &'a str,
    message: &'a str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            success: false,
            error: ErrorDetail { code: self.code, message: &self.message },
            trace_id: uuid::Uuid::new_v4().to_string(),
        };
        let body = serde_json::to_vec(&body).expect("strings become JSON");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let proxy_status = format!("refrain; error={}", self.proxy_error);
        headers.insert("proxy-status", HeaderValue::from_str(&proxy_status).expect("a token of RFC 9209"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 11.6.1
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // The request log reads what happened from the answer.
        response.extensions_mut().insert(self);
        response
    }
}
