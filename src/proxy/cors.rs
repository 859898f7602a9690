//! CORS according to `server.cors_origins` (Fetch standard, "CORS protocol").
//!
//! Without origins, CORS is left to the upstream, including preflights. With origins, only
//! refrain's CORS headers reach the browser: it refuses a response that carries those of two
//! servers.

use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// Response headers that a browser app may read: refrain's own and, by `*`, those of a forwarded
/// response. `*` is valid for requests without credentials, which are the only ones that are
/// allowed.
const EXPOSED: [HeaderName; 8] = [
    header::AGE,
    header::RETRY_AFTER,
    HeaderName::from_static("cache-status"),
    HeaderName::from_static("x-cache"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("proxy-status"),
    HeaderName::from_static("*"),
];

/// Returns the CORS layer for these origins, or `None` if there are none.
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

/// Whether the CORS layer handles a request. It would answer any `OPTIONS` request, so only
/// preflights reach it.
pub(super) fn applies_to(parts: &Parts) -> bool {
    parts.method != Method::OPTIONS || parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Whether the CORS layer answers a request to which it applies.
pub(super) fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS
}

/// Removes the upstream's CORS headers.
pub(super) fn remove_upstream_headers(headers: &mut HeaderMap) {
    headers.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
    headers.remove(header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response, StatusCode};
    use tower::{Layer, ServiceExt, service_fn};

    use super::*;

    const OURS: &str = "https://app.example";

    /// Returns the response that a browser gets if the upstream sends CORS headers of its own.
    async fn response(origins: &[&str], method: Method, fields: &[(HeaderName, &str)]) -> Response<()> {
        let upstream = service_fn(async |_: Request<()>| {
            let mut response = Response::builder()
                .status(StatusCode::IM_A_TEAPOT)
                .header(header::ACCESS_CONTROL_ALLOW_ORIGIN, "https://other.example")
                .header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true")
                .header(header::ACCESS_CONTROL_EXPOSE_HEADERS, "x-upstream")
                .body(())
                .expect("a response");
            remove_upstream_headers(response.headers_mut());
            Ok::<_, Infallible>(response)
        });
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        let mut request = Request::builder().method(method);
        for (name, value) in fields {
            request = request.header(name, *value);
        }
        let cors = layer(&origins).expect("origins");
        cors.layer(upstream).oneshot(request.body(()).expect("a request")).await.expect("infallible")
    }

    fn values<'a>(response: &'a Response<()>, name: &HeaderName) -> Vec<&'a str> {
        response.headers().get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
    }

    #[tokio::test]
    async fn upstream_cors_headers_are_replaced() {
        let response = response(&[OURS], Method::POST, &[(header::ORIGIN, OURS)]).await;
        assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
        assert_eq!(values(&response, &header::ACCESS_CONTROL_ALLOW_ORIGIN), [OURS]);
        assert!(values(&response, &header::ACCESS_CONTROL_ALLOW_CREDENTIALS).is_empty());
        let exposed = values(&response, &header::ACCESS_CONTROL_EXPOSE_HEADERS);
        assert_eq!(exposed.len(), 1);
        for name in ["x-cache", "cache-status", "age", "retry-after", "x-request-id", "*"] {
            assert!(exposed[0].split(',').any(|one| one.trim() == name), "{name}: {exposed:?}");
        }
    }

    #[tokio::test]
    async fn unlisted_origin_is_not_allowed() {
        for origin in ["https://other.example", "https://app.example.evil", "http://app.example", "null"] {
            let response = response(&[OURS], Method::POST, &[(header::ORIGIN, origin)]).await;
            assert!(values(&response, &header::ACCESS_CONTROL_ALLOW_ORIGIN).is_empty(), "{origin}");
        }
    }

    #[tokio::test]
    async fn preflight_is_answered_by_refrain() {
        let preflight = [
            (header::ORIGIN, OURS),
            (header::ACCESS_CONTROL_REQUEST_METHOD, "POST"),
            (header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,content-type,prefer"),
        ];
        for origins in [[OURS], ["*"]] {
            let response = response(&origins, Method::OPTIONS, &preflight).await;
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(values(&response, &header::ACCESS_CONTROL_ALLOW_ORIGIN), origins);
            assert_eq!(values(&response, &header::ACCESS_CONTROL_ALLOW_METHODS), ["POST"]);
            assert_eq!(
                values(&response, &header::ACCESS_CONTROL_ALLOW_HEADERS),
                ["authorization,content-type,prefer"]
            );
        }
    }

    #[test]
    fn options_without_preflight_skips_cors() {
        let request = Request::builder().method(Method::OPTIONS).body(()).expect("a request");
        let (mut parts, ()) = request.into_parts();
        assert!(!applies_to(&parts));
        parts.headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST"));
        assert!(applies_to(&parts));
    }
}
