//! The bearer token of a request, on the client port and the admin port alike.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::task::Token;

/// The bearer token, where there is exactly one `authorization` field, of scheme `Bearer` in any case, with a token.
pub(super) fn bearer(headers: &HeaderMap) -> Option<Token> {
    let value = only(headers, &header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    Token::parse(token.trim_matches(' '))
}

/// The value of a field that stands there exactly once.
pub(super) fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_stands_alone() {
        let token = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            bearer(&headers).map(|token| token.expose().to_owned())
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
