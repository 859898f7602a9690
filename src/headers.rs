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

/// Returns the value of `retry-after` for a wait: whole seconds, rounded up, at least 1.
pub fn retry_after(wait: Duration) -> HeaderValue {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1).into()
}
