//! Headers of a request that decide how it is handled.
//!
//! One pass over the headers finds them all. Looking each of them up by name would cost every hit a
//! dozen lookups.

use http::{HeaderMap, HeaderValue};

use crate::token::Token;

/// Values of one header: none, one, or one for each of its lines.
#[derive(Clone, Default)]
pub struct HeaderValues<'a> {
    first: Option<&'a HeaderValue>,
    others: Vec<&'a HeaderValue>,
}

impl<'a> HeaderValues<'a> {
    fn push(&mut self, value: &'a HeaderValue) {
        match self.first {
            None => self.first = Some(value),
            Some(_) => self.others.push(value),
        }
    }

    /// Whether the header is absent.
    pub fn is_absent(&self) -> bool {
        self.first.is_none()
    }

    /// The value of a header that has exactly one line.
    pub fn only(&self) -> Option<&'a HeaderValue> {
        self.first.filter(|_| self.others.is_empty())
    }

    /// All values, in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a HeaderValue> {
        self.first.into_iter().chain(self.others.iter().copied())
    }
}

/// Headers of a request that decide how it is handled.
#[derive(Default)]
pub struct RequestHeaders<'a> {
    /// Values of `authorization`.
    pub authorization: HeaderValues<'a>,
    /// Values of `cache-control`.
    pub cache_control: HeaderValues<'a>,
    /// Values of `connection`.
    pub connection: HeaderValues<'a>,
    /// Values of `content-encoding`.
    pub content_encoding: HeaderValues<'a>,
    /// Values of `content-type`.
    pub content_type: HeaderValues<'a>,
    /// Values of `host`.
    pub host: HeaderValues<'a>,
    /// Values of `prefer`.
    pub prefer: HeaderValues<'a>,
    /// Values of `transfer-encoding`.
    pub transfer_encoding: HeaderValues<'a>,
    /// Values of `via`.
    pub via: HeaderValues<'a>,
    /// Whether a header other than `authorization` identifies the caller: `cookie`, `x-api-key` or
    /// `payment-signature`.
    pub has_other_credentials: bool,
}

impl<'a> RequestHeaders<'a> {
    /// Finds the headers in those of a request.
    pub fn parse(headers: &'a HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            let values = match name.as_str() {
                "authorization" => &mut found.authorization,
                "cache-control" => &mut found.cache_control,
                "connection" => &mut found.connection,
                "content-encoding" => &mut found.content_encoding,
                "content-type" => &mut found.content_type,
                "host" => &mut found.host,
                "prefer" => &mut found.prefer,
                "transfer-encoding" => &mut found.transfer_encoding,
                "via" => &mut found.via,
                "cookie" | "x-api-key" | "payment-signature" => {
                    found.has_other_credentials = true;
                    continue;
                }
                _ => continue,
            };
            values.push(value);
        }
        found
    }

    /// The bearer token, if there is exactly one `authorization` header and its scheme is `Bearer`,
    /// in any letter case.
    pub fn bearer_token(&self) -> Option<&'a str> {
        let value = self.authorization.only()?.as_bytes();
        let (scheme, token) = value.split_at_checked("bearer ".len())?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return None;
        }
        let token = std::str::from_utf8(token).ok()?.trim_matches(' ');
        Token::is_valid(token).then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    #[test]
    fn each_header_has_its_values_in_order() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", "a"), ("prefer", "x"), ("other", "o"), ("prefer", "y")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let found = RequestHeaders::parse(&headers);
        assert_eq!(found.host.only(), Some(&HeaderValue::from_static("a")));
        assert_eq!(found.prefer.iter().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(found.prefer.only(), None);
        assert!(found.authorization.is_absent() && !found.prefer.is_absent());
        assert!(!found.has_other_credentials);
        for name in ["cookie", "x-api-key", "payment-signature"] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(""))]);
            assert!(RequestHeaders::parse(&headers).has_other_credentials, "{name}");
        }
    }

    #[test]
    fn bearer_token_needs_one_sound_authorization_header() {
        let token = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            RequestHeaders::parse(&headers).bearer_token().map(str::to_owned)
        };
        assert_eq!(token(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(token(&["bEARER  abc "]).as_deref(), Some("abc"));
        for none in [
            &[][..],
            &["Bearer"],
            &["Bearer "],
            &["Basic abc"],
            &["Bearer a b"],
            &["abc"],
            &["Bearer a", "Bearer a"],
        ] {
            assert_eq!(token(none), None, "{none:?}");
        }
    }
}
