//! Request ids: the header `x-request-id`.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Header with the id of a request.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Returns the `x-request-id` of a request, or a new id unless that is 1 to 128 characters of
/// visible ASCII.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_valid =
        |id: &&HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    headers.get(X_REQUEST_ID).filter(is_valid).cloned().unwrap_or_else(new_request_id)
}

/// Returns a new random UUID.
pub fn new_request_id() -> HeaderValue {
    // Unique but not secret, so a generator without a system call is enough.
    let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
    let mut text = uuid::Uuid::encode_buffer();
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).expect("hex digits and dashes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_short_visible_id_of_the_client_is_used() {
        let longest = "x".repeat(128);
        for (value, is_used) in [
            ("a", true),
            ("!~\"", true),
            (&longest, true),
            ("", false),
            ("a b", false),
            ("a\tb", false),
            ("\u{e9}", false),
            (&format!("{longest}x"), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_str(value).unwrap());
            let id = request_id(&headers);
            assert_eq!(id == value, is_used, "{value}");
            assert!(is_used || id.len() == 36, "{value}: {id:?}");
        }
        let [one, two] = [(); 2].map(|()| request_id(&HeaderMap::new()));
        assert_ne!(one, two);
    }
}
