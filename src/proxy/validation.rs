//! The layer in front of everything on the client port: what is not sound HTTP, or would mean one thing here and
//! another upstream, is refused before any route sees it. So what is routed is what is sent, byte for byte.
//!
//! hyper's parser has refused the rest by then: bad syntax, heads too large, lengths that contradict each other.
//! A `content-length` beside `transfer-encoding` it has dropped, and closes the connection after the answer
//! (RFC 9112 6.3).

use std::net::Ipv6Addr;

use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Uri, Version, header};

use crate::api_error::ApiError;
use crate::headers::{HeaderValues, RequestHeaders};

/// Answer of `allow` fields of ours.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// The answer to a request that goes no further: the refusal of [`check`], or the answer to `OPTIONS *`, which asks about
/// this server itself (RFC 9110 9.3.7). `None` for a request that is sound.
pub(super) fn answer(parts: &Parts, fields: &RequestHeaders<'_>) -> Option<Response> {
    let mut response = match check(parts, fields) {
        Err(refusal) => refusal.into_response(),
        Ok(()) if is_asterisk(&parts.uri) => StatusCode::NO_CONTENT.into_response(),
        Ok(()) => return None,
    };
    if matches!(response.status(), StatusCode::METHOD_NOT_ALLOWED | StatusCode::NO_CONTENT) {
        response.headers_mut().insert(header::ALLOW, METHODS);
    }
    Some(response)
}

/// Whether a request's head is sound; else the refusal.
fn check(parts: &Parts, fields: &RequestHeaders<'_>) -> Result<(), ApiError> {
    check_framing(&fields.transfer_encoding)?;
    match parts.method {
        // TRACE would send the token back as a body; CONNECT would make a tunnel of us (RFC 9110 9.3.6, 9.3.8).
        Method::TRACE => {
            return Err(ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "TRACE is not allowed here."));
        }
        Method::CONNECT => {
            return Err(ApiError::refused(
                StatusCode::NOT_IMPLEMENTED,
                "CONNECT is not implemented here: this is a gateway to one API.",
            )
            .close());
        }
        _ => {}
    }
    check_host(parts.version, &fields.host)?;
    check_connection(&fields.connection)?;
    check_target(&parts.method, &parts.uri)
}

/// RFC 9112 6.1: one `transfer-encoding` line, `chunked` and nothing else; every other form is read in different
/// ways by different servers.
fn check_framing(codings: &HeaderValues<'_>) -> Result<(), ApiError> {
    match codings.only() {
        None if codings.is_absent() => Ok(()),
        Some(coding) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(ApiError::bad_request("Transfer-Encoding must be exactly one chunked.").close()),
    }
}

/// RFC 9112 3.2: exactly one valid `host`, from HTTP/1.1 on.
fn check_host(version: Version, hosts: &HeaderValues<'_>) -> Result<(), ApiError> {
    match hosts.only() {
        None if hosts.is_absent() && version < Version::HTTP_11 => Ok(()),
        None if hosts.is_absent() => Err(ApiError::bad_request("The Host field is missing.").close()),
        None => Err(ApiError::bad_request("There is more than one Host field.").close()),
        Some(host) if is_host(host.as_bytes()) => Ok(()),
        Some(_) => Err(ApiError::bad_request("The Host field is not a host.").close()),
    }
}

/// `uri-host [ ":" port ]` of RFC 9110 7.2, without the comma that RFC 3986 would allow in a name: it is how some
/// servers join two fields into one.
fn is_host(host: &[u8]) -> bool {
    let end_of_name = match host {
        // An address in brackets has colons of its own.
        [b'[', ..] => host.iter().position(|byte| *byte == b']').map_or(0, |end| end + 1),
        _ => host.iter().position(|byte| *byte == b':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end_of_name);
    let name_is_sound = match name {
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok())
        }
        _ => is_registered_name(name),
    };
    // Nothing may stand between the bracket and the port.
    name_is_sound && (port.is_empty() || port.strip_prefix(b":").is_some_and(is_port))
}

/// `*DIGIT` of RFC 3986 3.2.3, and a port that there is.
fn is_port(port: &[u8]) -> bool {
    let number = port.iter().try_fold(0_u32, |number, byte| {
        byte.is_ascii_digit().then(|| (number * 10 + u32::from(byte - b'0')).min(1 << 16))
    });
    number.is_some_and(|number| number < 1 << 16)
}

/// `reg-name` of RFC 3986 3.2.2, at least one character long.
fn is_registered_name(mut name: &[u8]) -> bool {
    /// What stands for itself in one.
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

/// RFC 9110 7.6.1: `connection` names fields of this hop alone, which we drop. A field that says what the request
/// is, or who sends it, must not vanish on the way.
fn check_connection(connection: &HeaderValues<'_>) -> Result<(), ApiError> {
    for line in connection.values() {
        for option in line.as_bytes().split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if !option.iter().all(|byte| is_token_byte(*byte)) {
                return Err(ApiError::bad_request("The Connection field is not a list of names.").close());
            }
            if is_end_to_end(&option.to_ascii_lowercase()) {
                return Err(ApiError::bad_request(
                    "The Connection field names a field that belongs to the whole way.",
                )
                .close());
            }
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

/// RFC 9110 5.6.2
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9112 3.2: a path, `http(s)://authority/path` (whose authority chooses nothing here), or `OPTIONS *`.
fn check_target(method: &Method, uri: &Uri) -> Result<(), ApiError> {
    let refused = |message| Err(ApiError::bad_request(message));
    if is_asterisk(uri) {
        return if method == Method::OPTIONS {
            Ok(())
        } else {
            refused("The target * is for OPTIONS alone.")
        };
    }
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => {}
        (Some("http" | "https"), Some(authority)) if is_host(authority.as_str().as_bytes()) => {}
        _ => return refused("The request's target is neither a path nor an http URL."),
    }
    if uri.scheme().is_none() && !uri.path().starts_with('/') {
        return refused("The request's target is neither a path nor an http URL.");
    }
    if is_ambiguous(uri.path()) {
        return refused("The request's path has dot segments or backslashes.");
    }
    Ok(())
}

fn is_asterisk(uri: &Uri) -> bool {
    uri.scheme().is_none() && uri.authority().is_none() && uri.path() == "*"
}

/// Whether somebody behind us could read a path as another one: `.` and `..` as a segment, in any spelling, or `\`,
/// which some take for `/`. An encoded `\` alone is an ordinary character; beside dots it counts as a separator.
/// An encoded `/` is none.
fn is_ambiguous(path: &str) -> bool {
    // What makes a dot segment or a separator; most paths have none of it.
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
    use super::*;

    fn parts(method: &str, target: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn refusal(parts: &Parts) -> Option<u16> {
        check(parts, &RequestHeaders::of(&parts.headers)).err().map(|refusal| refusal.status().as_u16())
    }

    fn status(method: &str, target: &str, fields: &[(&str, &str)]) -> u16 {
        refusal(&parts(method, target, fields)).unwrap_or(200)
    }

    const HOST: (&str, &str) = ("host", "localhost");

    #[test]
    fn paths_that_somebody_could_read_otherwise_are_refused() {
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
    fn odd_but_sound_paths_pass() {
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
    fn targets_have_three_forms() {
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
    fn there_is_one_sound_host() {
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
    fn connection_names_nothing_that_belongs_to_the_whole_way() {
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
    fn transfer_encoding_is_one_chunked() {
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
