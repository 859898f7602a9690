//! Passed-through requests: sent unchanged, once, streaming both ways.
//!
//! Only the connection attempt has a time limit, and only dead connections are closed. A paid call
//! may take half an hour, and a client that received an error meanwhile would send it again.

use std::time::Duration;

use axum::body::Body;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use super::connect::{Connector, OutgoingProxy, POOL_IDLE_TIMEOUT};
use super::error::{Unreachable, UpstreamError};
use super::has_unambiguous_framing;
use crate::config::UpstreamConfig;

/// Largest number of idle connections.
const POOL_SIZE: usize = 64;
/// Time between two HTTP/2 pings.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Time after which an unanswered ping closes the connection.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest number of bytes of an HTTP/1.1 response that are read ahead of a slow client, several
/// times: in the connection, between the tasks, and for the client's socket. Also the largest head
/// of a response.
const HTTP1_BUFFER: usize = 32 * 1024;
/// Largest number of bytes of an HTTP/2 response that are read ahead of a slow client. With a round
/// trip of 100 ms it allows 2.5 MB/s.
const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
/// The largest window of a connection, so that only the windows of the streams count. Otherwise some
/// slow clients would use up the window and stall all others on the connection.
const HTTP2_CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Client for every request that is not a lookup.
///
/// It uses hyper-util, which sends an [`http::Uri`] unchanged. reqwest uses a URL type that
/// rewrites paths.
#[derive(Clone)]
pub struct Passthrough {
    client: Client<Connector, Body>,
    scheme: Scheme,
    authority: Authority,
    /// Whether requests go to an outgoing proxy with their whole URL.
    forwards_to_proxy: bool,
    /// `proxy-authorization` for that proxy.
    proxy_authorization: Option<HeaderValue>,
}

impl Passthrough {
    pub(super) fn new(config: &UpstreamConfig, tls: &ClientConfig, proxy: Option<&OutgoingProxy>) -> Self {
        let upstream = &config.base_url;
        let connector = Connector::new(upstream, tls, proxy, config.connect_timeout);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(POOL_SIZE)
            .http1_preserve_header_case(true)
            .http1_max_buf_size(HTTP1_BUFFER)
            .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_adaptive_window(false)
            // This does not send a request twice. hyper returns a request only while it waits in
            // the queue of a pooled connection that turns out to be closed, before its head is
            // encoded or its body is polled (`TrySendError::message` in hyper's
            // client/dispatch.rs). Without it, a client would receive a 502 for a request of which
            // no byte was sent, and would repeat a paid call.
            .retry_canceled_requests(true)
            .build(connector);
        let forwards_to_proxy = proxy.is_some() && upstream.scheme() == Some(&Scheme::HTTP);
        Self {
            client,
            scheme: upstream.scheme().cloned().unwrap_or(Scheme::HTTP),
            authority: upstream.authority().cloned().unwrap_or_else(|| Authority::from_static("localhost")),
            forwards_to_proxy,
            proxy_authorization: proxy
                .filter(|_| forwards_to_proxy)
                .and_then(|proxy| proxy.authorization.clone()),
        }
    }

    /// Sends `request` to the upstream once and returns the response when its head has arrived.
    ///
    /// Only the path and query of the request's URI are used, unchanged. `host` is set to the
    /// upstream; the other headers are sent as they are. Dropping this future or the response body
    /// ends the call.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        *request.uri_mut() = self.uri(request.uri().path_and_query());
        *request.version_mut() = Version::HTTP_11;
        // hyper adds it on HTTP/1, and sends `:authority` on HTTP/2.
        request.headers_mut().remove(header::HOST);
        if let Some(authorization) = &self.proxy_authorization {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
        if let Some(connection) = request.headers_mut().remove(header::CONNECTION) {
            // On HTTP/2, hyper removes the headers that the first line of `connection` names, but
            // `te: trailers` is valid there.
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
            request.headers_mut().append(header::CONNECTION, connection);
        }
        let connection = capture_connection(&mut request);
        let response = self.client.request(request).await.map_err(|error| {
            tracing::debug!(%error, "a passed-through request failed");
            UpstreamError::from_passthrough(&error)
        })?;
        let error = if response.status().is_informational() || !has_unambiguous_framing(response.headers()) {
            Some(UpstreamError::BadMessage)
        } else if self.forwards_to_proxy && response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            // The proxy requires credentials of refrain, not of the client.
            Some(UpstreamError::Unreachable(Unreachable::Proxy))
        } else {
            None
        };
        match error {
            None => Ok(response),
            Some(error) => {
                if let Some(connected) = connection.connection_metadata().as_ref() {
                    connected.poison();
                }
                Err(error)
            }
        }
    }

    /// Host of the upstream, with its port if `upstream.base_url` has one.
    pub fn host(&self) -> &str {
        self.authority.as_str()
    }

    fn uri(&self, target: Option<&PathAndQuery>) -> Uri {
        let target = target.cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(target);
        Uri::from_parts(parts).expect("scheme, authority and path make a URI")
    }
}
