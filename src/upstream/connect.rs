//! How a connection to the upstream is made: names, TCP, the outgoing proxy, TLS. Look-ups and passed-through
//! requests share all of it.

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tower::Service;

use super::UpstreamSetupError;
use super::error::{Unreachable, unreachable};

/// A peer that is gone without a word is noticed after 30 s of silence and three probes.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);
/// Between two probes.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Probes without an answer.
pub(super) const KEEPALIVE_RETRIES: u32 = 3;

type BoxError = Box<dyn Error + Send + Sync>;

/// A name did not resolve.
#[derive(Debug, thiserror::Error)]
#[error("the name does not resolve")]
pub(super) struct DnsError;

/// No connection, with the reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct ConnectError(pub(super) Unreachable);

/// The system's trusted certificates, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`. Without any, https calls fail;
/// http ones do not need them.
pub(super) fn trusted() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!("no trusted certificates found: https calls to the upstream will fail");
    }
    roots
}

/// TLS as both clients speak it. Which protocols to offer inside is left to each.
pub(super) fn tls(trusted: RootCertStore) -> Result<ClientConfig, UpstreamSetupError> {
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| UpstreamSetupError::Tls)?
        .with_root_certificates(trusted)
        .with_no_client_auth())
}

/// The outgoing proxy on the way to the upstream, as `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
/// Asked once, for both clients: the upstream is one.
#[derive(Clone)]
pub(super) struct OutgoingProxy {
    /// Scheme and authority, without credentials.
    pub(super) uri: Uri,
    /// Its `proxy-authorization`.
    pub(super) authorization: Option<HeaderValue>,
}

impl OutgoingProxy {
    /// The system's proxy for `upstream`, if there is one.
    pub(super) fn of_system(upstream: &Uri) -> Result<Option<Self>, UpstreamSetupError> {
        Matcher::from_system().intercept(upstream).map(|found| Self::new(&found)).transpose()
    }

    fn new(found: &Intercept) -> Result<Self, UpstreamSetupError> {
        match found.uri().scheme_str() {
            Some("http" | "https") => {
                Ok(Self { uri: found.uri().clone(), authorization: found.basic_auth().cloned() })
            }
            _ => Err(UpstreamSetupError::Proxy),
        }
    }
}

/// Resolves names by the system's resolver, each time anew, so that a change of address heals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolver;

async fn resolve(name: String) -> Result<std::vec::IntoIter<SocketAddr>, DnsError> {
    // Port 0 is replaced by both clients.
    let addresses = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(|error| {
        tracing::debug!(kind = %error.kind(), "upstream's name does not resolve");
        DnsError
    })?;
    Ok(addresses.collect::<Vec<_>>().into_iter())
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = DnsError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DnsError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DnsError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(resolve(name.as_str().to_owned()))
    }
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let name = name.as_str().to_owned();
        Box::pin(async move {
            let addresses = resolve(name).await?;
            Ok(Box::new(addresses) as reqwest::dns::Addrs)
        })
    }
}

type Tcp = HttpConnector<Resolver>;

/// Makes the connections of passed-through requests.
#[derive(Clone)]
pub(super) struct Connector {
    way: Way,
    /// From the name to the end of the TLS handshake.
    limit: Duration,
}

#[derive(Clone)]
enum Way {
    /// To the upstream itself.
    Direct(HttpsConnector<Tcp>),
    /// To the proxy, which is given the whole URL: an http upstream.
    Forward(HttpsConnector<Tcp>, Uri),
    /// Through a tunnel that the proxy makes: an https upstream.
    Tunnel(HttpsConnector<Tunnel<HttpsConnector<Tcp>>>),
}

impl Connector {
    pub(super) fn new(
        upstream: &Uri,
        tls: &ClientConfig,
        proxy: Option<&OutgoingProxy>,
        limit: Duration,
    ) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        // Shared out among the addresses of a name, so that one dead address does not use up the limit.
        tcp.set_connect_timeout(Some(limit));
        let builder = || HttpsConnectorBuilder::new().with_tls_config(tls.clone());
        let way = match proxy {
            None => Way::Direct(builder().https_or_http().enable_all_versions().wrap_connector(tcp)),
            Some(proxy) => {
                let to_proxy = builder().https_or_http().enable_http1().wrap_connector(tcp);
                if upstream.scheme_str() == Some("https") {
                    let mut tunnel = Tunnel::new(proxy.uri.clone(), to_proxy);
                    if let Some(authorization) = &proxy.authorization {
                        tunnel = tunnel.with_auth(authorization.clone());
                    }
                    Way::Tunnel(builder().https_only().enable_all_versions().wrap_connector(tunnel))
                } else {
                    Way::Forward(to_proxy, proxy.uri.clone())
                }
            }
        };
        Self { way, limit }
    }
}

impl Service<Uri> for Connector {
    type Response = UpstreamIo;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<UpstreamIo, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        // None of the connectors underneath ever waits to be ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, upstream: Uri) -> Self::Future {
        let limit = self.limit;
        let mut way = self.way.clone();
        Box::pin(async move {
            let connecting = async {
                match &mut way {
                    Way::Direct(connector) => connector
                        .call(upstream)
                        .await
                        .map(|io| UpstreamIo::new(io, false))
                        .map_err(|error| reason(&error, Unreachable::Other)),
                    Way::Forward(connector, proxy) => connector
                        .call(proxy.clone())
                        .await
                        .map(|io| UpstreamIo::new(io, true))
                        .map_err(|error| reason(&error, Unreachable::Proxy)),
                    Way::Tunnel(connector) => connector
                        .call(upstream)
                        .await
                        .map(|io| UpstreamIo::new(io, false))
                        .map_err(|error| reason(&error, Unreachable::Proxy)),
                }
            };
            tokio::time::timeout(limit, connecting).await.unwrap_or(Err(ConnectError(Unreachable::Timeout)))
        })
    }
}

fn reason(error: &BoxError, otherwise: Unreachable) -> ConnectError {
    tracing::debug!(%error, "no connection to the upstream");
    ConnectError(unreachable(error.as_ref()).unwrap_or(otherwise))
}

trait Io: Read + Write + Connection + Send + Unpin {}

impl<T: Read + Write + Connection + Send + Unpin> Io for T {}

/// A connection to the upstream, or to the proxy on the way to it.
pub(super) struct UpstreamIo {
    io: Box<dyn Io>,
    proxied: bool,
}

impl UpstreamIo {
    fn new(io: impl Io + 'static, proxied: bool) -> Self {
        Self { io: Box::new(io), proxied }
    }
}

impl Connection for UpstreamIo {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.proxied)
    }
}

impl Read for UpstreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for UpstreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }
}
