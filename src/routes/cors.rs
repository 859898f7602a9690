//! CORS by `server.cors_origins` (Fetch standard, "CORS protocol"). Empty: it is left to the upstream, preflights
//! included.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use http::{HeaderName, HeaderValue, Method, header};
use std::time::Duration;
use tower::ServiceExt;
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

/// The handlers with CORS for these origins, of which there is at least one. Preflights are answered here; an `OPTIONS`
/// request that is no preflight goes on like any other.
pub(super) fn layer(origins: &[String], handlers: Router) -> Router {
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
    let with_cors = handlers.clone().layer(cors);
    Router::new().fallback(move |request: Request<Body>| {
        let is_plain_options = request.method() == Method::OPTIONS
            && !request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let handlers = if is_plain_options { handlers.clone() } else { with_cors.clone() };
        handlers.oneshot(request)
    })
}
