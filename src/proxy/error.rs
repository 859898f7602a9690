//! Errors of upstream calls as errors for clients.

use crate::api_error::ApiError;
use crate::upstream::UpstreamError;

/// 502, or 504 for a timeout.
impl From<UpstreamError> for ApiError {
    fn from(error: UpstreamError) -> Self {
        let message = if error.was_reached() {
            format!("refrain has no complete response: {error}. The upstream may have received the request.")
        } else {
            format!("refrain did not send the request: {error}. It is safe to try again.")
        };
        if error.is_timeout() {
            Self::timeout(error.proxy_status(), message)
        } else {
            Self::bad_gateway(error.proxy_status(), message)
        }
    }
}
