//! The only place that calls the upstream: look-ups through [`UpstreamClient`], everything else through
//! [`Passthrough`]. One TLS set-up, one resolver and one outgoing proxy for both.
//!
//! No caching here, no pace and no retries: each call is sent once.

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

/// Why the clients could not be made at start.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamSetupError {
    /// `upstream.base_url` is not scheme and authority.
    #[error("upstream.base_url must be http:// or https:// and a host")]
    BaseUrl,
    /// rustls has no protocol version in common with its crypto provider.
    #[error("set up TLS")]
    Tls,
    /// The environment names a proxy that is not an HTTP one.
    #[error("the proxy in the environment is neither http:// nor https://")]
    Proxy,
    /// reqwest refused its settings.
    #[error("set up the client for look-ups")]
    Client(#[source] reqwest::Error),
}

/// The clients for one upstream.
pub fn build_clients(config: &UpstreamConfig) -> Result<(UpstreamClient, Passthrough), UpstreamSetupError> {
    let upstream = &config.base_url;
    if !matches!(upstream.scheme_str(), Some("http" | "https")) || upstream.authority().is_none() {
        return Err(UpstreamSetupError::BaseUrl);
    }
    let proxy = OutgoingProxy::of_system(upstream)?;
    build(config, connect::tls(connect::trusted())?, proxy)
}

fn build(
    config: &UpstreamConfig,
    tls: rustls::ClientConfig,
    proxy: Option<OutgoingProxy>,
) -> Result<(UpstreamClient, Passthrough), UpstreamSetupError> {
    let passthrough = Passthrough::new(config, &tls, proxy.as_ref());
    let look_ups = UpstreamClient::new(config, tls, proxy)?;
    Ok((look_ups, passthrough))
}

/// Scheme and authority of the upstream, to put before a path.
fn origin(upstream: &Uri) -> String {
    let scheme = upstream.scheme_str().unwrap_or_default();
    let authority = upstream.authority().map_or("", |authority| authority.as_str());
    format!("{scheme}://{authority}")
}

/// Whether an answer's framing can be read in one way only: one length or one `chunked`, never both
/// (RFC 9112 6.3). hyper prefers the chunks; what stands behind us may have preferred the length.
fn is_framing_sound(headers: &HeaderMap) -> bool {
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
