//! The static files of the dashboard: the page at `/`, everything else below `/assets/`.
//!
//! The files contain no data and need no token; the script in them calls `/api/`, which does. They
//! are compiled into the program, so page and API always match. A strict content security policy
//! lets the page run and load these files only, whatever a task record contains.

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use xxhash_rust::xxh3::xxh3_128;

use super::not_found;
use crate::headers::list_members;

/// Forbids inline scripts and styles, other hosts, frames around the page, and form submissions.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                                       connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const ICON: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

/// A file in `dashboard/`.
struct Asset {
    /// Path below `/assets/`.
    path: &'static str,
    content_type: &'static str,
    body: &'static [u8],
}

/// Includes a file of the directory `dashboard/`.
macro_rules! asset {
    ($path:literal, $content_type:expr) => {
        Asset {
            path: $path,
            content_type: $content_type,
            body: include_bytes!(concat!("../../dashboard/", $path)),
        }
    };
}

const PAGE: Asset = asset!("index.html", HTML);

const ASSETS: [Asset; 19] = [
    asset!("dashboard.css", STYLE),
    asset!("theme.js", SCRIPT),
    asset!("dashboard.js", SCRIPT),
    asset!("api.js", SCRIPT),
    asset!("charts.js", SCRIPT),
    asset!("detail.js", SCRIPT),
    asset!("figures.js", SCRIPT),
    asset!("delete.js", SCRIPT),
    asset!("format.js", SCRIPT),
    asset!("links.js", SCRIPT),
    asset!("listing.js", SCRIPT),
    asset!("page.js", SCRIPT),
    asset!("request-words.js", SCRIPT),
    asset!("requests.js", SCRIPT),
    asset!("tables.js", SCRIPT),
    asset!("icon.svg", ICON),
    asset!("vendor/uplot-1.6.31/uPlot.iife.min.js", SCRIPT),
    asset!("vendor/uplot-1.6.31/uPlot.min.css", STYLE),
    asset!("vendor/uplot-1.6.31/LICENSE", TEXT),
];

/// Returns the routes of the dashboard.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(page)).route("/assets/{*path}", get(asset))
}

async fn page(request: Request) -> Response {
    respond(&PAGE, request.headers())
}

/// Matches the path without percent-decoding: no file name needs an escape.
async fn asset(request: Request) -> Response {
    let path = request.uri().path().strip_prefix("/assets/");
    match ASSETS.iter().find(|asset| Some(asset.path) == path) {
        Some(asset) => respond(asset, request.headers()),
        None => not_found().into_response(),
    }
}

/// Returns the file, or 304 if the browser has it. Browsers revalidate each time, so that a new
/// version of the program shows at once.
fn respond(asset: &Asset, request: &HeaderMap) -> Response {
    let tag = format!("\"{:032x}\"", xxh3_128(asset.body));
    let mut response = if has_tag(request, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, asset.content_type)], asset.body).into_response()
    };
    let tag = HeaderValue::from_str(&tag).expect("hex digits in quotes");
    let headers = response.headers_mut();
    headers.insert(header::ETAG, tag);
    for (name, value) in [
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether `if-none-match` lists this tag. Tags are compared weakly (RFC 9110, section 13.1.2).
fn has_tag(request: &HeaderMap, tag: &str) -> bool {
    list_members(request.get_all(header::IF_NONE_MATCH)).any(|member| {
        let member = member.as_bytes();
        member == b"*" || member.strip_prefix(b"W/").unwrap_or(member) == tag.as_bytes()
    })
}
