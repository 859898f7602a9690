//! Errors that refrain itself returns, on both ports.
//!
//! They have the upstream's error shape, so that clients handle them as they handle the upstream's.
//! `trace_id` is the id in the response header `x-request-id`.
//! No error text of a library, no path and no cause appears in one.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::headers;

/// Error response of refrain.
///
/// The header `proxy-status` (RFC 9209) distinguishes it from an error of the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// Error type of RFC 9209 2.3.
    proxy_error: &'static str,
    retry_after: Option<Duration>,
    /// Value of `allow`.
    allow: Option<&'static str>,
    closes_connection: bool,
}

impl ApiError {
    fn new(
        status: StatusCode,
        code: &'static str,
        proxy_error: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            proxy_error,
            retry_after: None,
            allow: None,
            closes_connection: false,
        }
    }

    /// Returns 400 `bad_request`. The message says how to correct the request.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", "http_request_error", message)
    }

    /// Returns `bad_request` with another status, for example 405 for TRACE.
    pub fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "bad_request", "http_request_denied", message)
    }

    /// Returns 401 `invalid_token`. The message says which credential is expected.
    pub fn invalid_token(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_token", "http_request_denied", message)
    }

    /// Returns 429 `too_many_requests`.
    pub fn too_many_requests(retry_after: Duration, message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "connection_limit_reached", message)
            .retry_after(retry_after)
    }

    /// Returns 502 `api_error`: the upstream is unreachable or its response is invalid.
    /// `proxy_error` is an error type of RFC 9209 2.3.
    pub fn bad_gateway(proxy_error: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "api_error", proxy_error, message)
    }

    /// Returns 503 `api_error` with `retry-after: 1`: refrain is shutting down or at a limit.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "api_error", "proxy_internal_response", message)
            .retry_after(Duration::from_secs(1))
    }

    /// Returns 504 `timeout`. `proxy_error` is an error type of RFC 9209 2.3.
    pub fn timeout(proxy_error: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", proxy_error, message)
    }

    /// Returns 500 `api_error`: a bug in refrain.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "api_error",
            "proxy_internal_error",
            "refrain failed to handle this request, because of a bug. Its log has the details.",
        )
    }

    /// Puts text behind the message.
    #[must_use]
    pub fn append_message(mut self, text: &str) -> Self {
        self.message.push_str(text);
        self
    }

    /// Puts text in front of the message.
    #[must_use]
    pub fn prefix_message(mut self, prefix: &str) -> Self {
        self.message.insert_str(0, prefix);
        self
    }

    /// Sets the header `retry-after`.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Sets the header `allow`, which a 405 needs (RFC 9110 15.5.6).
    #[must_use]
    pub fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    /// Sets `connection: close`, for a connection on which the next request cannot be found
    /// reliably.
    #[must_use]
    pub fn close(mut self) -> Self {
        self.closes_connection = true;
        self
    }

    /// Status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Stable error code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Text for the client.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the response to the request with this id, which is visible ASCII.
    pub fn into_response_to(self, request_id: HeaderValue) -> Response {
        let body = ErrorBody {
            success: false,
            error: ErrorDetail { code: self.code, message: &self.message },
            trace_id: request_id.to_str().unwrap_or_default(),
        };
        let body = serde_json::to_vec(&body).expect("strings serialize to JSON");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let map = response.headers_mut();
        map.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let proxy_status = format!("refrain; error={}", self.proxy_error);
        map.insert("proxy-status", HeaderValue::from_str(&proxy_status).expect("a token of RFC 9209"));
        map.insert(headers::X_REQUEST_ID, request_id);
        if let Some(wait) = self.retry_after {
            map.insert(header::RETRY_AFTER, headers::retry_after(wait));
        }
        if let Some(methods) = self.allow {
            map.insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // Required by RFC 9110 11.6.1.
            map.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.closes_connection {
            map.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // For the access log.
        response.extensions_mut().insert(self);
        response
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    success: bool,
    error: ErrorDetail<'a>,
    trace_id: &'a str,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    code: &'a str,
    message: &'a str,
}

/// Responds to a request without an id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.into_response_to(headers::new_request_id())
    }
}
