//! Reading of headers: those of a request that decide how it is handled, and comma-separated lists.

mod list;
mod request_headers;

pub use self::list::{ListMember, list_members};
pub use self::request_headers::{HeaderValues, RequestHeaders};
