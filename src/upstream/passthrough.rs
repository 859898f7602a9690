//! Passed-through requests: sent once, as they are, streaming both ways. No limit but that of the connection
//! attempt and the search for dead peers: a paid call may take half an hour, and a client that got an error of ours
//! meanwhile would send it again.

use std::time::Duration;

use axum::body::Body;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use super::connect::{Connector, OutgoingProxy};
use super::{Unreachable, UpstreamError, is_framing_sound};
use crate::config::UpstreamConfig;

const POOL_IDLE: Duration = Duration::from_secs(25);
const POOL_SIZE: usize = 64;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The client of everything that is not a look-up.
///
/// hyper-util's rather than reqwest's: it sends an [`http::Uri`] as it is, while URL types rewrite paths.
#[derive(Clone)]
pub struct Passthrough {
    client: Client<Connector, Body>,
    scheme: Scheme,
    authority: Authority,
    /// `proxy-authorization` for an outgoing proxy that is given whole URLs.
    proxy_authorization: Option<HeaderValue>,
    forwards_to_proxy: bool,
}

impl Passthrough {
    pub(super) fn new(config: &UpstreamConfig, tls: &ClientConfig, proxy: Option<&OutgoingProxy>) -> Self {
        let upstream = &config.base_url;
        let connector = Connector::new(upstream, tls, proxy, config.connect_timeout);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_SIZE)
            .http1_preserve_header_case(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_adaptive_window(false)
            // This "retry" is none: hyper hands a request back only while it still waits in the queue of a pooled
            // connection that turned out to be closed, before its head is encoded or its body is asked for
            // (hyper's client/dispatch.rs, `TrySendError::message`; a request that was begun has none). Without it
            // a client would get a 502 for a request of which not a byte was sent, and send a paid call again.
            .retry_canceled_requests(true)
            .build(connector);
        let forwards_to_proxy = proxy.is_some() && upstream.scheme() == Some(&Scheme::HTTP);
        Self {
            client,
            scheme: upstream.scheme().cloned().unwrap_or(Scheme::HTTP),
            authority: upstream.authority().cloned().unwrap_or_else(|| Authority::from_static("localhost")),
            proxy_authorization: proxy
                .filter(|_| forwards_to_proxy)
                .and_then(|proxy| proxy.authorization.clone()),
            forwards_to_proxy,
        }
    }

    /// Sends `request` to the upstream, once, and gives its answer as soon as the head is there. Of the request's
    /// URI only path and query count, and go as they are. Fields are the caller's business, except `host`, which is
    /// the upstream's. Dropping this future or the answer's body ends the call.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, UpstreamError> {
        *request.uri_mut() = self.uri(request.uri().path_and_query());
        *request.version_mut() = Version::HTTP_11;
        // Left out here, it is written on HTTP/1 and stands in `:authority` on HTTP/2.
        request.headers_mut().remove(header::HOST);
        if let Some(authorization) = &self.proxy_authorization {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
        let connection = capture_connection(&mut request);
        let response = self.client.request(request).await.map_err(|error| {
            tracing::debug!(%error, "passed-through request failed");
            UpstreamError::of_passthrough(&error)
        })?;
        let fault = if response.status().is_informational() || !is_framing_sound(response.headers()) {
            Some(UpstreamError::BadMessage)
        } else if self.forwards_to_proxy && response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            // The proxy asks us, not the client.
            Some(UpstreamError::Unreachable(Unreachable::Proxy))
        } else {
            None
        };
        match fault {
            None => Ok(response),
            Some(fault) => {
                if let Some(connected) = connection.connection_metadata().as_ref() {
                    connected.poison();
                }
                Err(fault)
            }
        }
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
