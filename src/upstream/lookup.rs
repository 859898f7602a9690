//! Lookup calls: one request, one response read into memory, limited in time and size.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::{Client, Proxy, Response, redirect, retry};
use rustls::ClientConfig;
use serde::Serialize;

use super::connect::{
    KEEPALIVE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES, OutgoingProxy, POOL_IDLE_TIMEOUT, Resolver,
};
use super::connect_time::{self, ConnectTimeLayer};
use super::content_coding::BodyDecoder;
use super::error::UpstreamError;
use super::{UpstreamSetupError, has_unambiguous_framing, origin};
use crate::config::UpstreamConfig;
use crate::headers;
use crate::task::{Service, TaskId};
use crate::token::Token;

/// Token and forwarded headers of a lookup.
#[derive(Clone)]
pub struct Credentials {
    /// Bearer token.
    pub token: Token,
    /// Client headers that `tasks.forward_headers` names.
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
}

/// Without the values of the forwarded headers, which may be secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.forwarded.iter().map(|(name, _)| name).collect();
        f.debug_struct("Credentials").field("token", &self.token).field("forwarded", &names).finish()
    }
}

/// Response of the upstream to a lookup, of any status.
#[derive(Clone, Debug)]
pub struct UpstreamResponse {
    /// Status. A redirect is not followed.
    pub status: StatusCode,
    /// Value of `content-type`.
    pub content_type: Option<HeaderValue>,
    /// Value of `retry-after`.
    pub retry_after: Option<HeaderValue>,
    /// Whole body, decoded.
    pub body: Bytes,
    /// Time that the call waited for its own new connection. Zero on a pooled connection.
    pub connect_time: Duration,
}

#[derive(Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
enum LookupBody<'a> {
    Retrieve { id: &'a str },
    RetrieveBatch { ids: Vec<&'a str> },
}

/// Client for lookups, `POST /{service}/tasks`.
pub struct UpstreamClient {
    /// Replaced by [`UpstreamClient::discard_pool`].
    client: RwLock<Client>,
    settings: ClientSettings,
    origin: String,
    max_response_bytes: u64,
}

/// Settings from which a [`Client`] is built.
struct ClientSettings {
    tls: ClientConfig,
    proxy: Option<OutgoingProxy>,
    connect_timeout: Duration,
    request_timeout: Duration,
}

impl ClientSettings {
    fn build(&self) -> Result<Client, UpstreamSetupError> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Resolver)
            // The batcher retries, within the rate limit. A redirect would send the token to
            // another host.
            .retry(retry::never())
            .redirect(redirect::Policy::none())
            .user_agent(concat!("refrain/", env!("CARGO_PKG_VERSION")))
            // reqwest would remove `content-length` before the framing is checked.
            .no_gzip()
            .referer(false)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE_INTERVAL)
            .tcp_keepalive_retries(KEEPALIVE_RETRIES)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .connect_timeout(self.connect_timeout)
            .timeout(self.request_timeout)
            // `OutgoingProxy` has read the environment for both clients.
            .no_proxy()
            .connector_layer(ConnectTimeLayer);
        if let Some(outgoing) = &self.proxy {
            let mut proxy = Proxy::all(outgoing.uri.to_string()).map_err(UpstreamSetupError::Client)?;
            if let Some(authorization) = &outgoing.authorization {
                proxy = proxy.custom_http_auth(authorization.clone());
            }
            builder = builder.proxy(proxy);
        }
        builder.build().map_err(UpstreamSetupError::Client)
    }
}

impl UpstreamClient {
    pub(super) fn new(
        config: &UpstreamConfig,
        tls: ClientConfig,
        proxy: Option<OutgoingProxy>,
    ) -> Result<Self, UpstreamSetupError> {
        let settings = ClientSettings {
            tls,
            proxy,
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
        };
        Ok(Self {
            client: RwLock::new(settings.build()?),
            settings,
            origin: origin(&config.base_url),
            max_response_bytes: config.max_response_bytes,
        })
    }

    /// Looks up `ids`, of which there is at least one, in one call: `retrieve` for one id,
    /// `retrieve_batch` for more.
    ///
    /// Sends the call once. Cancel safe: dropping the future ends the call.
    pub async fn look_up(
        &self,
        service: &Service,
        credentials: &Credentials,
        ids: &[TaskId],
    ) -> Result<UpstreamResponse, UpstreamError> {
        let body = match ids {
            [id] => LookupBody::Retrieve { id: id.as_str() },
            ids => LookupBody::RetrieveBatch { ids: ids.iter().map(TaskId::as_str).collect() },
        };
        let body = serde_json::to_vec(&body).expect("strings can be serialized");
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let call = client
            .post(format!("{}/{service}/tasks", self.origin))
            .headers(request_headers(credentials))
            .body(body)
            .send();
        let (result, connect_time) = connect_time::measure(call).await;
        let response = match result {
            Ok(response) => self.read(response, connect_time).await,
            Err(error) => Err(UpstreamError::from_lookup(&error)),
        };
        if let Err(UpstreamError::BadMessage) = response {
            self.discard_pool();
        }
        response
    }

    async fn read(
        &self,
        mut response: Response,
        connect_time: Duration,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let headers = response.headers();
        if response.status().is_informational() || !has_unambiguous_framing(headers) {
            return Err(UpstreamError::BadMessage);
        }
        let mut body = BodyDecoder::new(headers, self.max_response_bytes)?;
        if response.content_length().is_some_and(|length| length > self.max_response_bytes) {
            return Err(UpstreamError::TooLarge);
        }
        let status = response.status();
        let content_type = headers.get(header::CONTENT_TYPE).map(headers::copy);
        let retry_after = headers.get(header::RETRY_AFTER).map(headers::copy);
        while let Some(chunk) = response.chunk().await.map_err(|error| UpstreamError::from_lookup(&error))? {
            body.decode(&chunk).await?;
        }
        Ok(UpstreamResponse { status, content_type, retry_after, body: body.finish()?, connect_time })
    }

    /// Replaces the client, so that a connection with a malformed response is not used again.
    /// reqwest cannot close a single connection, so all idle ones are closed. Running calls keep
    /// theirs to their end.
    fn discard_pool(&self) {
        match self.settings.build() {
            Ok(client) => *self.client.write().unwrap_or_else(PoisonError::into_inner) = client,
            Err(error) => tracing::error!(%error, "cannot replace the client for lookups"),
        }
    }
}

/// Returns all request headers except `host`, `content-length` and `user-agent`, which reqwest
/// adds.
fn request_headers(credentials: &Credentials) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &credentials.forwarded {
        headers.append(name, value.clone());
    }
    let mut authorization = HeaderValue::from_str(&format!("Bearer {}", credentials.token.expose()))
        .expect("a token is visible ASCII");
    authorization.set_sensitive(true);
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::AUTHORIZATION, authorization);
    headers.insert(header::ACCEPT, json.clone());
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::CONTENT_TYPE, json);
    headers
}
