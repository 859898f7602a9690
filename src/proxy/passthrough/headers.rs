//! Headers that are forwarded to the next hop (RFC 9110 7.6.1), in both directions.
//!
//! New maps are built, since removing a header from an [`http::HeaderMap`] changes the order of the
//! others.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::headers::list_members;
use crate::proxy::hops;
use crate::token::Token;

/// Headers that may hold a secret. They are marked as sensitive, so that no library prints them.
const SECRETS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("payment-signature"),
];

/// Whether a header applies to one hop only.
///
/// `proxy-authorization` and `proxy-authenticate` are meant for a forward proxy (RFC 9110 11.7), so
/// forwarding them could show a secret to the wrong host. `trailer` is forwarded, since it
/// describes the body.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
            | header::TE
            | header::TRANSFER_ENCODING
            | header::UPGRADE
    ) || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "proxy-authentication-info")
}

/// Returns a predicate for the headers that are not forwarded: hop-by-hop ones and those that
/// `connection` names.
fn hop_by_hop_filter(headers: &HeaderMap) -> impl Fn(&HeaderName) -> bool + use<'_> {
    let named: Vec<_> = list_members(headers.get_all(header::CONNECTION)).collect();
    move |name| is_hop_by_hop(name) || named.iter().any(|named| named.is(name.as_str()))
}

/// Returns the headers of a request for the upstream. `length` is the length of its body, if known.
/// `authorization` replaces the client's own.
pub(super) fn for_upstream(parts: &Parts, length: Option<u64>, authorization: Option<&Token>) -> HeaderMap {
    let is_dropped = hop_by_hop_filter(&parts.headers);
    let max_forwards = hops::max_forwards(parts);
    let mut headers = HeaderMap::with_capacity(parts.headers.len() + 3);
    for (name, value) in &parts.headers {
        // The client adds the upstream's `host`. The length is written below.
        if is_dropped(name) || matches!(*name, header::HOST | header::CONTENT_LENGTH) {
            continue;
        }
        // hyper's server answers it as soon as the body is read.
        if *name == header::EXPECT && value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            continue;
        }
        if *name == header::AUTHORIZATION && authorization.is_some() {
            continue;
        }
        let mut value = match (name, max_forwards) {
            (&header::MAX_FORWARDS, Some(limit)) => limit.saturating_sub(1).into(),
            _ => value.clone(),
        };
        if SECRETS.contains(name) {
            value.set_sensitive(true);
        }
        headers.append(name, value);
    }
    if let Some(token) = authorization {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).expect("visible ASCII");
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    match length {
        // An empty body keeps the client's length; a GET without one gets none.
        Some(0) if !parts.headers.contains_key(header::CONTENT_LENGTH) => {}
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        // hyper does this for other methods. For these two it would drop the body.
        None if matches!(parts.method, Method::GET | Method::HEAD) => {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        None => {}
    }
    if accepts_trailers(&parts.headers) {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.append(header::CONNECTION, HeaderValue::from_static("te"));
    }
    // Required of a gateway by RFC 9110 7.6.3.
    headers.append(header::VIA, hops::via(parts.version));
    headers
}

/// RFC 9110 10.1.4. The other members of `te` are transfer codings of this hop.
fn accepts_trailers(headers: &HeaderMap) -> bool {
    list_members(headers.get_all(header::TE)).any(|member| member.is("trailers"))
}

/// Returns the headers of the upstream's response for the client, with room for those of refrain.
pub(super) fn for_client(upstream: &HeaderMap) -> HeaderMap {
    let is_dropped = hop_by_hop_filter(upstream);
    let mut headers = HeaderMap::with_capacity(upstream.len() + 3);
    for (name, value) in upstream {
        if !is_dropped(name) {
            headers.append(name, value.clone());
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Version};

    fn parts(fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method("POST").uri("/x");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let own = hops::via(Version::HTTP_11);
        let text =
            |value: &HeaderValue| if value == own { "own" } else { value.to_str().unwrap() }.to_owned();
        headers.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect()
    }

    #[test]
    fn request_headers_keep_their_order_without_hop_by_hop_ones() {
        let parts = parts(&[
            ("host", "localhost"),
            ("x-a", "1"),
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "secret"),
            ("keep-alive", "5"),
            ("proxy-connection", "x"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip, Trailers"),
            ("x-b", "2"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-a", "3"),
            ("via", "1.0 other"),
            ("authorization", "Bearer t"),
            ("content-length", "7"),
            ("trailer", "x-sum"),
        ]);
        assert_eq!(
            lines(&for_upstream(&parts, Some(7), None)),
            [
                "x-a: 1",
                "x-a: 3",
                "x-b: 2",
                "via: 1.0 other",
                "via: own",
                "authorization: Bearer t",
                "trailer: x-sum",
                "content-length: 7",
                "te: trailers",
                "connection: te",
            ]
        );
    }

    #[test]
    fn team_token_replaces_client_key() {
        let parts = parts(&[("authorization", "Bearer key"), ("authorization", "Bearer other")]);
        let team = Token::parse("team").unwrap();
        let headers = for_upstream(&parts, Some(0), Some(&team));
        assert_eq!(lines(&headers), ["authorization: Bearer team", "via: own"]);
        assert!(headers[header::AUTHORIZATION].is_sensitive());
    }

    #[test]
    fn max_forwards_of_options_is_decremented() {
        let mut parts = parts(&[("max-forwards", "3")]);
        assert_eq!(lines(&for_upstream(&parts, Some(0), None)), ["max-forwards: 3", "via: own"]);
        parts.method = Method::OPTIONS;
        assert_eq!(lines(&for_upstream(&parts, Some(0), None)), ["max-forwards: 2", "via: own"]);
    }

    #[test]
    fn empty_body_keeps_its_content_length() {
        assert!(!for_upstream(&parts(&[]), Some(0), None).contains_key("content-length"));
        let headers = for_upstream(&parts(&[("content-length", "0")]), Some(0), None);
        assert_eq!(headers["content-length"], "0");
    }

    #[test]
    fn response_headers_keep_their_order_without_hop_by_hop_ones() {
        let mut upstream = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/plain"),
            ("set-cookie", "a=1"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("set-cookie", "b=2"),
            ("upgrade", "h2"),
            ("proxy-authenticate", "Basic"),
            ("content-length", "3"),
        ] {
            upstream.append(name, HeaderValue::from_static(value));
        }
        assert_eq!(
            lines(&for_client(&upstream)),
            ["content-type: text/plain", "set-cookie: a=1", "set-cookie: b=2", "content-length: 3"]
        );
    }
}
