//! Messages of refrain's own errors on the client port.
//!
//! A message says that refrain speaks, what happened to which upstream host, and what to do.

use std::borrow::Cow;

use crate::api_error::ApiError;
use crate::upstream::UpstreamError;

/// Puts in front of a reason that the request was refused and that the upstream received nothing.
pub(super) fn refused(reason: ApiError, host: &str) -> ApiError {
    reason.prefix_message(&format!("refrain refused this request and sent nothing to {host}: "))
}

/// Puts in front of a reason that the body of a request ended while it was forwarded.
pub(super) fn cut_off(reason: ApiError, host: &str) -> ApiError {
    reason.prefix_message(&format!("refrain could not send this whole request to {host}: "))
}

/// Returns the error for a panic, which is a bug.
pub(super) fn panicked(host: &str) -> ApiError {
    let advice = format!(" {host} may have received the request: check that before sending it again.");
    ApiError::internal().append_message(&advice).close()
}

/// Kind of a request whose upstream call has no valid response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailedCall {
    /// A lookup, which changes nothing.
    Lookup,
    /// A forwarded request, which may have an effect.
    Forwarded,
}

/// Returns the error for an upstream call without a valid response: 502, or 504 for a timeout.
pub(super) fn upstream_error(error: UpstreamError, host: &str, call: FailedCall) -> ApiError {
    let advice: Cow<'_, str> = match call {
        FailedCall::Lookup => "It is safe to try again.".into(),
        FailedCall::Forwarded => {
            format!("{host} may have received the request: check that before sending it again.").into()
        }
    };
    let message = match error {
        UpstreamError::Unreachable(reason) => format!(
            "refrain could not connect to {host}: {reason}. The request was not sent; it is safe to try again."
        ),
        UpstreamError::Timeout => {
            format!("refrain received no response from {host} within upstream.request_timeout. {advice}")
        }
        UpstreamError::Interrupted => {
            format!("refrain lost the connection to {host} before the response was complete. {advice}")
        }
        UpstreamError::TooLarge => format!(
            "refrain discarded the response of {host}: it is larger than upstream.max_response_bytes. \
             Request fewer ids at a time, or raise that limit."
        ),
        UpstreamError::BadMessage => {
            format!("refrain discarded the response of {host}: it is not valid HTTP. {advice}")
        }
    };
    no_response(error, message)
}

/// Returns the error for a lookup that was not sent, because the last call failed with `error`.
pub(super) fn upstream_down(error: UpstreamError, host: &str) -> ApiError {
    let message = format!(
        "refrain did not send this lookup to {host}: {error}. Try again after the time in retry-after."
    );
    no_response(error, message)
}

fn no_response(error: UpstreamError, message: String) -> ApiError {
    if error.is_timeout() {
        ApiError::timeout(error.proxy_status(), message)
    } else {
        ApiError::bad_gateway(error.proxy_status(), message)
    }
}
