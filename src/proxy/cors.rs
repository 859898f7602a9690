//! CORS by `server.cors_origins` (Fetch standard, "CORS protocol"). Empty: it is left to the upstream, preflights
//! included. Else it is refrain's alone: what the upstream says of it about a passed-through answer is dropped, since
//! two answers to one question make a browser refuse both, and another's list of origins is not ours.

use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// Headers of responses that a browser app may read: ours by name, and any other, so that what passed through can be read
/// as it is. The star holds for requests without credentials, the only ones that are allowed.
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
pub(super) fn concerns(parts: &Parts) -> bool {
    parts.method != Method::OPTIONS || parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Drops what the upstream allows whom.
pub(super) fn drop_upstreams(headers: &mut HeaderMap) {
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

    /// What a browser gets that is behind CORS for these origins from an upstream with CORS of its own.
    async fn answer(origins: &[&str], method: Method, fields: &[(HeaderName, &str)]) -> Response<()> {
        let upstream = service_fn(async |_: Request<()>| {
            let mut response = Response::builder()
                .status(StatusCode::IM_A_TEAPOT)
                .header(header::ACCESS_CONTROL_ALLOW_ORIGIN, "https://other.example")
                .header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true")
                .header(header::ACCESS_CONTROL_EXPOSE_HEADERS, "x-upstream")
                .body(())
                .expect("a response");
            drop_upstreams(response.headers_mut());
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
    async fn of_two_opinions_about_an_answer_only_ours_reaches_the_browser() {
        let response = answer(&[OURS], Method::POST, &[(header::ORIGIN, OURS)]).await;
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
    async fn an_origin_that_is_not_listed_is_allowed_nothing_whatever_the_upstream_says() {
        for origin in ["https://other.example", "https://app.example.evil", "http://app.example", "null"] {
            let response = answer(&[OURS], Method::POST, &[(header::ORIGIN, origin)]).await;
            assert!(values(&response, &header::ACCESS_CONTROL_ALLOW_ORIGIN).is_empty(), "{origin}");
        }
    }

    #[tokio::test]
    async fn a_preflight_is_answered_here() {
        let preflight = [
            (header::ORIGIN, OURS),
            (header::ACCESS_CONTROL_REQUEST_METHOD, "POST"),
            (header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,content-type,prefer"),
        ];
        for origins in [[OURS], ["*"]] {
            let response = answer(&origins, Method::OPTIONS, &preflight).await;
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
    fn an_options_request_that_is_no_preflight_is_nothing_to_cors() {
        let request = Request::builder().method(Method::OPTIONS).body(()).expect("a request");
        let (mut parts, ()) = request.into_parts();
        assert!(!concerns(&parts));
        parts.headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST"));
        assert!(concerns(&parts));
    }
}
