//! Validation of request heads on the client port.
//!
//! Refuses requests that violate HTTP or that refrain and the upstream could interpret differently.
//! The target that is routed is therefore, byte for byte, the target that is sent.
//!
//! hyper's parser has already refused invalid syntax, oversized heads and contradictory lengths. It
//! has dropped a `content-length` beside `transfer-encoding` and closes that connection after the
//! response (RFC 9112 6.3).

use std::net::Ipv6Addr;

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Method, StatusCode, Uri, Version, header};

use super::hops;
use crate::api_error::ApiError;
use crate::headers::{HeaderValues, RequestHeaders, list_members};

/// Value of `allow` on refrain's own responses.
const ALLOWED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Returns the response to `OPTIONS *`, which concerns the server itself (RFC 9110 9.3.7), and to
/// `OPTIONS` with `max-forwards: 0` (7.6.2). `None` for any other valid request.
///
/// # Errors
/// The request is invalid. The message begins with the reason, for a text in front of it.
pub(super) fn respond(parts: &Parts, headers: &RequestHeaders<'_>) -> Result<Option<Response>, ApiError> {
    check(parts, headers)?;
    let options = || (StatusCode::NO_CONTENT, [(header::ALLOW, ALLOWED_METHODS)]).into_response();
    Ok((is_asterisk(&parts.uri) || hops::max_forwards(parts) == Some(0)).then(options))
}

fn check(parts: &Parts, headers: &RequestHeaders<'_>) -> Result<(), ApiError> {
    check_framing(&headers.transfer_encoding)?;
    match parts.method {
        // TRACE would return the token in its body (RFC 9110 9.3.8).
        Method::TRACE => {
            return Err(ApiError::refused(
                StatusCode::METHOD_NOT_ALLOWED,
                "the method is TRACE. Use another one.",
            )
            .allow(ALLOWED_METHODS));
        }
        // CONNECT would open a tunnel (RFC 9110 9.3.6).
        Method::CONNECT => {
            return Err(ApiError::refused(
                StatusCode::NOT_IMPLEMENTED,
                "the method is CONNECT. Use refrain as the base URL, not as a forward proxy.",
            )
            .close());
        }
        _ => {}
    }
    if hops::is_loop(&headers.via) {
        let reason = "this refrain has forwarded it before. upstream.base_url leads back to it.";
        return Err(ApiError::refused(StatusCode::LOOP_DETECTED, reason));
    }
    check_host(parts.version, &headers.host)?;
    check_connection(&headers.connection)?;
    check_target(&parts.method, &parts.uri)
}

/// RFC 9112 6.1. Only one `transfer-encoding: chunked` is accepted, since servers interpret other
/// forms differently.
fn check_framing(codings: &HeaderValues<'_>) -> Result<(), ApiError> {
    match codings.only() {
        None if codings.is_absent() => Ok(()),
        Some(coding) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(malformed(
            "the Transfer-Encoding is not one header with the value chunked. Send that or none.",
        )),
    }
}

/// RFC 9112 3.2. Exactly one valid `host` from HTTP/1.1 on.
fn check_host(version: Version, hosts: &HeaderValues<'_>) -> Result<(), ApiError> {
    match hosts.only() {
        None if hosts.is_absent() && version < Version::HTTP_11 => Ok(()),
        None if hosts.is_absent() => Err(malformed("the request has no Host header. Send one.")),
        None => Err(malformed("the request has more than one Host header. Send exactly one.")),
        Some(host) if is_host(host.as_bytes()) => Ok(()),
        Some(_) => Err(malformed("the Host header is invalid. Send a host and an optional port.")),
    }
}

/// Returns 400 and closes the connection, since the end of the request is not certain.
fn malformed(message: &'static str) -> ApiError {
    ApiError::bad_request(message).close()
}

/// `uri-host [ ":" port ]` of RFC 9110 7.2. The comma that RFC 3986 allows in a name is not
/// accepted, since some servers join two headers with one.
fn is_host(host: &[u8]) -> bool {
    let end_of_name = match host {
        // An IPv6 address in brackets contains colons.
        [b'[', ..] => host.iter().position(|byte| *byte == b']').map_or(0, |end| end + 1),
        _ => host.iter().position(|byte| *byte == b':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end_of_name);
    let is_name_valid = match name {
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok())
        }
        _ => is_registered_name(name),
    };
    is_name_valid && (port.is_empty() || port.strip_prefix(b":").is_some_and(is_port))
}

