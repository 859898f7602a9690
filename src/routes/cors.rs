//! CORS by `server.cors_origins` (Fetch standard, "CORS protocol"). Empty: it is left to the upstream, preflights
//! included.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// Fields of our answers that a browser app may read.
const EXPOSED: [HeaderName; 7] = [
    header::AGE,
    header::RETRY_AFTER,
    HeaderName::from_static("cache-status"),
    HeaderName::from_static("x-cache"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("proxy-status"),
];

/// CORS for these origins; `None` if there are none.
pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origin = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let cors = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(Duration::from_secs(24 * 3600));
    Some(cors)
}

/// An `OPTIONS` request that is no preflight goes on like any other, past CORS, which would answer it.
pub(super) fn concerns<B>(request: &Request<B>) -> bool {
    request.method() != Method::OPTIONS
        || request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}
