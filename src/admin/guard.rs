//! Who may ask the admin port, and what browsers are told about its answers.
//!
//! While no token is set, the port trusts whoever reaches it, which is this machine. A browser on it also runs pages of
//! others, so `Host` must be a loopback name or address (a page cannot reach the port by a name of its own, DNS
//! rebinding), and a request that a browser says another site has made is refused. No answer allows CORS.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::AdminPort;
use crate::api_error::ApiError;
use crate::headers::RequestHeaders;

/// 401 without the token, where one is set.
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
    ApiError::invalid_token("The admin port asks for admin.token, as authorization: Bearer.").into_response()
}

/// 403 for a `Host` that is not this machine, while no token is set.
pub(super) async fn require_loopback_host(
    State(port): State<Arc<AdminPort>>,
    request: Request,
    next: Next,
) -> Response {
    if port.token.is_none() && !has_loopback_host(request.headers()) {
        return ApiError::refused(
            StatusCode::FORBIDDEN,
            "Without admin.token the admin port answers to loopback names and addresses only.",
        )
        .into_response();
    }
    next.run(request).await
}

/// 403 for what a page of another origin has a browser send, while no token is set.
pub(super) async fn refuse_other_sites(
    State(port): State<Arc<AdminPort>>,
    request: Request,
    next: Next,
) -> Response {
    if port.token.is_none() && is_of_another_site(request.headers()) {
        return ApiError::refused(
            StatusCode::FORBIDDEN,
            "Without admin.token the admin port answers to no other web page than its own.",
        )
        .into_response();
    }
    next.run(request).await
}

/// Nothing here is for a cache, or anything else than its content type says.
pub(super) async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.entry(X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    response
}

fn has_loopback_host(headers: &HeaderMap) -> bool {
    // A name before an `@` is none of the host's.
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

/// By `sec-fetch-site` (Fetch Metadata), and by `origin` (RFC 6454) where that is not the address that was asked.
/// Programs send neither.
fn is_of_another_site(headers: &HeaderMap) -> bool {
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
    fn other_sites_are_told_by_what_browsers_say() {
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
            assert_eq!(is_of_another_site(&headers), other, "{fields:?}");
        }
    }

    #[test]
    fn hosts_of_this_machine_are_loopback_names_and_addresses() {
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
