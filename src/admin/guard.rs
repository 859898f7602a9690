//! Access to the admin port.
//!
//! Without `admin.token`, the port trusts all programs on this machine. A browser on this machine
//! also runs pages of other sites. Therefore `Host` must be a loopback name or address, which stops
//! DNS rebinding, and requests that a page of another origin made are refused. No response allows
//! CORS.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, StatusCode, Version};

use super::state::AdminPort;
use crate::api_error::ApiError;
use crate::headers::RequestHeaders;

/// Responds with 401 if a token is set and the request does not have it.
pub(super) async fn require_token(
    State(port): State<Arc<AdminPort>>,
    request: Request,
    next: Next,
) -> Response {
    let allowed = match &port.token {
        None => true,
        Some(token) => RequestHeaders::parse(request.headers())
            .bearer_token()
            .is_some_and(|presented| token.matches(presented)),
    };
    if allowed {
        return next.run(request).await;
    }
    ApiError::invalid_token("The admin port requires admin.token, as authorization: Bearer.").into_response()
}

/// Responds with 400 unless there is exactly one `Host` (RFC 9112 3.2), and with 403 if no token is
/// set and it is not a loopback name or address.
///
/// HTTP/1.0 needs no `Host`. Some probes use it, and no browser does.
pub(super) async fn check_host(State(port): State<Arc<AdminPort>>, request: Request, next: Next) -> Response {
    let hosts = RequestHeaders::parse(request.headers()).host;
    let (is_absent, is_valid) = (hosts.is_absent(), hosts.only().is_some());
    if is_absent && request.version() < Version::HTTP_11 {
        return next.run(request).await;
    }
    if !is_valid {
        return ApiError::bad_request("The admin port needs exactly one Host header.")
            .close()
            .into_response();
    }
    if port.token.is_none() && !has_loopback_host(request.headers()) {
        return ApiError::refused(
            StatusCode::FORBIDDEN,
            "Without admin.token, the admin port accepts loopback names and addresses only in the header host.",
        )
        .into_response();
    }
    next.run(request).await
}

/// Responds with 403 if no token is set and a page of another origin made the request.
pub(super) async fn reject_other_origins(
    State(port): State<Arc<AdminPort>>,
    request: Request,
    next: Next,
) -> Response {
    if port.token.is_none() && is_from_other_origin(request.headers()) {
        return ApiError::refused(
            StatusCode::FORBIDDEN,
            "Without admin.token, the admin port refuses requests of other web pages.",
        )
        .into_response();
    }
    next.run(request).await
}

/// Forbids caches to store the response, and browsers to guess its content type.
pub(super) async fn add_security_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.entry(X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    response
}

fn has_loopback_host(headers: &HeaderMap) -> bool {
    // An authority may have user information before an `@`, a `Host` may not.
    let host = host(headers).filter(|host| !host.contains('@'));
    let Some(host) = host.and_then(|host| host.parse::<http::uri::Authority>().ok()) else {
        return false;
    };
    let host = host.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn host(headers: &HeaderMap) -> Option<&str> {
    RequestHeaders::parse(headers).host.only()?.to_str().ok()
}

/// Whether a page of another origin made the request, by `sec-fetch-site` (Fetch Metadata) or
/// `origin` (RFC 6454). Programs other than browsers send neither.
fn is_from_other_origin(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").iter();
    let mut origins = headers.get_all(ORIGIN).iter();
    let is_own = |origin: &HeaderValue| {
        let origin = origin.to_str().ok();
        let authority = origin
            .and_then(|origin| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")));
        matches!((authority, host(headers)), (Some(one), Some(other)) if one.eq_ignore_ascii_case(other))
    };
    sites.any(|site| site != "same-origin" && site != "none") || origins.any(|origin| !is_own(origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn other_origins_are_recognised_by_browser_headers() {
        let host = ("host", "127.0.0.1:8081");
        for (fields, other) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], true),
            (&[("origin", "http://127.0.0.1:8081")], false),
            (&[("origin", "https://127.0.0.1:8081")], false),
            (&[("origin", "http://127.0.0.1:3000")], true),
            (&[("origin", "http://127.0.0.1")], true),
            (&[("origin", "http://localhost:8081")], true),
            (&[("origin", "http://127.0.0.1:8081.evil.example")], true),
            (&[("origin", "null")], true),
            (&[("origin", "")], true),
            (&[("origin", "http://127.0.0.1:8081"), ("origin", "https://evil.example")], true),
            (&[("sec-fetch-site", "same-origin"), ("origin", "https://evil.example")], true),
        ] {
            let headers = headers(&[&[host], fields].concat());
            assert_eq!(is_from_other_origin(&headers), other, "{fields:?}");
        }
    }

    #[test]
    fn loopback_hosts_are_names_and_addresses_of_loopback() {
        for (fields, here) in [
            (&[("host", "127.0.0.1")][..], true),
            (&[("host", "127.1.2.3:8081")], true),
            (&[("host", "[::1]:8081")], true),
            (&[("host", "LOCALHOST")], true),
            (&[("host", "localhost.")], false),
            (&[("host", "0.0.0.0")], false),
            (&[("host", "user@localhost")], false),
            (&[("host", "")], false),
            (&[], false),
            (&[("host", "localhost"), ("host", "localhost")], false),
        ] {
            assert_eq!(has_loopback_host(&headers(fields)), here, "{fields:?}");
        }
    }
}
