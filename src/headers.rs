//! Request headers that both ports read, found in one pass.

mod authorization;
mod request_headers;

pub use self::authorization::bearer;
pub use self::request_headers::{HeaderValues, RequestHeaders};
