//! The bearer token of a request, on the client port and the admin port alike.

use super::request_headers::HeaderValues;
use crate::token::Token;

/// The bearer token, where there is exactly one `authorization` field, of scheme `Bearer` in any case, with a token.
pub fn bearer<'a>(authorization: &HeaderValues<'a>) -> Option<&'a str> {
    let value = authorization.only()?.as_bytes();
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return None;
    }
    let token = std::str::from_utf8(token).ok()?.trim_matches(' ');
    Token::is_one(token).then_some(token)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::*;
    use crate::headers::RequestHeaders;

    #[test]
    fn a_bearer_token_stands_alone() {
        let token = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            bearer(&RequestHeaders::of(&headers).authorization).map(str::to_owned)
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
