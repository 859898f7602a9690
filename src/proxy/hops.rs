//! Hops of a request: `via` (RFC 9110 7.6.3), which shows loops, and `max-forwards` (7.6.2).

use std::sync::LazyLock;

use http::request::Parts;
use http::{HeaderValue, Method, Version, header};

use crate::headers::{HeaderValues, list_members};

/// Name of this process in `via`. It is random, so that several instances can forward to each other.
static PSEUDONYM: LazyLock<String> = LazyLock::new(|| format!("refrain-{:08x}", fastrand::u32(..)));

/// Returns the member of `via` for a request of this version.
pub(super) fn via(version: Version) -> HeaderValue {
    static MEMBERS: LazyLock<[HeaderValue; 2]> = LazyLock::new(|| {
        ["1.0", "1.1"].map(|version| {
            HeaderValue::from_str(&format!("{version} {}", *PSEUDONYM)).expect("visible ASCII")
        })
    });
    MEMBERS[usize::from(version >= Version::HTTP_11)].clone()
}

/// Whether this process has forwarded the request before.
pub(super) fn is_loop(via: &HeaderValues<'_>) -> bool {
    list_members(via.iter()).any(|member| {
        let mut parts = member.as_bytes().split(u8::is_ascii_whitespace).filter(|part| !part.is_empty());
        parts.nth(1) == Some(PSEUDONYM.as_bytes())
    })
}

/// Returns the number of times that an `OPTIONS` request may still be forwarded, if it is limited.
/// Other methods have no limit; TRACE is refused.
pub(super) fn max_forwards(parts: &Parts) -> Option<u64> {
    if parts.method != Method::OPTIONS {
        return None;
    }
    let mut lines = parts.headers.get_all(header::MAX_FORWARDS).iter();
    let (Some(limit), None) = (lines.next(), lines.next()) else { return None };
    let digits = limit.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let append = |limit: u64, digit: &u8| limit.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(digits.iter().fold(0, append))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::headers::RequestHeaders;

    fn parts(method: &str, name: &str, values: &[&str]) -> Parts {
        let mut request = Request::builder().method(method).uri("/x");
        for value in values {
            request = request.header(name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn own_name_in_via_is_a_loop() {
        let own = via(Version::HTTP_11);
        let own = own.to_str().unwrap();
        assert!(own.starts_with("1.1 refrain-") && via(Version::HTTP_10) != own, "{own}");
        for (values, expected) in [
            (&[][..], false),
            (&["1.1 refrain"], false),
            (&["1.1 refrain-00000000x, 1.0 other"], false),
            (&[own], true),
            (&["1.0 other", &format!("1.1 near,{own} (comment)")], true),
        ] {
            let parts = parts("GET", "via", values);
            assert_eq!(is_loop(&RequestHeaders::parse(&parts.headers).via), expected, "{values:?}");
        }
    }

    #[test]
    fn only_one_number_limits_options() {
        for (method, values, expected) in [
            ("OPTIONS", &["0"][..], Some(0)),
            ("OPTIONS", &["12"], Some(12)),
            ("OPTIONS", &["99999999999999999999999"], Some(u64::MAX)),
            ("OPTIONS", &[""], None),
            ("OPTIONS", &["-1"], None),
            ("OPTIONS", &["1", "0"], None),
            ("OPTIONS", &[], None),
            ("GET", &["0"], None),
        ] {
            assert_eq!(max_forwards(&parts(method, "max-forwards", values)), expected, "{method} {values:?}");
        }
    }
}
