//! What can go wrong between us and the upstream, as facts that are safe to show: no address, no library's text.

use std::error::Error;
use std::io;

use super::connect::{ConnectError, DnsError};

/// Why the upstream gave no sound answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// There is no connection, so no byte of the request was sent.
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(Unreachable),
    /// A look-up took longer than `upstream.request_timeout`.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// The connection broke, or the body's framing did, before the whole answer was there.
    #[error("the upstream's answer broke off")]
    Interrupted,
    /// A look-up's answer is larger than `upstream.max_response_bytes`.
    #[error("the upstream's answer is too large")]
    TooLarge,
    /// The answer is not sound HTTP, or not what was asked for.
    #[error("the upstream's answer is not sound HTTP")]
    BadMessage,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// Its name does not resolve.
    #[error("its name does not resolve")]
    Dns,
    /// Nobody listens there.
    #[error("the connection was refused")]
    Refused,
    /// Not within `upstream.connect_timeout`.
    #[error("no connection in time")]
    Timeout,
    /// No TLS session, a certificate that is not trusted included.
    #[error("no TLS session")]
    Tls,
    /// The proxy on the way to it gave no connection.
    #[error("the outgoing proxy gave no connection")]
    Proxy,
    /// Anything else, for example no route or no descriptor left.
    #[error("no connection")]
    Other,
}

impl UpstreamError {
    /// The error type of RFC 9209 2.3.
    pub fn proxy_status(self) -> &'static str {
        match self {
            Self::Unreachable(Unreachable::Dns) => "dns_error",
            Self::Unreachable(Unreachable::Refused) => "connection_refused",
            Self::Unreachable(Unreachable::Timeout) => "connection_timeout",
            Self::Unreachable(Unreachable::Tls) => "tls_protocol_error",
            Self::Unreachable(Unreachable::Proxy | Unreachable::Other) => "destination_unavailable",
            Self::Timeout => "http_response_timeout",
            Self::Interrupted => "http_response_incomplete",
            Self::TooLarge => "http_response_body_size",
            Self::BadMessage => "http_protocol_error",
        }
    }

    /// Its word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable(Unreachable::Dns) => "dns",
            Self::Unreachable(Unreachable::Refused) => "refused",
            Self::Unreachable(Unreachable::Timeout) => "connect_timeout",
            Self::Unreachable(Unreachable::Tls) => "tls",
            Self::Unreachable(Unreachable::Proxy) => "proxy",
            Self::Unreachable(Unreachable::Other) => "unreachable",
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
            Self::TooLarge => "too_large",
            Self::BadMessage => "bad_message",
        }
    }

    /// Whether there was a connection, so that the upstream may have seen the request.
    pub fn was_reached(self) -> bool {
        !matches!(self, Self::Unreachable(_))
    }

    /// Whether it is a matter of time: 504 rather than 502.
    pub fn is_timeout(self) -> bool {
        matches!(self, Self::Timeout | Self::Unreachable(Unreachable::Timeout))
    }

    /// The facts behind a look-up's error.
    pub(super) fn of_look_up(error: &reqwest::Error) -> Self {
        if error.is_connect() {
            let reason = if error.is_timeout() { Some(Unreachable::Timeout) } else { unreachable(error) };
            return Self::Unreachable(reason.unwrap_or(Unreachable::Other));
        }
        if error.is_timeout() {
            return Self::Timeout;
        }
        after_connect(error)
    }

    /// The facts behind a passed-through request's error.
    pub(super) fn of_passthrough(error: &hyper_util::client::legacy::Error) -> Self {
        if error.is_connect() {
            return Self::Unreachable(unreachable(error).unwrap_or(Unreachable::Other));
        }
        after_connect(error)
    }
}

fn after_connect(error: &(dyn Error + 'static)) -> UpstreamError {
    let malformed = any(error, &mut |error| {
        error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse).then_some(())
    });
    if malformed.is_some() { UpstreamError::BadMessage } else { UpstreamError::Interrupted }
}

/// Why no connection was made, where the chain of causes tells.
pub(super) fn unreachable(error: &(dyn Error + 'static)) -> Option<Unreachable> {
    any(error, &mut |error| {
        if let Some(ConnectError(reason)) = error.downcast_ref() {
            return Some(*reason);
        }
        if error.is::<DnsError>() {
            return Some(Unreachable::Dns);
        }
        if error.is::<rustls::Error>() {
            return Some(Unreachable::Tls);
        }
        match error.downcast_ref::<io::Error>()?.kind() {
            io::ErrorKind::ConnectionRefused => Some(Unreachable::Refused),
            io::ErrorKind::TimedOut => Some(Unreachable::Timeout),
            _ => None,
        }
    })
}

/// The first fact that `look` finds in an error and its causes. An [`io::Error`] is looked into as well: its
/// `source` skips the error it wraps.
fn any<T>(
    error: &(dyn Error + 'static),
    look: &mut dyn FnMut(&(dyn Error + 'static)) -> Option<T>,
) -> Option<T> {
    if let Some(found) = look(error) {
        return Some(found);
    }
    if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return any(inner, look);
    }
    any(error.source()?, look)
}
