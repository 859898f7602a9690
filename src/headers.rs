//! Reading of headers: those of a request that decide how it is handled, and comma-separated lists.
//! The value of `retry-after`, and request ids.

mod list;
mod request_headers;
mod request_id;

use std::time::Duration;

use http::HeaderValue;

pub use self::list::{ListMember, list_members};
pub use self::request_headers::{HeaderValues, RequestHeaders};
pub use self::request_id::{X_REQUEST_ID, new_request_id, request_id};

/// Copies a value that outlives its message. A clone is a slice of the network buffer and would keep
/// the whole head of the message in memory.
pub fn copy(value: &HeaderValue) -> HeaderValue {
    let mut copy = HeaderValue::from_bytes(value.as_bytes()).expect("the bytes of a value");
    copy.set_sensitive(value.is_sensitive());
    copy
}

/// Returns the value of `retry-after` for a wait: whole seconds, rounded up, at least 1.
pub fn retry_after(wait: Duration) -> HeaderValue {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1).into()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn copy_of_a_value_does_not_hold_the_head_of_its_message() {
        let head = Bytes::from("POST / HTTP/1.1\r\nx-test: value\r\n\r\n".to_owned());
        let mut value = HeaderValue::from_maybe_shared(head.slice(25..30)).unwrap();
        value.set_sensitive(true);
        let copy = copy(&value);
        drop(value);
        assert!(copy == "value" && copy.is_sensitive());
        assert!(head.is_unique());
    }
}
