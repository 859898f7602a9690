//! Connections to the upstream: name resolution, TCP, outgoing proxy, TLS. Both clients share these
//! settings.

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
use super::error::{ConnectError, DnsError, Unreachable, unreachable};

/// Idle time before the first TCP keep-alive probe.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);
/// Time between two TCP keep-alive probes.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Number of unanswered TCP keep-alive probes after which a connection is closed.
pub(super) const KEEPALIVE_RETRIES: u32 = 3;

/// Time after which an idle connection is closed. Shorter than the usual limit of servers, so that
/// a pooled connection is seldom closed when a request is sent on it.
pub(super) const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(25);

type BoxError = Box<dyn Error + Send + Sync>;

/// Returns the trusted certificates of the system, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
/// Without any, every https call fails.
pub(super) fn trusted_certificates() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!("no trusted certificates found, https calls to the upstream will fail");
    }
    roots
}

/// Returns the TLS configuration of both clients, without their ALPN protocols.
pub(super) fn tls_config(trusted: RootCertStore) -> Result<ClientConfig, UpstreamSetupError> {
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|_| UpstreamSetupError::Tls)?
        .with_root_certificates(trusted)
        .with_no_client_auth())
}

/// Outgoing proxy of both clients, from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.
#[derive(Clone)]
pub(super) struct OutgoingProxy {
    /// Scheme and authority, without credentials.
    pub(super) uri: Uri,
    /// Value of `proxy-authorization`.
    pub(super) authorization: Option<HeaderValue>,
}

impl OutgoingProxy {
    /// Returns the proxy for `upstream`, if the environment names one.
    pub(super) fn from_environment(upstream: &Uri) -> Result<Option<Self>, UpstreamSetupError> {
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

/// System resolver without a cache, so that a new address of the upstream takes effect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolver;

async fn resolve(name: String) -> Result<std::vec::IntoIter<SocketAddr>, DnsError> {
    // Both clients replace port 0.
    let addresses = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(|error| {
        tracing::debug!(kind = %error.kind(), "the name of the upstream does not resolve");
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

/// Connector of passed-through requests.
#[derive(Clone)]
pub(super) struct Connector {
    route: Route,
    /// Time limit for name resolution, TCP and TLS together.
    timeout: Duration,
}

#[derive(Clone)]
enum Route {
    /// Connection to the upstream itself.
    Direct(HttpsConnector<Tcp>),
    /// Connection to the proxy, which receives the whole URL. For an http upstream.
    Forward(HttpsConnector<Tcp>, Uri),
    /// `CONNECT` tunnel through the proxy. For an https upstream.
    Tunnel(HttpsConnector<Tunnel<HttpsConnector<Tcp>>>),
}

impl Connector {
    pub(super) fn new(
        upstream: &Uri,
        tls: &ClientConfig,
        proxy: Option<&OutgoingProxy>,
        timeout: Duration,
    ) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        // Divided among the addresses of a name, so that one dead address does not use up the time.
        tcp.set_connect_timeout(Some(timeout));
        let builder = || HttpsConnectorBuilder::new().with_tls_config(tls.clone());
        let route = match proxy {
            None => Route::Direct(builder().https_or_http().enable_all_versions().wrap_connector(tcp)),
            Some(proxy) => {
                let to_proxy = builder().https_or_http().enable_http1().wrap_connector(tcp);
                if upstream.scheme_str() == Some("https") {
                    let mut tunnel = Tunnel::new(proxy.uri.clone(), to_proxy);
                    if let Some(authorization) = &proxy.authorization {
                        tunnel = tunnel.with_auth(authorization.clone());
                    }
                    Route::Tunnel(builder().https_only().enable_all_versions().wrap_connector(tunnel))
                } else {
                    Route::Forward(to_proxy, proxy.uri.clone())
                }
            }
        };
        Self { route, timeout }
    }
}

impl Service<Uri> for Connector {
    type Response = UpstreamIo;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<UpstreamIo, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        // The inner connectors are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, upstream: Uri) -> Self::Future {
        let timeout = self.timeout;
        let mut route = self.route.clone();
        Box::pin(async move {
            let connecting = async {
                let (result, default) = match &mut route {
                    Route::Direct(connector) => {
                        (connector.call(upstream).await.map(UpstreamIo::direct), Unreachable::Other)
                    }
                    Route::Forward(connector, proxy) => {
                        (connector.call(proxy.clone()).await.map(UpstreamIo::via_proxy), Unreachable::Proxy)
                    }
                    Route::Tunnel(connector) => {
                        (connector.call(upstream).await.map(UpstreamIo::direct), Unreachable::Proxy)
                    }
                };
                result.map_err(|error| connect_error(&error, default))
            };
            tokio::time::timeout(timeout, connecting).await.unwrap_or(Err(ConnectError(Unreachable::Timeout)))
        })
    }
}

fn connect_error(error: &BoxError, default: Unreachable) -> ConnectError {
    tracing::debug!(%error, "no connection to the upstream");
    ConnectError(unreachable(error.as_ref()).unwrap_or(default))
}

trait Io: Read + Write + Connection + Send + Unpin {}

impl<T: Read + Write + Connection + Send + Unpin> Io for T {}

/// Connection to the upstream or to the outgoing proxy.
pub(super) struct UpstreamIo {
    io: Box<dyn Io>,
    /// Whether requests need the whole URL.
    is_proxied: bool,
}

impl UpstreamIo {
    fn direct(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), is_proxied: false }
    }

    fn via_proxy(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), is_proxied: true }
    }
}

impl Connection for UpstreamIo {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_proxied)
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
