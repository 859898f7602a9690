//! Which fields go on to the next hop (RFC 9110 7.6.1), in both directions. Maps are made anew rather than thinned
//! out: taking fields from an [`http::HeaderMap`] would shuffle the others.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

use crate::token::Token;

/// Fields that could hold a secret, kept out of every library's debug output.
const SECRETS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("payment-signature"),
];

/// The fields of one hop alone, and those that the libraries on both sides write themselves.
///
/// `proxy-authorization` and `proxy-authenticate` are between a client and its proxy (RFC 9110 11.7), which is not
/// us: handed on they would show a secret to the wrong host. `trailer` is not among them: it belongs to the body.
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

/// The names in `connection`, in lower case.
fn named_by_connection(headers: &HeaderMap) -> Vec<Vec<u8>> {
    let lines = headers.get_all(header::CONNECTION).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|name| name.trim_ascii().to_ascii_lowercase())
        .collect()
}

/// Returns a predicate for the headers that are not forwarded: hop-by-hop ones and those that `connection` names.
fn hop_by_hop_filter(headers: &HeaderMap) -> impl Fn(&HeaderName) -> bool {
    let named = named_by_connection(headers);
    move |name| is_hop_by_hop(name) || named.iter().any(|named| named == name.as_str().as_bytes())
}

/// The fields of a request as the upstream gets them. `length` is that of its body, where it is known.
pub(super) fn for_upstream(parts: &Parts, length: Option<u64>, authorization: Option<&Token>) -> HeaderMap {
    let ends_here = hop_by_hop_filter(&parts.headers);
    let mut headers = HeaderMap::with_capacity(parts.headers.len() + 3);
    for (name, value) in &parts.headers {
        // `host` is the upstream's; the length is written anew below, from what the body says of itself.
        if ends_here(name) || matches!(*name, header::HOST | header::CONTENT_LENGTH) {
            continue;
        }
        // Answered here, as soon as the upstream's connection asks for the body: hyper's client does not wait.
        if *name == header::EXPECT && value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            continue;
        }
        if *name == header::AUTHORIZATION && authorization.is_some() {
            continue;
        }
        let mut value = value.clone();
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
        // A body of no bytes has a length only if the client gave one: a GET stays without.
        Some(0) if !parts.headers.contains_key(header::CONTENT_LENGTH) => {}
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        // For most methods hyper does this itself; a GET's chunks it would drop.
        None if matches!(parts.method, Method::GET | Method::HEAD) => {
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        None => {}
    }
    if wants_trailers(&parts.headers) {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.append(header::CONNECTION, HeaderValue::from_static("te"));
    }
    // RFC 9110 7.6.3: a gateway must, towards the upstream.
    let via = if parts.version < Version::HTTP_11 { "1.0 refrain" } else { "1.1 refrain" };
    headers.append(header::VIA, HeaderValue::from_static(via));
    headers
}

/// RFC 9110 10.1.4; the other members of `te` are about this hop's transfer codings.
fn wants_trailers(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::TE).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|member| member.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// The fields of an answer as the client gets them.
pub(super) fn for_client(upstream: &HeaderMap) -> HeaderMap {
    let ends_here = hop_by_hop_filter(upstream);
    let mut headers = HeaderMap::with_capacity(upstream.len() + 1);
    for (name, value) in upstream {
        if !ends_here(name) {
            headers.append(name, value.clone());
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method("POST").uri("/x");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn a_request_goes_on_in_order_without_the_fields_of_its_hop() {
        let parts = parts(&[
            ("host", "localhost"),
            ("x-a", "1"),
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "secret of this hop"),
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
                "via: 1.1 refrain",
                "authorization: Bearer t",
                "trailer: x-sum",
                "content-length: 7",
                "te: trailers",
                "connection: te",
            ]
        );
    }

    #[test]
    fn the_teams_token_takes_the_place_of_the_clients_key() {
        let parts = parts(&[("authorization", "Bearer key"), ("authorization", "Bearer other")]);
        let team = Token::parse("team").unwrap();
        let headers = for_upstream(&parts, Some(0), Some(&team));
        assert_eq!(lines(&headers), ["authorization: Bearer team", "via: 1.1 refrain"]);
        assert!(headers[header::AUTHORIZATION].is_sensitive());
    }

    #[test]
    fn an_empty_body_keeps_the_length_that_the_client_gave() {
        assert!(!for_upstream(&parts(&[]), Some(0), None).contains_key("content-length"));
        let headers = for_upstream(&parts(&[("content-length", "0")]), Some(0), None);
        assert_eq!(headers["content-length"], "0");
    }

    #[test]
    fn an_answer_comes_back_without_the_fields_of_its_hop() {
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
