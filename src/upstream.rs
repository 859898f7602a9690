//! Calls to the upstream: lookups through [`UpstreamClient`], every other request through
//! [`Passthrough`].
//!
//! No other module calls the upstream. Both clients share the TLS configuration, the resolver and
//! the outgoing proxy. Each call is sent once: caching, rate limiting and retries belong to the
//! callers.

mod connect;
mod connect_time;
mod content_coding;
mod error;
mod lookup;
mod passthrough;
#[cfg(test)]
mod tests;

use http::{HeaderMap, Uri, header};

pub use content_coding::decode_body;
pub use error::{Unreachable, UpstreamError};
pub use lookup::{Credentials, UpstreamClient, UpstreamResponse};
pub use passthrough::Passthrough;

use crate::config::UpstreamConfig;
use connect::OutgoingProxy;

/// Reason why the clients could not be built at start.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamSetupError {
    /// `upstream.base_url` is not `http` or `https` with an authority.
    #[error("upstream.base_url must be http:// or https:// and a host")]
    BaseUrl,
    /// rustls has no protocol version in common with its crypto provider.
    #[error("cannot set up TLS")]
    Tls,
    /// The environment names a proxy that is not an HTTP proxy.
    #[error("the proxy in the environment is neither http:// nor https://")]
    Proxy,
    /// reqwest rejected its settings.
    #[error("cannot set up the client for lookups")]
    Client(#[source] reqwest::Error),
}

/// Builds the clients of the configured upstream.
pub fn build_clients(config: &UpstreamConfig) -> Result<(UpstreamClient, Passthrough), UpstreamSetupError> {
    let upstream = &config.base_url;
    if !matches!(upstream.scheme_str(), Some("http" | "https")) || upstream.authority().is_none() {
        return Err(UpstreamSetupError::BaseUrl);
    }
    let proxy = OutgoingProxy::from_environment(upstream)?;
    build(config, connect::tls_config(connect::trusted_certificates())?, proxy)
}

fn build(
    config: &UpstreamConfig,
    tls: rustls::ClientConfig,
    proxy: Option<OutgoingProxy>,
) -> Result<(UpstreamClient, Passthrough), UpstreamSetupError> {
    let passthrough = Passthrough::new(config, &tls, proxy.as_ref());
    let lookups = UpstreamClient::new(config, tls, proxy)?;
    Ok((lookups, passthrough))
}

/// Returns the scheme and authority of the upstream, without a path.
fn origin(upstream: &Uri) -> String {
    let scheme = upstream.scheme_str().unwrap_or_default();
    let authority = upstream.authority().map_or("", |authority| authority.as_str());
    format!("{scheme}://{authority}")
}

/// Returns whether the framing of a response is unambiguous: one length or one `chunked`, never
/// both (RFC 9112 6.3). hyper prefers the chunks; another server on the way may have preferred the
/// length.
fn has_unambiguous_framing(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (lengths.next(), codings.next()) {
        (None, None) => true,
        (Some(length), None) => lengths.next().is_none() && length.as_bytes().iter().all(u8::is_ascii_digit),
        (None, Some(coding)) => {
            codings.next().is_none() && coding.as_bytes().eq_ignore_ascii_case(b"chunked")
        }
        (Some(_), Some(_)) => false,
    }
}
