//! Errors of upstream calls. They are safe to show to clients: no address and no text of a library.

use std::error::Error;
use std::io;

/// The name of a host does not resolve.
#[derive(Debug, thiserror::Error)]
#[error("the name does not resolve")]
pub(super) struct DnsError;

/// No connection could be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct ConnectError(pub(super) Unreachable);

/// Reason why an upstream call has no valid response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be made, so no byte of the request was sent.
    #[error("the upstream could not be reached: {0}")]
    Unreachable(Unreachable),
    /// A lookup took longer than `upstream.request_timeout`.
    #[error("the upstream did not respond in time")]
    Timeout,
    /// The connection or the framing of the body failed before the response was complete.
    #[error("the upstream's response was incomplete")]
    Interrupted,
    /// The response to a lookup is larger than `upstream.max_response_bytes`.
    #[error("the upstream's response was too large")]
    TooLarge,
    /// The response is malformed or has an encoding that was not requested.
    #[error("the upstream's response was not valid HTTP")]
    BadMessage,
}

/// Reason why no connection could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// The name of the upstream does not resolve.
    #[error("its name does not resolve")]
    Dns,
    /// No server listens on the port.
    #[error("the connection was refused")]
    Refused,
    /// There was no connection within `upstream.connect_timeout`.
    #[error("the connection timed out")]
    Timeout,
    /// The TLS handshake failed, for example because the certificate is not trusted.
    #[error("the TLS handshake failed")]
    Tls,
    /// The outgoing proxy did not make a connection.
    #[error("the outgoing proxy made no connection")]
    Proxy,
    /// Any other reason, for example no route or no free descriptor.
    #[error("the network reported an error")]
    Other,
}

impl UpstreamError {
    /// Returns the error type for the header `proxy-status` (RFC 9209 2.3).
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

    /// Returns the cause in words, without the subject if that is clear.
    pub fn cause(self) -> String {
        match self {
            Self::Unreachable(reason) => reason.to_string(),
            other => other.to_string(),
        }
    }

    /// Returns the label used in logs and metrics.
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

    /// Returns whether there was a connection, so that the upstream may have received the request.
    pub fn was_reached(self) -> bool {
        !matches!(self, Self::Unreachable(_))
    }

    /// Returns whether a time limit was the reason: 504 instead of 502.
    pub fn is_timeout(self) -> bool {
        matches!(self, Self::Timeout | Self::Unreachable(Unreachable::Timeout))
    }

    /// Classifies an error of a lookup.
    pub(super) fn from_lookup(error: &reqwest::Error) -> Self {
        if error.is_connect() {
            let reason = if error.is_timeout() { Some(Unreachable::Timeout) } else { unreachable(error) };
            return Self::Unreachable(reason.unwrap_or(Unreachable::Other));
        }
        if error.is_timeout() {
            return Self::Timeout;
        }
        after_connect(error)
    }

    /// Classifies an error of a passed-through request.
    pub(super) fn from_passthrough(error: &hyper_util::client::legacy::Error) -> Self {
        if error.is_connect() {
            return Self::Unreachable(unreachable(error).unwrap_or(Unreachable::Other));
        }
        after_connect(error)
    }
}

/// Classifies an error that occurred on an open connection.
fn after_connect(error: &(dyn Error + 'static)) -> UpstreamError {
    let malformed = find_in_chain(error, &mut |error| {
        error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse).then_some(())
    });
    if malformed.is_some() { UpstreamError::BadMessage } else { UpstreamError::Interrupted }
}

/// Returns the reason why no connection was made, if the chain of causes contains it.
pub(super) fn unreachable(error: &(dyn Error + 'static)) -> Option<Unreachable> {
    find_in_chain(error, &mut |error| {
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

/// Returns the first `Some` of `classify` for an error and its causes. The error wrapped in an
/// [`io::Error`] is visited explicitly, because `source` skips it.
fn find_in_chain<T>(
    error: &(dyn Error + 'static),
    classify: &mut dyn FnMut(&(dyn Error + 'static)) -> Option<T>,
) -> Option<T> {
    if let Some(found) = classify(error) {
        return Some(found);
    }
    if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return find_in_chain(inner, classify);
    }
    find_in_chain(error.source()?, classify)
}