/// `*DIGIT` of RFC 3986 3.2.3, up to 65535.
fn is_port(port: &[u8]) -> bool {
    let number = port.iter().try_fold(0_u32, |number, byte| {
        byte.is_ascii_digit().then(|| (number * 10 + u32::from(byte - b'0')).min(1 << 16))
    });
    number.is_some_and(|number| number < 1 << 16)
}

/// `reg-name` of RFC 3986 3.2.2 with at least one character.
fn is_registered_name(mut name: &[u8]) -> bool {
    /// `unreserved` and `sub-delims` without the comma.
    const PLAIN: [bool; 256] = {
        let (mut plain, mut byte) = ([false; 256], 0);
        while byte < 256 {
            plain[byte] = matches!(byte as u8, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~'
                | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=');
            byte += 1;
        }
        plain
    };
    if name.is_empty() {
        return false;
    }
    while let [byte, rest @ ..] = name {
        name = match (byte, rest) {
            (byte, rest) if PLAIN[usize::from(*byte)] => rest,
            (b'%', [high, low, rest @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            _ => return false,
        };
    }
    true
}

/// RFC 9110 7.6.1. `connection` names the headers that end at this hop and are therefore removed.
/// It must not name one that describes the request or identifies its sender.
fn check_connection(connection: &HeaderValues<'_>) -> Result<(), ApiError> {
    for option in list_members(connection.iter()) {
        let option = option.as_bytes();
        if !option.iter().all(|byte| is_token_byte(*byte)) {
            return Err(malformed("the Connection header is invalid. Send a list of header names."));
        }
        if is_end_to_end(&option.to_ascii_lowercase()) {
            return Err(malformed("the Connection header names an end-to-end header. Remove that name."));
        }
    }
    Ok(())
}

fn is_end_to_end(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 15] = [
        b"accept",
        b"authorization",
        b"cache-control",
        b"cookie",
        b"expect",
        b"host",
        b"idempotency-key",
        b"origin",
        b"payment-signature",
        b"prefer",
        b"range",
        b"transfer-encoding",
        b"via",
        b"x-api-key",
        b"x-record-exempt",
    ];
    name.starts_with(b"content-") || NAMES.contains(&name)
}

/// `tchar` of RFC 9110 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9112 3.2. A path, an absolute URL, whose authority is ignored, or `OPTIONS *`.
fn check_target(method: &Method, uri: &Uri) -> Result<(), ApiError> {
    let refused = |message| Err(ApiError::bad_request(message));
    if is_asterisk(uri) {
        return if method == Method::OPTIONS {
            Ok(())
        } else {
            refused("the request target is *, which only OPTIONS can have. Send a path.")
        };
    }
    let is_path_or_url = match (uri.scheme_str(), uri.authority()) {
        (None, None) => uri.path().starts_with('/'),
        (Some("http" | "https"), Some(authority)) => is_host(authority.as_str().as_bytes()),
        _ => false,
    };
    if !is_path_or_url {
        return refused("the request target is neither a path nor an http URL. Send a path.");
    }
    if is_ambiguous(uri.path()) {
        return refused("the path has dot segments or backslashes. Send the path in normal form.");
    }
    Ok(())
}

fn is_asterisk(uri: &Uri) -> bool {
    uri.scheme().is_none() && uri.authority().is_none() && uri.path() == "*"
}

/// Whether a server could read a path as another one: it has the segment `.` or `..` in any
/// encoding, or `\`, which some servers read as `/`. An encoded `\` alone is an ordinary character,
/// but beside dots it counts as a separator. An encoded `/` is not a separator.
fn is_ambiguous(path: &str) -> bool {
    // Fast path: most paths have none of these.
    if !path.bytes().any(|byte| matches!(byte, b'.' | b'%' | b'\\')) {
        return false;
    }
    if path.contains('\\') {
        return true;
    }
    path.split('/').any(|segment| {
        let segment = segment.to_ascii_lowercase();
        segment.split("%5c").any(|piece| matches!(piece.replace("%2e", ".").as_str(), "." | ".."))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn parts(method: &str, target: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn refusal(parts: &Parts) -> Option<u16> {
        check(parts, &RequestHeaders::parse(&parts.headers)).err().map(|refusal| refusal.status().as_u16())
    }

    fn status(method: &str, target: &str, fields: &[(&str, &str)]) -> u16 {
        refusal(&parts(method, target, fields)).unwrap_or(200)
    }

    const HOST: (&str, &str) = ("host", "localhost");

    #[test]
    fn ambiguous_paths_are_refused() {
        for path in [
            "/x/../producer/tasks",
            "/x/%2e%2e/producer/tasks",
            "/x/%2E./producer/tasks",
            "/x/.%2e/producer/tasks",
            "/x\\..\\producer\\tasks",
            "/./producer/tasks",
            "/producer/tasks/.",
            "/producer/tasks/..",
            "/x%5c..%5cproducer",
            "/x%5C%2e%2E%5Cproducer",
            "/a\\b",
        ] {
            assert_eq!(status("POST", path, &[HOST]), 400, "{path}");
            assert_eq!(status("POST", &format!("http://localhost{path}"), &[HOST]), 400, "{path}");
        }
    }

    #[test]
    fn unusual_valid_paths_are_accepted() {
        for path in [
            "/",
            "//producer/tasks",
            "/...",
            "/..a/b..",
            "/a%2f..b",
            "/%2fproducer",
            "/x/..%2fproducer",
            "/a%5cb",
            "/%252e%252e/x",
            "/a?b=/../c\\d",
            "/a;b=..",
        ] {
            assert_eq!(status("POST", path, &[HOST]), 200, "{path}");
        }
    }

    #[test]
    fn target_is_a_path_a_url_or_an_asterisk() {
        for (method, target, expected) in [
            ("OPTIONS", "*", 200),
            ("GET", "*", 400),
            ("GET", "!", 400),
            ("GET", "localhost:80", 400),
            ("GET", "http://other/x", 200),
            ("GET", "https://other/x", 200),
            ("GET", "http://other?x", 200),
            ("GET", "ftp://other/x", 400),
            ("GET", "http://user@other/x", 400),
            ("TRACE", "/", 405),
            ("CONNECT", "localhost:80", 501),
        ] {
            assert_eq!(status(method, target, &[HOST]), expected, "{method} {target}");
        }
    }

    #[test]
    fn exactly_one_valid_host_is_accepted() {
        for (fields, expected) in [
            (&[][..], 400),
            (&[("host", "a"), ("host", "a")], 400),
            (&[("host", "a"), ("host", "b")], 400),
            (&[("host", "")], 400),
            (&[("host", "a b")], 400),
            (&[("host", "a, b")], 400),
            (&[("host", "a,b")], 400),
            (&[("host", "a/b")], 400),
            (&[("host", "u@a")], 400),
            (&[("host", "a:b")], 400),
            (&[("host", "a:99999")], 400),
            (&[("host", "a:1:2")], 400),
            (&[("host", "%zz")], 400),
            (&[("host", "[::1")], 400),
            (&[("host", "[::1]x")], 400),
            (&[("host", "[x]")], 400),
            (&[("host", "a")], 200),
            (&[("host", "a.b-c_d:8080")], 200),
            (&[("host", "127.0.0.1:1")], 200),
            (&[("host", "[::1]")], 200),
            (&[("host", "[::1]:80")], 200),
            (&[("host", "a:")], 200),
        ] {
            assert_eq!(status("GET", "/", fields), expected, "{fields:?}");
        }
        let mut old = parts("GET", "/", &[]);
        old.version = Version::HTTP_10;
        assert_eq!(refusal(&old), None);
    }

    #[test]
    fn connection_naming_an_end_to_end_header_is_refused() {
        for (value, expected) in [
            ("keep-alive", 200),
            ("close", 200),
            ("Upgrade, x-mine", 200),
            ("TE, trailer", 200),
            ("", 200),
            ("authorization", 400),
            ("close, Authorization", 400),
            ("host", 400),
            ("content-length", 400),
            ("Content-Type", 400),
            ("transfer-encoding", 400),
            ("cookie", 400),
            ("payment-signature", 400),
            ("a b", 400),
            ("\"x\"", 400),
        ] {
            assert_eq!(status("GET", "/", &[HOST, ("connection", value)]), expected, "{value}");
        }
    }

    #[test]
    fn only_one_chunked_transfer_encoding_is_accepted() {
        for (values, expected) in [
            (&["chunked"][..], 200),
            (&["Chunked"], 200),
            (&[",chunked"], 400),
            (&["chunked,"], 400),
            (&["gzip, chunked"], 400),
            (&["identity"], 400),
            (&["chunked", "chunked"], 400),
            (&["\u{b}chunked"], 400),
        ] {
            let mut parts = parts("POST", "/", &[HOST]);
            for value in values {
                let Ok(value) = HeaderValue::from_str(value) else { continue };
                parts.headers.append(header::TRANSFER_ENCODING, value);
            }
            if parts.headers.contains_key(header::TRANSFER_ENCODING) {
                assert_eq!(refusal(&parts).unwrap_or(200), expected, "{values:?}");
            }
        }
    }
}
